/**
 * One uniform number per (seed, position): drawing is the same whatever was drafted. The integer mixer is Murmur3's finaliser
 * (Appleby, public domain), applied twice with different keys for 53 bits.
 */
export function uniformAt(seed: number, position: number): number {
  const high = mix(mix(seed ^ 0x9e3779b9) ^ position);
  const low = mix(high ^ mix(position ^ 0x85ebca6b) ^ seed);
  return ((high >>> 0) * 2 ** 21 + (low >>> 11)) / 2 ** 53;
}

/** Keys of further streams beside `uniformAt`'s own: what one of them gives says nothing about another. */
const STREAMS = { drafts: 0x27d4eb2f, trials: 0x165667b1 } as const;

/** The index-th uniform number of a stream at a position. */
export function uniformIn(stream: keyof typeof STREAMS, seed: number, position: number, index: number): number {
  return uniformAt(mix(mix(seed ^ STREAMS[stream]) ^ index), position);
}

function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return x ^ (x >>> 16);
}
