/** Fills a feature store. */
import { FeatureReader } from '../decode/features.ts';
import { RequestError } from '../errors.ts';
import type { TargetModel } from '../model/target.ts';
import { type FeatureStore, featureBytes, requireSpace } from './feature-store.ts';
import type { EncodedText } from './unroll.ts';

export interface FeatureProgress {
  readonly tokens: number;
  readonly totalTokens: number;
}

/**
 * The features of all texts, as far as the store lacks them.
 * @throws RequestError where the disk has no room, before anything is written, and where the store holds other texts.
 */
export function* computeFeatures(
  target: TargetModel,
  store: FeatureStore,
  texts: readonly EncodedText[],
): Generator<FeatureProgress, void, void> {
  for (let index = 0; index < Math.min(store.texts, texts.length); index++)
    if (!equal(store.text(index), texts[index]!))
      throw new RequestError(store.directory, `text ${index + 1} differs from the one whose features are there`);
  const totalTokens = texts.reduce((sum, { ids }) => sum + ids.length, 0);
  requireSpace(store.directory, featureBytes(totalTokens - store.tokens, target.config.hiddenSize));
  using reader = new FeatureReader(target, Math.max(1, ...texts.map(({ ids }) => ids.length)));
  for (const text of texts.slice(store.texts)) {
    store.append(text, reader.read(text.ids).data);
    yield { tokens: store.tokens, totalTokens };
  }
  store.sync();
}

function equal(a: EncodedText, b: EncodedText): boolean {
  return a.ids.length === b.ids.length && a.ids.every((id, i) => id === b.ids[i] && a.mask[i] === b.mask[i]);
}
