/**
 * From a row of logits to the target's token: penalties and bias, temperature, top-k, top-p, min-p, one draw keyed by (seed, position).
 * The same for every node of a tree and for the bonus.
 */
import { RequestError } from '../errors.ts';
import type { Kernels } from '../kernels/kernels.ts';
import { uniformAt } from './rng.ts';

export interface SamplingOptions {
  /** 0 (default) takes the likeliest token. */
  readonly temperature?: number;
  /** Keep the k likeliest; 0 (default) keeps all. */
  readonly topK?: number;
  /** Keep the fewest likeliest tokens whose probability reaches this; 1 (default) keeps all. */
  readonly topP?: number;
  /** Drop tokens below this share of the likeliest one's probability; 0 (default) keeps all. */
  readonly minP?: number;
  /** Divides (positive) or multiplies (negative) logits of tokens in the context; 1 (default) changes nothing. */
  readonly repeatPenalty?: number;
  /** Subtracted once per occurrence among the generated tokens. */
  readonly frequencyPenalty?: number;
  /** Subtracted once from tokens that were generated. */
  readonly presencePenalty?: number;
  /** Added to the logits of these ids; -Infinity forbids. */
  readonly logitBias?: ReadonlyMap<number, number>;
  /** 32-bit; 0 by default, so that the same call gives the same text. */
  readonly seed?: number;
}

type Limits = {
  readonly [K in Exclude<keyof SamplingOptions, 'logitBias'>]-?: readonly [low: number, high: number, fallback: number];
};

const LIMITS: Limits = {
  temperature: [0, 100, 0],
  topK: [0, 2 ** 31 - 1, 0],
  topP: [0, 1, 1],
  minP: [0, 1, 0],
  repeatPenalty: [0.01, 100, 1],
  frequencyPenalty: [-100, 100, 0],
  presencePenalty: [-100, 100, 0],
  seed: [-(2 ** 31), 2 ** 32 - 1, 0],
};

/** Tokens before the position that is drawn: prompt, generated text, then the path down the tree. */
export interface TokenContext {
  readonly length: number;
  readonly promptLength: number;
  at(index: number): number;
}

/** First guess at how many tokens carry the nucleus; grown eightfold while it is too few. */
const NUCLEUS_START = 64;

export class Sampler {
  readonly #kernels: Kernels;
  readonly #vocabSize: number;
  readonly #options: { readonly [K in keyof Limits]: number };
  readonly #bias: ReadonlyMap<number, number>;
  readonly #row: Float32Array; // [V]
  readonly #best = new Int32Array(1);
  readonly #counts: Int32Array; // [V] occurrences among the context's tokens
  #ids = new Int32Array(NUCLEUS_START);
  #values = new Float32Array(NUCLEUS_START);

  constructor(kernels: Kernels, vocabSize: number, options: SamplingOptions = {}) {
    this.#kernels = kernels;
    this.#vocabSize = vocabSize;
    const read = (name: keyof Limits): number => {
      const [low, high, fallback] = LIMITS[name];
      const value = options[name] ?? fallback;
      if (!(value >= low && value <= high)) throw new RequestError(name, `must be in ${low}..${high}, got ${value}`);
      if ((name === 'topK' || name === 'seed') && !Number.isInteger(value))
        throw new RequestError(name, `must be whole, got ${value}`);
      return value;
    };
    this.#options = {
      temperature: read('temperature'),
      topK: read('topK'),
      topP: read('topP'),
      minP: read('minP'),
      repeatPenalty: read('repeatPenalty'),
      frequencyPenalty: read('frequencyPenalty'),
      presencePenalty: read('presencePenalty'),
      seed: read('seed'),
    };
    this.#bias = options.logitBias ?? new Map();
    for (const [id, bias] of this.#bias) {
      if (!Number.isInteger(id) || id < 0 || id >= vocabSize)
        throw new RequestError('logitBias', `ids are 0..${vocabSize - 1}, got ${id}`);
      if (Number.isNaN(bias)) throw new RequestError('logitBias', `the bias of ${id} is not a number`);
    }
    this.#row = new Float32Array(vocabSize);
    this.#counts = new Int32Array(vocabSize);
  }

  /** The token at `position` given logits row `row` of [n, V] and what comes before. */
  choose(logits: Float32Array, row: number, context: TokenContext, position: number): number {
    const values = this.#row;
    const start = row * this.#vocabSize;
    for (let i = 0; i < values.length; i++) values[i] = logits[start + i]!;
    this.#process(values, context);
    const { temperature, topK, topP, minP, seed } = this.#options;
    if (temperature === 0) {
      this.#kernels.argmax(this.#best, values, 1, values.length);
      return this.#best[0]!;
    }
    this.#kernels.softmax(values, values, 1, values.length, 1 / temperature);
    const u = uniformAt(seed, position);
    return topK === 0 && topP === 1 && minP === 0
      ? drawFrom(values, u)
      : this.#drawTruncated(values, topK, topP, minP, u);
  }

  #process(values: Float32Array, context: TokenContext): void {
    const { repeatPenalty, frequencyPenalty, presencePenalty } = this.#options;
    if (repeatPenalty !== 1) {
      const seen = this.#counts.fill(0);
      for (let i = 0; i < context.length; i++) {
        const id = context.at(i);
        if (seen[id]! > 0) continue;
        seen[id] = 1;
        values[id] = values[id]! > 0 ? values[id]! / repeatPenalty : values[id]! * repeatPenalty;
      }
    }
    if (frequencyPenalty !== 0 || presencePenalty !== 0) {
      const seen = this.#counts.fill(0);
      for (let i = context.promptLength; i < context.length; i++) {
        const id = context.at(i);
        values[id] = values[id]! - frequencyPenalty - (seen[id] === 0 ? presencePenalty : 0);
        seen[id] = 1;
      }
    }
    for (const [id, bias] of this.#bias) values[id] = values[id]! + bias;
  }

  /** Among the likeliest tokens that pass top-k, then top-p, then min-p; probabilities renormalised. */
  #drawTruncated(probabilities: Float32Array, topK: number, topP: number, minP: number, u: number): number {
    const most = topK === 0 ? probabilities.length : Math.min(topK, probabilities.length);
    let k = Math.min(NUCLEUS_START, most);
    for (;;) {
      if (this.#ids.length < k) {
        this.#ids = new Int32Array(k);
        this.#values = new Float32Array(k);
      }
      this.#kernels.topK(this.#ids, this.#values, probabilities, 1, probabilities.length, k);
      let kept = 0;
      let mass = 0;
      const floor = minP * this.#values[0]!;
      while (kept < k && mass < topP && this.#values[kept]! >= floor && this.#values[kept]! > 0)
        mass += this.#values[kept++]!;
      if (kept < k || k === most) {
        let left = u * mass;
        for (let i = 0; i < kept; i++) {
          left -= this.#values[i]!;
          if (left < 0) return this.#ids[i]!;
        }
        return this.#ids[Math.max(0, kept - 1)]!;
      }
      k = Math.min(k * 8, most);
    }
  }
}

/** Inverse of the cumulative law in order of ids; the law's own sum stands in for 1, so rounding cannot fall off the end. */
function drawFrom(probabilities: Float32Array, u: number): number {
  let mass = 0;
  for (let i = 0; i < probabilities.length; i++) mass += probabilities[i]!;
  let left = u * mass;
  let last = 0;
  for (let i = 0; i < probabilities.length; i++) {
    const p = probabilities[i]!;
    if (p === 0) continue;
    left -= p;
    if (left < 0) return i;
    last = i;
  }
  return last;
}
