/** Laws of short token sequences, and how far what a round emits is from the target's. */
import { sum } from './enumerate.ts';

/** Sequences of up to `length` of V tokens as numbers: their digits in base V + 1, each token plus 1; the empty one is 0. */
export function sequencesOf(vocabSize: number, length: number) {
  const codes = (vocabSize + 1) ** length;
  const extended = (code: number, token: number): number => code * (vocabSize + 1) + token + 1;
  const codeOf = (tokens: readonly number[]): number => tokens.reduce(extended, 0);
  const lengthOf = (code: number): number => (code === 0 ? 0 : 1 + lengthOf(Math.floor(code / (vocabSize + 1))));

  /**
   * What is emitted, continued by the target itself to the full length, against the target's own law of so many tokens.
   * @param p the target's law after each shorter sequence. @param emitted probabilities, by code.
   */
  function distanceToTarget(p: readonly Float64Array[], emitted: Float64Array) {
    const difference = new Float64Array(codes);
    const extend = (code: number, probability: number): void => {
      if (lengthOf(code) === length) difference[code] = difference[code]! + probability;
      else
        for (let token = 0; token < vocabSize; token++) extend(extended(code, token), probability * p[code]![token]!);
    };
    extend(0, -1);
    emitted.forEach((probability, code) => {
      if (probability !== 0) extend(code, probability); // NaN, too
    });
    const magnitudes = difference.map(Math.abs);
    return { totalVariation: sum(magnitudes) / 2, largest: Math.max(...magnitudes) };
  }

  return { codes, extended, codeOf, distanceToTarget };
}
