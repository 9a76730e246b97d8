// Other builds of the kernel add-on, and tests on them. A variant has its own copy of binding.gyp beside a link to native/, so it is
// compiled from the same sources with the same flags except for what it changes, and build/Release stays as it is.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { nodeGyp } from './node-gyp.mjs';

export const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');

/** What every variant must pass: the kernels by themselves, and a whole tiny model on every table and weight format. */
export const KERNEL_TESTS = ['test/kernels', 'test/model/bits.test.ts'];

/**
 * Compiles what changed since the last time.
 * @param {string} name directory under build/
 * @param {{ flags: readonly string[], linkFlags?: readonly string[], edit?: (gyp: string) => string }} changes flags come after
 *   binding.gyp's own
 * @returns {string} path of the add-on
 */
export function buildVariant(name, { flags, linkFlags = [], edit = (gyp) => gyp }) {
  const directory = resolve(root, 'build', name);
  mkdirSync(directory, { recursive: true });
  writeFileSync(resolve(directory, 'binding.gyp'), edit(readFileSync(resolve(root, 'binding.gyp'), 'utf8')));
  const sources = resolve(directory, 'native');
  if (!existsSync(sources)) symlinkSync('../../native', sources, 'dir');

  console.log(`compiling the add-on: build/${name}`);
  const { ok, output } = nodeGyp(['configure', 'build'], {
    cwd: directory,
    env: { CXXFLAGS: flags.join(' '), LDFLAGS: linkFlags.join(' ') },
  });
  const addon = resolve(directory, 'build/Release/eaglet.node');
  if (!ok || !existsSync(addon)) fail(output);
  return addon;
}

/**
 * Runs test files on an add-on and exits as they do.
 * @param {string} addon
 * @param {readonly string[]} files
 * @param {Record<string, string>} env
 * @returns {never}
 */
export function testVariant(addon, files, env = {}) {
  const { status } = spawnSync(process.execPath, ['node_modules/vitest/vitest.mjs', 'run', ...files], {
    cwd: root,
    env: { ...process.env, EAGLET_ADDON: addon, ...env },
    stdio: 'inherit',
  });
  process.exit(status ?? 1);
}

/**
 * @param {string} message
 * @returns {never}
 */
export function fail(message) {
  process.stderr.write(`${message}\n`);
  process.exit(1);
}
