/** A draft model: its loss is the definition's, its gradients are derivatives, it learns, and what is saved is what was trained. */
import { existsSync, mkdtempSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { openCheckpoint } from '../../src/checkpoint/checkpoint.ts';
import { FeatureReader } from '../../src/decode/features.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { COMMITTED, ForwardBatch } from '../../src/model/forward-batch.ts';
import { Llama } from '../../src/model/llama.ts';
import type { TargetModel } from '../../src/model/target.ts';
import { computeFeatures } from '../../src/train/compute-features.ts';
import { DraftTraining } from '../../src/train/draft.ts';
import { DraftRun, type DraftRunOptions } from '../../src/train/draft-run.ts';
import { FeatureStore } from '../../src/train/feature-store.ts';
import { saveModel } from '../../src/train/save.ts';
import type { EncodedText, TrainingText } from '../../src/train/unroll.ts';
import { randomInteger, xorshift } from '../support/random.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { TINY_CONFIG, tinyModelSource, tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
const target = tinyTarget(kernels);
const { hiddenSize: D, vocabSize } = target.config;
afterAll(() => target[Symbol.dispose]());

const DRAFT_CONFIG = { ...TINY_CONFIG, hiddenSize: 24, intermediateSize: 40, heads: 3, kvHeads: 1, headDim: 8 };
const draftModel = (seed = 9): Llama =>
  new Llama(kernels, DRAFT_CONFIG, tinyModelSource(DRAFT_CONFIG, seed), { dtype: 'f32' });

const random = xorshift(5);

/** Random tokens; the loss counts from the third on, with a gap. */
function text(length: number): TrainingText {
  const ids = Int32Array.from({ length }, () => randomInteger(random, 0, vocabSize));
  const mask = Uint8Array.from({ length }, (_, i) => (i < 2 || i === 5 ? 0 : 1));
  using reader = new FeatureReader(target, length);
  return { ids, mask, features: reader.read(ids).data.slice(0, length * D) };
}

/** More rows than the loss takes at once; one text has none that counts. */
const texts = [text(9), text(2), text(4), text(70), text(1)];

/** Logits after each token, as decoding computes them: [ids.length, V]. */
function logitsAlong(model: TargetModel, ids: Int32Array): Float32Array[] {
  using cache = model.createCache(1, ids.length);
  const sequence = cache.sequences[0]!;
  const batch = new ForwardBatch(1);
  return Array.from(ids, (id) => {
    batch.clear();
    batch.append(sequence, id, COMMITTED, true);
    const { logits } = model.forward(batch, cache);
    sequence.commitAll();
    return logits.row(0).slice();
  });
}

function law(logits: Float32Array): number[] {
  const most = Math.max(...logits);
  const weights = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

const best = (logits: Float32Array): number => logits.indexOf(Math.max(...logits));

describe.each([0, 0.3])('with a share of %d of the text’s own tokens', (textShare) => {
  it('the loss is the cross-entropy of the laws, where the token that follows counts', () => {
    using model = draftModel();
    using training = new DraftTraining(target, model, { textShare });
    const rows = texts.flatMap(({ ids, mask }) => {
      const [guessed, true_] = [logitsAlong(model, ids), logitsAlong(target, ids)];
      return Array.from({ length: ids.length - 1 }, (_, i) => i)
        .filter((i) => mask[i + 1] === 1)
        .map((i) => {
          const p = law(guessed[i]!);
          const q = law(true_[i]!).map((share, id) => (1 - textShare) * share + (id === ids[i + 1] ? textShare : 0));
          const loss = q.reduce((sum, share, id) => sum - share * Math.log(p[id]!), 0);
          return { loss, agrees: best(guessed[i]!) === best(true_[i]!) };
        });
    });
    const losses = training.evaluate(texts);
    expect(losses).toHaveLength(1);
    const [{ classification, agreement, ...rest }] = losses as [(typeof losses)[0]];
    expect(rest).toEqual({ rows: rows.length });
    expect(rows.length).toBeGreaterThan(64);
    expect(classification).toBeCloseTo(rows.reduce((sum, { loss }) => sum + loss, 0) / rows.length, 4);
    expect(agreement).toBeCloseTo(rows.filter(({ agrees }) => agrees).length / rows.length, 6);
    expect(training.gradients(texts)).toEqual(losses);
  });

  it('the gradients are its derivatives, of the matrix too that is embedding and LM head', () => {
    using model = draftModel();
    using training = new DraftTraining(target, model, { textShare });
    const parameters = [...training.parameters];
    expect(parameters).toHaveLength(2 + 2 * 6);
    // The tiny model's gain of 2 would make the loss a steep and crooked thing.
    for (const { values } of parameters) for (let i = 0; i < values.length; i++) values[i]! *= 0.5;
    training.gradients(texts);
    const analytic = parameters.map(({ gradients }) => gradients.slice());
    // Along the gradient of one parameter at a time the loss must change by |g|²: central differences, in f32.
    for (const [index, { name, values }] of parameters.entries()) {
      const gradient = analytic[index]!;
      const squares = gradient.reduce((sum, value) => sum + value * value, 0);
      const before = values.slice();
      const step = 2e-2 / Math.sqrt(squares);
      const at = (sign: number): number => {
        for (let i = 0; i < values.length; i++) values[i] = before[i]! + sign * step * gradient[i]!;
        return training.gradients(texts)[0]!.classification;
      };
      const slope = (at(1) - at(-1)) / (2 * step);
      values.set(before);
      expect(slope / squares, name).toBeGreaterThan(0.995);
      expect(slope / squares, name).toBeLessThan(1.005);
    }
  });
});

it('gradients do not depend on what was in the step before', () => {
  using model = draftModel();
  using training = new DraftTraining(target, model, { textShare: 0 });
  const gradients = (): number[][] => [...training.parameters].map((parameter) => [...parameter.gradients]);
  training.gradients(texts);
  const first = gradients();
  training.gradients([text(90), texts[0]!]);
  expect(gradients()).not.toEqual(first);
  training.gradients(texts);
  expect(gradients()).toEqual(first);
});

it('texts without a row that counts change nothing', () => {
  using model = draftModel();
  using training = new DraftTraining(target, model, { textShare: 0 });
  training.gradients(texts);
  expect(training.gradients([texts[1]!, texts[4]!])).toEqual([{ classification: 0, agreement: 0, rows: 0 }]);
  for (const { name, gradients } of training.parameters) expect(Math.max(...gradients.map(Math.abs)), name).toBe(0);
  expect(training.gradients([texts[4]!])[0]!.rows).toBe(0);
});

describe('a run', () => {
  const scratch = temporaryDirectory();

  const OPTIONS: DraftRunOptions = {
    settings: { epochs: 12, tokensPerBatch: 90, learningRate: 1e-2, warmup: 3, clipNorm: 0.5, seed: 7 },
    training: { textShare: 0.7 }, // the random target's own law has little in it to be learned
    shape: { hiddenSize: 24, layers: 2, heads: 3, kvHeads: 1, intermediateSize: 40 },
    promptEpochs: 1,
    heldBackEvery: 10,
    evaluateEvery: 20,
  };

  /** Of a little language: each token is followed by one of two. */
  function language(count: number): EncodedText[] {
    const draw = xorshift(11);
    return Array.from({ length: count }, () => {
      const ids = new Int32Array(randomInteger(draw, 5, 30));
      ids[0] = randomInteger(draw, 0, vocabSize);
      for (let i = 1; i < ids.length; i++) ids[i] = (ids[i - 1]! * 5 + randomInteger(draw, 0, 2)) % vocabSize;
      return { ids, mask: new Uint8Array(ids.length).fill(1, 2) };
    });
  }

  function withRun<T>(use: (run: DraftRun) => T, options = OPTIONS): T {
    const directory = mkdtempSync(join(scratch, 'run-'));
    using store = new FeatureStore(directory, { model: 'tiny', dtype: 'f32', hiddenSize: D });
    for (const _ of computeFeatures(target, store, language(60)));
    using run = new DraftRun(directory, target, store, options);
    return use(run);
  }

  it('makes the loss smaller, of trained and of held-back text', () => {
    withRun((run) => {
      const [before] = run.evaluate();
      while (run.trainer.step < run.trainer.totalSteps) run.advance();
      const updates = run.log.entries.filter(({ update }) => update !== undefined);
      const mean = (part: typeof updates): number =>
        part.reduce((sum, { losses }) => sum + losses[0]!.classification, 0) / part.length;
      expect(mean(updates.slice(-5))).toBeLessThan(0.7 * mean(updates.slice(0, 5)));
      const [after] = run.log.entries.at(-1)!.losses;
      expect(after).toEqual(run.evaluate()[0]);
      expect(after!.classification).toBeLessThan(0.7 * before!.classification);
    });
  });

  it('saves a model that loads by itself, in f16, and never over another', async () => {
    const out = join(scratch, 'draft');
    const ids = Int32Array.of(3, 17, 86, 46, 40);
    const trained = withRun((run) => {
      for (let i = 0; i < 5; i++) run.advance();
      saveModel(out, run.model, { provenance: { steps: 5 }, card: '# A draft model\n' });
      expect(() => saveModel(out, run.model, { provenance: {}, card: '' })).toThrow(/must not exist/);
      return logitsAlong(run.model, ids);
    });
    using checkpoint = await openCheckpoint(out);
    expect(checkpoint.config).toEqual(DRAFT_CONFIG);
    using loaded = new Llama(kernels, checkpoint.config, checkpoint.source, { dtype: 'f32' });
    const read = logitsAlong(loaded, ids);
    for (const [i, row] of trained.entries()) {
      const scale = Math.max(...row.map(Math.abs));
      // f16 has 11 significant bits; roundings of a few hundred weights on the way add up like a random walk.
      for (const [id, logit] of row.entries()) expect(Math.abs(read[i]![id]! - logit)).toBeLessThan(scale * 2 ** -8);
    }
    expect(JSON.parse(readFileSync(join(out, 'provenance.json'), 'utf8'))).toEqual({ steps: 5 });
    expect(existsSync(join(out, 'README.md'))).toBe(true);
  });

  it.each([
    [{ heads: 5 }, /heads: must share the hidden size 24 in even parts, got 5/],
    [{ heads: 8 }, /heads: must share the hidden size 24 in even parts, got 8/],
    [{ kvHeads: 2 }, /kvHeads: must divide the 3 query heads, got 2/],
  ])('refuses %j', (wrong, message) => {
    const options = { ...OPTIONS, shape: { ...OPTIONS.shape, ...wrong } };
    expect(() => withRun(() => {}, options)).toThrow(message);
  });
});
