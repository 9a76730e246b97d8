/** Seeded random numbers: a failing test fails the same way again. */

/** Uniform in [0, 1): xorshift32 (Marsaglia 2003). */
export type Random = () => number;

export function xorshift(seed: number): Random {
  let state = Math.imul(seed, 0x9e3779b1) | 1; // never 0, and neighbouring seeds far apart
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

/** A whole number in [low, high). */
export function randomInteger(random: Random, low: number, high: number): number {
  return low + Math.floor(random() * (high - low));
}

/** Uniform in (-scale, scale). */
export function randomFloats(random: Random, count: number, scale = 1): Float32Array {
  return Float32Array.from({ length: count }, () => (2 * random() - 1) * scale);
}

/** Mostly ordinary numbers, between them zeros, f32 denormals, tiny ones (1e-30) and huge ones (up to `huge`). */
export function awkwardFloats(random: Random, count: number, huge: number): Float32Array {
  const scales = [1, 1, 1, 0, 1e-40, 1e-30, huge];
  return Float32Array.from(
    { length: count },
    () => (2 * random() - 1) * scales[Math.floor(random() * scales.length)]!,
  ).map((value) => value + 0); // no -0: min(0, -0) may be either
}

/** 0, 1, …, count-1 in random order. */
export function permutation(random: Random, count: number): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = randomInteger(random, 0, i + 1);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}
