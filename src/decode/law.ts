/** One way to draw from laws of tokens. */
import type { Law } from '../draft/draft-laws.ts';

/** Weights per partial sum: a draw over V adds each weight once, then walks the sums and one chunk. */
const CHUNK = 256;

/** Inverse of the cumulative law, in order of ids. */
export class CumulativeDraw {
  readonly #sums: Float64Array; // [V / CHUNK]

  /** @param vocabSize of the largest law. */
  constructor(vocabSize: number) {
    this.#sums = new Float64Array(Math.ceil(vocabSize / CHUNK));
  }

  /** The token where the share `u` of [0, 1) falls; the law's own sum stands in for 1, so rounding cannot fall off the end. */
  draw(law: Law, u: number): number {
    const sums = this.#sums;
    const chunks = Math.ceil(law.length / CHUNK);
    let mass = 0;
    for (let chunk = 0; chunk < chunks; chunk++) {
      sums[chunk] = sumOf(law, chunk * CHUNK, Math.min((chunk + 1) * CHUNK, law.length));
      mass += sums[chunk]!;
    }
    let left = u * mass;
    let within = 0; // the chunk where the draw falls; the last one that holds anything, should rounding carry it past the end
    for (let chunk = 0; chunk < chunks; chunk++) {
      if (sums[chunk] === 0) continue;
      within = chunk;
      if (left < sums[chunk]!) break;
      left -= sums[chunk]!;
    }
    let token = 0;
    for (let i = within * CHUNK; i < law.length; i++) {
      const p = law[i]!;
      if (p === 0) continue;
      token = i;
      left -= p;
      if (left < 0) break;
    }
    return token;
  }
}

/** Sum of law[start, end), in four strands that do not wait for each other. */
export function sumOf(law: Law, start: number, end: number): number {
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  let i = start;
  for (; i + 4 <= end; i += 4) {
    a += law[i]!;
    b += law[i + 1]!;
    c += law[i + 2]!;
    d += law[i + 3]!;
  }
  for (; i < end; i++) a += law[i]!;
  return a + b + (c + d);
}
