/** An EAGLE-1 head before training. */
import type { HeadConfig } from '../draft/head-config.ts';
import { memorySource } from '../tensor/memory-source.ts';
import type { TensorSource } from '../tensor/source.ts';
import { InitialWeights } from './initial-weights.ts';

export const INITIAL_HEADS = ['identity', 'random'] as const;
export type InitialHead = (typeof INITIAL_HEADS)[number];

/** Of the matrices that write to the residual stream, for the identity start: the layer begins as hardly more than nothing. */
const SMALL_DEVIATION = 0.002;

/**
 * `random`: as the authors start. `identity`: fc = [small | identity], small output projections, so that the head begins as "the next
 * feature is this one", which is far nearer to the truth.
 * @param targetIds of the draft vocabulary, ascending; undefined where it is the target's.
 */
export function initialHead(
  start: InitialHead,
  config: HeadConfig,
  targetIds: Int32Array | undefined,
  seed: number,
): TensorSource {
  const { hiddenSize: d } = config;
  const weights = new InitialWeights(seed);
  const fc = weights.matrix(d, 2 * d);
  if (start === 'identity')
    for (let row = 0; row < d; row++)
      for (let col = 0; col < d; col++) fc.data[row * 2 * d + d + col] = row === col ? 1 : 0;
  return memorySource(`the ${start} start`, {
    'fc.weight': fc,
    ...weights.layer('layers.0.', config, start === 'identity' ? SMALL_DEVIATION : undefined),
    ...(targetIds !== undefined && { d2t: { shape: [targetIds.length], data: draftOffsets(targetIds) } }),
  });
}

/** EAGLE-3's map: target id = draft id + d2t[draft id]. */
export function draftOffsets(targetIds: Int32Array): BigInt64Array {
  return BigInt64Array.from(targetIds, (target, draft) => BigInt(target - draft));
}
