/** The sampler against a plain one in double precision, and against the laws it should draw from. */
import * as fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { raceKey, uniformAt, uniformIn } from '../../src/decode/rng.ts';
import { Sampler, type SamplingOptions } from '../../src/decode/sampler.ts';
import { RequestError } from '../../src/errors.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { raceTime } from '../../src/kernels/race.ts';
import { ScratchTensor } from '../../src/tensor/tensor.ts';
import { randomInteger, xorshift } from '../support/random.ts';

const kernels = createKernels({ threads: 1 });
afterAll(() => kernels.dispose());

interface Law {
  readonly ids: readonly number[];
  /** As `ids`; they add up to 1. */
  readonly probabilities: readonly number[];
}

/** The law of the next token, written down slowly: what is kept, in the order in which it is drawn from. */
function lawOf(
  logits: readonly number[],
  tokens: readonly number[],
  promptLength: number,
  options: SamplingOptions,
): Law {
  const { temperature = 0, topK = 0, topP = 1, minP = 0 } = options;
  const {
    repeatPenalty = 1,
    frequencyPenalty = 0,
    presencePenalty = 0,
    logitBias = new Map<number, number>(),
  } = options;
  const values = logits.map((logit, id) => {
    let value = logit;
    if (tokens.includes(id)) value = value > 0 ? value / repeatPenalty : value * repeatPenalty;
    const count = tokens.slice(promptLength).filter((token) => token === id).length;
    if (count > 0) value -= count * frequencyPenalty + presencePenalty;
    return value + (logitBias.get(id) ?? 0);
  });
  const largest = Math.max(...values);
  if (temperature === 0) return { ids: [values.indexOf(largest)], probabilities: [1] };
  const weights = values.map((value) => Math.exp((value - largest) / temperature));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  let kept = weights.map((weight, id) => ({ id, p: weight / total }));
  if (topK > 0 || topP < 1 || minP > 0) kept.sort((a, b) => b.p - a.p || a.id - b.id);
  if (topK > 0) kept = kept.slice(0, topK);
  const share = kept.reduce((sum, { p }) => sum + p, 0);
  if (topP < 1) {
    let mass = 0;
    let count = 0;
    while (count < kept.length && mass < topP * share) mass += kept[count++]!.p;
    kept = kept.slice(0, Math.max(1, count));
  }
  kept = kept.filter(({ p }) => p >= minP * kept[0]!.p || minP === 0);
  const mass = kept.reduce((sum, { p }) => sum + p, 0);
  return { ids: kept.map(({ id }) => id), probabilities: kept.map(({ p }) => p / mass) };
}

/** The index that arrives first in the race at this position, and by how much of its time. */
function winnerOf({ ids, probabilities }: Law, seed: number, position: number): { index: number; margin: number } {
  const key = raceKey(seed, position, new Int32Array(2));
  const times = probabilities.map((p, i) => raceTime(key[0]!, key[1]!, ids[i]!) / p);
  const [first = 0, second = Number.POSITIVE_INFINITY] = [...times].sort((a, b) => a - b);
  return { index: times.indexOf(first), margin: second / first - 1 };
}

function logitsTensor(logits: readonly number[]): ScratchTensor {
  const tensor = new ScratchTensor().reshape(2, logits.length);
  tensor.data.fill(Number.NaN, 0, logits.length); // row 0 is somebody else's
  tensor.data.set(logits, logits.length);
  return tensor;
}

/** Token counts where every path through the sampler is taken: one chunk and several, small and large nuclei. */
const sizes = fc.constantFrom(1, 2, 31, 300, 700, 2500);

const cases = sizes.chain((size) =>
  fc.record({
    // f32 in steps that make ties common; the seeded noise below makes them rare again in half of the cases
    seed: fc.integer({ min: 1, max: 2 ** 30 }),
    spread: fc.constantFrom(0, 0.5, 2, 8, 30),
    ties: fc.boolean(),
    tokens: fc.array(fc.integer({ min: 0, max: size - 1 }), { maxLength: 12 }),
    size: fc.constant(size),
    position: fc.integer({ min: 0, max: 5000 }),
    options: fc.record({
      temperature: fc.constantFrom(0, 0.3, 1, 1.7),
      topK: fc.constantFrom(0, 0, 1, 5, 100, 600, 4000),
      topP: fc.constantFrom(1, 1, 0, 0.3, 0.9, 0.999),
      minP: fc.constantFrom(0, 0, 0.01, 0.3, 1),
      repeatPenalty: fc.constantFrom(1, 1, 1.3, 0.8),
      frequencyPenalty: fc.constantFrom(0, 0, 0.4, -0.4),
      presencePenalty: fc.constantFrom(0, 0, 0.6),
      logitBias: fc.constantFrom(
        new Map(),
        new Map([[0, 3]]),
        size === 1 ? new Map() : new Map([[size - 1, Number.NEGATIVE_INFINITY]]),
      ),
      seed: fc.integer({ min: -(2 ** 31), max: 2 ** 32 - 1 }),
    }),
  }),
);

describe('Sampler.choose', () => {
  it('draws what a plain sampler draws in the same race', () => {
    let compared = 0;
    void fc.assert(
      fc.property(cases, ({ seed, spread, ties, tokens, size, position, options }) => {
        const random = xorshift(seed);
        const logits = Array.from({ length: size }, () => {
          const value = (random() + random() + random() - 1.5) * spread;
          return Math.fround(ties ? Math.round(value * 2) / 2 : value);
        });
        const promptLength = Math.min(3, tokens.length);
        const context = { tokens: Int32Array.from([...tokens, 0, 0]), length: tokens.length, promptLength };
        const sampler = new Sampler(kernels, size, options);
        const got = sampler.choose(logitsTensor(logits), 1, context, position);
        if (size === 1) {
          expect(got).toBe(0);
          return;
        }
        const law = lawOf(logits, tokens, promptLength, options);
        // Sets that rounding decides: what stands within float error of a rule's edge may be in or out.
        if (isOnEdge(logits, tokens, promptLength, options)) return;
        const { index, margin } = winnerOf(law, options.seed, position);
        if (margin < 2e-5) return;
        compared++;
        expect(got).toBe(law.ids[index]);
        if (options.temperature > 0) expectSameLaw(sampler.law(logitsTensor(logits), 1, context), law);
      }),
      { numRuns: 3000, seed: 42 },
    );
    expect(compared).toBeGreaterThan(1500);
  });

  it('stays inside the vocabulary and the law whatever the logits are', () => {
    for (const logits of [
      [Number.NaN, Number.NaN, Number.NaN],
      [Number.NEGATIVE_INFINITY, 2, Number.NEGATIVE_INFINITY],
      [3e38, -3e38, 0],
      new Array<number>(1000).fill(Number.NaN),
    ]) {
      for (const options of [
        {},
        { temperature: 1 },
        { temperature: 1e-300 },
        { temperature: 1, topP: 0.5 },
        { temperature: 1, topK: 900 },
      ]) {
        const sampler = new Sampler(kernels, logits.length, options);
        const token = sampler.choose(
          logitsTensor(logits),
          1,
          { tokens: new Int32Array(0), length: 0, promptLength: 0 },
          9,
        );
        expect(token).toBeGreaterThanOrEqual(0);
        expect(token).toBeLessThan(logits.length);
        if (logits.length === 3 && !Number.isNaN(logits[0]!)) expect(token).toBe(logits.indexOf(Math.max(...logits)));
      }
    }
  });

  it.each([
    { temperature: 1 },
    { temperature: 0.6 },
    { temperature: 1, topK: 6 },
    { temperature: 1, topP: 0.8 },
    { temperature: 1.2, minP: 0.15, topK: 10 },
    { temperature: 1, repeatPenalty: 1.5, presencePenalty: 0.5 },
  ] satisfies SamplingOptions[])('draws from the law it should: %o', (options) => {
    const random = xorshift(5);
    const logits = Array.from({ length: 12 }, () => Math.fround((random() - 0.5) * 4));
    const tokens = [1, 4, 4, 9];
    const law = lawOf(logits, tokens, 2, options);
    const counts = new Map<number, number>();
    const draws = 20_000;
    const tensor = logitsTensor(logits);
    const context = { tokens: Int32Array.from(tokens), length: 4, promptLength: 2 };
    // Half of the draws along positions, half along seeds.
    const one = new Sampler(kernels, 12, { ...options, seed: 123 });
    for (let i = 0; i < draws / 2; i++) count(one.choose(tensor, 1, context, i));
    for (let i = 0; i < draws / 2; i++)
      count(new Sampler(kernels, 12, { ...options, seed: i }).choose(tensor, 1, context, 77));
    function count(id: number): void {
      counts.set(id, (counts.get(id) ?? 0) + 1);
    }
    expect([...counts.keys()].every((id) => law.ids.includes(id))).toBe(true);
    let chiSquare = 0;
    for (const [i, id] of law.ids.entries()) {
      const wanted = law.probabilities[i]! * draws;
      chiSquare += ((counts.get(id) ?? 0) - wanted) ** 2 / wanted;
    }
    expect(chiSquare).toBeLessThan(criticalChiSquare(law.ids.length - 1));
  });

  it.each([
    ['temperature', { temperature: Number.NaN }],
    ['topK', { topK: 2.5 }],
    ['topP', { topP: 1.1 }],
    ['minP', { minP: -0.1 }],
    ['seed', { seed: 0.5 }],
    ['repeatPenalty', { repeatPenalty: 0 }],
    ['logitBias', { logitBias: new Map([[3, Number.NaN]]) }],
    ['logitBias', { logitBias: new Map([[3, Number.POSITIVE_INFINITY]]) }],
    ['logitBias', { logitBias: new Map([[-1, 1]]) }],
    ['logitBias', { logitBias: new Map(Array.from({ length: 10 }, (_, id) => [id, id % 2 ? -Infinity : -1e39])) }],
  ] satisfies [string, SamplingOptions][])('refuses a bad %s', (param, options) => {
    expect(() => new Sampler(kernels, 10, options)).toThrow(RequestError);
    expect(() => new Sampler(kernels, 10, options)).toThrow(`${param}: `);
  });
});

/** The whole law, where no drawing hides a part of it: the same tokens have mass, and the same shares of it up to f32. */
function expectSameLaw(weights: Float32Array, law: Law): void {
  const mass = weights.reduce((sum, weight) => sum + weight, 0);
  const share = new Float64Array(weights.length);
  for (const [i, id] of law.ids.entries()) share[id] = law.probabilities[i]!;
  for (const [id, weight] of weights.entries()) {
    expect(Math.abs(weight / mass - share[id]!)).toBeLessThan(1e-5 * share[id]! + 1e-30);
  }
}

/** Whether a token's membership hangs on the last bits: a top-p or min-p edge within float error, or unequal neighbours at top-k's. */
function isOnEdge(
  logits: readonly number[],
  tokens: readonly number[],
  promptLength: number,
  options: SamplingOptions,
): boolean {
  const { temperature = 0, topK = 0, topP = 1, minP = 0, ...rest } = options;
  const tolerance = 1e-5;
  if (temperature === 0) {
    // A penalty may bring two logits within a rounding of each other.
    const values = lawOf(logits, tokens, promptLength, { ...rest, temperature: 1 });
    const [a = 0, b = 0] = [...values.probabilities].sort((x, y) => y - x);
    return a !== b && a - b < tolerance * a;
  }
  const full = lawOf(logits, tokens, promptLength, { ...rest, temperature, topK: logits.length });
  const p = full.probabilities;
  const near = (a: number, b: number): boolean => Math.abs(a - b) <= tolerance * Math.max(a, b);
  // Equal in double precision but not through f32 (or the other way round) may change order.
  if (topK > 0 || topP < 1 || minP > 0) {
    for (let i = 1; i < p.length; i++) if (p[i] !== p[i - 1] && near(p[i]!, p[i - 1]!) && p[i]! > 1e-9) return true;
    if (topK > 0 && topK < p.length && p[topK - 1]! < 1e-30) return true;
  }
  const share = topK > 0 ? p.slice(0, topK).reduce((sum, value) => sum + value, 0) : 1;
  let mass = 0;
  for (const value of topK > 0 ? p.slice(0, topK) : p) {
    if (minP > 0 && value !== p[0] && near(value, minP * p[0]!)) return true;
    mass += value;
    if (topP < 1 && Math.abs(mass - topP * share) < tolerance) return true;
  }
  return false;
}

/** The 99.99 % point, by Wilson and Hilferty's approximation. */
function criticalChiSquare(degrees: number): number {
  if (degrees === 0) return 1e-9;
  const a = 2 / (9 * degrees);
  return degrees * (1 - a + 3.719 * Math.sqrt(a)) ** 3;
}

describe('uniformAt', () => {
  it('is in [0, 1) with 53 bits', () => {
    const random = xorshift(8);
    for (let i = 0; i < 20_000; i++) {
      const u = uniformAt(randomInteger(random, -(2 ** 31), 2 ** 32), randomInteger(random, 0, 2 ** 31));
      expect(u >= 0 && u < 1 && Number.isInteger(u * 2 ** 53)).toBe(true);
    }
  });

  it('is what it was: the same seed gives the same text in every version', () => {
    expect([
      uniformAt(0, 0),
      uniformAt(0, 1),
      uniformAt(1, 0),
      uniformAt(-1, 2048),
      uniformAt(2 ** 32 - 1, 2048),
    ]).toEqual(KNOWN);
  });

  it.each([
    ['positions of one seed', (i: number) => uniformAt(7, i), (i: number) => uniformAt(7, i + 1)],
    ['seeds at one position', (i: number) => uniformAt(i, 50), (i: number) => uniformAt(i + 1, 50)],
    ['a seed and its position', (i: number) => uniformAt(i, i), (i: number) => uniformAt(i + 1, i + 1)],
    ['seed and position exchanged', (i: number) => uniformAt(i, 3), (i: number) => uniformAt(3, i)],
    ['indices', (i: number) => uniformIn('trials', 7, 50, i), (i: number) => uniformIn('trials', 7, 50, i + 1)],
    [
      'an index at neighbouring seeds',
      (i: number) => uniformIn('drafts', i, 9, 2),
      (i: number) => uniformIn('drafts', i + 1, 9, 2),
    ],
    [
      'first and second index of a seed',
      (i: number) => uniformIn('drafts', i, 9, 0),
      (i: number) => uniformIn('drafts', i, 9, 1),
    ],
    ['two streams', (i: number) => uniformIn('drafts', i, 9, 0), (i: number) => uniformIn('trials', i, 9, 0)],
    ['races at two positions', (i: number) => raced(7, i, 11), (i: number) => raced(7, i + 1, 11)],
    ['races of two seeds', (i: number) => raced(i, 9, 11), (i: number) => raced(i + 1, 9, 11)],
    ['two tokens of a race', (i: number) => raced(7, i, 11), (i: number) => raced(7, i, 12)],
    ['neighbouring tokens', (i: number) => raced(7, 9, i), (i: number) => raced(7, 9, i + 1)],
    ['a token and its position', (i: number) => raced(7, i, i), (i: number) => raced(7, i + 1, i + 1)],
    ['a race and another stream', (i: number) => raced(i, 9, 0), (i: number) => uniformIn('trials', i, 9, 0)],
    ['a stream and the single draws', (i: number) => uniformIn('trials', i, 9, 0), (i: number) => uniformAt(i, 9)],
  ])('neighbours do not know each other: %s', (_, x, y) => {
    const n = 20_000;
    const cells = 8;
    const counts = new Float64Array(cells * cells);
    for (let i = 0; i < n; i++) counts[Math.floor(x(i + 10) * cells) * cells + Math.floor(y(i + 10) * cells)]!++;
    const wanted = n / counts.length;
    const chiSquare = counts.reduce((sum, count) => sum + (count - wanted) ** 2 / wanted, 0);
    expect(chiSquare).toBeLessThan(criticalChiSquare(counts.length - 1));
  });
});

const KNOWN = [0.6650139915702679, 0.43376403456995605, 0.5986603007551894, 0.4587449173075002, 0.4587449173075002];

/** A race's number as a uniform one. */
function raced(seed: number, position: number, label: number): number {
  const key = raceKey(seed, position, new Int32Array(2));
  return Math.exp(-raceTime(key[0]!, key[1]!, label));
}
