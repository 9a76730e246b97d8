/** Texts in an order of their own: in a file that synthesis wrote, the order tells which conversation ended first, and so how fast the machine was. */
import { createHash } from 'node:crypto';
import type { TextFeatures } from './feature-store.ts';

/** The same texts, ordered by what they say: the same order wherever they lay. */
export function orderedTexts(features: TextFeatures): TextFeatures {
  const digests = Array.from({ length: features.texts }, (_, index) => {
    const { ids, mask } = features.text(index);
    return createHash('sha256').update(ids).update(mask).digest('hex');
  });
  const order = [...digests.keys()].sort((a, b) => (digests[a]! < digests[b]! ? -1 : 1));
  return {
    texts: features.texts,
    tokens: features.tokens,
    text: (index) => features.text(order[index]!),
    read: (index) => features.read(order[index]!),
  };
}
