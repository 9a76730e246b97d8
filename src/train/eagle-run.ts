/** A training run of one EAGLE head. */
import { createHash } from 'node:crypto';
import { openHeadFiles } from '../checkpoint/head.ts';
import { EagleHead } from '../draft/eagle-head.ts';
import type { HeadConfig } from '../draft/head-config.ts';
import { RequestError } from '../errors.ts';
import type { Kernels } from '../kernels/kernels.ts';
import type { ModelConfig } from '../model/config.ts';
import type { TargetModel } from '../model/target.ts';
import { coverage, defaultDraftVocabSize, draftTargetIds } from './draft-vocabulary.ts';
import { EagleTraining, type EagleTrainingOptions } from './eagle.ts';
import type { TextFeatures } from './feature-store.ts';
import { type InitialHead, initialHead } from './initial-head.ts';
import { LossVocabulary } from './loss-vocabulary.ts';
import { rowMajor } from './matrices.ts';
import { type RunOptions, splitTexts, TrainingRun } from './run.ts';
import type { EncodedText } from './unroll.ts';

export interface EagleRunOptions extends RunOptions {
  readonly training: EagleTrainingOptions;
  /** A head that exists goes on from its weights, with its own draft vocabulary and shape. */
  readonly start: InitialHead | ExistingHead;
  /** Tokens that the head may guess beside those of the text; `DEFAULT_DRAFT_VOCABULARY` unless said. */
  readonly draftVocabSize?: number | undefined;
  /** Tokens that the loss tells apart; `DEFAULT_LOSS_VOCABULARY` unless said. */
  readonly lossVocabSize?: number | undefined;
  /** Of the feed-forward layer; the target's unless said. */
  readonly intermediateSize?: number | undefined;
}

export interface ExistingHead {
  readonly directory: string;
}

/** What the course of a run depends on: of a head that it goes on from the weights, wherever they lie. */
interface EagleCourse extends RunOptions {
  readonly start: InitialHead | { readonly weightsSha256: string };
  readonly draftVocabSize: number;
  readonly lossVocabSize: number;
}

export class EagleRun extends TrainingRun {
  readonly head: EagleHead;
  /** Share of the counting tokens that the draft vocabulary or the text before them holds. */
  readonly coverage: number;
  readonly #lossVocabulary: LossVocabulary;

  /**
   * @throws RequestError where the directory's checkpoint is of another run, or the head to go on from of another shape than is asked for,
   *   and where more tokens are asked for than the target has.
   */
  constructor(directory: string, target: TargetModel, features: TextFeatures, options: EagleRunOptions) {
    const { trained } = splitTexts(features, options.heldBackEvery);
    const texts = trained.map((index) => features.text(index));
    const head = createHead(target, texts, options);
    const lossVocabulary = new LossVocabulary(target, texts, options.lossVocabSize);
    const training = new EagleTraining(target.kernels, head, options.training, lossVocabulary.lmHead);
    const course: EagleCourse = {
      ...options,
      start: typeof options.start === 'string' ? options.start : { weightsSha256: hashWeights(target.kernels, head) },
      // Those that nobody asked for too: a default may change between a checkpoint and the run that finds it.
      draftVocabSize: head.config.draftVocabSize,
      lossVocabSize: lossVocabulary.size,
    };
    super(directory, features, training, course);
    this.head = head;
    this.#lossVocabulary = lossVocabulary;
    this.coverage = coverage(texts, head.targetIds);
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.head[Symbol.dispose]();
    this.#lossVocabulary[Symbol.dispose]();
  }
}

function createHead(target: TargetModel, texts: readonly EncodedText[], options: EagleRunOptions): EagleHead {
  const { start, draftVocabSize, intermediateSize } = options;
  if (typeof start !== 'string') {
    using files = openHeadFiles(start.directory);
    requireShape(files.config, { draftVocabSize, intermediateSize }, start.directory);
    return new EagleHead(target, files.config, files.source, { dtype: 'f32' });
  }
  const { vocabSize } = target.config;
  const config = headConfig(target.config, {
    draftVocabSize: draftVocabSize ?? defaultDraftVocabSize(vocabSize),
    intermediateSize: intermediateSize ?? target.config.intermediateSize,
  });
  const targetIds = draftTargetIds(texts, config.draftVocabSize, vocabSize);
  using source = initialHead(start, config, targetIds, options.settings.seed);
  return new EagleHead(target, config, source, { dtype: 'f32' });
}

/** sha256 of all numbers as f32, in the order and layout of `tensors`. */
function hashWeights(kernels: Kernels, head: EagleHead): string {
  const hash = createHash('sha256');
  for (const tensor of head.tensors()) hash.update(new Uint8Array(rowMajor(kernels, tensor).buffer));
  return hash.digest('hex');
}

function requireShape(
  config: HeadConfig,
  asked: Pick<EagleRunOptions, 'draftVocabSize' | 'intermediateSize'>,
  directory: string,
): void {
  for (const name of ['draftVocabSize', 'intermediateSize'] as const)
    if (asked[name] !== undefined && asked[name] !== config[name])
      throw new RequestError(
        name,
        `must be that of ${directory}, which training starts from, ${config[name]}, got ${asked[name]}`,
      );
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
