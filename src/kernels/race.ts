/** The numbers of exponential races: see `Kernels.race`. Integers decide, so every table has the same ones. */

/** Murmur3's finaliser (Appleby, public domain). */
export function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return x ^ (x >>> 16);
}

/** The exponential time (mean 1) of a label under a key of two words: -ln(1 - v), 53 bits of v in (0, 1). */
export function raceTime(a: number, b: number, label: number): number {
  const high = mix((mix(label ^ a) + b) | 0) >>> 0;
  const low = mix(mix((label + b) | 0) ^ a) >>> 0;
  return -Math.log1p(-(high * 2 ** 21 + (low >>> 11) + 0.5) / 2 ** 53);
}
