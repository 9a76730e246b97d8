/**
 * The likeliest guesses after rows of logits, best first, with what the head believes of them: the counterpart of drawn ones
 * (`drawn-guesses.ts`). Knows logits only, nothing of forwards or of how rows make up a tree.
 */
import type { Kernels } from '../kernels/kernels.ts';
import type { Tensor } from '../tensor/tensor.ts';
import type { Guesses } from './tree-grower.ts';

export class ChosenGuesses {
  readonly #kernels: Kernels;
  readonly #branching: number;
  readonly #values: Float32Array; // [maxRows, branching] logits of the guesses

  constructor(kernels: Kernels, maxRows: number, branching: number) {
    this.#kernels = kernels;
    this.#branching = branching;
    this.#values = new Float32Array(maxRows * branching);
  }

  /** Draft ids after each of the first `rows` rows of logits [rows, Vd], of which it makes probabilities. */
  choose({ data, cols }: Tensor, rows: number, { tokens, logProbabilities }: Guesses): void {
    const branching = this.#branching;
    const values = this.#values;
    this.#kernels.topK(tokens, values, data, rows, cols, branching);
    this.#kernels.softmax(data, data, rows, cols, 1);
    for (let row = 0; row < rows; row++) {
      const first = row * branching;
      // The best guess's probability is at least 1 / Vd; one far behind it would have underflowed.
      const best = Math.log(data[row * cols + tokens[first]!]!);
      for (let i = first; i < first + branching; i++) logProbabilities[i] = best + (values[i]! - values[first]!);
    }
  }
}
