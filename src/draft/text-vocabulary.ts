/**
 * What a head may guess in the text at hand: the tokens of its draft vocabulary, and those that the text has. The next token is nearly always a
 * frequent one or one that was there before, and the LM head is most of what a pass of a small head costs: so a few thousand frequent tokens
 * with the text's own hold more of what is written next than four times as many frequent ones, at half the cost of a pass.
 *
 * Vocabularies ranked by frequency are FR-Spec's (arXiv:2502.14856); choosing by context, there with a classifier, is DynaSpec's
 * (arXiv:2510.13847).
 */
import { type Kernels, type PackedMatrix, packedBytes, TILE_ROWS } from '../kernels/kernels.ts';
import type { TargetModel } from '../model/target.ts';
import { LmHeadRows } from './head-vocabulary.ts';

/** Tokens of a text that are added, at most: 2.5 MB of a 576-wide LM head at q8. Few texts have as many different ones. */
const MOST_OF_TEXT = 4096;

const UNKNOWN = -1;

type Growing<T> = { -readonly [Key in keyof T]: T[Key] };

export class TextVocabulary implements Disposable {
  /** Target ids of the draft ids below `size`: the draft vocabulary's, then the text's in the order in which they were added. */
  readonly targetIds: Int32Array; // [most]
  readonly #kernels: Kernels;
  readonly #core: number; // tokens of the draft vocabulary
  readonly #buffer: ArrayBuffer;
  readonly #lmHead: Growing<PackedMatrix>;
  readonly #draftIds: Int32Array; // [V], UNKNOWN where a token may not be guessed
  #packed: number; // rows of the LM head that are there; what follows up to #size waits, one tile at most
  #size: number;
  readonly #waiting = new Int32Array(TILE_ROWS); // their target ids
  readonly #rows: LmHeadRows;

  /**
   * @param draftVocabulary [Vd] target ids that may always be guessed. @param lmHead [Vd, d] theirs, which is copied.
   * @param textTokens of the longest text.
   */
  constructor(target: TargetModel, draftVocabulary: Int32Array, lmHead: PackedMatrix, textTokens: number) {
    const { kernels, config } = target;
    const { dtype, cols } = lmHead;
    const core = draftVocabulary.length;
    const most = Math.min(core + Math.min(textTokens, MOST_OF_TEXT), config.vocabSize);
    this.#kernels = kernels;
    this.#core = core;
    this.#size = core;
    this.#packed = core;
    this.#buffer = kernels.allocate(packedBytes(dtype, most, cols), true);
    const data = new Uint8Array(this.#buffer);
    data.set(lmHead.data.subarray(0, packedBytes(dtype, core, cols)));
    this.#lmHead = { dtype, rows: core, cols, data };
    this.targetIds = new Int32Array(most);
    this.targetIds.set(draftVocabulary);
    this.#draftIds = new Int32Array(config.vocabSize).fill(UNKNOWN);
    for (const [draft, id] of draftVocabulary.entries()) this.#draftIds[id] = draft;
    this.#rows = new LmHeadRows(target, TILE_ROWS);
  }

  /** Tokens that may be guessed now. */
  get size(): number {
    return this.#size;
  }

  /**
   * A text of which the first `held` tokens will not be added by `add`. What may be guessed, and in what order, follows from the text alone:
   * the same draws shall give the same guesses whatever was written before. What stands in its place already stays there.
   */
  resume(text: ArrayLike<number>, held: number): void {
    let kept = this.#core;
    for (let i = 0; i < held; i++) {
      const draft = this.#draftIds[text[i]!]!;
      if (draft === kept) kept++;
      else if (draft === UNKNOWN || draft > kept) {
        this.#truncate(kept);
        this.add(text[i]!);
        kept = this.#size;
      }
    }
    this.#truncate(kept);
  }

  #truncate(size: number): void {
    for (let draft = size; draft < this.#size; draft++) this.#draftIds[this.targetIds[draft]!] = UNKNOWN;
    this.#size = size;
    this.#packed = Math.min(this.#packed, size);
  }

  /** A token of the text, which may be guessed from now on while there is room. */
  add(token: number): void {
    if (this.#draftIds[token] !== UNKNOWN || this.#size === this.targetIds.length) return;
    this.#draftIds[token] = this.#size;
    this.#waiting[this.#size - this.#packed] = token;
    this.targetIds[this.#size++] = token;
    if (this.#size - this.#packed === TILE_ROWS) this.#pack();
  }

  /** [size, d], row i after the target's row targetIds[i]; valid until the next `add`. */
  get lmHead(): PackedMatrix {
    this.#pack();
    return this.#lmHead;
  }

  #pack(): void {
    const first = this.#packed;
    const count = this.#size - first;
    this.#packed = this.#size;
    this.#lmHead.rows = this.#size;
    if (count > 0) this.#rows.copy(this.#waiting, count, this.#lmHead, first);
  }

  [Symbol.dispose](): void {
    this.#kernels.release(this.#buffer);
  }
}
