/**
 * Guesses drawn from the head's law q, instead of its best ones (EAGLE, arXiv:2401.15077, appendix A.2): as many as a node has children,
 * without replacement, and q of every row kept for verification. Any q serves as long as it is the one that was drawn from: here it is the
 * soft-max of the head's logits at the request's temperature, over the draft vocabulary. Top-p and the like are left to the target: a
 * guess outside them is never accepted.
 *
 * Knows logits and laws, nothing of forwards or of how rows make up a tree.
 */
import type { Kernels } from '../kernels/kernels.ts';
import { ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import type { Law, UrnSampling } from './draft-laws.ts';
import type { Guesses } from './tree-grower.ts';

export class DrawnGuesses {
  readonly #kernels: Kernels;
  readonly #targetIds: Int32Array | undefined; // [most]
  readonly #laws = new ScratchTensor(); // [rows of one tree, most], 0 from Vd on
  readonly #law: Float32Array; // [V] one of them over the target's tokens
  readonly #taken: Float32Array; // [branching] weights that are out of the urn
  #sampling!: UrnSampling;
  #position = 0;
  #rows = 0;
  #draws = 0;

  /**
   * @param maxRows of all levels of a tree together.
   * @param targetIds of draft ids, as they stand when a tree is drawn: a text may add some. Undefined where they are the same.
   */
  constructor(
    kernels: Kernels,
    vocabSize: number,
    targetIds: Int32Array | undefined,
    maxRows: number,
    branching: number,
  ) {
    this.#kernels = kernels;
    this.#targetIds = targetIds;
    this.#laws.reshape(maxRows, targetIds?.length ?? vocabSize);
    this.#law = new Float32Array(targetIds === undefined ? 0 : vocabSize);
    this.#taken = new Float32Array(branching);
  }

  /** A new tree, whose root stands at `position` of the text. */
  start(sampling: UrnSampling, position: number): void {
    this.#sampling = sampling;
    this.#position = position;
    this.#rows = 0;
    this.#draws = 0;
  }

  /** Draws draft ids after each of the first `rows` rows of logits [rows, Vd], which become their laws. */
  draw(logits: Tensor, rows: number, { tokens, logProbabilities }: Guesses): void {
    const branching = this.#taken.length;
    this.#kernels.softmax(logits.data, logits.data, rows, logits.cols, this.#sampling.inverseTemperature);
    for (let row = 0; row < rows; row++) {
      const law = this.#laws.row(this.#rows++);
      law.set(logits.row(row));
      law.fill(0, logits.cols);
      this.#drawFrom(law, tokens, logProbabilities, row * branching);
    }
  }

  #drawFrom(urn: Float32Array, tokens: Int32Array, logProbabilities: Float64Array, first: number): void {
    const taken = this.#taken;
    for (let i = 0; i < taken.length; i++) {
      const token = this.#sampling.draw(urn, this.#position, this.#draws++);
      tokens[first + i] = token;
      logProbabilities[first + i] = Math.log(urn[token]!);
      taken[i] = urn[token]!;
      urn[token] = 0;
    }
    // Backwards: an empty urn gives a token that it has given before.
    for (let i = taken.length - 1; i >= 0; i--) urn[tokens[first + i]!] = taken[i]!;
  }

  /** The law of the row-th row of this tree, over the target's tokens. */
  law(row: number): Law {
    const law = this.#laws.row(row);
    const ids = this.#targetIds;
    if (ids === undefined) return law;
    this.#law.fill(0); // what is no draft id any more
    for (let i = 0; i < law.length; i++) if (law[i]! > 0) this.#law[ids[i]!] = law[i]!;
    return this.#law;
  }
}
