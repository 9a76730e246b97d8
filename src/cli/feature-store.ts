/** The feature store of a model: where synthesis leaves features and training finds them. */
import { mkdirSync } from 'node:fs';
import type { Engine } from '../engine.ts';
import { FeatureStore, type StoreUse } from '../train/feature-store.ts';
import type { ModelOptions } from './common.ts';

/**
 * Opens the directory's store; to append, one is begun where there is none.
 * @throws RequestError where it is of another model, or of another precision of it, and where another process appends to it, too.
 */
export function openStore(
  directory: string,
  modelSha256: string,
  { dtype }: ModelOptions,
  { target }: Engine,
  use: StoreUse,
): FeatureStore {
  if (use === 'append') mkdirSync(directory, { recursive: true });
  return new FeatureStore(directory, { model: modelSha256, dtype, hiddenSize: target.config.hiddenSize }, use);
}
