/**
 * The training loop, one update at a time, for whatever has parameters and gradients: a head, a draft model. Its state is the weights, the
 * optimiser's moments and the number of updates; everything else (which texts come next, their noise, the learning rate) follows from
 * that number and the settings. So a run that was killed and goes on from its checkpoint computes what it would have computed, bit for bit.
 */
import { z } from 'zod';
import { openSafetensors, type TensorToWrite, writeSafetensors } from '../checkpoint/safetensors.ts';
import { RequestError } from '../errors.ts';
import { epochBatches } from './batches.ts';
import { parseLine } from './json-lines.ts';
import type { StepLoss } from './loss.ts';
import { AdamW, type AdamWOptions, clipByNorm, EAGLE_ADAMW } from './optimizer.ts';
import type { Parameters } from './parameters.ts';
import { learningRate } from './schedule.ts';
import { differences, type Settings } from './settings.ts';

/** What is trained. */
export interface Trainable {
  readonly parameters: Parameters;
  /** Leaves the loss's gradients in the parameters. @param seed of this update's noise. */
  gradients(texts: readonly number[], seed: number, epoch: number): StepLoss[];
}

export interface TrainSettings {
  readonly epochs: number;
  /** Tokens of one update, at most. */
  readonly tokensPerBatch: number;
  readonly learningRate: number;
  /** Updates of the linear rise. */
  readonly warmup: number;
  /** Bound of the gradients' common norm. */
  readonly clipNorm: number;
  readonly seed: number;
  readonly adamW?: AdamWOptions;
}

export interface TrainReport {
  /** Updates made, this one included. */
  readonly step: number;
  readonly epoch: number;
  readonly tokens: number;
  readonly learningRate: number;
  /** Before clipping. */
  readonly gradientNorm: number;
  /** Of each unrolled step. */
  readonly losses: readonly StepLoss[];
}

/** Of the peak: where the learning rate ends. */
const FLOOR = 0.02;

export class Trainer {
  readonly #trainable: Trainable;
  readonly #settings: TrainSettings;
  readonly #lengths: ArrayLike<number>;
  readonly #further: object;
  readonly #optimizer: AdamW;
  readonly #batches: { readonly texts: readonly number[]; readonly epoch: number }[];
  #step = 0;

  /**
   * @param lengths tokens of each text; a text's index names it.
   * @param further settings on which the course of the run depends: a checkpoint of other ones is refused.
   */
  constructor(trainable: Trainable, lengths: ArrayLike<number>, settings: TrainSettings, further: object = {}) {
    this.#trainable = trainable;
    this.#settings = settings;
    this.#lengths = lengths;
    this.#further = further;
    this.#optimizer = new AdamW(trainable.parameters, settings.adamW ?? EAGLE_ADAMW);
    this.#batches = Array.from({ length: settings.epochs }, (_, epoch) =>
      epochBatches(lengths, settings.tokensPerBatch, settings.seed, epoch).map((texts) => ({ texts, epoch })),
    ).flat();
  }

  /** Updates made. */
  get step(): number {
    return this.#step;
  }

  get totalSteps(): number {
    return this.#batches.length;
  }

  /** One update. @throws RequestError when the loss is no number any more: nothing good comes after. */
  advance(): TrainReport {
    const { seed, clipNorm, learningRate: peak, warmup } = this.#settings;
    const { texts, epoch } = this.#batches[this.#step]!;
    const losses = this.#trainable.gradients(texts, Math.imul(seed + 1, 0x85ebca6b) ^ this.#step, epoch);
    const gradientNorm = clipByNorm(this.#trainable.parameters, clipNorm);
    if (!Number.isFinite(gradientNorm))
      throw new RequestError(`update ${this.#step + 1}`, `gradients must be finite, their norm is ${gradientNorm}`);
    const rate = learningRate({ peak, warmup, total: this.totalSteps, floor: FLOOR }, this.#step);
    this.#optimizer.update(rate);
    this.#step++;
    const tokens = texts.reduce((sum, text) => sum + this.#lengths[text]!, 0);
    return { step: this.#step, epoch, tokens, learningRate: rate, gradientNorm, losses };
  }

  /** Writes the whole state, or nothing. */
  save(path: string): void {
    const tensors = [...this.#states()].map(
      ([name, values]): TensorToWrite => ({
        name,
        type: 'F32',
        shape: [values.length],
        data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
      }),
    );
    writeSafetensors(path, tensors, { step: String(this.#step), settings: this.#identity() });
  }

  /** Goes on where `save` was. @throws RequestError where the checkpoint is of another run. */
  restore(path: string): void {
    using file = openSafetensors(path);
    const before = parseLine(file.metadata.get('settings') ?? '', path, z.record(z.string(), z.unknown()));
    const differing = differences(before, JSON.parse(this.#identity()) as Settings);
    if (differing.length > 0)
      throw new RequestError(path, `is of a run with ${differing.join('; ')}: give the same, or another directory`);
    const step = Number(file.metadata.get('step'));
    if (!Number.isInteger(step) || step < 0 || step > this.totalSteps)
      throw new RequestError(path, `step must be from 0 to ${this.totalSteps}, got ${file.metadata.get('step')}`);
    for (const [name, values] of this.#states()) {
      const entry = file.entries.get(name);
      if (entry?.type !== 'F32' || entry.byteLength !== values.byteLength)
        throw new RequestError(path, `${name} must be F32 [${values.length}], got ${entry?.type} [${entry?.shape}]`);
    }
    for (const [name, values] of this.#states())
      new Uint8Array(values.buffer, values.byteOffset, values.byteLength).set(file.read(name));
    this.#step = step;
    this.#optimizer.steps = step;
  }

  /** Whatever the course of the run depends on beside its state. */
  #identity(): string {
    const texts = this.#lengths.length;
    return JSON.stringify({ ...this.#settings, ...this.#further, texts, updates: this.totalSteps });
  }

  *#states(): Iterable<[name: string, values: Float32Array]> {
    let index = 0;
    for (const { name, values } of this.#trainable.parameters) {
      const { first, second } = this.#optimizer.moments[index++]!;
      yield [name, values];
      yield [`${name}.first`, first];
      yield [`${name}.second`, second];
    }
  }
}
