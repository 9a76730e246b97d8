/** `eaglet cut-vocabulary` as a user meets it: the same weights with fewer tokens to guess. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { openHeadFiles } from '../../src/checkpoint/head.ts';
import { openMedusaFiles } from '../../src/checkpoint/medusa.ts';
import { openSafetensors, writeSafetensors } from '../../src/checkpoint/safetensors.ts';
import { readTargetIds } from '../../src/draft/head-vocabulary.ts';
import type { TensorSource } from '../../src/tensor/source.ts';
import { draftMap } from '../../src/train/save.ts';
import { smolPath } from '../support/model.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { torchFromSafetensors } from '../support/torch-writer.ts';
import { conversationsAbout, eaglet, ensureBuilt, HEAD } from './support.ts';

const scratch = temporaryDirectory();
const conversations = join(scratch, 'conversations.jsonl');
const MEDUSA = 'heads/smollm2-135m-instruct/medusa';
const V = 49_152;
const SIZE = 20;

beforeAll(async () => {
  await smolPath();
  ensureBuilt();
  writeFileSync(conversations, conversationsAbout(['cats', 'rain', 'bread', 'Rome']));
});

const readJson = (directory: string, file: string): Record<string, unknown> =>
  JSON.parse(readFileSync(join(directory, file), 'utf8')) as Record<string, unknown>;

const cut = (head: string, out: string, ...more: string[]) =>
  eaglet(['cut-vocabulary', head, '--conversations', conversations, '--out', out, ...more]);

function expectSameTensors(before: TensorSource, after: TensorSource): void {
  const kept = [...before.entries.keys()].filter((name) => name !== 'd2t').toSorted();
  expect([...after.entries.keys()].filter((name) => name !== 'd2t').toSorted()).toEqual(kept);
  for (const name of kept) {
    const { type, shape } = before.entries.get(name)!;
    expect(after.entries.get(name)).toMatchObject({ type, shape });
    expect(Buffer.compare(before.read(name).slice(), after.read(name).slice()), name).toBe(0);
  }
}

describe('cut-vocabulary', () => {
  test('of an EAGLE head leaves the most frequent tokens of the answers, the weights bit for bit, and where it is from', async () => {
    const out = join(scratch, 'eagle');
    const done = await cut(HEAD, out, '--size', String(SIZE), '--json');
    expect(done.code, done.stderr).toBe(0);
    const summary = JSON.parse(done.stdout) as { tokens: number; draftVocabularyCoverage: number };
    expect(summary).toMatchObject({ out, draftVocabSize: SIZE, conversations: 4 });
    expect(summary.tokens).toBeGreaterThan(50);
    expect(summary.draftVocabularyCoverage).toBeGreaterThan(0.8);

    using before = openHeadFiles(HEAD);
    using after = openHeadFiles(out);
    expectSameTensors(before.source, after.source);
    expect(readJson(out, 'config.json')).toEqual({ ...readJson(HEAD, 'config.json'), draft_vocab_size: SIZE });
    const ids = readTargetIds(after.source, after.config)!;
    const uncut = new Set(readTargetIds(before.source, before.config));
    expect([...ids].every((id) => uncut.has(id))).toBe(true);
    const { tokens, draftVocabularyCoverage } = summary;
    expect(readJson(out, 'provenance.json')).toEqual({
      draftVocabSize: SIZE,
      conversations: 4,
      tokens,
      draftVocabularyCoverage,
      cutFrom: readJson(HEAD, 'provenance.json'),
    });
    expect(readFileSync(join(out, 'README.md'), 'utf8')).toBe(readFileSync(join(HEAD, 'README.md'), 'utf8'));

    const write = async (...flags: string[]): Promise<string> => {
      const { code, stdout, stderr } = await eaglet(['generate', '--prompt', 'What is tea?', '-n', '12', ...flags]);
      expect(code, stderr).toBe(0);
      return stdout;
    };
    expect(await write('--head', out, '--tree', 'chain:3')).toBe(await write('--drafter', 'none'));
  });

  test('of a head in pytorch_model.bin that may guess everything and says nothing of itself', async () => {
    const [head, out] = [join(scratch, 'torch'), join(scratch, 'torch-cut')];
    mkdirSync(head);
    const { draft_vocab_size: _, ...config } = readJson(HEAD, 'config.json');
    writeFileSync(join(head, 'config.json'), JSON.stringify(config));
    const halfAHead = join(scratch, 'half.safetensors'); // weights that nobody computes with
    const data = new Uint8Array(Float32Array.of(1, -0, 2.5, Number.NaN, 0.1, 1e-40).buffer);
    writeSafetensors(halfAHead, [{ name: 'fc.weight', type: 'F32', shape: [2, 3], data }]);
    writeFileSync(
      join(head, 'pytorch_model.bin'),
      torchFromSafetensors(halfAHead, (name) => `model.${name}`),
    );
    const done = await cut(head, out, '--size', String(SIZE));
    expect(done.code, done.stderr).toBe(0);
    expect(done.stdout).toMatch(/draft vocabulary +20 of the 49,152 tokens of /);
    using before = openHeadFiles(head);
    using after = openHeadFiles(out);
    expectSameTensors(before.source, after.source);
    expect(readJson(out, 'config.json')).toEqual({ ...config, draft_vocab_size: SIZE });
    expect(readTargetIds(after.source, after.config)).toHaveLength(SIZE);
    expect(existsSync(join(out, 'README.md'))).toBe(false);
    expect(readJson(out, 'provenance.json')).not.toHaveProperty('cutFrom');
  });

  test('of Medusa heads that share the LM head, with their tree', async () => {
    const out = join(scratch, 'medusa');
    const done = await cut(MEDUSA, out, '--size', String(SIZE));
    expect(done.code, done.stderr).toBe(0);
    using before = openMedusaFiles(MEDUSA);
    using after = openMedusaFiles(out);
    expectSameTensors(before.source, after.source);
    expect(after.config).toEqual({ ...before.config, draftVocabSize: SIZE });
    expect(readJson(out, 'tree.json')).toEqual(readJson(MEDUSA, 'tree.json'));
  });

  test('of Medusa heads with LM heads of their own leaves the rows of the tokens that stay', async () => {
    const [heads, out] = [join(scratch, 'own'), join(scratch, 'own-cut')];
    mkdirSync(heads);
    const config = { medusa_num_heads: 1, medusa_num_layers: 1, draft_vocab_size: 300 };
    writeFileSync(join(heads, 'config.json'), JSON.stringify(config));
    const targetIds = Int32Array.from({ length: 300 }, (_, draft) => 2 * draft);
    const rows = Uint16Array.from({ length: 300 * 2 }, (_, i) => i); // two columns: that they fit is for those who load them to say
    writeSafetensors(join(heads, 'medusa_lm_head.safetensors'), [
      { name: '0.0.linear.bias', type: 'F32', shape: [1], data: new Uint8Array(4) },
      { name: '0.1.weight', type: 'BF16', shape: [300, 2], data: new Uint8Array(rows.buffer) },
      draftMap(targetIds),
    ]);
    const done = await cut(heads, out, '--size', String(SIZE));
    expect(done.code, done.stderr).toBe(0);
    using file = openSafetensors(join(out, 'medusa_lm_head.safetensors'));
    expect(file.entries.get('0.1.weight')).toMatchObject({ type: 'BF16', shape: [SIZE, 2] });
    const ids = readTargetIds(file, { vocabSize: V, draftVocabSize: SIZE })!;
    expect([...ids].every((id) => id % 2 === 0 && id < 600)).toBe(true);
    const kept = new Uint16Array(file.read('0.1.weight').slice().buffer);
    expect([...kept]).toEqual([...ids].flatMap((id) => [id, id + 1]));
  });

  test.each<[string, readonly string[], RegExp]>([
    ['a size above the head’s', [HEAD, '--size', '49153'], /--size: must be less than the \d+ tokens of .*, got 49153/],
    ['a size of none', [HEAD, '--size', '0'], /expected at least 1, got 0/],
    [
      'a head of another model',
      ['test/golden/eagle-tiny/eagle1-head'],
      /vocab_size: must be the model's 49152, got 512/,
    ],
    [
      'a directory that is not there',
      [join(scratch, 'nowhere')],
      /nowhere: must be the directory of a head, does not exist/,
    ],
    [
      'a draft model',
      ['heads/smollm2-135m-instruct/draft'],
      /fc\.weight: must exist: a model without it is no draft head/,
    ],
    ['a directory that holds no head', [scratch], /config\.json: file: must exist/],
  ])('%s is refused', async (_, [head, ...flags], message) => {
    const out = join(scratch, 'refused');
    const refused = await cut(head!, out, ...flags);
    expect(refused).toMatchObject({ code: 1, stdout: '' });
    expect(refused.stderr).toMatch(message);
    expect(existsSync(out)).toBe(false);
  });

  test.each([
    ['{"messages": [}\n', /text-0\.jsonl:1: must be JSON/],
    ['{"text": "no answer"}\n', /--conversations: must hold conversations with answers, got none/],
  ])('%#: text that cannot be counted is refused', async (text, message) => {
    const file = join(scratch, `text-${text.includes('text') ? 1 : 0}.jsonl`);
    writeFileSync(file, text);
    const out = join(scratch, 'refused');
    const refused = await eaglet(['cut-vocabulary', HEAD, '--conversations', file, '--out', out, '--size', '20']);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(message);
    expect(existsSync(out)).toBe(false);
  });

  test('nothing is written over', async () => {
    const refused = await cut(HEAD, scratch);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/must not exist yet/);
  });
});
