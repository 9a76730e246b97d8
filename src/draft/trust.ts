/**
 * What promises are worth. Chances of single guesses may be right on average, and yet those of the chosen ones too high: what looks best is partly
 * what is overrated. So what was promised by the chosen is held against what came of it.
 */

/** Times something was promised over which it is judged: as long as a calibration's memory. */
const WINDOW = 96;
/** Promises taken to have been kept before anything was seen. */
const FIRST = 8;

export class Trust {
  // Sums that fade with WINDOW.
  #promised = FIRST;
  #came = FIRST;

  /** Of what is promised, the share to count on: at most all. */
  get share(): number {
    return Math.min(1, this.#came / this.#promised);
  }

  /** @param promised expected number of guesses that stand, none less. @param came of them. */
  learn(promised: number, came: number): void {
    this.#promised += promised - this.#promised / WINDOW;
    this.#came += came - this.#came / WINDOW;
  }
}
