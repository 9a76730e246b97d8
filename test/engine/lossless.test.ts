/** The real model and its head: the same text, ids and stop reason with and without drafts, wherever the text is cut. */
import { afterAll, describe, expect, it } from 'vitest';
import type { DrafterName } from '../../src/draft/registry.ts';
import { type Engine, loadEngine, type TextChunk, type TextOptions, type TextResult } from '../../src/engine.ts';
import type { ChatMessage } from '../../src/tokenizer/chat-template.ts';

const engine = await loadEngine({ dtype: 'q8', treeSize: 12, contextSize: 256 });
const dynamic = await loadEngine({
  dtype: 'q8',
  tree: { kind: 'dynamic', depth: 3, topK: 4, total: 12 },
  contextSize: 256,
});
afterAll(() => {
  engine[Symbol.dispose]();
  dynamic[Symbol.dispose]();
});

const prompt = engine.encode([
  { role: 'user', content: 'What is 17 + 25? Think step by step, then repeat the answer.' },
]);

async function run(options: TextOptions, on: Engine = engine): Promise<{ chunks: TextChunk[]; result: TextResult }> {
  const chunks: TextChunk[] = [];
  const stream = on.stream(prompt, options);
  for (;;) {
    const next = await stream.next();
    if (next.done) return { chunks, result: next.value };
    chunks.push(next.value);
  }
}

/** Runs both drafters and compares all that must not depend on drafting. */
async function both(options: TextOptions, on: Engine = engine): Promise<TextResult> {
  const { result: plain } = await run({ ...options, drafter: 'none' }, on);
  const { result: drafted, chunks } = await run({ ...options, drafter: 'eagle' }, on);
  expect(drafted.newIds).toEqual(plain.newIds);
  expect(drafted.text).toBe(plain.text);
  expect(drafted.stopReason).toBe(plain.stopReason);
  expect(drafted.stats.newTokens).toBe(plain.newIds.length);
  expect(plain.stats.newTokens).toBe(plain.newIds.length);
  expect(chunks.flatMap((chunk) => chunk.tokens.map((token) => token.id))).toEqual(drafted.newIds);
  expect(chunks.map((chunk) => chunk.text).join('')).toBe(drafted.text);
  const guessed = chunks.flatMap((chunk) => chunk.tokens).filter((token) => token.drafted).length;
  expect(drafted.stats.counters.num_accepted_tokens).toBe(guessed);
  return drafted;
}

describe.each([
  ['static', engine],
  ['dynamic', dynamic],
] as const)('SmolLM2-135M-Instruct with its head, %s tree', async (_, on) => {
  const { chunks, result } = await run({ maxTokens: 64, drafter: 'eagle' }, on);

  it('accepts drafts at all', () => {
    expect(result.stats.acceptanceLength).toBeGreaterThan(1.3);
    expect(result.stats.treeSize).toBeGreaterThan(10);
    expect(Math.max(...chunks.map((chunk) => chunk.tokens.length))).toBeGreaterThan(2);
  });

  it.each([
    {},
    { temperature: 0.8, seed: 7 },
    { temperature: 1, topP: 0.9, topK: 40, minP: 0.02, seed: 2 ** 32 - 1 },
    { repeatPenalty: 1.2, frequencyPenalty: 0.3, presencePenalty: 0.2 },
  ] satisfies TextOptions[])('writes the same text with %o', async (options) => {
    await both({ ...options, maxTokens: 32 }, on);
  });

  it('stops at a stop string inside an accepted path', async () => {
    // A token in the middle of a round's path whose text first appears there.
    let text = '';
    let count = 0;
    let found: { stop: string; before: string; count: number } | undefined;
    for (const { tokens } of chunks) {
      for (const [i, token] of tokens.entries()) {
        count++;
        const inside = i > 0 && i + 1 < tokens.length && token.drafted;
        if (inside && token.text.trim() !== '' && !text.includes(token.text)) {
          found ??= { stop: token.text, before: text, count };
        }
        text += token.text;
      }
    }
    expect(found).toBeDefined();
    const cut = await both({ maxTokens: 64, stop: [found!.stop] }, on);
    expect(cut.stopReason).toBe('stopString');
    expect(cut.text).toBe(found!.before);
    expect(cut.newIds).toHaveLength(found!.count);
  });

  it('stops at any number of tokens and any context', async () => {
    for (const maxTokens of [1, 3, 4, 8]) {
      expect(await both({ maxTokens }, on)).toMatchObject({
        stopReason: 'maxTokens',
        newIds: result.newIds.slice(0, maxTokens),
      });
    }
    const endTokens = new Set([result.newIds[9]!]);
    expect((await both({ endTokens }, on)).stopReason).toBe('endToken');
  });

  it('stops where the context ends', async () => {
    using small = await loadEngine({ dtype: 'q8', treeSize: 12, contextSize: prompt.length + 9 });
    for (const drafter of ['none', 'eagle'] as const) {
      const stream = small.stream(prompt, { drafter });
      let next = await stream.next();
      while (!next.done) next = await stream.next();
      expect(next.value).toMatchObject({ stopReason: 'contextLimit', newIds: result.newIds.slice(0, 9) });
    }
  });
});

describe('multi-round verification', () => {
  const options: TextOptions = { temperature: 1, topP: 0.95, seed: 9, verify: 'multi-round', drafter: 'eagle' };

  it('accepts drafts, and writes the same text for the same seed', async () => {
    const { result } = await run({ ...options, maxTokens: 64 });
    expect(result.stats.acceptanceLength).toBeGreaterThan(1.2);
    expect((await run({ ...options, maxTokens: 64 })).result.newIds).toEqual(result.newIds);
    expect((await run({ ...options, maxTokens: 64, seed: 10 })).result.newIds).not.toEqual(result.newIds);
  });

  it('writes the text of match where guesses are chosen, and where nothing is left to chance', async () => {
    const { result } = await run({ ...options, maxTokens: 32 }, dynamic);
    expect(result.newIds).toEqual((await run({ ...options, verify: 'match', maxTokens: 32 }, dynamic)).result.newIds);
    await both({ verify: 'multi-round', maxTokens: 32 });
  });

  it('a stop string cuts an accepted path', async () => {
    const { chunks, result } = await run({ ...options, maxTokens: 64 });
    const { tokens } = chunks.find((chunk) => chunk.tokens.length > 2)!;
    const stop = tokens[0]!.text + tokens[1]!.text;
    const cut = (await run({ ...options, maxTokens: 64, stop: [stop] })).result;
    expect(cut.stopReason).toBe('stopString');
    expect(cut.text).toBe(result.text.slice(0, result.text.indexOf(stop)));
    expect(cut.newIds).toEqual(result.newIds.slice(0, cut.newIds.length));
    expect(cut.stats.newTokens).toBe(cut.newIds.length);
  });
});

describe('a conversation', () => {
  const question: ChatMessage = { role: 'user', content: 'Name three fruits.' };
  const further: ChatMessage = { role: 'user', content: 'Which of them is yellow?' };
  const answer = async (messages: readonly ChatMessage[], drafter: DrafterName): Promise<TextResult> =>
    engine.complete(messages, { maxTokens: 40, drafter });

  it.each(['none', 'eagle'] as const)(
    'goes on from its last turn: only the new message is read, %s',
    async (drafter) => {
      engine.forget();
      const first = await answer([question], drafter);
      expect(first.stats.cachedTokens).toBe(0);
      const turns: ChatMessage[] = [question, { role: 'assistant', content: first.text }, further];
      const second = await answer(turns, drafter);
      // All that was written but for the last token drawn: it is in no cache.
      const written = first.promptIds.length + first.newIds.length;
      expect(second.stats.cachedTokens).toBe(written - 1);

      engine.forget();
      const anew = await answer(turns, drafter);
      expect(anew.stats.cachedTokens).toBe(0);
      expect(second).toMatchObject({ text: anew.text, newIds: anew.newIds, stopReason: anew.stopReason });
      expect(second.stats.acceptanceLength).toBe(anew.stats.acceptanceLength);
    },
  );
});
