/** `eaglet train draft` as a user meets it, on the real model and a handful of words. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { smolPath } from '../support/model.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { conversationsAbout, eaglet, ensureBuilt } from './support.ts';

const scratch = temporaryDirectory();
const conversations = join(scratch, 'conversations.jsonl');
const draft = join(scratch, 'draft');

beforeAll(async () => {
  await smolPath();
  ensureBuilt();
  writeFileSync(conversations, conversationsAbout(['cats', 'rain', 'bread', 'Rome']));
});

const SMALL = ['--hidden-size', '16', '--layers', '1', '--batch-tokens', '64', '--text-share', '0.5'];

describe('train draft', () => {
  test('makes a model that decodes by itself, keeps its curves, and never writes over it', async () => {
    const args = ['train', 'draft', '-o', draft, '--conversations', conversations, ...SMALL, '--epochs', '2', '--json'];
    const trained = await eaglet(args);
    expect(trained.code, trained.stderr).toBe(0);
    const summary = JSON.parse(trained.stdout) as { texts: number; updates: number; agreementByStep: number[] };
    expect(summary).toMatchObject({ texts: 4, settings: { training: { textShare: 0.5 } } });
    expect(summary.updates).toBeGreaterThan(3);
    expect(summary.agreementByStep).toHaveLength(1);
    const provenance = JSON.parse(readFileSync(join(draft, 'provenance.json'), 'utf8')) as Record<string, unknown>;
    expect(provenance).toMatchObject({
      target: 'smollm2-135m-instruct',
      tokenizer: expect.stringMatching(/of the target/),
      // Embeddings, four matrices and three of the feed-forward layer, three norms.
      weights: 49_152 * 16 + 4 * 16 * 16 + 3 * 16 * 64 + 3 * 16,
    });
    expect(readFileSync(join(draft, 'README.md'), 'utf8')).toMatch(/^# Draft model for smollm2-135m-instruct/);
    expect(readFileSync(join(`${draft}.training`, 'curves.svg'), 'utf8')).toMatch(/^<svg/);

    const answer = await eaglet(['generate', '-m', draft, '--prompt-ids', '1,520,9531', '-n', '5', '--json']);
    expect(answer.code, answer.stderr).toBe(0);
    expect((JSON.parse(answer.stdout) as { newIds: number[] }).newIds).toHaveLength(5);

    const again = await eaglet(args);
    expect(again.code).toBe(1);
    expect(again.stderr).toMatch(/draft: must not exist yet/);
  });

  test.each([
    [['--heads', '3'], /heads: must share the hidden size 16 in even parts, got 3/],
    [['--heads', '2', '--kv-heads', '4'], /kvHeads: must divide the 2 query heads, got 4/],
    [['--text-share', '1'], /--text-share.*from 0 to below 1, got 1/],
  ])('refuses %j before anything is written', async (wrong, message) => {
    const out = join(scratch, 'refused');
    const refused = await eaglet(['train', 'draft', '-o', out, '--conversations', conversations, ...SMALL, ...wrong]);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(message);
    expect(existsSync(`${out}.training`)).toBe(false);
  });
});
