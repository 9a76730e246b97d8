/**
 * Keys and values of all layers, for a fixed number of sequences. A sequence owns a contiguous range of slots: its committed rows
 * first, then the provisional rows of the forward in progress, which `commit` keeps in part and `rollback` drops. It knows the tokens of
 * its rows, so that a text with the same beginning can go on from them.
 */
import { type Kernels, KV_TILE, type KvDtype, type KvLayer } from '../kernels/kernels.ts';
import type { HeadShape } from '../tensor/ops.ts';

export class KvSequence {
  readonly #cache: KvCache;
  /** First slot, a multiple of 16. */
  readonly base: number;
  /** Slots. */
  readonly capacity: number;
  #length = 0;
  #provisional = 0;
  readonly #tokens: Int32Array; // [capacity] of the committed rows, then of the provisional ones
  readonly #from: Int32Array;
  readonly #to: Int32Array;

  constructor(cache: KvCache, base: number, capacity: number) {
    this.#cache = cache;
    this.base = base;
    this.capacity = capacity;
    this.#tokens = new Int32Array(capacity);
    this.#from = new Int32Array(capacity);
    this.#to = new Int32Array(capacity);
  }

  /** Committed rows. */
  get length(): number {
    return this.#length;
  }

  /** Rows appended since the last commit. */
  get provisional(): number {
    return this.#provisional;
  }

  /** Leading tokens of `text` whose rows are committed. */
  sharedPrefix(text: readonly number[]): number {
    return sharedPrefix(this.#tokens, text, this.#length);
  }

  /** Takes the next slot for a row of the coming forward. */
  append(token: number): number {
    const slot = this.#length + this.#provisional;
    if (slot >= this.capacity) throw new RangeError(`kv-cache: the sequence's ${this.capacity} slots are full`);
    this.#tokens[slot] = token;
    this.#provisional++;
    return this.base + slot;
  }

  /** Keeps the provisional rows `path[0..count)` (ascending, counted from the first one) as the next committed rows; drops the rest. */
  commit(path: Int32Array, count: number): void {
    const start = this.base + this.#length;
    for (let i = 0; i < count; i++) {
      const row = path[i]!;
      if (row < i || row >= this.#provisional || (i > 0 && row <= path[i - 1]!)) {
        throw new RangeError(
          `commit: path must ascend within ${this.#provisional} provisional rows, got ${row} at ${i}`,
        );
      }
      this.#from[i] = start + row;
      this.#to[i] = start + i;
      this.#tokens[this.#length + i] = this.#tokens[this.#length + row]!;
    }
    this.#cache.move(this.#from, this.#to, count);
    this.#length += count;
    this.#provisional = 0;
  }

  /** Keeps all provisional rows: prefill. */
  commitAll(): void {
    this.#length += this.#provisional;
    this.#provisional = 0;
  }

  rollback(): void {
    this.#provisional = 0;
  }

  /** Forgets committed rows from `length` on. */
  truncate(length: number): void {
    if (length < 0 || length > this.#length)
      throw new RangeError(`truncate: ${length} is not within 0..${this.#length}`);
    this.#length = length;
    this.#provisional = 0;
  }
}

/** So many slots that those asked for fill whole tiles. */
export function wholeTiles(slots: number): number {
  return Math.ceil(slots / KV_TILE) * KV_TILE;
}

/** Leading tokens that both texts have, of the first `limit`. */
export function sharedPrefix(a: ArrayLike<number>, b: ArrayLike<number>, limit: number): number {
  const end = Math.min(limit, a.length, b.length);
  let i = 0;
  while (i < end && a[i] === b[i]) i++;
  return i;
}

export class KvCache implements Disposable {
  readonly #kernels: Kernels;
  readonly #buffers: ArrayBuffer[] = [];
  readonly layers: readonly KvLayer[];
  readonly sequences: readonly KvSequence[];

  /** @param options.capacity slots per sequence, rounded up to whole tiles. Memory is mapped lazily: unused slots cost nothing. */
  constructor(
    kernels: Kernels,
    options: HeadShape & {
      readonly layers: number;
      readonly sequences: number;
      readonly capacity: number;
      readonly dtype: KvDtype;
    },
  ) {
    this.#kernels = kernels;
    const { kvHeads, headDim, dtype } = options;
    const capacity = wholeTiles(options.capacity);
    const slots = capacity * options.sequences;
    const elements = slots * kvHeads * headDim;
    const allocate = (): Float32Array | Uint16Array => {
      const buffer = kernels.allocate(elements * (dtype === 'f16' ? 2 : 4));
      this.#buffers.push(buffer);
      return dtype === 'f16' ? new Uint16Array(buffer) : new Float32Array(buffer);
    };
    try {
      const layers: KvLayer[] = [];
      for (let i = 0; i < options.layers; i++) {
        const next = layers[0];
        layers.unshift({ dtype, kvHeads, headDim, slots, keys: allocate(), values: allocate(), next });
      }
      this.layers = layers;
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
    this.sequences = Array.from({ length: options.sequences }, (_, i) => new KvSequence(this, i * capacity, capacity));
  }

  move(from: Int32Array, to: Int32Array, count: number): void {
    let first = 0; // a chain is in place already
    while (first < count && from[first] === to[first]) first++;
    if (first === count) return;
    for (const layer of this.layers) this.#kernels.moveKv(layer, from, to, count);
  }

  [Symbol.dispose](): void {
    for (const buffer of this.#buffers.splice(0)) this.#kernels.release(buffer);
  }
}
