/** `eaglet train medusa` and what drafts with the outcome, on the real model and a handful of words. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { smolPath } from '../support/model.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { conversationsAbout, eaglet, ensureBuilt, HEAD } from './support.ts';

const scratch = temporaryDirectory();
const conversations = join(scratch, 'conversations.jsonl');
const heads = join(scratch, 'heads');

beforeAll(async () => {
  await smolPath();
  ensureBuilt();
  writeFileSync(conversations, conversationsAbout(['cats', 'rain', 'bread', 'Rome']));
});

const SMALL = ['--heads', '2', '--draft-vocab', '300', '--loss-vocab', '400', '--batch-tokens', '64'];
const PROMPT = ['--prompt', 'What is rain?', '-n', '24', '--json', '--tree', 'medusa:mc_sim_7b_63'];

describe('train medusa', () => {
  test('makes heads that leave the text as it is, and keeps their curves', async () => {
    const args = [
      'train',
      'medusa',
      '-o',
      heads,
      '--conversations',
      conversations,
      ...SMALL,
      '--epochs',
      '3',
      '--json',
    ];
    const trained = await eaglet(args);
    expect(trained.code, trained.stderr).toBe(0);
    const summary = JSON.parse(trained.stdout) as { texts: number; agreementByStep: number[] };
    expect(summary).toMatchObject({
      texts: 4,
      settings: { heads: 2, layers: 1, draftVocabSize: 300, lossVocabSize: 400 },
    });
    expect(JSON.parse(readFileSync(join(heads, 'config.json'), 'utf8'))).toMatchObject({ draft_vocab_size: 300 });
    expect(summary.agreementByStep).toHaveLength(2);
    expect(readFileSync(join(heads, 'README.md'), 'utf8')).toMatch(
      /^# Medusa heads for smollm2-135m-instruct.*Of the tokens of held-back answers that the loss tells apart/s,
    );
    expect(readFileSync(join(`${heads}.training`, 'curves.svg'), 'utf8')).toMatch(/^<svg/);

    const write = async (...flags: string[]): Promise<{ text: string; stats: { treeSize: number } }> => {
      const { code, stdout, stderr } = await eaglet(['generate', ...PROMPT, '--medusa', heads, ...flags]);
      expect(code, stderr).toBe(0);
      return JSON.parse(stdout) as { text: string; stats: { treeSize: number } };
    };
    for (const law of [[], ['-t', '0.8', '--seed', '3']]) {
      const plain = await write('--drafter', 'none', ...law);
      const drafted = await write('--drafter', 'medusa', ...law);
      expect(drafted.text).toBe(plain.text);
      expect(drafted.stats.treeSize).toBeGreaterThan(20); // two levels of the tree's four
    }
    await write('--drafter', 'medusa', '-t', '0.8', '--verify', 'typical');
    const { stats } = await write('--drafter', 'medusa', '--tree', join(heads, 'tree.json'));
    expect(stats.treeSize).toBeGreaterThan(1);

    const again = await eaglet(args);
    expect(again.code).toBe(1);
    expect(again.stderr).toMatch(/heads: must not exist yet/);
  });

  test('verify holds them to plain text, and knows no lossy way', async () => {
    const args = ['verify', '--medusa', heads, '--limit', '2', '-n', '12', '--tree', 'static:8'];
    const held = await eaglet(args);
    expect(held.code, held.stderr).toBe(0);
    expect(held.stdout).toMatch(/identical: .* \(.*medusa.* against plain\)/);
    const refused = await eaglet([...args, '--verify', 'typical']);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/unknown option '--verify'/);
  });

  test.each([
    [['--medusa', 'nowhere'], /nowhere.*config\.json: file: must exist: Medusa heads are a directory/],
    [['--medusa', HEAD], /config\.json: medusa_num_heads: /],
    [
      ['--medusa', 'test/golden/medusa-tiny/heads-v2'],
      /0\.0\.linear\.weight: expected shape \[576,576\], got \[64,64\]/,
    ],
    [['--tree', 'medusa:mine'], /tree: expected .*medusa:mc_sim_7b_63/],
  ])('generate refuses %j', async (wrong, message) => {
    const refused = await eaglet(['generate', '--prompt', 'Hi', '-n', '2', '--tree', 'static:4', ...wrong]);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(message);
  });

  test.each([
    ['--draft-vocab', /draftVocabSize: must be at most 49152, got 50000/],
    ['--loss-vocab', /lossVocabSize: must be at most the target's 49152, got 50000/],
  ])('%s of more tokens than there are is refused', async (option, message) => {
    const out = join(scratch, 'refused');
    const refused = await eaglet(['train', 'medusa', '-o', out, '--conversations', conversations, option, '50000']);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(message);
    expect(existsSync(out)).toBe(false);
  });
});
