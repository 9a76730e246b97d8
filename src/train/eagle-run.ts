/** A training run of one EAGLE head. */
import { EagleHead } from '../draft/eagle-head.ts';
import type { HeadConfig } from '../draft/head-config.ts';
import { RequestError } from '../errors.ts';
import type { ModelConfig } from '../model/config.ts';
import type { TargetModel } from '../model/target.ts';
import type { TensorSource } from '../tensor/source.ts';
import { coverage, draftVocabulary } from './draft-vocabulary.ts';
import { EagleTraining, type EagleTrainingOptions } from './eagle.ts';
import type { TextFeatures } from './feature-store.ts';
import { type InitialHead, initialHead } from './initial-head.ts';
import { type RunOptions, splitTexts, TrainingRun } from './run.ts';

export interface EagleRunOptions extends RunOptions {
  readonly training: EagleTrainingOptions;
  /** Tokens that the head can propose. */
  readonly draftVocabSize: number;
  readonly intermediateSize: number;
  readonly start: InitialHead;
}

export class EagleRun extends TrainingRun {
  readonly head: EagleHead;
  /** Share of the counting tokens that the draft vocabulary holds. */
  readonly coverage: number;

  /** @throws RequestError where the directory's checkpoint is of another run. */
  constructor(directory: string, target: TargetModel, features: TextFeatures, options: EagleRunOptions) {
    const { trained } = splitTexts(features, options.heldBackEvery);
    const config = headConfig(target.config, options);
    const texts = trained.map((index) => features.text(index));
    const { vocabSize, draftVocabSize } = config;
    const targetIds = draftVocabSize === vocabSize ? undefined : draftVocabulary(texts, draftVocabSize, vocabSize);
    using source: TensorSource = initialHead(options.start, config, targetIds, options.settings.seed);
    const head = new EagleHead(target, config, source, { dtype: 'f32' });
    super(directory, features, new EagleTraining(target.kernels, head, options.training), options);
    this.head = head;
    this.coverage = targetIds === undefined ? 1 : coverage(texts, targetIds);
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.head[Symbol.dispose]();
  }
}

/** Of a head for the target. @throws RequestError where there can be none. */
export function headConfig(
  target: ModelConfig,
  { draftVocabSize, intermediateSize }: Pick<HeadConfig, 'draftVocabSize' | 'intermediateSize'>,
): HeadConfig {
  const { hiddenSize, heads, kvHeads, headDim, rmsNormEps, ropeTheta, vocabSize } = target;
  if (draftVocabSize > vocabSize)
    throw new RequestError('draftVocabSize', `must be at most the target's ${vocabSize}, got ${draftVocabSize}`);
  if (headDim * heads !== hiddenSize)
    throw new RequestError('model', `must have heads of ${hiddenSize} / ${heads} numbers, has ${headDim}`);
  return {
    hiddenSize,
    intermediateSize,
    heads,
    kvHeads,
    headDim,
    rmsNormEps,
    ropeTheta,
    vocabSize,
    draftVocabSize,
  };
}
