// Compiles the kernel add-on with the node-gyp that npm carries. Works offline: node's own headers are used where the
// installation has them, so nothing is downloaded. Without a compiler the package still installs: src/kernels/reference.ts
// then does the work, slowly, and says so once.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const prefix = resolve(process.execPath, '..', '..');
const args = ['rebuild', '-j', 'max'];
if (existsSync(resolve(prefix, 'include/node/common.gypi'))) args.push(`--nodedir=${prefix}`);

const shell = process.platform === 'win32';
let result = spawnSync('node-gyp', args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'], shell, encoding: 'utf8' });
if (result.error) {
  // Run outside an npm script: npm puts its node-gyp on PATH only there.
  result = spawnSync('npm', ['exec', '--offline', '--', 'node-gyp', ...args], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
    shell: true,
    encoding: 'utf8',
  });
}
if (result.status !== 0) {
  process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`);
  process.stderr.write(
    '\neaglet: the native kernels could not be compiled (a C++17 compiler, make and Python 3 are needed).\n' +
      'eaglet works without them, on plain TypeScript kernels, a hundred times slower. After installing a compiler: npm run build:native\n',
  );
  if (process.env.EAGLET_REQUIRE_NATIVE) process.exit(1);
}
