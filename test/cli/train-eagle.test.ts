/** `eaglet train eagle` and `eaglet eval` as a user meets them, on the real model and a handful of words. */
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { openHeadFiles } from '../../src/checkpoint/head.ts';
import { openSafetensors } from '../../src/checkpoint/safetensors.ts';
import { smolPath } from '../support/model.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { conversationsAbout, eaglet, ensureBuilt } from './support.ts';

const scratch = temporaryDirectory();
const conversations = join(scratch, 'conversations.jsonl');
const head = join(scratch, 'head');

const WORDS = ['cats', 'rain', 'bread', 'Rome', 'chess', 'tea'];

beforeAll(async () => {
  await smolPath();
  ensureBuilt();
  writeFileSync(conversations, conversationsAbout(WORDS));
});

/** As f16 bits. */
const MINUS_ZERO = 0x8000;

const VOCABULARIES = ['--draft-vocab', '512', '--loss-vocab', '600'];
const SMALL = [...VOCABULARIES, '--intermediate-size', '64', '--steps', '2', '--batch-tokens', '128'];

describe('train eagle', () => {
  test('makes a head that decodes, keeps its curves, and never writes over it', async () => {
    const args = ['train', 'eagle', '-o', head, '--conversations', conversations, ...SMALL, '--epochs', '3', '--json'];
    const trained = await eaglet(args);
    expect(trained.code, trained.stderr).toBe(0);
    const summary = JSON.parse(trained.stdout) as { texts: number; updates: number; agreementByStep: number[] };
    expect(summary.texts).toBe(6);
    expect(summary.updates).toBeGreaterThan(3);
    expect(summary.agreementByStep).toHaveLength(2);
    const provenance = JSON.parse(readFileSync(join(head, 'provenance.json'), 'utf8')) as Record<string, unknown>;
    const settings = { draftVocabSize: 512, lossVocabSize: 600 };
    expect(provenance).toMatchObject({ target: 'smollm2-135m-instruct', texts: 6, settings });
    expect(provenance.data).toEqual({ conversations: [basename(conversations)] });
    using files = openHeadFiles(head);
    expect(files.config.draftVocabSize).toBe(512);
    expect(readFileSync(join(`${head}.training`, 'curves.svg'), 'utf8')).toMatch(/^<svg/);

    const prompt = ['generate', '--prompt', 'Tell me about tea.', '-n', '12', '--json'];
    const plain = JSON.parse((await eaglet([...prompt, '--drafter', 'none'])).stdout) as { text: string };
    const drafted = JSON.parse((await eaglet([...prompt, '--head', head, '--tree', 'chain:2'])).stdout) as {
      text: string;
      stats: { draftedTokens: number };
    };
    expect(drafted.text).toBe(plain.text);

    const again = await eaglet(args);
    expect(again.code).toBe(1);
    expect(again.stderr).toMatch(/head: must not exist yet/);

    const judged = await eaglet([
      'eval',
      head,
      '--conversations',
      conversations,
      '--depth',
      '2',
      '--trees',
      'chain:2',
      '-n',
      '8',
      '--json',
    ]);
    expect(judged.code, judged.stderr).toBe(0);
    const { chain, trees } = JSON.parse(judged.stdout) as {
      chain: { guesses: number; accepted: number }[];
      trees: { tree: string; acceptanceLength: number }[];
    };
    expect(chain).toHaveLength(2);
    expect(chain[0]!.guesses).toBeGreaterThan(60);
    expect(trees.map(({ tree }) => tree)).toEqual(['chain:2']);
    expect(trees[0]!.acceptanceLength).toBeGreaterThanOrEqual(1);
  });

  test('eval refuses texts of which no answer is left', async () => {
    const judged = await eaglet(['eval', head, '--conversations', conversations, '--max-length', '8']);
    expect(judged.code).toBe(1);
    expect(judged.stderr).toMatch(/--conversations: must hold answers within --max-length 8 tokens, got none/);
    expect(judged.stdout).toBe('');
  });

  test('goes on from a head that exists, with its draft vocabulary and shape', async () => {
    const out = join(scratch, 'further');
    const args = ['train', 'eagle', '-o', out, '--conversations', conversations, '--start', head, '--epochs', '1'];
    const other = await eaglet([...args, '--draft-vocab', '400']);
    expect(other.code).toBe(1);
    expect(other.stderr).toMatch(/draftVocabSize: must be that of .*, 512, got 400/);
    const same = await eaglet([...args, '--learning-rate', '1e-10']);
    expect(same.code, same.stderr).toBe(0);
    // Updates too small for f16 leave the very weights that were there, but for the sign of zero.
    using before = openSafetensors(join(head, 'model.safetensors'));
    using after = openSafetensors(join(out, 'model.safetensors'));
    expect([...after.entries.keys()]).toEqual([...before.entries.keys()]);
    for (const name of before.entries.keys()) {
      const [a, b] = [before, after].map((file) => new Uint16Array(file.read(name).slice().buffer));
      const changed = a!.findIndex((half, i) => half !== b![i]! && (half | b![i]!) !== MINUS_ZERO);
      expect(changed, name).toBe(-1);
    }

    const odd = join(scratch, 'odd');
    cpSync(head, odd, { recursive: true });
    writeFileSync(join(odd, 'provenance.json'), '{');
    const unread = await eaglet(['train', 'eagle', '-o', `${out}-3`, '--conversations', conversations, '--start', odd]);
    expect(unread.code).toBe(1);
    expect(unread.stderr).toMatch(/odd\/provenance\.json: file: must be JSON/);

    const none = await eaglet([
      'train',
      'eagle',
      '-o',
      `${out}-2`,
      '--conversations',
      conversations,
      '--start',
      scratch,
    ]);
    expect(none.code).toBe(1);
    expect(none.stderr).toMatch(/config.json/);
  }, 60_000);

  test.each([
    [1, 'a line that is no conversation', '{"messages": []}\n', /refused-1.jsonl:1/],
    [2, 'broken JSON on line 2', '{"text": "one"}\n{"text": \n', /refused-2.jsonl:2/],
    [3, 'text that is empty', '{"text": " "}\n', /refused-3.jsonl:1.*must hold text/s],
    [4, 'one text alone', '{"text": "one two three"}\n', /two at least, .* got 1$/m],
    [
      5,
      'texts that all are skipped, with the reasons',
      conversationsAbout(['word '.repeat(1100)]),
      /two at least, .* got 0; left out: 1 cut before an answer$/m,
    ],
  ])('%i: refuses %s and leaves no head', async (index, _, text, message) => {
    const file = join(scratch, `refused-${index}.jsonl`);
    writeFileSync(file, text);
    const out = join(scratch, `refused-${index}`);
    const refused = await eaglet(['train', 'eagle', '-o', out, '--conversations', file, ...SMALL]);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(message);
    expect(existsSync(out)).toBe(false);
  });

  test('keeps no features where it shall not; the order of the texts changes nothing', async () => {
    const out = join(scratch, 'live');
    const args = ['train', 'eagle', '-o', out, '--conversations', conversations, ...SMALL, '--epochs', '1'];
    const trained = await eaglet([...args, '--live-features']);
    expect(trained.code, trained.stderr).toBe(0);
    expect(existsSync(join(out, 'model.safetensors'))).toBe(true);
    expect(existsSync(join(`${out}.training`, 'features'))).toBe(false);
    const reversed = join(scratch, 'reversed.jsonl');
    writeFileSync(reversed, conversationsAbout(WORDS.toReversed()));
    const same = `${out}-reversed`;
    expect((await eaglet([...args.with(3, same).with(5, reversed), '--live-features'])).code).toBe(0);
    const weights = (directory: string): Buffer => readFileSync(join(directory, 'model.safetensors'));
    expect(weights(same).equals(weights(out))).toBe(true);
    const refused = await eaglet(['train', 'eagle', '-o', join(scratch, 'none'), '--live-features']);
    expect(refused.stderr).toMatch(/--live-features: needs --conversations/);
  });

  test.each([
    ['train eagle', ['train', 'eagle', '-o', join(scratch, 'long'), '--conversations', conversations]],
    ['eval', ['eval', '--conversations', conversations]],
  ])('%s refuses texts longer than the context', async (_, args) => {
    const refused = await eaglet([...args, '--max-length', '9000']);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/--max-length: must be at most the model's context of 8192, got 9000/);
  });

  test.each([
    ['eagle', SMALL],
    ['draft', []],
    ['medusa', []],
  ])('train %s refuses features of more texts than it is given', async (command, small) => {
    const few = join(scratch, 'few.jsonl');
    writeFileSync(few, conversationsAbout(WORDS.slice(0, 4)));
    const args = ['train', command, '-o', join(scratch, 'few'), ...small, '--conversations', few];
    const features = join(`${head}.training`, 'features');
    const refused = await eaglet([...args, '--features', features]);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain(
      `${features}: holds 2 texts more than these conversations: give another directory`,
    );
  });

  test('refuses to go on with other settings', async () => {
    const out = join(scratch, 'resumed');
    const args = ['train', 'eagle', '-o', out, '--conversations', conversations, ...SMALL, '--epochs', '1'];
    const work = ['--work', join(scratch, 'work')];
    expect((await eaglet([...args, ...work])).code).toBe(0);
    const other = join(scratch, 'other');
    const refused = await eaglet([...args.with(3, other), ...work, '--learning-rate', '0.5']);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(
      /is of a run with learningRate 0\.001, got 0\.5: give the same, or another directory$/m,
    );
    const loss = await eaglet([...args.with(3, other), ...work, '--loss-vocab', '700']);
    expect(loss.code).toBe(1);
    expect(loss.stderr).toMatch(/is of a run with lossVocabSize 600, got 700: /);
    const curves = join(scratch, 'work', 'curves.svg');
    rmSync(curves);
    mkdirSync(curves);
    const unwritten = await eaglet([...args.with(3, other), ...work]);
    expect(unwritten.code).toBe(1);
    expect(unwritten.stderr).toContain(`${curves}: cannot be written: EISDIR`);
    expect(existsSync(other)).toBe(false);
  });

  test.each([
    ['eagle', SMALL],
    ['draft', ['--hidden-size', '32', '--batch-tokens', '128']],
    ['medusa', [...VOCABULARIES, '--heads', '1', '--batch-tokens', '128']],
  ])('train %s takes --out with a slash behind it, and says where its text is from', async (command, small) => {
    const out = join(scratch, `slash-${command}`);
    const args = ['train', command, '-o', `${out}/`, '--conversations', conversations, ...small, '--epochs', '1'];
    const trained = await eaglet([...args, '--features', join(`${head}.training`, 'features')]);
    expect(trained.code, trained.stderr).toBe(0);
    expect(existsSync(join(out, 'config.json'))).toBe(true);
    const provenance = JSON.parse(readFileSync(join(out, 'provenance.json'), 'utf8')) as Record<string, unknown>;
    expect(provenance.data).toEqual({ conversations: [basename(conversations)] });
    expect(existsSync(join(`${out}.training`, 'curves.svg'))).toBe(true);
  });

  test.each([
    ['--work', ['--work', join(scratch, 'never')], /--work: must not lie in .*never, which is made at the end/],
    ['--work', ['--work', join(scratch, 'never', 'work')], /--work: must not lie in/],
    ['--count', ['--count', '3', '--conversations', conversations], /--count: is for text that the model writes/],
    ['--prompts', ['--prompts', 'p.jsonl', '--features', scratch], /--prompts: is for text that the model writes/],
  ])('refuses %s as %j', async (_, args, message) => {
    const out = join(scratch, 'never');
    const refused = await eaglet(['train', 'eagle', '-o', out, ...args]);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(message);
    expect([out, `${out}.training`].map((path) => existsSync(path))).toEqual([false, false]);
  });

  test('more tokens to tell apart than there are is refused', async () => {
    const out = join(scratch, 'refused-loss');
    const args = ['train', 'eagle', '-o', out, '--conversations', conversations, ...SMALL, '--loss-vocab', '50000'];
    const refused = await eaglet(args);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/lossVocabSize: must be at most the target's 49152, got 50000/);
    expect(existsSync(out)).toBe(false);
  });
});
