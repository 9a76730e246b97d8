/** Numbers of chance, keyed by seed and position: drawing is the same whatever was drafted. */
import { mix } from '../kernels/race.ts';

/** One uniform number per (seed, position): a mixer of integers applied twice, with different keys for 53 bits. */
export function uniformAt(seed: number, position: number): number {
  const high = mix(mix(seed ^ 0x9e3779b9) ^ position);
  const low = mix(high ^ mix(position ^ 0x85ebca6b) ^ seed);
  return ((high >>> 0) * 2 ** 21 + (low >>> 11)) / 2 ** 53;
}

/** Keys of further streams beside `uniformAt`'s own: what one of them gives says nothing about another. */
const STREAMS = { drafts: 0x27d4eb2f, trials: 0x165667b1, races: 0x5bd1e995 } as const;

/** The index-th uniform number of a stream at a position. */
export function uniformIn(stream: keyof typeof STREAMS, seed: number, position: number, index: number): number {
  return uniformAt(mix(mix(seed ^ STREAMS[stream]) ^ index), position);
}

/** Of the race that the target's token at a position is drawn by (`Kernels.race`): two words, to `key`. */
export function raceKey(seed: number, position: number, key: Int32Array): Int32Array {
  key[0] = mix(mix(seed ^ STREAMS.races) ^ position);
  key[1] = mix(key[0]! ^ mix(position ^ 0x85ebca6b) ^ seed);
  return key;
}
