/**
 * Training from texts to weights, whatever learns, in a directory of its own that can be left at any moment and come back to: updates, with
 * some of the texts held back to judge by.
 */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { removeTemporaries } from '../checkpoint/file.ts';
import { RequestError } from '../errors.ts';
import type { TextFeatures } from './feature-store.ts';
import { writing } from './json-lines.ts';
import type { StepLoss } from './loss.ts';
import type { Parameters } from './parameters.ts';
import { Trainer, type TrainSettings } from './trainer.ts';
import { type LogEntry, TrainingLog } from './training-log.ts';
import type { TrainingText } from './unroll.ts';
import { WriteLock } from './write-lock.ts';

/** What learns from texts. */
export interface Learner extends Disposable {
  readonly parameters: Parameters;
  /** Leaves the loss's gradients in the parameters. @param seed of noise, where there is any. @param epoch from 0. */
  gradients(texts: readonly TrainingText[], seed: number, epoch: number): StepLoss[];
  /** The losses without noise and without gradients. */
  evaluate(texts: readonly TrainingText[]): StepLoss[];
}

export interface RunOptions {
  readonly settings: TrainSettings;
  /** In the first epochs every token counts, prompts too; in the others answers alone: breadth first, the model's own words last. */
  readonly promptEpochs: number;
  /** One text of so many is held back. */
  readonly heldBackEvery: number;
  /** Updates between two looks at the texts held back. */
  readonly evaluateEvery: number;
  /** The model whose features are learned from, where it is known. */
  readonly target?: { readonly sha256: string; readonly dtype: string };
}

/** Indices of texts. */
export interface TextSplit {
  readonly trained: readonly number[];
  readonly heldBack: readonly number[];
}

/** At most so many texts are held back: more tell hardly more. */
const MOST_HELD_BACK = 64;

/** @throws RequestError where there is nothing for one of the two. */
export function splitTexts({ texts }: TextFeatures, heldBackEvery: number): TextSplit {
  const all = Array.from({ length: texts }, (_, index) => index);
  const isHeldBack = (index: number): boolean =>
    index % heldBackEvery === heldBackEvery - 1 && index < heldBackEvery * MOST_HELD_BACK;
  const heldBack = all.filter(isHeldBack);
  const trained = all.filter((index) => !isHeldBack(index));
  if (trained.length === 0 || heldBack.length === 0)
    throw new RequestError('texts', `must be two at least, one to learn from and one to judge by, got ${texts}`);
  return { trained, heldBack };
}

/** Of all tokens and masks, in their order. */
function digestOf(features: TextFeatures): string {
  const hash = createHash('sha256');
  for (let index = 0; index < features.texts; index++) {
    const { ids, mask } = features.text(index);
    hash.update(`${ids.length} `).update(ids).update(mask);
  }
  return hash.digest('hex');
}

export class TrainingRun implements Disposable {
  readonly trainer: Trainer;
  readonly log: TrainingLog;
  readonly options: RunOptions;
  /** Whether it went on from a checkpoint. */
  readonly resumed: boolean;
  readonly #learner: Learner;
  readonly #features: TextFeatures;
  readonly #heldBack: readonly number[]; // texts
  readonly #checkpoint: string;
  readonly #lock: WriteLock;

  /**
   * @param learner disposed of with the run.
   * @param options all that the course of the run depends on, the learner's own options too: a checkpoint of other ones is refused.
   * @throws RequestError where the directory's checkpoint is of another run, and where another process trains in it.
   */
  constructor(directory: string, features: TextFeatures, learner: Learner, options: RunOptions) {
    const { trained, heldBack } = splitTexts(features, options.heldBackEvery);
    this.#learner = learner;
    this.#features = features;
    this.options = options;
    this.#heldBack = heldBack;
    this.#checkpoint = join(directory, 'checkpoint.safetensors');
    const gradients = (texts: readonly number[], seed: number, epoch: number): StepLoss[] =>
      learner.gradients(
        texts.map((text) => this.#read(trained[text]!, epoch < options.promptEpochs)),
        seed,
        epoch,
      );
    const lengths = trained.map((index) => features.text(index).ids.length);
    const { settings, ...others } = options;
    const identity = { ...others, textsSha256: digestOf(features) };
    this.trainer = new Trainer({ parameters: learner.parameters, gradients }, lengths, settings, identity);
    this.#lock = new WriteLock(directory, join(directory, 'training.lock'));
    try {
      const log = join(directory, 'log.jsonl');
      for (const path of [this.#checkpoint, log]) removeTemporaries(path);
      this.resumed = existsSync(this.#checkpoint);
      if (this.resumed) this.trainer.restore(this.#checkpoint);
      this.log = new TrainingLog(log, this.trainer.step);
    } catch (error) {
      this.#lock[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * One update, and now and then a look at the texts held back; what was written to the log.
   * @throws RequestError where by the time of such a look no token has counted, here or there: nothing would be learned, or judged.
   */
  advance(): readonly LogEntry[] {
    const began = performance.now();
    const { step, tokens, learningRate, gradientNorm, losses } = this.trainer.advance();
    const ms = performance.now() - began;
    const before = this.log.entries.at(-1)?.tokens ?? 0;
    const update: LogEntry = {
      step,
      tokens: before + tokens,
      losses: [...losses],
      update: { learningRate, gradientNorm, ms },
    };
    this.log.append(update);
    if (step % this.options.evaluateEvery !== 0 && step !== this.trainer.totalSteps) return [update];
    const look: LogEntry = { step, tokens: before + tokens, losses: this.evaluate() };
    const updates = this.log.entries.filter((entry) => entry.update !== undefined);
    if (!anyCounts([look])) throw new RequestError('texts', 'those held back must hold tokens that count, none does');
    if (!anyCounts(updates)) throw new RequestError('texts', 'must hold tokens that count, none did so far');
    this.log.append(look);
    return [update, look];
  }

  /** The losses of the texts held back, whose answers count. */
  evaluate(): StepLoss[] {
    const sums: StepLoss[] = [];
    for (const index of this.#heldBack)
      for (const [j, loss] of this.#learner.evaluate([this.#read(index, false)]).entries())
        sums[j] = sums[j] === undefined ? loss : merge(sums[j], loss);
    return sums;
  }

  /** From here on nothing is lost. */
  save(): void {
    writing(this.#checkpoint, () => this.trainer.save(this.#checkpoint));
  }

  #read(index: number, everything: boolean): TrainingText {
    const text = this.#features.read(index);
    return everything ? { ...text, mask: new Uint8Array(text.mask.length).fill(1) } : text;
  }

  [Symbol.dispose](): void {
    this.log[Symbol.dispose]();
    this.#lock[Symbol.dispose]();
    this.#learner[Symbol.dispose]();
  }
}

const anyCounts = (entries: readonly LogEntry[]): boolean =>
  entries.some(({ losses }) => losses.some(({ rows }) => rows > 0));

/** Of both together. */
function merge(a: StepLoss, b: StepLoss): StepLoss {
  const rows = a.rows + b.rows;
  const mean = (pick: (loss: StepLoss) => number): number =>
    rows === 0 ? 0 : (pick(a) * a.rows + pick(b) * b.rows) / rows;
  return {
    rows,
    ...(a.regression !== undefined && { regression: mean(({ regression }) => regression ?? 0) }),
    classification: mean(({ classification }) => classification),
    agreement: mean(({ agreement }) => agreement),
  };
}
