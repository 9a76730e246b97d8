/**
 * A head's best guesses along a text that exists, out of what decoding would let it guess at each place: its draft vocabulary, and the tokens
 * that the text has had up to there (`text-vocabulary.ts`).
 */
import type { PackedMatrix } from '../kernels/kernels.ts';
import type { TargetModel } from '../model/target.ts';
import { ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import type { EagleHead } from './eagle-head.ts';
import { TextVocabulary } from './text-vocabulary.ts';

/** Rows whose logits are in memory at once. */
const CHUNK = 64;

/** A row that has eaten token i of a text knows this many of its tokens, that one included: decoding adds the root before it drafts. */
export const knownTo = (eaten: number): number => eaten + 1;

export class GuessesAlong implements Disposable {
  readonly #target: TargetModel;
  readonly #head: Pick<EagleHead, 'lmHead' | 'targetIds'>;
  /** With all of the text's tokens; undefined where the head has no draft vocabulary of its own and may guess everything. */
  readonly #vocabulary: TextVocabulary | undefined;
  readonly #sizes: Int32Array; // [text.length + 1] tokens that may be guessed, by how many of the text's are known

  /** @param text all of its tokens, in order. */
  constructor(target: TargetModel, head: Pick<EagleHead, 'lmHead' | 'targetIds'>, text: ArrayLike<number>) {
    this.#target = target;
    this.#head = head;
    const { targetIds, lmHead } = head;
    this.#vocabulary = targetIds && new TextVocabulary(target, targetIds, lmHead, text.length);
    this.#sizes = new Int32Array(text.length + 1);
    for (let i = 0; i <= text.length; i++) {
      if (i > 0) this.#vocabulary?.add(text[i - 1]!);
      this.#sizes[i] = this.#vocabulary?.size ?? lmHead.rows;
    }
  }

  /**
   * @param predicted [n, d] features, of which the LM head makes guesses. Scratch of the head's may be given: it is not computed with again.
   * @param known [n] how many of the first tokens of the text each row may guess beside the draft vocabulary, 0 to text.length: see `knownTo`.
   * @returns [n] target ids. Equal logits go to the draft vocabulary, then to the token that was there first, as in decoding.
   */
  best(predicted: Tensor, known: ArrayLike<number>): Int32Array {
    const vocabulary = this.#vocabulary;
    if (vocabulary === undefined) return bestColumns(this.#target, predicted, this.#head.lmHead);
    const best = bestColumns(this.#target, predicted, vocabulary.lmHead, (row) => this.#sizes[known[row]!]!);
    return best.map((draft) => vocabulary.targetIds[draft]!);
  }

  [Symbol.dispose](): void {
    this.#vocabulary?.[Symbol.dispose]();
  }
}

/** [n] the column of the highest logit of each row. @param columns how many of a row's first ones are looked at; all unless said. */
export function bestColumns(
  { kernels }: TargetModel,
  features: Tensor,
  lmHead: PackedMatrix,
  columns?: (row: number) => number,
): Int32Array {
  const best = new Int32Array(features.rows);
  const logits = new ScratchTensor();
  for (let first = 0; first < features.rows; first += CHUNK) {
    const rows = Math.min(CHUNK, features.rows - first);
    const { data, cols } = logits.reshape(rows, lmHead.rows);
    kernels.matmul(data, features.data.subarray(first * features.cols), lmHead, rows, null);
    if (columns === undefined) kernels.argmax(best.subarray(first, first + rows), data, rows, cols);
    else
      for (let i = 0; i < rows; i++)
        kernels.argmax(best.subarray(first + i), data.subarray(i * cols), 1, columns(first + i));
  }
  return best;
}
