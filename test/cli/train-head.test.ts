/** `npm run train:head`: stages that go on from each other, each in a directory of its own. */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, expect, test } from 'vitest';
import { smolPath } from '../support/model.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { conversationsAbout, ensureBuilt, ROOT } from './support.ts';

const scratch = temporaryDirectory();
const conversations = join(scratch, 'conversations.jsonl');
const out = join(scratch, 'head');

beforeAll(async () => {
  await smolPath();
  ensureBuilt();
  writeFileSync(conversations, conversationsAbout(['cats', 'rain', 'bread']));
});

function trainHead(...args: readonly string[]): { readonly code: number | null; readonly stderr: string } {
  const script = join(ROOT, 'scripts/train-head.mjs');
  const { status, stderr } = spawnSync(process.execPath, [script, ...args], { cwd: ROOT, encoding: 'utf8' });
  return { code: status, stderr };
}

test('each stage has a directory of its own in --work, and a slash behind --out changes nothing', () => {
  const work = join(scratch, 'work');
  const small = ['--draft-vocab', '300', '--loss-vocab', '400', '--intermediate-size', '64', '--max-length', '40'];
  const { code, stderr } = trainHead('--out', `${out}/`, '--work', work, '--conversations', conversations, ...small);
  expect(code, stderr).toBe(0);
  expect(existsSync(join(out, 'model.safetensors'))).toBe(true);
  expect(readdirSync(work).sort()).toEqual(['stage-1', 'stage-2', 'stage-3']);
  expect(existsSync(join(work, 'stage-2', 'features'))).toBe(false); // they are the first stage's
  expect(readdirSync(scratch).sort()).toEqual(['conversations.jsonl', 'head', 'head.stage-1', 'head.stage-2', 'work']);
});

test.each([
  [[], 'say where the head shall go'],
  [['--out', join(scratch, 'new'), '--work', join(scratch, 'new', 'work')], '--work must not lie in --out'],
])('%j is refused before anything is trained', (args, message) => {
  const { code, stderr } = trainHead(...args);
  expect(code).toBe(2);
  expect(stderr).toContain(message);
});
