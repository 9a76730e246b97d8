/** Whole updates of a head's training, on text that says nothing: what the products of `bench train` come to in use. */
import { uniformAt } from '../decode/rng.ts';
import { EagleHead } from '../draft/eagle-head.ts';
import type { TargetModel } from '../model/target.ts';
import { defaultDraftVocabSize } from '../train/draft-vocabulary.ts';
import { EagleTraining } from '../train/eagle.ts';
import { headConfig } from '../train/eagle-run.ts';
import { initialHead } from '../train/initial-head.ts';
import { LossVocabulary } from '../train/loss-vocabulary.ts';
import { Trainer } from '../train/trainer.ts';
import type { TrainingText } from '../train/unroll.ts';
import { median } from './statistics.ts';

export interface UpdateTime {
  /** Steps that the head is unrolled. */
  readonly steps: number;
  readonly tokens: number;
  /** Of the matrix products alone: attention, norms, the loss and the optimiser take time beside them. */
  readonly multiplyAdds: number;
  /** Median, the optimiser's share included. */
  readonly ms: number;
}

/** Tokens of a text: conversations with SmolLM2 have a few hundred. */
const TEXT = 256;

/** @param lossVocabSize tokens that the loss tells apart. @param between called before each update, where something else shall have its turn. */
export function timeUpdate(
  target: TargetModel,
  lossVocabSize: number,
  { steps, tokens: wanted, repeats }: { readonly steps: number; readonly tokens: number; readonly repeats: number },
  between: () => void,
): UpdateTime {
  // What the head may guess is no part of its training.
  const draftVocabSize = defaultDraftVocabSize(target.config.vocabSize);
  const config = headConfig(target.config, { draftVocabSize, intermediateSize: target.config.intermediateSize });
  const ids = Int32Array.from({ length: draftVocabSize }, (_, id) => id);
  using source = initialHead('identity', config, ids, 0);
  using head = new EagleHead(target, config, source, { dtype: 'f32' });
  const texts = Math.ceil(wanted / TEXT);
  const all = Array.from({ length: texts }, (_, text) => idleText(text, lossVocabSize, config.hiddenSize));
  using vocabulary = new LossVocabulary(target, all, lossVocabSize);
  const options = { steps, unrollFromEpoch: 0, stepDecay: 0.8, noise: 0.1 };
  using training = new EagleTraining(target.kernels, head, options, vocabulary.lmHead);
  const gradients = (batch: readonly number[], seed: number) =>
    training.gradients(
      batch.map((text) => all[text]!),
      seed,
      0,
    );
  const tokens = texts * TEXT;
  // An epoch is one update.
  const settings = {
    epochs: repeats + 1,
    tokensPerBatch: tokens,
    learningRate: 1e-3,
    warmup: 0,
    clipNorm: 0.5,
    seed: 0,
  };
  const { parameters } = training;
  const trainer = new Trainer({ parameters, gradients }, new Array<number>(texts).fill(TEXT), settings);
  const times: number[] = [];
  for (let repeat = 0; repeat <= repeats; repeat++) {
    between();
    const began = performance.now();
    trainer.advance();
    if (repeat > 0) times.push(performance.now() - began); // the first warms up
  }
  let weights = 0;
  for (const { values, name } of parameters) if (!name.includes('norm')) weights += values.length;
  return {
    steps,
    tokens,
    multiplyAdds: multiplyAdds(texts, steps, weights, lossVocabSize * config.hiddenSize),
    ms: median(times),
  };
}

/** A row's products: forward, by input and by weight for the head; forward and by input for the frozen LM head; forward once for the truth. */
function multiplyAdds(texts: number, steps: number, weights: number, lmHead: number): number {
  let sum = texts * (TEXT - 1) * lmHead;
  for (let step = 0; step < steps; step++) sum += texts * (TEXT - 1 - step) * (3 * weights + 2 * lmHead);
  return sum;
}

function idleText(text: number, vocabSize: number, d: number): TrainingText {
  return {
    ids: Int32Array.from({ length: TEXT }, (_, i) => Math.floor(vocabSize * uniformAt(text, i))),
    mask: new Uint8Array(TEXT).fill(1),
    features: Float32Array.from({ length: TEXT * d }, (_, i) => 2 * uniformAt(~text, i) - 1),
  };
}
