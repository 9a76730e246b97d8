/**
 * Which texts a training step sees. Texts lie side by side in one batch, each with slots of its own, and nothing is padded: so they need not
 * be alike in length, and an epoch is a random order cut into pieces.
 */
import { uniformAt } from '../decode/rng.ts';

/**
 * Batches of text indices, at least one text each; a text longer than `tokensPerBatch` has a batch to itself.
 * @param lengths tokens of each text.
 */
export function epochBatches(
  lengths: ArrayLike<number>,
  tokensPerBatch: number,
  seed: number,
  epoch: number,
): number[][] {
  const batches: number[][] = [];
  let tokens = Number.POSITIVE_INFINITY;
  for (const index of shuffled(lengths.length, Math.imul(seed + 1, 0x9e3779b1) ^ epoch)) {
    const length = lengths[index]!;
    if (tokens + length > tokensPerBatch) {
      batches.push([]);
      tokens = 0;
    }
    batches.at(-1)!.push(index);
    tokens += length;
  }
  return batches;
}

/** 0 … count - 1 in random order (Fisher and Yates). */
function shuffled(count: number, key: number): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(uniformAt(key, i) * (i + 1));
    const swap = order[i]!;
    order[i] = order[j]!;
    order[j] = swap;
  }
  return order;
}
