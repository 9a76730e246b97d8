/** Fills a feature store. */
import { FeatureReader } from '../decode/features.ts';
import { RequestError } from '../errors.ts';
import type { TargetModel } from '../model/target.ts';
import { type FeatureStore, featureBytes, requireSpace } from './feature-store.ts';
import { countTokens, type EncodedText } from './unroll.ts';

/**
 * The features of all texts, as far as the store lacks them; gives the tokens in the store after each text.
 * @throws RequestError where the disk has no room, before anything is written, and where the store holds other texts, or more.
 */
export function* computeFeatures(
  target: TargetModel,
  store: FeatureStore,
  texts: readonly EncodedText[],
): Generator<number, void, void> {
  for (let index = 0; index < Math.min(store.texts, texts.length); index++)
    if (!equal(store.text(index), texts[index]!))
      throw new RequestError(store.directory, `text ${index + 1} differs from the one whose features are there`);
  const more = store.texts - texts.length;
  if (more > 0) {
    const rule = `holds ${more} texts more than these conversations: give another directory`;
    throw new RequestError(store.directory, rule);
  }
  requireSpace(store.directory, featureBytes(countTokens(texts) - store.tokens, target.config.hiddenSize));
  using reader = new FeatureReader(target, longestOf(texts));
  for (const text of texts.slice(store.texts)) {
    store.append(text, reader.read(text.ids).data);
    yield store.tokens;
  }
  store.sync();
}

/** Tokens of the longest text. */
export const longestOf = (texts: readonly EncodedText[]): number =>
  texts.reduce((longest, { ids }) => Math.max(longest, ids.length), 1);

function equal(a: EncodedText, b: EncodedText): boolean {
  return a.ids.length === b.ids.length && a.ids.every((id, i) => id === b.ids[i] && a.mask[i] === b.mask[i]);
}
