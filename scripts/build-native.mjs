// Compiles the kernel add-on. Without a compiler the package still installs: src/kernels/reference.ts then does the work, slowly,
// and says so once.
import { dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { nodeGyp } from './node-gyp.mjs';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const { ok, output } = nodeGyp(['configure', 'build'], { cwd: root });
if (!ok) {
  process.stderr.write(output);
  process.stderr.write(
    '\neaglet: the native kernels could not be compiled (a C++17 compiler, make and Python 3 are needed).\n' +
      'eaglet works without them, on plain TypeScript kernels, a hundred times slower. After installing a compiler: npm run build:native\n',
  );
  if (process.env.EAGLET_REQUIRE_NATIVE) process.exit(1);
}
