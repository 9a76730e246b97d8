/** Training runs of Medusa heads: they learn, what they learn is saved, and a run that was killed ends where one that was not ends. */
import { copyFileSync, mkdtempSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { openMedusaFiles } from '../../src/checkpoint/medusa.ts';
import { FeatureReader } from '../../src/decode/features.ts';
import { MedusaHeads } from '../../src/draft/medusa-heads.ts';
import { parseTreeOption } from '../../src/draft/tree-option.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { ScratchTensor } from '../../src/tensor/tensor.ts';
import { headAccuracies } from '../../src/train/head-accuracies.ts';
import { LiveFeatures } from '../../src/train/live-features.ts';
import { LossVocabulary } from '../../src/train/loss-vocabulary.ts';
import { rowMajor } from '../../src/train/matrices.ts';
import { MedusaTraining } from '../../src/train/medusa.ts';
import { MEDUSA_ADAMW, MedusaRun, type MedusaRunOptions } from '../../src/train/medusa-run.ts';
import { type SavedTexts, saveMedusa } from '../../src/train/save.ts';
import type { EncodedText, TrainingText } from '../../src/train/unroll.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { tinyMedusa, tinyTarget } from '../support/tiny.ts';

const scratch = temporaryDirectory();
const kernels = createKernels();
const target = tinyTarget(kernels);
const { hiddenSize, vocabSize } = target.config;
afterAll(() => target[Symbol.dispose]());

/** A language of two sentences, held back as well as learned. */
const texts: readonly EncodedText[] = Array.from({ length: 12 }, (_, text) => ({
  ids: Int32Array.from({ length: 24 }, (_, i) => ((text % 2) * 3 + i * 5) % 48),
  mask: new Uint8Array(24).fill(1, 2),
}));

const OPTIONS: MedusaRunOptions = {
  settings: {
    epochs: 40,
    tokensPerBatch: 120,
    learningRate: 1e-2,
    warmup: 3,
    clipNorm: 1,
    seed: 7,
    adamW: MEDUSA_ADAMW,
  },
  heads: 3,
  layers: 2,
  draftVocabSize: 48,
  lossVocabSize: 48,
  promptEpochs: 0,
  heldBackEvery: 4,
  evaluateEvery: 1000,
};

const begin = (directory: string): MedusaRun =>
  new MedusaRun(directory, target, new LiveFeatures(target, texts), OPTIONS);

function weightsOf({ heads }: MedusaRun): number[][] {
  return heads.tensors().map((tensor) => [...rowMajor(kernels, tensor)]);
}

it('begins as the LM head, learns, and goes on after a break to the same bits', () => {
  const directory = mkdtempSync(join(scratch, 'run-'));
  using run = begin(directory);
  expect(run.coverage).toBe(1);
  const feature = new ScratchTensor().reshape(1, hiddenSize);
  feature.data.forEach((_, i) => {
    feature.data[i] = Math.cos(i);
  });
  const start = run.heads.logits(feature, 3);
  expect([...start.row(1)]).toEqual([...start.row(0)]); // whatever the depth, the next token's own guess
  const before = run.evaluate();
  while (run.trainer.step < 10) run.advance();
  run.save();
  const elsewhere = mkdtempSync(join(scratch, 'resumed-')); // the run itself goes on, too
  copyFileSync(join(directory, 'checkpoint.safetensors'), join(elsewhere, 'checkpoint.safetensors'));
  using other = begin(elsewhere);
  expect(other.resumed).toBe(true);
  for (const of of [run, other]) while (of.trainer.step < of.trainer.totalSteps) of.advance();
  expect(weightsOf(other)).toEqual(weightsOf(run));

  const after = run.evaluate();
  expect(after).toHaveLength(3);
  for (const [head, { agreement, classification }] of after.entries()) {
    expect(classification).toBeLessThan(before[head]!.classification / 2);
    expect(agreement).toBeGreaterThan(0.6);
  }

  // By rank: what is had at the first is the agreement, for nothing is outside the draft vocabulary here.
  for (const [head, ranks] of run.accuracies().entries()) {
    expect(ranks).toHaveLength(10);
    expect(ranks[0]).toBeCloseTo(after[head]!.agreement, 10);
    expect(ranks.reduce((sum, share) => sum + share)).toBeLessThan(1 + 1e-9);
  }

  const out = join(scratch, 'heads');
  const save = (saved: SavedTexts): void =>
    saveMedusa(out, kernels, run.heads, { base: 'tiny', tree: [[0], [1]] }, saved);
  save({ provenance: { updates: 1 }, card: '# heads\n' });
  expect(parseTreeOption(join(out, 'tree.json'))).toEqual({ kind: 'paths', paths: [[0], [1]] });
  expect(JSON.parse(readFileSync(join(out, 'config.json'), 'utf8'))).toEqual({
    medusa_num_heads: 3,
    medusa_num_layers: 2,
    base_model_name_or_path: 'tiny',
    version: '2',
    draft_vocab_size: 48,
  });
  using files = openMedusaFiles(out);
  using saved = new MedusaHeads(target, files.config, files.source, { dtype: 'f32' });
  expect(saved.targetIds).toEqual(run.heads.targetIds);
  const wanted = run.heads.logits(feature, 3);
  const got = saved.logits(feature, 3);
  for (let i = 0; i < 3 * 48; i++) expect(Math.abs(got.data[i]! - wanted.data[i]!)).toBeLessThan(0.05); // f16
  expect(() => save({ provenance: {}, card: '' })).toThrow('must not exist yet');
});

it('a token counts where the mask says so and the heads can guess it, 2 + i places behind the feature', () => {
  using heads = tinyMedusa(target, { heads: 3, draftVocabSize: 48 }); // every second token
  using training = new MedusaTraining(kernels, heads, { hiddenSize, vocabSize });
  using reader = new FeatureReader(target, 16);
  const read = (ids: readonly number[], mask: readonly number[]): TrainingText => ({
    ids: Int32Array.from(ids),
    mask: Uint8Array.from(mask),
    features: reader.read(Int32Array.from(ids)).data.slice(0, ids.length * hiddenSize),
  });
  const long = read([2, 4, 6, 8, 11, 12, 14], [1, 1, 1, 0, 1, 1, 1]);
  const short = read([2, 4], [1, 1]);
  const rows = (texts: readonly TrainingText[]): number[] => training.evaluate(texts).map((loss) => loss.rows);
  // Of the tokens from the third, fourth, fifth on: 8 is masked, 11 cannot be guessed.
  expect(rows([long])).toEqual([3, 2, 2]);
  expect(rows([short, long, short])).toEqual([3, 2, 2]);
  expect(rows([short])).toEqual([0, 0, 0]);
  expect(training.gradients([short]).map(({ classification }) => classification)).toEqual([0, 0, 0]);
  const accuracies = headAccuracies(kernels, heads, [long], { ranks: 48, d: hiddenSize });
  // Ranks are a permutation: what can be guessed is had somewhere, 11 nowhere.
  expect(accuracies.map((ranks) => ranks.reduce((sum, share) => sum + share))).toEqual(
    [3 / 4, 2 / 3, 2 / 3].map((share) => expect.closeTo(share, 10)),
  );
  // Text that does not count, and texts beside it, change nothing.
  const loss = training.evaluate([long]);
  expect(training.evaluate([short, long])).toEqual(loss);
  const further = training.evaluate([read([2, 4, 6, 9, 11, 12, 14], [1, 1, 1, 0, 1, 1, 1])]);
  expect(further[0]!.classification).not.toBe(loss[0]!.classification); // it is read, though
});

it('tokens that the draft vocabulary lacks are learned where the loss tells them apart, but by LM heads of their own', () => {
  using reader = new FeatureReader(target, 8);
  const ids = Int32Array.of(2, 4, 6, 11, 8);
  const text = { ids, mask: new Uint8Array(5).fill(1), features: reader.read(ids).data.slice(0, 5 * hiddenSize) };
  using vocabulary = new LossVocabulary(target, [text], 5);
  expect([...vocabulary.targetIds!]).toEqual([...ids].toSorted((a, b) => a - b));
  for (const own of [false, true]) {
    using heads = tinyMedusa(target, { heads: 2, draftVocabSize: 48, own }); // every second token
    const rows = (...options: LossVocabulary[]): number[] => {
      using training = new MedusaTraining(kernels, heads, { hiddenSize, vocabSize }, ...options);
      return training.evaluate([text]).map((loss) => loss.rows);
    };
    const had = (options: { readonly vocabulary?: LossVocabulary }): number[] =>
      headAccuracies(kernels, heads, [text], { ranks: 48, d: hiddenSize, ...options }).map((ranks) =>
        ranks.reduce((sum, share) => sum + share),
      );
    expect(rows()).toEqual([2, 1]); // 11 cannot be guessed
    expect(had({})).toEqual([2 / 3, 1 / 2].map((share) => expect.closeTo(share, 10)));
    expect(rows(vocabulary)).toEqual(own ? [2, 1] : [3, 2]);
    expect(had({ vocabulary })).toEqual((own ? [2 / 3, 1 / 2] : [1, 1]).map((share) => expect.closeTo(share, 10)));
  }
});

it('heads guess what their draft vocabulary has, of which the loss may tell more apart', () => {
  const directory = mkdtempSync(join(scratch, 'small-'));
  {
    using run = new MedusaRun(directory, target, new LiveFeatures(target, texts), { ...OPTIONS, draftVocabSize: 8 });
    expect(run.heads.targetIds).toHaveLength(8);
    run.advance();
    run.save();
    expect(run.evaluate()[0]!.rows).toBe(3 * 22); // of all tokens of the texts held back, from the third on
    expect(run.coverage).toBeLessThan(1);
  }
  const other = { ...OPTIONS, draftVocabSize: 8, lossVocabSize: 40 };
  expect(() => new MedusaRun(directory, target, new LiveFeatures(target, texts), other)).toThrow(
    /is of a run with lossVocabSize 48, got 40: /,
  );
});

it.each([
  [{ heads: 65 }, 'heads: must be at most 64, got 65'],
  [{ layers: 65 }, 'layers: must be at most 64, got 65'],
  [{ draftVocabSize: vocabSize + 1 }, `draftVocabSize: must be at most ${vocabSize}, got ${vocabSize + 1}`],
  [{ lossVocabSize: vocabSize + 1 }, `lossVocabSize: must be at most the target's ${vocabSize}, got ${vocabSize + 1}`],
])('%o is refused', (wrong, message) => {
  const features = new LiveFeatures(target, texts);
  expect(() => new MedusaRun(scratch, target, features, { ...OPTIONS, ...wrong })).toThrow(message);
});
