/**
 * Guesses at a temperature above 0, for verification by match. The target's token is the winner of an exponential race whose numbers are
 * known beforehand (`Kernels.race`): only its rates, the target's law, are not. So the drafter runs the same race at rates of its own, and
 * guesses who arrives first, second and so on. Where laws p and q are apart by d (total variation), the first guess is right with a chance of at
 * least (1 - d) / (1 + d) (Daliri, Musco and Suresh, arXiv:2408.07978), where the likeliest token of q is so as often as p takes it.
 * The text does not depend on it: it is plain decoding's.
 *
 * The counterpart of chosen and drawn guesses; knows logits only.
 */
import type { Kernels } from '../kernels/kernels.ts';
import type { RaceSampling } from './draft-laws.ts';
import type { Guesses } from './tree-grower.ts';

/**
 * Head's logits are multiplied by this, beside the temperature: a head knows less than its target and spreads its law wider. First guesses of
 * the shipped head that are right, at 1, 1.25, 1.67: 0.438, 0.455, 0.441 at temperature 1 and 0.473, 0.483, 0.488 at 0.6.
 */
const SHARPNESS = 1.25;
/** Arrivals that a guess is weighed against: it is as sure as it is earlier than they. */
const RIVALS = 5;

export class RacedGuesses {
  readonly #kernels: Kernels;
  readonly #targetIds: Int32Array | null; // [most tokens]
  readonly #branching: number;
  readonly #arrivals: number; // looked at, at least `branching`
  readonly #ids: Int32Array; // [maxRows, arrivals]
  readonly #times: Float32Array; // as #ids

  /** @param targetIds of draft ids, as they stand when a race is run: a text may add some. Undefined where they are the same. */
  constructor(kernels: Kernels, targetIds: Int32Array | undefined, maxRows: number, branching: number) {
    this.#kernels = kernels;
    this.#targetIds = targetIds ?? null;
    this.#branching = branching;
    this.#arrivals = Math.max(branching, RIVALS);
    this.#ids = new Int32Array(maxRows * this.#arrivals);
    this.#times = new Float32Array(maxRows * this.#arrivals);
  }

  /**
   * Draft ids for the token at `position` after each of the first `rows` rows of logits [rows, vocabSize], of which it makes probabilities. A
   * guess is believed in proportion to 1 / its time.
   */
  race(
    logits: Float32Array,
    rows: number,
    vocabSize: number,
    { inverseTemperature, key }: RaceSampling,
    position: number,
    { tokens, logProbabilities }: Guesses,
  ): void {
    const most = Math.min(this.#arrivals, vocabSize);
    const times = this.#times;
    this.#kernels.softmax(logits, logits, rows, vocabSize, inverseTemperature * SHARPNESS);
    this.#kernels.race(this.#ids, times, logits, rows, vocabSize, most, key(position), this.#targetIds);
    for (let row = 0; row < rows; row++) {
      const first = row * most;
      let all = 0;
      for (let i = first; i < first + most; i++) all += times[first]! / times[i]!;
      for (let i = 0; i < this.#branching; i++) {
        tokens[row * this.#branching + i] = this.#ids[first + i]!;
        logProbabilities[row * this.#branching + i] = Math.log(times[first]! / times[first + i]! / all);
      }
    }
  }
}
