/** Guesses by the target's own numbers: right whenever laws are the same, and as often as theory says where they are not. */
import { afterAll, describe, expect, it } from 'vitest';
import { type GenerateOptions, generate } from '../../src/decode/generate.ts';
import { raceKey } from '../../src/decode/rng.ts';
import { Sampler } from '../../src/decode/sampler.ts';
import type { RaceSampling } from '../../src/draft/draft-laws.ts';
import { DraftModelDrafter } from '../../src/draft/draft-model.ts';
import { MedusaDrafter } from '../../src/draft/medusa.ts';
import { RacedGuesses } from '../../src/draft/raced-guesses.ts';
import { shapeFromPaths } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { ScratchTensor } from '../../src/tensor/tensor.ts';
import { permutation, xorshift } from '../support/random.ts';
import { tinyMedusa, tinyTarget } from '../support/tiny.ts';

const kernels = createKernels({ threads: 1 });
const target = tinyTarget(kernels);
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

const V = 200;
const TEMPERATURE = 0.8;
/** By which the head's logits are sharpened beside the temperature (raced-guesses.ts): taken off where laws shall be the target's. */
const SHARPNESS = 1.25;

function racing(seed: number, asked: number[] = []): RaceSampling {
  const key = new Int32Array(2);
  return {
    kind: 'race',
    inverseTemperature: 1 / TEMPERATURE,
    key: (position) => {
      asked.push(position);
      return raceKey(seed, position, key);
    },
  };
}

const logitsOf = (seed: number, spread: number): Float32Array => {
  const random = xorshift(seed);
  return Float32Array.from({ length: V }, () => (random() + random() + random() - 1.5) * spread);
};

const guessesOf = (rows: number, branching: number) => ({
  tokens: new Int32Array(rows * branching),
  logProbabilities: new Float64Array(rows * branching),
});

describe('RacedGuesses', () => {
  it.each(['the same ids', 'ids of its own'])(
    'knows the token that the target will draw, if it knows the law: %s',
    (ids) => {
      const targetIds = ids === 'ids of its own' ? permutation(xorshift(4), V) : undefined;
      const context = { tokens: new Int32Array(0), length: 0, promptLength: 0 };
      const raced = new RacedGuesses(kernels, targetIds, 2, 3);
      const guesses = guessesOf(2, 3);
      const seen = new Set<number>();
      for (let position = 0; position < 300; position++) {
        const logits = logitsOf(position + 1, 8);
        const tensor = new ScratchTensor().reshape(1, V);
        tensor.data.set(logits);
        const token = new Sampler(kernels, V, { temperature: TEMPERATURE, seed: 5 }).choose(
          tensor,
          0,
          context,
          position,
        );
        const own = logits.map((_, id) => logits[targetIds?.[id] ?? id]! / SHARPNESS);
        // Row 0 is another law, which the row after it does not mind.
        raced.race(Float32Array.from([...logitsOf(999, 8), ...own]), 2, V, racing(5), position, guesses);
        const [first, second, third] = guesses.tokens.subarray(3);
        expect(targetIds?.[first!] ?? first).toBe(token);
        expect(new Set([first, second, third]).size).toBe(3);
        const beliefs = guesses.logProbabilities.subarray(3).map(Math.exp);
        expect(beliefs[0]! >= beliefs[1]! && beliefs[1]! >= beliefs[2]! && beliefs[2]! > 0).toBe(true);
        expect(beliefs[0]! + beliefs[1]! + beliefs[2]!).toBeLessThanOrEqual(1 + 1e-9);
        seen.add(token);
      }
      expect(seen.size).toBeGreaterThan(20);
    },
  );

  it('is right as often as two laws allow that do not know each other, and more often than the likeliest token', () => {
    const p = logitsOf(1, 8);
    const q = logitsOf(1, 8).map((value, id) => (value + 1.5 * logitsOf(2, 2)[id]!) / SHARPNESS);
    const law = (logits: Float32Array, sharpness: number): Float32Array => {
      const out = Float32Array.from(logits);
      kernels.softmax(out, out, 1, V, sharpness / TEMPERATURE);
      return out;
    };
    const [ofTarget, ofDraft] = [law(p, 1), law(q, SHARPNESS)];
    const overlap = ofTarget.reduce((sum, share, id) => sum + Math.min(share, ofDraft[id]!), 0);
    const likeliest = ofTarget[ofDraft.indexOf(Math.max(...ofDraft))]!;
    const tensor = new ScratchTensor().reshape(1, V);
    tensor.data.set(p);
    const sampler = new Sampler(kernels, V, { temperature: TEMPERATURE, seed: 11 });
    const context = { tokens: new Int32Array(0), length: 0, promptLength: 0 };
    const raced = new RacedGuesses(kernels, undefined, 1, 1);
    const guesses = guessesOf(1, 1);
    const positions = 20_000;
    let right = 0;
    for (let position = 0; position < positions; position++) {
      raced.race(Float32Array.from(q), 1, V, racing(11), position, guesses);
      if (guesses.tokens[0] === sampler.choose(tensor, 0, context, position)) right++;
    }
    const share = right / positions;
    const error = 4 * Math.sqrt(0.25 / positions);
    expect(overlap).toBeGreaterThan(0.4);
    expect(overlap).toBeLessThan(0.9);
    expect(share).toBeGreaterThan(overlap / (2 - overlap) - error);
    expect(share).toBeLessThan(overlap + error); // no coupling of the two does better
    expect(share).toBeGreaterThan(likeliest + 0.1);
  });

  it('gives tokens of the vocabulary whatever the logits are', () => {
    const raced = new RacedGuesses(kernels, undefined, 1, 6);
    const guesses = guessesOf(1, 6);
    for (const value of [Number.NaN, Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY]) {
      raced.race(new Float32Array(6).fill(value), 1, 6, racing(1), 0, guesses);
      expect([...guesses.tokens].sort()).toEqual([0, 1, 2, 3, 4, 5]);
    }
  });
});

describe('trees at a temperature', () => {
  it('guess every level by the numbers of its position: a draft model that is the target is right nearly always', () => {
    const shape = shapeFromPaths([[0], [0, 0], [0, 0, 0]]);
    using drafter = new DraftModelDrafter(target, tinyTarget(kernels), shape, 400);
    using cache = target.createCache(1, 400);
    const options: GenerateOptions = { temperature: 1, seed: 3, maxTokens: 300 };
    const reached = [0, 0, 0];
    const stood = [0, 0, 0];
    for (const event of generate(target, drafter, cache, [3, 14, 15], options)) {
      if (event.type !== 'round' || event.verdict === undefined || event.tree!.size < 4) continue;
      for (let depth = 0; depth < 3 && depth < event.verdict.pathLength; depth++) {
        reached[depth]!++;
        if (depth + 1 < event.verdict.pathLength) stood[depth]!++;
      }
    }
    // Of 96 tokens nearly as likely as each other; laws differ by the sharpness only.
    for (let depth = 0; depth < 3; depth++) expect(stood[depth]! / reached[depth]!).toBeGreaterThan(0.7);
  });

  it("ask for the numbers of each head's position: Medusa", () => {
    using drafter = new MedusaDrafter(target, tinyMedusa(target), shapeFromPaths([[0], [1], [0, 0]]), 64);
    const asked: number[] = [];
    drafter.resume([5, 6, 7], 2, racing(1, asked));
    const features = new ScratchTensor().reshape(1, target.config.hiddenSize);
    features.data.fill(0.3);
    drafter.observe(Int32Array.of(7), features, Int32Array.of(0), 1); // three tokens are committed, the root is the fourth
    expect(drafter.propose(9, 5).size).toBe(4);
    expect(asked).toEqual([4, 5]);
  });
});
