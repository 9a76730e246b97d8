/** A run that is killed, at any moment and more than once, ends where one that never was ends: weights, moments, log, bit for bit. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { expect, it } from 'vitest';
import { temporaryDirectory } from '../support/temporary-directory.ts';

const scratch = temporaryDirectory();
const worker = new URL('./run.worker.ts', import.meta.url).pathname;

/** Runs what trains `kind` in `directory` until it is done, or until it has said `until`, and then kills it. */
async function run(kind: string, directory: string, until?: string): Promise<string[]> {
  const child: ChildProcess = spawn(process.execPath, ['--import', 'tsx', worker, directory, kind], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const said: string[] = [];
  for await (const line of createInterface({ input: child.stdout! })) {
    said.push(line);
    if (line === until) child.kill('SIGKILL');
  }
  return said;
}

const bytes = (directory: string): Buffer => readFileSync(join(directory, 'checkpoint.safetensors'));

/** Without the times. */
const log = (directory: string): unknown[] =>
  readFileSync(join(directory, 'log.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line, (key, value) => (key === 'ms' ? undefined : value)) as unknown);

it.each(['eagle', 'draft'])('%s goes on to the same bits', async (kind) => {
  const whole = mkdtempSync(join(scratch, 'whole-'));
  const killed = mkdtempSync(join(scratch, 'killed-'));
  const said = await run(kind, whole);
  expect(said.at(-1)).toBe('done');
  const features = said.filter((line) => line.startsWith('features'));
  const updates = said.filter((line) => line.startsWith('update'));
  expect(updates.length).toBeGreaterThan(20);
  await run(kind, killed, features[20]);
  await run(kind, killed, 'update 2'); // before the first checkpoint
  await run(kind, killed, 'update 11');
  const resumed = await run(kind, killed, 'update 16');
  expect(resumed).not.toContain('update 2');
  const last = await run(kind, killed);
  expect(last.at(-1)).toBe('done');
  expect(last.filter((line) => line.startsWith('features'))).toEqual([]);
  expect(bytes(killed).equals(bytes(whole))).toBe(true);
  expect(log(killed)).toEqual(log(whole));
});
