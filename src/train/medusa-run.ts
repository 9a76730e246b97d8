/** A training run of Medusa heads that share the target's LM head. */
import { MOST_MEDUSA_HEADS, MOST_MEDUSA_LAYERS } from '../draft/medusa-config.ts';
import { MedusaHeads } from '../draft/medusa-heads.ts';
import { RequestError } from '../errors.ts';
import type { TargetModel } from '../model/target.ts';
import { type MemoryTensor, memorySource } from '../tensor/memory-source.ts';
import type { TensorSource } from '../tensor/source.ts';
import { coverage, defaultDraftVocabSize, draftTargetIds } from './draft-vocabulary.ts';
import type { TextFeatures } from './feature-store.ts';
import { headAccuracies } from './head-accuracies.ts';
import { draftOffsets } from './initial-head.ts';
import { LossVocabulary } from './loss-vocabulary.ts';
import { MedusaTraining } from './medusa.ts';
import type { AdamWOptions } from './optimizer.ts';
import { type RunOptions, splitTexts, TrainingRun } from './run.ts';

export interface MedusaRunOptions extends RunOptions {
  readonly heads: number;
  /** Residual blocks of each head. */
  readonly layers: number;
  /** Tokens that the heads may guess beside those of the text; `DEFAULT_DRAFT_VOCABULARY` unless said. */
  readonly draftVocabSize?: number | undefined;
  /** Tokens that the loss tells apart; `DEFAULT_LOSS_VOCABULARY` unless said. */
  readonly lossVocabSize?: number | undefined;
}

/** The authors': PyTorch's, but for the decay. */
export const MEDUSA_ADAMW: AdamWOptions = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 };

/** Of a head's guesses, those that a tree may have use for; the authors' trees go as far. */
const RANKS = 10;

export class MedusaRun extends TrainingRun {
  readonly heads: MedusaHeads;
  /** Share of the counting tokens that the draft vocabulary or the text before them holds. */
  readonly coverage: number;
  readonly #target: TargetModel;
  readonly #features: TextFeatures;
  readonly #lossVocabulary: LossVocabulary;

  /** @throws RequestError for heads that cannot be, and where the directory's checkpoint is of another run. */
  constructor(directory: string, target: TargetModel, features: TextFeatures, options: MedusaRunOptions) {
    const { vocabSize } = target.config;
    const { heads: count, layers, draftVocabSize = defaultDraftVocabSize(vocabSize) } = options;
    requireAtMost('heads', count, MOST_MEDUSA_HEADS);
    requireAtMost('layers', layers, MOST_MEDUSA_LAYERS);
    requireAtMost('draftVocabSize', draftVocabSize, vocabSize);
    const { trained } = splitTexts(features, options.heldBackEvery);
    const texts = trained.map((index) => features.text(index));
    const targetIds = draftTargetIds(texts, draftVocabSize, vocabSize);
    const config = { heads: count, layers, ...(targetIds !== undefined && { draftVocabSize }) };
    using source = initialMedusa(config, target.config.hiddenSize, targetIds);
    const heads = new MedusaHeads(target, config, source, { dtype: 'f32' });
    const lossVocabulary = new LossVocabulary(target, texts, options.lossVocabSize);
    const training = new MedusaTraining(target.kernels, heads, target.config, lossVocabulary);
    // Sizes that nobody asked for too: a default may change between a checkpoint and the run that finds it.
    const course: MedusaRunOptions = { ...options, draftVocabSize, lossVocabSize: lossVocabulary.size };
    super(directory, features, training, course);
    this.heads = heads;
    this.#target = target;
    this.#features = features;
    this.#lossVocabulary = lossVocabulary;
    this.coverage = coverage(texts, targetIds);
  }

  /** On the texts held back, of the tokens that the loss tells apart: [heads][RANKS]. */
  accuracies(): number[][] {
    const { heldBack } = splitTexts(this.#features, this.options.heldBackEvery);
    const texts = heldBack.map((index) => this.#features.read(index));
    const { kernels, config } = this.#target;
    const options = { ranks: RANKS, d: config.hiddenSize, vocabulary: this.#lossVocabulary };
    return headAccuracies(kernels, this.heads, texts, options);
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.heads[Symbol.dispose]();
    this.#lossVocabulary[Symbol.dispose]();
  }
}

function requireAtMost(name: string, value: number, most: number): void {
  if (value > most) throw new RequestError(name, `must be at most ${most}, got ${value}`);
}

/**
 * All zeros: every head begins as the target's own LM head on the feature as it is. (The authors' code leaves its biases random, so that
 * its heads begin a little beside that.)
 * @param targetIds of the draft vocabulary, ascending; undefined where it is the target's.
 */
function initialMedusa(
  { heads, layers }: { readonly heads: number; readonly layers: number },
  d: number,
  targetIds: Int32Array | undefined,
): TensorSource {
  const tensors: Record<string, MemoryTensor> = {};
  for (let head = 0; head < heads; head++)
    for (let layer = 0; layer < layers; layer++) {
      tensors[`${head}.${layer}.linear.weight`] = { shape: [d, d], data: new Float32Array(d * d) };
      tensors[`${head}.${layer}.linear.bias`] = { shape: [d], data: new Float32Array(d) };
    }
  if (targetIds !== undefined) tensors.d2t = { shape: [targetIds.length], data: draftOffsets(targetIds) };
  return memorySource('the zero start', tensors);
}
