/** The tokens that a head may propose: the most frequent ones of its training text, for its LM head is what a small head spends most on. */
import type { EncodedText } from './unroll.ts';

/**
 * Target ids, ascending. Tokens of the same frequency go by their id; where the text has fewer than `size`, the lowest unused ids fill up, as
 * EAGLE-3's trainers do.
 */
export function draftVocabulary(texts: Iterable<EncodedText>, size: number, vocabSize: number): Int32Array {
  const counts = new Float64Array(vocabSize);
  for (const { ids } of texts) for (const id of ids) counts[id]!++;
  const byFrequency = Array.from(counts.keys()).sort((a, b) => counts[b]! - counts[a]! || a - b);
  return Int32Array.from(byFrequency.slice(0, size)).sort();
}

/** The share of tokens whose loss counts that the vocabulary holds. */
export function coverage(texts: Iterable<EncodedText>, targetIds: Int32Array): number {
  const known = new Set(targetIds);
  let all = 0;
  let held = 0;
  for (const { ids, mask } of texts)
    for (let i = 0; i < ids.length; i++) {
      if (mask[i] === 0) continue;
      all++;
      if (known.has(ids[i]!)) held++;
    }
  return held / all;
}
