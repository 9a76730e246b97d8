/** The multi-step loss: it sees what decoding sees, and its gradients are its derivatives. */
import { afterAll, describe, expect, it } from 'vitest';
import { FeatureReader } from '../../src/decode/features.ts';
import type { EagleHead } from '../../src/draft/eagle-head.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { COMMITTED, ForwardBatch } from '../../src/model/forward-batch.ts';
import { EagerOps } from '../../src/tensor/ops.ts';
import { ScratchTensor } from '../../src/tensor/tensor.ts';
import { EagleTraining } from '../../src/train/eagle.ts';
import type { EagleStepLoss } from '../../src/train/loss.ts';
import type { EncodedText, TrainingText } from '../../src/train/unroll.ts';
import { unroll } from '../../src/train/unroll.ts';
import { randomInteger, xorshift } from '../support/random.ts';
import { tinyHead, tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
const target = tinyTarget(kernels);
const { hiddenSize: d, vocabSize } = target.config;
afterAll(() => target[Symbol.dispose]());

const random = xorshift(5);

/** Random tokens; the loss counts from the third on, with a gap. */
function text(length: number): TrainingText {
  const ids = Int32Array.from({ length }, () => randomInteger(random, 0, vocabSize));
  const mask = Uint8Array.from({ length }, (_, i) => (i < 2 || i === 5 ? 0 : 1));
  using reader = new FeatureReader(target, length);
  return { ids, mask, features: reader.read(ids).data.slice(0, length * d) };
}

const texts = [text(9), text(4), text(20)];

describe('unroll', () => {
  it('names what a row eats and what it predicts', () => {
    const plain = (ids: number[], mask: number[]): EncodedText & TrainingText => ({
      ids: Int32Array.from(ids),
      mask: Uint8Array.from(mask),
      features: new Float32Array(0),
    });
    const { steps, slots } = unroll([plain([10, 11, 12, 13], [0, 1, 1, 1]), plain([20, 21], [1, 1])], 3);
    expect(slots).toBe(48);
    expect(
      steps.map(({ tokens, positions, source, targets, mask }) =>
        [tokens, positions, source, targets, mask].map((row) => [...row]),
      ),
    ).toEqual([
      [
        [11, 12, 13, 21],
        [0, 1, 2, 0],
        [0, 1, 2, 4],
        [1, 2, 3, 5],
        [0, 1, 1, 1],
      ],
      [
        [12, 13],
        [1, 2],
        [0, 1],
        [2, 3],
        [1, 1],
      ],
      [[13], [2], [0], [3], [1]],
    ]);
    const { base, prefix, slots: own, extras, extrasStart } = steps[2]!.layout;
    // The first row: true features up to its own, then its own two predictions.
    expect([base[0], prefix[0], own[0], [...extras], [...extrasStart]]).toEqual([0, 1, 34, [32, 34], [0, 2]]);
  });

  it('predicts, bit for bit, what a chain draft of decoding predicts', () => {
    using head = tinyHead(target);
    const steps = 4;
    const whole: TrainingText = { ...texts[2]!, mask: new Uint8Array(20).fill(1) };
    const predicted = trainingPredictions(head, [texts[0]!, whole], steps);
    const n = whole.ids.length;
    for (const start of [3, 12]) {
      // Decoding: true features up to `start`, then a chain of the text's own tokens.
      using cache = head.createCache(64);
      const sequence = cache.sequences[0]!;
      const batch = new ForwardBatch(64);
      const input = new ScratchTensor().reshape(start + 1, d);
      input.data.set(whole.features.subarray(0, (start + 1) * d));
      for (let i = 0, parent = COMMITTED; i <= start; i++)
        parent = batch.append(sequence, whole.ids[i + 1]!, parent, true);
      let output = head.forward(batch, input, cache).row(start).slice();
      sequence.commitAll();
      const ancestors = new Int32Array(steps);
      for (let j = 0; j < steps && start + 1 + j < n; j++) {
        expect([...output], `step ${j}`).toEqual([...predicted(j, 1, start)]);
        batch.clear();
        batch.appendAfter(sequence, whole.ids[start + 2 + j]!, ancestors, j, true);
        ancestors[j] = batch.layout.slots[0]!;
        const next = new ScratchTensor().reshape(1, d);
        next.data.set(output);
        output = head.forward(batch, next, cache).row(0).slice();
      }
    }
  });
});

/** The steps' predictions as training computes them: of row `index` of a text. */
function trainingPredictions(head: EagleHead, all: readonly TrainingText[], count: number) {
  const { steps, slots } = unroll(all, count);
  const truth = new ScratchTensor().reshape(
    all.reduce((sum, { ids }) => sum + ids.length, 0),
    d,
  );
  let at = 0;
  for (const { features } of all) {
    truth.data.set(features, at);
    at += features.length;
  }
  const cache = head.createCache(slots);
  const outputs: Float32Array[][] = [];
  let features: { data: Float32Array; row(index: number): Float32Array } = truth;
  for (const step of steps) {
    const input = new ScratchTensor().reshape(step.rows, d);
    for (let row = 0; row < step.rows; row++) input.data.set(features.row(step.source[row]!), row * d);
    const output = head.forward(step, input, cache, new EagerOps(kernels));
    features = output;
    outputs.push(Array.from({ length: step.rows }, (_, row) => output.row(row).slice()));
  }
  cache[Symbol.dispose]();
  return (j: number, textIndex: number, index: number): Float32Array => {
    const first = all.slice(0, textIndex).reduce((sum, { ids }) => sum + ids.length, 0);
    const row = steps[j]!.targets.indexOf(first + index + 1 + j);
    return outputs[j]![row]!;
  };
}

describe('gradients', () => {
  const options = {
    steps: 3,
    unrollFromEpoch: 1,
    stepDecay: 0.7,
    noise: 0.05,
    loss: { regression: 1, classification: 0.3 },
  };
  const total = (losses: readonly EagleStepLoss[]): number =>
    losses.reduce((sum, loss, j) => sum + options.stepDecay ** j * (loss.regression + 0.3 * loss.classification), 0);

  it('are the derivatives of the weighted sum of all steps', () => {
    using head = tinyHead(target, { draftVocabSize: 32 });
    using training = new EagleTraining(kernels, head, options);
    // The tiny head's gain of 2, three times over, would make the loss a steep and crooked thing.
    for (const { values } of training.parameters) for (let i = 0; i < values.length; i++) values[i]! *= 0.4;
    training.gradients(texts, 3, 1);
    const analytic = [...training.parameters].map(({ gradients }) => gradients.slice());
    // Along the gradient of one parameter at a time the loss must change by |g|²: central differences, in f32.
    let index = 0;
    for (const { name, values } of training.parameters) {
      const gradient = analytic[index++]!;
      const squares = gradient.reduce((sum, value) => sum + value * value, 0);
      const before = values.slice();
      const step = 2e-3 / Math.sqrt(squares);
      const at = (sign: number): number => {
        for (let i = 0; i < values.length; i++) values[i] = before[i]! + sign * step * gradient[i]!;
        return total(training.gradients(texts, 3, 1));
      };
      const slope = (at(1) - at(-1)) / (2 * step);
      values.set(before);
      expect(slope / squares, name).toBeGreaterThan(0.995);
      expect(slope / squares, name).toBeLessThan(1.005);
    }
  });

  it('are those of one step alone in the epochs before the head is unrolled', () => {
    using head = tinyHead(target);
    using unrolled = new EagleTraining(kernels, head, options);
    using single = new EagleTraining(kernels, head, { ...options, steps: 1 });
    const gradients = (of: EagleTraining): number[][] =>
      [...of.parameters].map((parameter) => [...parameter.gradients]);
    expect(unrolled.gradients(texts, 3, 0)).toEqual(single.gradients(texts, 3, 0));
    expect(gradients(unrolled)).toEqual(gradients(single));
    expect(unrolled.gradients(texts, 3, 1).length).toBe(3);
    expect(gradients(unrolled)).not.toEqual(gradients(single));
  });

  it('do not depend on what else was in the step before', () => {
    using head = tinyHead(target);
    using training = new EagleTraining(kernels, head, options);
    const gradients = (): number[][] => [...training.parameters].map((parameter) => [...parameter.gradients]);
    training.gradients(texts, 3, 1);
    const first = gradients();
    training.gradients([text(40), texts[1]!], 4, 1);
    expect(gradients()).not.toEqual(first);
    training.gradients(texts, 3, 1);
    expect(gradients()).toEqual(first);
  });
});
