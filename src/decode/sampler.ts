/**
 * From a row of logits to the target's token: penalties and bias, temperature, top-k, top-p, min-p, one draw keyed by (seed, position).
 * The same for every node of a tree and for the bonus.
 */
import { RequestError } from '../errors.ts';
import type { Kernels } from '../kernels/kernels.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { uniformAt } from './rng.ts';

export interface SamplingOptions {
  /** 0 (default) takes the likeliest token. */
  readonly temperature?: number;
  /** Keep the k likeliest; 0 (default) keeps all. */
  readonly topK?: number;
  /** Of what top-k kept, keep the fewest likeliest tokens whose share reaches this; 1 (default) keeps all. */
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
  readonly tokens: Int32Array; // the first `length` count
  readonly length: number;
  readonly promptLength: number;
}

/** 1 / temperature in f32 must stay finite: above this only the likeliest tokens are left anyway. */
const LARGEST_INVERSE = 1e30;
/**
 * Likeliest tokens looked at before all are sorted. Top-k inserts into a sorted list: at V = 49,152 the 64 likeliest take 0.03 ms,
 * 512 of them 0.5 ms and 4,096 of them 16 ms, a whole sort 4 ms; 64 hold the nucleus of nearly every row.
 */
const NUCLEUS_SIZES = [64, 512] as const;
/** Probabilities per partial sum: a draw over V adds each number once, then walks the sums and one chunk. */
const CHUNK = 256;

export class Sampler {
  readonly #kernels: Kernels;
  readonly #vocabSize: number;
  readonly #options: { readonly [K in keyof Limits]: number };
  readonly #biasIds: Int32Array;
  readonly #biasValues: Float64Array;
  /** Logits are taken as they stand. */
  readonly #untouched: boolean;
  readonly #row: Float32Array; // [V]
  readonly #best = new Int32Array(1);
  readonly #counts: Int32Array; // [V] occurrences among the context's tokens
  readonly #chunkSums: Float64Array; // [V / CHUNK]
  readonly #ids: Int32Array; // [largest nucleus looked at]
  readonly #values: Float32Array; // as #ids
  #sorted: Float32Array | undefined; // [V], descending; made when a nucleus is larger

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
    const bias: ReadonlyMap<number, number> = options.logitBias ?? new Map();
    for (const [id, value] of bias) {
      if (!Number.isInteger(id) || id < 0 || id >= vocabSize)
        throw new RequestError('logitBias', `ids are 0..${vocabSize - 1}, got ${id}`);
      if (Number.isNaN(value)) throw new RequestError('logitBias', `the bias of ${id} is not a number`);
    }
    this.#biasIds = Int32Array.from(bias.keys());
    this.#biasValues = Float64Array.from(bias.values());
    const { repeatPenalty, frequencyPenalty, presencePenalty } = this.#options;
    this.#untouched = repeatPenalty === 1 && frequencyPenalty === 0 && presencePenalty === 0 && bias.size === 0;
    this.#row = new Float32Array(vocabSize);
    this.#counts = new Int32Array(vocabSize);
    this.#chunkSums = new Float64Array(Math.ceil(vocabSize / CHUNK));
    const nucleus = Math.min(NUCLEUS_SIZES.at(-1)!, vocabSize);
    this.#ids = new Int32Array(nucleus);
    this.#values = new Float32Array(nucleus);
  }

  /** The token at `position` given row `row` of the logits [n, V] and what comes before. */
  choose(logits: Tensor, row: number, context: TokenContext, position: number): number {
    const { temperature, topK, topP, minP, seed } = this.#options;
    if (temperature === 0 && this.#untouched) return this.#likeliest(logits.row(row));
    const values = this.#row;
    values.set(logits.row(row));
    this.#process(values, context);
    if (temperature === 0) return this.#likeliest(values);
    this.#kernels.softmax(values, values, 1, this.#vocabSize, Math.min(1 / temperature, LARGEST_INVERSE));
    const u = uniformAt(seed, position);
    return topK === 0 && topP === 1 && minP === 0 ? this.#draw(values, u) : this.#drawTruncated(values, u);
  }

  #likeliest(values: Float32Array): number {
    this.#kernels.argmax(this.#best, values, 1, this.#vocabSize);
    return this.#best[0]!;
  }

  #process(values: Float32Array, { tokens, length, promptLength }: TokenContext): void {
    if (this.#untouched) return;
    const { repeatPenalty, frequencyPenalty, presencePenalty } = this.#options;
    if (repeatPenalty !== 1) {
      const seen = this.#counts.fill(0);
      for (let i = 0; i < length; i++) {
        const id = tokens[i]!;
        if (seen[id]! > 0) continue;
        seen[id] = 1;
        values[id] = values[id]! > 0 ? values[id]! / repeatPenalty : values[id]! * repeatPenalty;
      }
    }
    if (frequencyPenalty !== 0 || presencePenalty !== 0) {
      const counts = this.#counts.fill(0);
      for (let i = promptLength; i < length; i++) counts[tokens[i]!]!++;
      for (let i = promptLength; i < length; i++) {
        const id = tokens[i]!;
        if (counts[id] === 0) continue; // taken off already
        values[id] = values[id]! - counts[id]! * frequencyPenalty - presencePenalty;
        counts[id] = 0;
      }
    }
    for (let i = 0; i < this.#biasIds.length; i++) {
      const id = this.#biasIds[i]!;
      values[id] = values[id]! + this.#biasValues[i]!;
    }
  }

  /** Inverse of the cumulative law in order of ids; the law's own sum stands in for 1, so rounding cannot fall off the end. */
  #draw(probabilities: Float32Array, u: number): number {
    const sums = this.#chunkSums;
    let mass = 0;
    for (let chunk = 0; chunk < sums.length; chunk++) {
      sums[chunk] = sumOf(probabilities, chunk * CHUNK, Math.min((chunk + 1) * CHUNK, probabilities.length));
      mass += sums[chunk]!;
    }
    let left = u * mass;
    let within = 0; // the chunk where the draw falls; the last one that holds anything, should rounding carry it past the end
    for (let chunk = 0; chunk < sums.length; chunk++) {
      if (sums[chunk] === 0) continue;
      within = chunk;
      if (left < sums[chunk]!) break;
      left -= sums[chunk]!;
    }
    let token = 0;
    for (let i = within * CHUNK; i < probabilities.length; i++) {
      const p = probabilities[i]!;
      if (p === 0) continue;
      token = i;
      left -= p;
      if (left < 0) break;
    }
    return token;
  }

  /** Among the likeliest tokens that pass top-k, then top-p, then min-p, likeliest first; probabilities renormalised. */
  #drawTruncated(probabilities: Float32Array, u: number): number {
    const { topK } = this.#options;
    const most = topK === 0 ? probabilities.length : Math.min(topK, probabilities.length);
    for (const size of NUCLEUS_SIZES) {
      const k = Math.min(size, most);
      if (topK > k) continue; // the share that top-p asks for is one of all that top-k keeps
      this.#kernels.topK(this.#ids, this.#values, probabilities, 1, probabilities.length, k);
      const kept = this.#keptOf(this.#values, k);
      if (kept < k || k === most) return this.#ids[indexAt(this.#values, kept, u)]!;
    }
    this.#sorted ??= new Float32Array(probabilities.length);
    const sorted = this.#sorted;
    sorted.set(probabilities);
    sorted.sort().reverse();
    return nthOf(probabilities, sorted, indexAt(sorted, this.#keptOf(sorted, most), u));
  }

  /** How many of the first `k` descending probabilities pass top-p and min-p; at least one. */
  #keptOf(values: Float32Array, k: number): number {
    const { topK, topP, minP } = this.#options;
    const enough = topP === 1 ? Number.POSITIVE_INFINITY : topP * (topK === 0 ? 1 : sumOf(values, 0, k));
    const floor = minP * values[0]!;
    let mass = 0;
    let kept = 0;
    while (kept < k && mass < enough && values[kept]! >= floor && values[kept]! > 0) mass += values[kept++]!;
    return Math.max(kept, 1);
  }
}

/** Sum of values[start, end), in four strands that do not wait for each other. */
function sumOf(values: Float32Array, start: number, end: number): number {
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  let i = start;
  for (; i + 4 <= end; i += 4) {
    a += values[i]!;
    b += values[i + 1]!;
    c += values[i + 2]!;
    d += values[i + 3]!;
  }
  for (; i < end; i++) a += values[i]!;
  return a + b + (c + d);
}

/** Inverse of the cumulative law of the first `count` values. */
function indexAt(values: Float32Array, count: number, u: number): number {
  let left = u * sumOf(values, 0, count);
  for (let i = 0; i < count; i++) {
    left -= values[i]!;
    if (left < 0) return i;
  }
  return count - 1;
}

/** The id that stands at `index` when ids are sorted by probability, ties by id. */
function nthOf(probabilities: Float32Array, sorted: Float32Array, index: number): number {
  const value = sorted[index]!;
  let id = Math.max(0, probabilities.indexOf(value)); // NaN is found nowhere
  for (let i = index; i > 0 && sorted[i - 1] === value; i--) id = probabilities.indexOf(value, id + 1);
  return id;
}
