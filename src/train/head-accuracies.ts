/** How often Medusa heads are right, by rank: what a tree for them is grown from (arXiv:2401.10774 §2.3.3). */
import type { MedusaHeads } from '../draft/medusa-heads.ts';
import type { Kernels } from '../kernels/kernels.ts';
import { EagerOps } from '../tensor/ops.ts';
import { ScratchTensor } from '../tensor/tensor.ts';
import type { LossVocabulary } from './loss-vocabulary.ts';
import { heldTo } from './medusa.ts';
import { stackFeatures, type TrainingText } from './unroll.ts';

/** Rows whose logits are in memory at once. */
const CHUNK = 128;

export interface AccuracyOptions {
  readonly ranks: number;
  /** The target's hidden size. */
  readonly d: number;
  /** What the heads may guess where they share the target's LM head; their draft vocabulary unless said. */
  readonly vocabulary?: Pick<LossVocabulary, 'targetIds' | 'lmHead'>;
}

/**
 * Of the tokens that count, the share that head i had at each rank, i + 2 places before. One that the heads cannot guess is had at none.
 * @returns [heads][ranks]
 */
export function headAccuracies(
  kernels: Kernels,
  heads: MedusaHeads,
  texts: Iterable<TrainingText>,
  { ranks, d, vocabulary }: AccuracyOptions,
): number[][] {
  const { targetIds, lmHeads } = heldTo(heads, vocabulary);
  const V = lmHeads[0]!.rows;
  const most = Math.min(ranks, V);
  const ops = new EagerOps(kernels);
  const stacked = new ScratchTensor();
  const logits = new Float32Array(CHUNK * V);
  const ids = new Int32Array(CHUNK * most);
  const values = new Float32Array(CHUNK * most);
  const hits = Array.from({ length: heads.config.heads }, () => new Array<number>(ranks).fill(0));
  const counts = hits.map(() => 0);
  for (const text of texts) {
    const features = stackFeatures(stacked, [text], d);
    for (const [head, hit] of hits.entries()) {
      const counting = Int32Array.from(text.ids.keys()).filter((row) => text.mask[row + 2 + head] === 1);
      for (let first = 0; first < counting.length; first += CHUNK) {
        const rows = counting.subarray(first, first + CHUNK);
        ops.release(0);
        const outputs = heads.forward(head, ops.selectRows(features, rows, rows.length), ops);
        kernels.matmul(logits, outputs.data, lmHeads[head]!, rows.length, null);
        kernels.topK(ids, values, logits, rows.length, V, most);
        for (const [i, row] of rows.entries()) {
          const guesses = ids.subarray(i * most, (i + 1) * most);
          const wanted = text.ids[row + 2 + head]!;
          const rank = guesses.findIndex((id) => (targetIds === undefined ? id : targetIds[id]) === wanted);
          if (rank >= 0) hit[rank]!++;
        }
      }
      counts[head]! += counting.length;
    }
  }
  return hits.map((hit, head) => hit.map((count) => (counts[head] === 0 ? 0 : count / counts[head]!)));
}
