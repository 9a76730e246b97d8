/** Guesses along a text that exists: each place may be guessed what decoding could guess there, and nothing that only comes later. */
import { afterAll, describe, expect, it } from 'vitest';
import { FeatureReader } from '../../src/decode/features.ts';
import { GuessesAlong } from '../../src/draft/best-guesses.ts';
import type { EagleHead } from '../../src/draft/eagle-head.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { EagerOps } from '../../src/tensor/ops.ts';
import { copyRow, ScratchTensor, type Tensor } from '../../src/tensor/tensor.ts';
import { chainAcceptance } from '../../src/train/evaluate.ts';
import { type TrainingText, unroll } from '../../src/train/unroll.ts';
import { randomInteger, xorshift } from '../support/random.ts';
import { TINY_CONFIG, tinyHead, tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
// Few tokens: guesses at random are right now and then.
const target = tinyTarget(kernels, { config: { ...TINY_CONFIG, vocabSize: 12 } });
const { hiddenSize: d, vocabSize } = target.config;
afterAll(() => target[Symbol.dispose]());

/** x [n, d] through the target's LM head. */
function logitsOf(x: Tensor): Float32Array {
  const logits = new Float32Array(x.rows * vocabSize);
  kernels.matmul(logits, x.data, target.lmHead, x.rows, null);
  return logits;
}

/** The slow way. */
function bestOf(row: Float32Array, allowed: ReadonlySet<number>): number {
  return [...allowed].reduce((best, id) => (row[id]! > row[best]! ? id : best));
}

const random = xorshift(77);
function randomText(length: number, mask: Uint8Array): TrainingText {
  const ids = Int32Array.from({ length }, () => randomInteger(random, 0, vocabSize));
  using reader = new FeatureReader(target, length);
  return { ids, mask, features: reader.read(ids).data.slice(0, length * d) };
}

describe('best guesses along a text', () => {
  it('a token that the draft vocabulary lacks is guessed once the text has it, and not before', () => {
    using head = tinyHead(target, { draftVocabSize: 4 }); // every third token
    const rows = 5;
    const x = new ScratchTensor().reshape(rows, d);
    // The same feature at each place, one of which the LM head makes an odd token.
    const features = new Float32Array(d);
    let wanted = 0;
    while (wanted % 3 === 0) {
      for (let i = 0; i < d; i++) features[i] = randomInteger(random, -100, 100) / 50;
      x.data.set(features);
      wanted = bestOf(logitsOf(x), new Set(Array.from({ length: vocabSize }, (_, id) => id)));
    }
    for (let row = 0; row < rows; row++) x.data.set(features, row * d);
    const text = [3, 6, wanted, 9, wanted];
    using along = new GuessesAlong(target, head, text);
    const guesses = along.best(x, [1, 2, 3, 4, 5]);
    const before = bestOf(logitsOf(x), new Set(head.targetIds));
    expect([...guesses]).toEqual([before, before, wanted, wanted, wanted]);
    expect(before).not.toBe(wanted);
    // In any order; and nothing of the text is known to a row that says so.
    expect([...along.best(x, [5, 0, 3, 0, 2])]).toEqual([wanted, before, wanted, before, before]);
  });

  it('a head that may guess everything needs no text', () => {
    using head = tinyHead(target);
    const x = new ScratchTensor().reshape(70, d); // more than one chunk
    for (let i = 0; i < 70 * d; i++) x.data[i] = randomInteger(random, -100, 100) / 50;
    const logits = logitsOf(x);
    const best = new Int32Array(70);
    kernels.argmax(best, logits, 70, vocabSize);
    using along = new GuessesAlong(target, head, []);
    expect(along.best(x, new Int32Array(70))).toEqual(best);
  });
});

describe('chain acceptance', () => {
  /** n-α by the definition: logits of all tokens, those that a row may not guess left out. */
  function slowly(head: EagleHead, text: TrainingText, count: number) {
    const { steps, slots } = unroll([text], count);
    using cache = head.createCache(slots);
    const truth = new ScratchTensor().reshape(text.ids.length, d);
    truth.data.set(text.features);
    const everything = new Set(Array.from({ length: vocabSize }, (_, id) => id));
    const targets = logitsOf(truth);
    let features: Tensor = truth;
    return steps.map((step, j) => {
      const input = new ScratchTensor().reshape(step.rows, d);
      for (let row = 0; row < step.rows; row++) copyRow(input, row, features, step.source[row]!);
      features = head.forward(step, input, cache, new EagerOps(kernels));
      const logits = logitsOf(features);
      let guesses = 0;
      let accepted = 0;
      for (let row = 0; row < step.rows; row++) {
        const i = step.targets[row]! - 1 - j;
        const followed = Array.from({ length: j + 2 }, (_, k) => text.mask[i + 1 + k] === 1);
        if (followed.includes(false)) continue;
        // Eaten: token i + 1 + j.
        expect(step.tokens[row]).toBe(text.ids[i + 1 + j]);
        const allowed = new Set([...(head.targetIds ?? everything), ...text.ids.subarray(0, i + 2 + j)]);
        const guess = bestOf(logits.subarray(row * vocabSize, (row + 1) * vocabSize), allowed);
        const after = step.targets[row]! * vocabSize;
        guesses++;
        if (guess === bestOf(targets.subarray(after, after + vocabSize), everything)) accepted++;
      }
      return { guesses, accepted };
    });
  }

  /** Places where so many tokens that count follow on each other: a root, and the guesses behind it. */
  const stretches = (mask: Uint8Array, long: number): number =>
    mask.filter((_, i) => i > 0 && i + long <= mask.length && !mask.subarray(i, i + long).includes(0)).length;

  it('counts what decoding would guess: from the second token of an answer to its last', () => {
    using head = tinyHead(target);
    const text = randomText(12, Uint8Array.of(0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0));
    // 4 tokens and 2: one less with each token that is eaten before the one guessed.
    expect(chainAcceptance(target, head, text, 4).map(({ guesses }) => guesses)).toEqual([4, 2, 1, 0]);
  });

  it.each([undefined, 6, 3])('lets a row guess its vocabulary of %s and what it has eaten', (draftVocabSize) => {
    using head = tinyHead(target, draftVocabSize === undefined ? {} : { draftVocabSize });
    // Short texts, for in a long one everything has been there.
    let right = 0;
    for (let text = 0; text < 100; text++) {
      const length = randomInteger(random, 3, 10);
      const read = randomText(
        length,
        Uint8Array.from({ length }, () => randomInteger(random, 0, 8) && 1),
      );
      const chain = chainAcceptance(target, head, read, 3);
      expect(chain).toEqual(slowly(head, read, 3));
      expect(chain.map(({ guesses }) => guesses)).toEqual([2, 3, 4].map((long) => stretches(read.mask, long)));
      right += chain.reduce((sum, { accepted }) => sum + accepted, 0);
    }
    expect(right).toBeGreaterThan(10);
  });
});
