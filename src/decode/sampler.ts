/**
 * From a row of logits to the target's law (penalties and bias, temperature, top-k, top-p, min-p), and to its token: the winner of an
 * exponential race, whose numbers are keyed by (seed, position, token). The same for every node of a tree and for the bonus; and a drafter
 * that runs the race at rates of its own is right more often than one that names the likeliest token (`draft/raced-guesses.ts`).
 */
import { RequestError } from '../errors.ts';
import type { Kernels } from '../kernels/kernels.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { sumOf } from './law.ts';
import { raceKey } from './rng.ts';

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
  readonly #key = new Int32Array(2);
  readonly #time = new Float32Array(1);
  readonly #ids: Int32Array; // [largest nucleus looked at]
  readonly #values: Float32Array; // as #ids
  #sorted: Float32Array | undefined; // [V], descending; made when a nucleus is larger
  /** Probabilities of the kept tokens, likeliest first, in one of the two. */
  #kept: Float32Array;

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
      // Of +Infinity no law can be made; -Infinity forbids a token.
      if (!(value < Number.POSITIVE_INFINITY))
        throw new RequestError('logitBias', `the bias of ${id} must be a number or -Infinity, got ${value}`);
    }
    if (forbidden(bias) === vocabSize) throw new RequestError('logitBias', `forbids all of ${vocabSize} tokens`);
    this.#biasIds = Int32Array.from(bias.keys());
    this.#biasValues = Float64Array.from(bias.values());
    const { repeatPenalty, frequencyPenalty, presencePenalty } = this.#options;
    this.#untouched = repeatPenalty === 1 && frequencyPenalty === 0 && presencePenalty === 0 && bias.size === 0;
    this.#row = new Float32Array(vocabSize);
    this.#counts = new Int32Array(vocabSize);
    const nucleus = Math.min(NUCLEUS_SIZES.at(-1)!, vocabSize);
    this.#ids = new Int32Array(nucleus);
    this.#values = new Float32Array(nucleus);
    this.#kept = this.#values;
  }

  get temperature(): number {
    return this.#options.temperature;
  }

  get seed(): number {
    return this.#options.seed;
  }

  /** The token at `position` given row `row` of the logits [n, V] and what comes before. */
  choose(logits: Tensor, row: number, context: TokenContext, position: number): number {
    const { temperature } = this.#options;
    if (temperature === 0) return this.likeliest(logits, row, context);
    const values = this.#processed(logits, row, context);
    this.#soften(values);
    raceKey(this.seed, position, this.#key);
    if (!this.#truncates) return this.#winner(values, this.#vocabSize, null);
    const kept = this.#keep(values); // which says in what list they stand
    if (this.#kept === this.#values) return this.#ids[this.#winner(this.#values, kept, this.#ids)]!;
    this.#dropAllBut(values, kept);
    return this.#winner(values, this.#vocabSize, null);
  }

  /** Which of the first `count` probabilities wins. @param ids of their tokens, null where they are those of the vocabulary. */
  #winner(probabilities: Float32Array, count: number, ids: Int32Array | null): number {
    this.#kernels.race(this.#best, this.#time, probabilities, 1, count, 1, this.#key, ids);
    return this.#best[0]!;
  }

  /** What `choose` takes at temperature 0. */
  likeliest(logits: Tensor, row: number, context: TokenContext): number {
    return this.#likeliest(this.#untouched ? logits.row(row) : this.#processed(logits, row, context));
  }

  /** The law [V] that `choose` draws from, at a temperature above 0. Valid until the next call. */
  law(logits: Tensor, row: number, context: TokenContext): Float32Array {
    const values = this.#processed(logits, row, context);
    this.#soften(values);
    if (this.#truncates) this.#dropAllBut(values, this.#keep(values));
    return values;
  }

  #processed(logits: Tensor, row: number, context: TokenContext): Float32Array {
    const values = this.#row;
    values.set(logits.row(row));
    this.#process(values, context);
    return values;
  }

  #soften(values: Float32Array): void {
    this.#kernels.softmax(values, values, 1, this.#vocabSize, inverseOf(this.#options.temperature));
  }

  get #truncates(): boolean {
    const { topK, topP, minP } = this.#options;
    return topK !== 0 || topP !== 1 || minP !== 0;
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

  /** How many of the likeliest tokens pass top-k, then top-p, then min-p: the first of `#kept`. */
  #keep(probabilities: Float32Array): number {
    const { topK } = this.#options;
    const most = topK === 0 ? probabilities.length : Math.min(topK, probabilities.length);
    for (const size of NUCLEUS_SIZES) {
      const k = Math.min(size, most);
      if (topK > k) continue; // the share that top-p asks for is one of all that top-k keeps
      this.#kernels.topK(this.#ids, this.#values, probabilities, 1, probabilities.length, k);
      const kept = this.#keptOf(this.#values, k);
      this.#kept = this.#values;
      if (kept < k || k === most) return kept;
    }
    this.#sorted ??= new Float32Array(probabilities.length);
    this.#kept = this.#sorted;
    this.#sorted.set(probabilities);
    this.#sorted.sort().reverse();
    return this.#keptOf(this.#sorted, most);
  }

  #dropAllBut(probabilities: Float32Array, kept: number): void {
    if (this.#kept === this.#values) {
      probabilities.fill(0);
      for (let i = 0; i < kept; i++) probabilities[this.#ids[i]!] = this.#values[i]!;
      return;
    }
    const least = this.#kept[kept - 1]!;
    let ties = kept - this.#kept.indexOf(least); // kept ones as unlikely as the last: those of the lowest ids
    for (let id = 0; id < probabilities.length; id++) {
      const stays = probabilities[id]! > least || (probabilities[id] === least && ties-- > 0);
      if (!stays) probabilities[id] = 0;
    }
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

/** How many tokens a bias forbids: logits are f32, so that numbers beyond theirs do too. */
function forbidden(bias: ReadonlyMap<number, number>): number {
  let count = 0;
  for (const value of bias.values()) if (Math.fround(value) === Number.NEGATIVE_INFINITY) count++;
  return count;
}

/** What logits are multiplied with, at a temperature above 0. */
export function inverseOf(temperature: number): number {
  return Math.min(1 / temperature, LARGEST_INVERSE);
}
