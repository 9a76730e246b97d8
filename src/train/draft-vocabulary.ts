/** The tokens that a head may propose: the most frequent ones of its training text, for its LM head is what a small head spends most on. */
import type { EncodedText } from './unroll.ts';

/** A quarter of SmolLM2's 49,152 tokens, which most of what it writes is made of, at a quarter of the LM head's cost. */
export const DEFAULT_DRAFT_VOCABULARY = 12_288;

/** What a head may propose if nothing is said. */
export function defaultDraftVocabSize(vocabSize: number): number {
  return Math.min(DEFAULT_DRAFT_VOCABULARY, vocabSize);
}

/** Undefined where the head may propose all tokens: see `draftVocabulary`. */
export function draftTargetIds(texts: Iterable<EncodedText>, size: number, vocabSize: number): Int32Array | undefined {
  return size === vocabSize ? undefined : draftVocabulary(texts, size, vocabSize);
}

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

/** The share of tokens whose loss counts that the vocabulary holds; undefined is all tokens. */
export function coverage(texts: Iterable<EncodedText>, targetIds: Int32Array | undefined): number {
  if (targetIds === undefined) return 1;
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
