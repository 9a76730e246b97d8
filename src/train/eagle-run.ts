/**
 * Training one EAGLE head from texts to weights, in a directory of its own that can be left at any moment and come back to: features first,
 * then updates, with some of the texts held back to judge by.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { FeatureReader } from '../decode/features.ts';
import { EagleHead } from '../draft/eagle-head.ts';
import type { HeadConfig } from '../draft/head-config.ts';
import { RequestError } from '../errors.ts';
import type { TargetModel } from '../model/target.ts';
import type { TensorSource } from '../tensor/source.ts';
import { coverage, draftVocabulary } from './draft-vocabulary.ts';
import { EagleTraining, type EagleTrainingOptions } from './eagle.ts';
import { type FeatureStore, featureBytes, requireSpace, type TextFeatures } from './feature-store.ts';
import { type InitialHead, initialHead } from './initial-head.ts';
import type { StepLoss } from './loss.ts';
import { Trainer, type TrainSettings } from './trainer.ts';
import { type LogEntry, TrainingLog } from './training-log.ts';
import type { EncodedText, TrainingText } from './unroll.ts';

export interface EagleRunOptions {
  readonly settings: TrainSettings;
  readonly training: EagleTrainingOptions;
  /** Tokens that the head can propose. */
  readonly draftVocabSize: number;
  readonly intermediateSize: number;
  readonly start: InitialHead;
  /** In the first epochs every token counts, prompts too; in the others answers alone: breadth first, the model's own words last. */
  readonly promptEpochs: number;
  /** One text of so many is held back. */
  readonly heldBackEvery: number;
  /** Updates between two looks at the texts held back. */
  readonly evaluateEvery: number;
}

/** The features' computation, or the run itself, a step on. */
export interface FeatureProgress {
  readonly tokens: number;
  readonly totalTokens: number;
}

/** At most so many texts are held back: more tell hardly more. */
const MOST_HELD_BACK = 64;

/**
 * Fills the store with the features of all texts, as far as it lacks them.
 * @throws RequestError where the disk has no room, before anything is written, and where the store holds other texts.
 */
export function* computeFeatures(
  target: TargetModel,
  store: FeatureStore,
  texts: readonly EncodedText[],
): Generator<FeatureProgress, void, void> {
  for (let index = 0; index < Math.min(store.texts, texts.length); index++)
    if (!equal(store.text(index), texts[index]!))
      throw new RequestError(store.directory, `text ${index + 1} differs from the one whose features are there`);
  const totalTokens = texts.reduce((sum, { ids }) => sum + ids.length, 0);
  requireSpace(store.directory, featureBytes(totalTokens - store.tokens, target.config.hiddenSize));
  using reader = new FeatureReader(target, Math.max(1, ...texts.map(({ ids }) => ids.length)));
  for (const text of texts.slice(store.texts)) {
    store.append(text, reader.read(text.ids).data);
    yield { tokens: store.tokens, totalTokens };
  }
  store.sync();
}

function equal(a: EncodedText, b: EncodedText): boolean {
  return a.ids.length === b.ids.length && a.ids.every((id, i) => id === b.ids[i] && a.mask[i] === b.mask[i]);
}

export class EagleRun implements Disposable {
  readonly head: EagleHead;
  readonly trainer: Trainer;
  readonly log: TrainingLog;
  /** Share of the counting tokens that the draft vocabulary holds. */
  readonly coverage: number;
  /** Whether it went on from a checkpoint. */
  readonly resumed: boolean;
  readonly #training: EagleTraining;
  readonly #store: TextFeatures;
  readonly #options: EagleRunOptions;
  readonly #trained: readonly number[]; // texts
  readonly #heldBack: readonly number[];
  readonly #checkpoint: string;

  /** @throws RequestError where the directory's checkpoint is of another run. */
  constructor(directory: string, target: TargetModel, store: TextFeatures, options: EagleRunOptions) {
    this.#store = store;
    this.#options = options;
    this.#checkpoint = join(directory, 'checkpoint.safetensors');
    const all = Array.from({ length: store.texts }, (_, index) => index);
    const isHeldBack = (index: number): boolean =>
      index % options.heldBackEvery === options.heldBackEvery - 1 && index < options.heldBackEvery * MOST_HELD_BACK;
    this.#heldBack = all.filter(isHeldBack);
    this.#trained = all.filter((index) => !isHeldBack(index));
    if (this.#trained.length === 0 || this.#heldBack.length === 0)
      throw new RequestError('texts', `must be two at least, one to learn from and one to judge by, got ${all.length}`);

    const { head: config, targetIds } = this.#headFor(target);
    this.coverage = targetIds === undefined ? 1 : coverage(this.#texts(), targetIds);
    const { kernels } = target;
    using source: TensorSource = initialHead(options.start, config, targetIds, options.settings.seed);
    this.head = new EagleHead(target, config, source, { dtype: 'f32' });
    this.#training = new EagleTraining(kernels, this.head, options.training);
    const lengths = this.#trained.map((index) => store.text(index).ids.length);
    const gradients = (texts: readonly number[], seed: number, epoch: number): StepLoss[] =>
      this.#training.gradients(
        texts.map((text) => this.#read(this.#trained[text]!, epoch < options.promptEpochs)),
        seed,
      );
    this.trainer = new Trainer(
      { parameters: this.#training.parameters, gradients },
      lengths,
      options.settings,
      options,
    );
    this.resumed = existsSync(this.#checkpoint);
    if (this.resumed) this.trainer.restore(this.#checkpoint);
    this.log = new TrainingLog(join(directory, 'log.jsonl'), this.trainer.step);
  }

  /** One update, and now and then a look at the texts held back; what was written to the log. */
  advance(): readonly LogEntry[] {
    const began = performance.now();
    const { step, tokens, learningRate, gradientNorm, losses } = this.trainer.advance();
    const ms = performance.now() - began;
    const before = this.log.entries.at(-1)?.tokens ?? 0;
    const entries: LogEntry[] = [
      { step, tokens: before + tokens, losses: [...losses], update: { learningRate, gradientNorm, ms } },
    ];
    if (step % this.#options.evaluateEvery === 0 || step === this.trainer.totalSteps)
      entries.push({ step, tokens: before + tokens, losses: this.evaluate() });
    for (const entry of entries) this.log.append(entry);
    return entries;
  }

  /** The losses of the texts held back, whose answers count. */
  evaluate(): StepLoss[] {
    const sums: StepLoss[] = [];
    for (const index of this.#heldBack)
      for (const [j, loss] of this.#training.evaluate([this.#read(index, false)]).entries())
        sums[j] = sums[j] === undefined ? loss : merge(sums[j], loss);
    return sums;
  }

  /** From here on nothing is lost. */
  save(): void {
    this.trainer.save(this.#checkpoint);
  }

  #headFor(target: TargetModel): { head: HeadConfig; targetIds: Int32Array | undefined } {
    const { hiddenSize, heads, kvHeads, headDim, rmsNormEps, ropeTheta, vocabSize } = target.config;
    const { draftVocabSize, intermediateSize } = this.#options;
    if (draftVocabSize > vocabSize)
      throw new RequestError('draftVocabSize', `must be at most the target's ${vocabSize}, got ${draftVocabSize}`);
    if (headDim * heads !== hiddenSize)
      throw new RequestError('model', `must have heads of ${hiddenSize} / ${heads} numbers, has ${headDim}`);
    const head = {
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
    const targetIds =
      draftVocabSize === vocabSize ? undefined : draftVocabulary(this.#texts(), draftVocabSize, vocabSize);
    return { head, targetIds };
  }

  *#texts(): Iterable<EncodedText> {
    for (const index of this.#trained) yield this.#store.text(index);
  }

  #read(index: number, everything: boolean): TrainingText {
    const text = this.#store.read(index);
    return everything ? { ...text, mask: new Uint8Array(text.mask.length).fill(1) } : text;
  }

  [Symbol.dispose](): void {
    this.log[Symbol.dispose]();
    this.#training[Symbol.dispose]();
    this.head[Symbol.dispose]();
  }
}

/** Of both together. */
function merge(a: StepLoss, b: StepLoss): StepLoss {
  const rows = a.rows + b.rows;
  const mean = (pick: (loss: StepLoss) => number): number =>
    rows === 0 ? 0 : (pick(a) * a.rows + pick(b) * b.rows) / rows;
  return {
    rows,
    regression: mean(({ regression }) => regression),
    classification: mean(({ classification }) => classification),
    agreement: mean(({ agreement }) => agreement),
  };
}
