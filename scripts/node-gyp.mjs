// Runs the node-gyp that npm carries. Works offline: node's own headers are used where the installation has them, so nothing is
// downloaded.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';

/**
 * @param {readonly string[]} commands e.g. `['rebuild']`
 * @param {{ cwd: string, env?: Record<string, string> }} options the directory of binding.gyp; variables besides the process's own
 * @returns {{ ok: boolean, output: string }}
 */
export function nodeGyp(commands, { cwd, env = {} }) {
  const prefix = resolve(process.execPath, '..', '..');
  const args = [...commands, '-j', 'max'];
  if (existsSync(resolve(prefix, 'include/node/common.gypi'))) args.push(`--nodedir=${prefix}`);

  const run = (command, rest, shell) =>
    spawnSync(command, rest, {
      cwd,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      shell,
      encoding: 'utf8',
    });
  let result = run('node-gyp', args, process.platform === 'win32');
  // Run outside an npm script: npm puts its node-gyp on PATH only there.
  if (result.error) result = run('npm', ['exec', '--offline', '--', 'node-gyp', ...args], true);
  return { ok: result.status === 0, output: `${result.stdout ?? ''}${result.stderr ?? ''}` };
}
