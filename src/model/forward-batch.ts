/**
 * The rows of one forward. Prefill is a path, decoding one node, verification a tree, a batch a forest: a row names its sequence,
 * its token and its parent, and everything else follows from that: position, slot, and what it may look at.
 */
import type { AttentionLayout } from '../kernels/kernels.ts';
import type { KvSequence } from './kv-cache.ts';

/** The parent of a row that follows the committed prefix directly. */
export const COMMITTED = -1;

/** What layers need of a batch. */
export type ForwardRows = Pick<ForwardBatch, 'rows' | 'tokens' | 'positions' | 'layout'>;

export class ForwardBatch {
  readonly tokens: Int32Array; // [maxRows]
  readonly positions: Int32Array; // [maxRows]
  /** Rows whose logits are wanted, ascending. */
  readonly logitRows: Int32Array; // [maxRows]
  logitCount = 0;
  readonly layout: AttentionLayout;
  #extras = 0;

  /** @param maxRows rows; @param maxExtras tree ancestors (itself included) over all rows, by default for trees of `maxRows` nodes. */
  constructor(maxRows: number, maxExtras: number = (maxRows * (maxRows + 1)) / 2) {
    this.tokens = new Int32Array(maxRows);
    this.positions = new Int32Array(maxRows);
    this.logitRows = new Int32Array(maxRows);
    this.layout = {
      rows: 0,
      base: new Int32Array(maxRows),
      prefix: new Int32Array(maxRows),
      slots: new Int32Array(maxRows),
      extrasStart: new Int32Array(maxRows + 1),
      extras: new Int32Array(maxExtras),
    };
  }

  get rows(): number {
    return this.layout.rows;
  }

  get maxRows(): number {
    return this.tokens.length;
  }

  clear(): void {
    this.layout.rows = 0;
    this.logitCount = 0;
    this.#extras = 0;
  }

  /**
   * Adds a row and returns its index.
   * @param parent an earlier row of the same sequence, or COMMITTED.
   */
  append(sequence: KvSequence, token: number, parent: number, wantLogits: boolean): number {
    const { layout } = this;
    const { base, prefix, extrasStart, extras } = layout;
    const row = layout.rows;
    if (row >= this.maxRows) throw new RangeError(`forward: at most ${this.maxRows} rows`);
    if (parent !== COMMITTED && (parent < 0 || parent >= row || base[parent] !== sequence.base)) {
      throw new RangeError(`forward: row ${row}'s parent must be an earlier row of its sequence, got ${parent}`);
    }
    const inherited = parent === COMMITTED ? sequence.length : prefix[parent]!;
    const from = parent === COMMITTED ? 0 : extrasStart[parent]!;
    const ancestors = parent === COMMITTED ? 0 : extrasStart[parent + 1]! - from;
    return this.#add(sequence, token, inherited, extras, from, ancestors, wantLogits);
  }

  /**
   * Adds a row whose ancestors were rows of earlier forwards, not yet committed: a head grows its tree one level per forward.
   * @param ancestors slots of the ancestors, first `count` entries, nearest to the root first.
   */
  appendAfter(sequence: KvSequence, token: number, ancestors: Int32Array, count: number, wantLogits: boolean): number {
    if (this.layout.rows >= this.maxRows) throw new RangeError(`forward: at most ${this.maxRows} rows`);
    return this.#add(sequence, token, sequence.length, ancestors, 0, count, wantLogits);
  }

  #add(
    sequence: KvSequence,
    token: number,
    inherited: number,
    ancestors: Int32Array,
    from: number,
    count: number,
    wantLogits: boolean,
  ): number {
    const { base, prefix, slots, extrasStart, extras } = this.layout;
    const row = this.layout.rows;
    if (this.#extras + count + 1 > extras.length)
      throw new RangeError(`forward: more than ${extras.length} tree ancestors`);
    const slot = sequence.append(token);
    this.tokens[row] = token;
    this.positions[row] = inherited + count;
    base[row] = sequence.base;
    slots[row] = slot;
    extrasStart[row] = this.#extras;
    if (count === 0 && slot === sequence.base + inherited) {
      prefix[row] = inherited + 1; // still a path: it lies where the prefix ends
    } else {
      prefix[row] = inherited;
      for (let i = 0; i < count; i++) extras[this.#extras++] = ancestors[from + i]!;
      extras[this.#extras++] = slot;
    }
    extrasStart[row + 1] = this.#extras;
    if (wantLogits) this.logitRows[this.logitCount++] = row;
    this.layout.rows = row + 1;
    return row;
  }
}
