/**
 * What promises are worth. Chances of single guesses may be right on average, and yet those of the chosen ones too high: what looks best is partly
 * what is overrated. So what was promised by the chosen is held against what came of it.
 */

/** Times something was promised over which it is judged: as long as a calibration's memory. */
const WINDOW = 96;
/** Promises taken to have been kept before anything was seen. */
const FIRST = 8;
/**
 * Texts differ: what is usual counts as this many promises in a new one, as many as tell two texts apart whose shares differ by a fifth (a
 * promise of one guess in two has a variance of about a half), and of its own only the last are remembered, for a text changes too.
 */
const USUAL = 12;
const TEXT_WINDOW = 48;

export class Trust {
  // Sums that fade with WINDOW.
  #promised = FIRST;
  #came = FIRST;
  // Of the running text, fading with TEXT_WINDOW.
  #textPromised = 0;
  #textCame = 0;

  /** Of what is promised, the share to count on: at most all. */
  get share(): number {
    const usual = this.#came / this.#promised;
    return Math.min(1, (USUAL * usual + this.#textCame) / (USUAL + this.#textPromised));
  }

  beginText(): void {
    this.#textPromised = 0;
    this.#textCame = 0;
  }

  /** @param promised expected number of guesses that stand, none less. @param came of them. */
  learn(promised: number, came: number): void {
    this.#promised += promised - this.#promised / WINDOW;
    this.#came += came - this.#came / WINDOW;
    this.#textPromised += promised - this.#textPromised / TEXT_WINDOW;
    this.#textCame += came - this.#textCame / TEXT_WINDOW;
  }
}
