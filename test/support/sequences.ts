/** Laws of short token sequences, and how far what a round emits is from the target's. */
import { Sampler, type SamplingOptions } from '../../src/decode/sampler.ts';
import { COMMITTED, ForwardBatch } from '../../src/model/forward-batch.ts';
import type { TargetModel } from '../../src/model/target.ts';
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

/** The target's law after the prefix and each further sequence of up to `length` tokens: weights as the sampler gives them, by code. */
export function lawsAfter(
  target: TargetModel,
  prefix: readonly number[],
  length: number,
  options: SamplingOptions,
): Float32Array[] {
  const { vocabSize } = target.config;
  const { extended } = sequencesOf(vocabSize, length);
  const sampler = new Sampler(target.kernels, vocabSize, options);
  const rows = prefix.length + 2 * vocabSize ** length;
  using cache = target.createCache(1, rows);
  const sequence = cache.sequences[0]!;
  const batch = new ForwardBatch(rows, rows * (prefix.length + length));
  let parent = COMMITTED;
  for (const token of prefix) parent = batch.append(sequence, token, parent, true);
  const below: { code: number; row: number; path: readonly number[] }[] = [{ code: 0, row: parent, path: [] }];
  for (const { code, row, path } of below) {
    if (path.length === length) break;
    for (let token = 0; token < vocabSize; token++) {
      const next = batch.append(sequence, token, row, true);
      below.push({ code: extended(code, token), row: next, path: [...path, token] });
    }
  }
  const { logits } = target.forward(batch, cache);
  const laws: Float32Array[] = [];
  for (const { code, row, path } of below) {
    const tokens = Int32Array.from([...prefix, ...path]);
    laws[code] = sampler.law(logits, row, { tokens, length: tokens.length, promptLength: prefix.length }).slice();
  }
  return laws;
}
