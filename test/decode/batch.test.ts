/** Texts in one batch: each is the text that `generate` gives, whatever goes on beside it. */
import { afterAll, describe, expect, it } from 'vitest';
import { type Continuation, type Continued, continueBatch } from '../../src/decode/batch.ts';
import { FeatureReader } from '../../src/decode/features.ts';
import { generate } from '../../src/decode/generate.ts';
import { NoDrafter } from '../../src/draft/none.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { randomInteger, xorshift } from '../support/random.ts';
import { tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
const target = tinyTarget(kernels);
const { vocabSize } = target.config;
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

const CAPACITY = 96;
const endTokens = new Set([3, 40]);

interface Request extends Continuation {
  readonly name: number;
}

/** Prompts of 1 to 40 tokens, some of them with a beginning in common, at several temperatures. */
const requests: readonly Request[] = Array.from({ length: 24 }, (_, name) => {
  const random = xorshift(name + 1);
  const shared = name % 3 === 0 ? [7, 8, 9, 10, 11, 12] : [];
  const own = Array.from({ length: randomInteger(random, 1, 35) }, () => randomInteger(random, 0, vocabSize));
  const temperature = [0, 0.7, 1][name % 3]!;
  return { name, promptIds: [...shared, ...own], maxTokens: 5 + (name % 7) * 6, temperature, seed: name * 977 };
});

function alone({ promptIds, ...request }: Request): number[] {
  using cache = target.createCache(1, CAPACITY);
  const ids: number[] = [];
  for (const event of generate(target, new NoDrafter(), cache, promptIds, { ...request, endTokens }))
    if (event.type === 'round') ids.push(...event.tokens);
  return ids;
}

interface Ran {
  readonly texts: ReadonlyMap<number, Continued<Request>>;
  /** Rows of each forward. */
  readonly rows: readonly number[];
  readonly drawn: number;
}

function together(places: number, prefillRows: number, wanted: readonly Request[] = requests): Ran {
  using cache = target.createCache(places, CAPACITY);
  const left = [...wanted];
  const texts = new Map<number, Continued<Request>>();
  const rows: number[] = [];
  let drawn = 0;
  for (const step of continueBatch(target, cache, () => left.shift(), { endTokens, prefillRows })) {
    for (const text of step.ended) texts.set(text.request.name, text);
    drawn += step.drawn;
    rows.push(step.drawn + step.prefilled);
  }
  return { texts, rows, drawn };
}

it('keeps the features of all tokens but the last: those of a text alone, bit for bit', () => {
  using cache = target.createCache(4, CAPACITY);
  const left = [...requests];
  const { hiddenSize } = target.config;
  using reader = new FeatureReader(target, CAPACITY);
  let texts = 0;
  for (const { ended } of continueBatch(target, cache, () => left.shift(), {
    endTokens,
    prefillRows: 8,
    keepFeatures: true,
  }))
    for (const { request, newIds, features } of ended) {
      const ids = [...request.promptIds, ...newIds].slice(0, -1);
      expect([...features!]).toEqual([...reader.read(ids).data.subarray(0, ids.length * hiddenSize)]);
      texts++;
    }
  expect(texts).toBe(requests.length);
});

describe('texts in one batch', () => {
  const expected = new Map(requests.map((request) => [request.name, alone(request)]));

  it.each([
    [1, 1],
    [1, 64],
    [3, 5],
    [8, 16],
    [24, 7],
  ])('are those of generate, with %i places and %i rows for prompts', (places, prefillRows) => {
    const { texts } = together(places, prefillRows);
    expect(texts.size).toBe(requests.length);
    for (const [name, { newIds }] of texts) expect([name, [...newIds]]).toEqual([name, expected.get(name)]);
  });

  it('end by an end token or after so many tokens, and say which', () => {
    const { texts } = together(8, 16);
    const ends = [...texts.values()].map(({ request, newIds, finished }) => {
      expect(newIds.length).toBeLessThanOrEqual(request.maxTokens);
      expect(finished).toBe(endTokens.has(newIds.at(-1)!));
      if (!finished) expect(newIds).toHaveLength(request.maxTokens);
      return finished;
    });
    expect(new Set(ends)).toEqual(new Set([true, false])); // both happen
  });

  it('share forwards: a place is taken again in the next one, and drawing goes on while prompts are read', () => {
    const { rows, drawn } = together(4, 8);
    expect(drawn).toBe([...expected.values()].flat().length);
    const prompts = requests.reduce((sum, { promptIds }) => sum + promptIds.length, 0);
    expect(rows.length).toBeLessThan((drawn + prompts) / 4);
    expect(Math.max(...rows)).toBeLessThanOrEqual(4 + 8 + 4); // prompts' last rows count as drawn, too
  });

  it('a place that holds the beginning of a prompt is the one that goes on from it', () => {
    const beginning = Array.from({ length: 30 }, (_, i) => i + 41);
    const texts = [beginning, [90, 91, 92], [...beginning, 5, 6]];
    const wanted = texts.map((promptIds, name) => ({ name, promptIds, maxTokens: name === 2 ? 4 : 2 }));
    using cache = target.createCache(2, CAPACITY);
    const left = [wanted[0]!, wanted[1]!];
    let prefilled = 0;
    const next = (): Request | undefined => left.shift();
    for (const step of continueBatch(target, cache, next, { endTokens: new Set<number>(), prefillRows: 64 })) {
      prefilled += step.prefilled;
      if (step.ended.some(({ request }) => request.name === 0)) left.push(wanted[2]!);
    }
    expect(prefilled).toBe(30 + 3 + 2);
  });

  it('refuses what has no room', () => {
    const long: Request = { name: 0, promptIds: new Array<number>(90).fill(1), maxTokens: 7 };
    expect(() => together(2, 8, [long])).toThrow('prompt: 90 tokens and 7 new ones are more than 96');
    expect(() => together(2, 8, [{ ...long, promptIds: [] }])).toThrow('prompt: must have at least one token');
    expect(() => together(2, 8, [{ ...long, maxTokens: 6 }])).not.toThrow();
  });
});
