/**
 * The loss of a draft model: the cross-entropy between its law of the next token and the target's, along a text that exists (knowledge
 * distillation, arXiv:1503.02531; of draft models, arXiv:2310.08461 §3, forward KL on fixed text). The target's may be mixed with the
 * text's own next token.
 */
import type { PackedMatrix } from '../kernels/kernels.ts';
import type { TargetModel } from '../model/target.ts';
import { ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import type { StepLoss } from './loss.ts';
import type { Tape } from './tape.ts';

/** Rows that count, one below the other. */
export interface DraftPrediction {
  /** [n, d] the draft model's, after its final norm. */
  readonly features: Tensor;
  /** [n, D] the target's, after its final norm, at the same place. */
  readonly truth: Tensor;
  /** [n] the text's next tokens. */
  readonly next: Int32Array;
}

/** Rows whose logits over the whole vocabulary are in memory at once: with 49,152 tokens 12.6 MB, twice. */
const CHUNK = 64;

export class DistillationLoss {
  readonly #target: TargetModel;
  readonly #lmHead: PackedMatrix; // [V, d]
  readonly #textShare: number;
  readonly #teacher = new ScratchTensor();
  readonly #logits = new ScratchTensor();
  readonly #law = new ScratchTensor();
  readonly #losses = new Float32Array(CHUNK);
  readonly #rowWeights = new Float32Array(CHUNK);
  readonly #best = new Int32Array(CHUNK);
  readonly #teachersBest = new Int32Array(CHUNK);

  /**
   * @param lmHead [V, d] the draft model's.
   * @param textShare of the text's own next token in what is learned, in [0, 1); the rest is the target's law.
   */
  constructor(target: TargetModel, lmHead: PackedMatrix, textShare: number) {
    this.#target = target;
    this.#lmHead = lmHead;
    this.#textShare = textShare;
  }

  /**
   * Mean over the rows. The LM head is applied here and not on the tape, a few rows at a time: of all rows the logits would be gigabytes.
   * @param tape gets the gradients of the features and adds to the LM head's; absent where only the loss is wanted.
   */
  compute({ features, truth, next }: DraftPrediction, tape?: Tape): StepLoss {
    const { kernels, lmHead: teachersHead } = this.#target;
    const { rows: V, cols: d } = this.#lmHead;
    const n = features.rows;
    this.#rowWeights.fill(1 / n);
    let classification = 0;
    let agreement = 0;
    for (let first = 0; first < n; first += CHUNK) {
      const rows = Math.min(CHUNK, n - first);
      const teacher = this.#teacher.reshape(rows, V);
      kernels.matmul(teacher.data, truth.data.subarray(first * truth.cols), teachersHead, rows, null);
      kernels.argmax(this.#teachersBest, teacher.data, rows, V);
      if (this.#textShare > 0) this.#mixIn(teacher, next.subarray(first));

      const own = features.data.subarray(first * d);
      const logits = this.#logits.reshape(rows, V);
      kernels.matmul(logits.data, own, this.#lmHead, rows, null);
      kernels.argmax(this.#best, logits.data, rows, V);
      kernels.softCrossEntropy(this.#losses, logits.data, logits.data, teacher.data, this.#rowWeights, rows, V);
      for (let i = 0; i < rows; i++) {
        classification += this.#losses[i]! / n;
        if (this.#best[i] === this.#teachersBest[i]) agreement += 1 / n;
      }
      if (tape !== undefined) this.#takeBack(tape, features, first, rows);
    }
    return { classification, rows: n, agreement };
  }

  /** The gradient of the chunk's logits, which stands in their place, through the LM head. */
  #takeBack(tape: Tape, features: Tensor, first: number, rows: number): void {
    const { kernels, parameters } = tape;
    const from = first * features.cols;
    const dLogits = this.#logits.data;
    const dLmHead = parameters.gradient(this.#lmHead);
    if (dLmHead !== undefined) kernels.accumulateOuter(dLmHead, dLogits, features.data.subarray(from), rows);
    const dFeatures = tape.gradient(features)!.data.subarray(from);
    kernels.matmul(dFeatures, dLogits, tape.transposed(this.#lmHead), rows, dFeatures);
  }

  /**
   * Makes of the law q that the logits stand for the mixture (1 - s) · q + s · [the text's token]. Up to a common factor only that token's
   * share changes, so only its logit does: eᵗ becomes eᵗ + s / (1 - s) · Σ eᵗ.
   */
  #mixIn({ data, rows, cols }: Tensor, next: Int32Array): void {
    const law = this.#law.reshape(rows, cols).data;
    this.#target.kernels.softmax(law, data, rows, cols, 1);
    const share = Math.log(this.#textShare / (1 - this.#textShare));
    for (let row = 0; row < rows; row++) {
      const best = row * cols + this.#teachersBest[row]!; // its share cannot be rounded to 0
      const added = data[best]! - Math.log(law[best]!) + share;
      const at = row * cols + next[row]!;
      const logit = data[at]!;
      data[at] = Math.max(logit, added) + Math.log1p(Math.exp(-Math.abs(logit - added)));
    }
  }
}
