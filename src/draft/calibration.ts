/**
 * How often guesses stand, by what the head believed of them. A head that says 0.9 may be right in 0.97 of cases when the target takes its
 * likeliest token, and in 0.6 on a text that it was not trained for: what it says is where counting starts, and soon the counts decide.
 */

/** Bins of log-probability: each a third of a unit wide, down to exp(-8), one in three thousand; all below share the last. */
const BINS = 24;
const BINS_PER_UNIT = 3;
/** Guesses after the root, and all below them: those stand on features that the head made itself. */
const LEVELS = 2;
/** What the head says counts as much as this many tests. */
const PRIOR_TESTS = 4;
/** A bin that has seen this many tests forgets half of them: texts differ. */
const WINDOW = 96;
/** Below 1, so that a node is always likelier than its children. */
const MOST = 0.99;

export class Calibration {
  readonly #tests = new Float64Array(BINS * LEVELS);
  readonly #accepted = new Float64Array(BINS * LEVELS);

  /** How likely a guess of this log-probability, `depth` below the root, is to stand if its parent does. */
  probability(logProbability: number, depth: number): number {
    const bin = binOf(logProbability, depth);
    const said = Math.exp(-(bin % BINS) / BINS_PER_UNIT);
    return Math.min(MOST, (this.#accepted[bin]! + PRIOR_TESTS * said) / (this.#tests[bin]! + PRIOR_TESTS));
  }

  learn(logProbability: number, depth: number, stood: boolean): void {
    const bin = binOf(logProbability, depth);
    if (this.#tests[bin]! >= WINDOW) {
      this.#tests[bin] = this.#tests[bin]! / 2;
      this.#accepted[bin] = this.#accepted[bin]! / 2;
    }
    this.#tests[bin] = this.#tests[bin]! + 1;
    if (stood) this.#accepted[bin] = this.#accepted[bin]! + 1;
  }

  /** What was counted so far, likeliest first: for reports. */
  report(depth: number): { readonly said: number; readonly tests: number; readonly accepted: number }[] {
    const first = binOf(0, depth);
    return Array.from({ length: BINS }, (_, i) => ({
      said: Math.exp(-i / BINS_PER_UNIT),
      tests: this.#tests[first + i]!,
      accepted: this.#accepted[first + i]!,
    })).filter(({ tests }) => tests > 0);
  }
}

/** NaN, which a broken head may say, is as good as never. */
function binOf(logProbability: number, depth: number): number {
  const bin = Math.round(-logProbability * BINS_PER_UNIT);
  return (bin >= 0 && bin < BINS ? bin : BINS - 1) + (depth > 1 ? BINS : 0);
}
