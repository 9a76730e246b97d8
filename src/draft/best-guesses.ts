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

/**
 * @param predicted [n, d] features, of which the LM head makes guesses. Scratch of the head's may be given: it is not computed with again.
 * @param text all of its tokens, in order.
 * @param known [n] how many of the first tokens of the text each row may guess beside the draft vocabulary, 0 to text.length: see `knownTo`.
 *   Of no account where the head has no draft vocabulary of its own and may guess everything.
 * @returns [n] target ids. Equal logits go to the draft vocabulary, then to the token that was there first, as in decoding.
 */
export function bestGuessesAlong(
  target: TargetModel,
  head: Pick<EagleHead, 'lmHead' | 'targetIds'>,
  predicted: Tensor,
  text: ArrayLike<number>,
  known: ArrayLike<number>,
): Int32Array {
  const { targetIds } = head;
  if (targetIds === undefined) return bestColumns(target, predicted, head.lmHead);
  using vocabulary = new TextVocabulary(target, targetIds, head.lmHead, text.length);
  const sizes = new Int32Array(text.length + 1); // tokens that may be guessed, by how many of the text's are known
  sizes[0] = vocabulary.size;
  for (let i = 0; i < text.length; i++) {
    vocabulary.add(text[i]!);
    sizes[i + 1] = vocabulary.size;
  }
  const best = bestColumns(target, predicted, vocabulary.lmHead, (row) => sizes[known[row]!]!);
  return best.map((draft) => vocabulary.targetIds[draft]!);
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
