/**
 * EAGLE-1's loss (arXiv:2401.15077 §3.2): smooth-L1 between predicted and true feature, and the soft cross-entropy between what the frozen
 * LM head makes of both. The head may be unrolled on its own features for several steps, as EAGLE-3's training-time test
 * (arXiv:2503.01840 §3.2) and HASS (arXiv:2408.15766) do: then every step is held against the truth, with a weight of its own.
 */
import type { Kernels, PackedMatrix } from '../kernels/kernels.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { ScratchTensor } from '../tensor/tensor.ts';
import { packF32, transposeF32 } from './matrices.ts';

/** What one step predicted. */
export interface Prediction {
  /** [n, d] */
  readonly features: Tensor;
  /** [n, d], the loss's derivative is added to it; absent where only the loss is wanted. */
  readonly gradient: Tensor | undefined;
  /** [n] the row of the true features that each row predicts. */
  readonly targets: Int32Array;
  /** [n] 1 counts the row, 0 leaves it out. */
  readonly mask: Float32Array;
  /** Of this step among the others. */
  readonly weight: number;
}

export interface StepLoss {
  /** Smooth-L1 (β = 1), mean over d and over the rows that count. */
  readonly regression: number;
  /** Soft cross-entropy in nats, mean over the rows that count. */
  readonly classification: number;
  /** Rows that count. */
  readonly rows: number;
  /** Of these, rows whose likeliest token (in the draft vocabulary) is the target's likeliest. A share of 1. */
  readonly agreement: number;
}

export interface LossWeights {
  readonly regression: number;
  readonly classification: number;
}

/** The authors': `v_w` 1.0 and `p_w` 0.1. */
export const EAGLE_LOSS_WEIGHTS: LossWeights = { regression: 1, classification: 0.1 };

/** The authors' guard against an empty mask. */
const EPSILON = 1e-5;
/** Rows whose logits are in memory at once: with 12,288 tokens 12 MB twice, within a server's last-level cache. */
const CHUNK = 256;

export class EagleLoss {
  readonly #kernels: Kernels;
  readonly #lmHead: PackedMatrix; // [Vd, d]
  readonly #transposed: PackedMatrix; // [d, Vd]
  readonly #weights: LossWeights;
  readonly #truth = new ScratchTensor();
  readonly #guess = new ScratchTensor();
  readonly #teacher = new ScratchTensor();
  readonly #logits = new ScratchTensor();
  readonly #gradient = new ScratchTensor();
  readonly #losses = new Float32Array(CHUNK);
  readonly #rowWeights = new Float32Array(CHUNK);
  readonly #best = new Int32Array(CHUNK);
  readonly #teachersBest = new Int32Array(CHUNK);

  /** @param lmHead [Vd, d], cut to the draft vocabulary; frozen. */
  constructor(kernels: Kernels, lmHead: PackedMatrix, weights: LossWeights = EAGLE_LOSS_WEIGHTS) {
    this.#kernels = kernels;
    this.#lmHead = packF32(kernels, lmHead);
    this.#transposed = transposeF32(kernels, this.#lmHead);
    this.#weights = weights;
  }

  /**
   * The steps' losses; fills the predictions' gradients with those of Σ weight · (regression + classification).
   * @param truth [m, d] the target's own features.
   */
  compute(predictions: readonly Prediction[], truth: Tensor): StepLoss[] {
    return predictions.map((prediction) => this.#step(prediction, truth));
  }

  #step(prediction: Prediction, truth: Tensor): StepLoss {
    const rows = countingRows(prediction.mask);
    const each = 1 / (rows.length + EPSILON);
    const sums = { regression: 0, classification: 0, agreement: 0 };
    for (let first = 0; first < rows.length; first += CHUNK)
      this.#chunk(prediction, truth, rows.subarray(first, first + CHUNK), each, sums);
    return {
      regression: sums.regression * each,
      classification: sums.classification * each,
      rows: rows.length,
      agreement: sums.agreement * each,
    };
  }

  #chunk(
    { features, gradient, targets, weight }: Prediction,
    truth: Tensor,
    rows: Int32Array,
    each: number,
    sums: { regression: number; classification: number; agreement: number },
  ): void {
    const { regression, classification } = this.#weights;
    const kernels = this.#kernels;
    const n = rows.length;
    const d = truth.cols;
    const vocabulary = this.#lmHead.rows;
    const truths = this.#truth.reshape(n, d);
    const guesses = this.#guess.reshape(n, d);
    for (let i = 0; i < n; i++) {
      truths.data.set(truth.row(targets[rows[i]!]!), i * d);
      guesses.data.set(features.row(rows[i]!), i * d);
    }
    const teacher = this.#teacher.reshape(n, vocabulary);
    const logits = this.#logits.reshape(n, vocabulary);
    kernels.matmul(teacher.data, truths.data, this.#lmHead, n, null);
    kernels.matmul(logits.data, guesses.data, this.#lmHead, n, null);
    kernels.argmax(this.#best, logits.data, n, vocabulary);
    kernels.argmax(this.#teachersBest, teacher.data, n, vocabulary);
    for (let i = 0; i < n; i++) if (this.#best[i] === this.#teachersBest[i]) sums.agreement++;
    this.#rowWeights.fill(classification * weight * each, 0, n);
    kernels.softCrossEntropy(this.#losses, logits.data, logits.data, teacher.data, this.#rowWeights, n, vocabulary);
    for (let i = 0; i < n; i++) sums.classification += this.#losses[i]!;

    const toFeatures = this.#gradient.reshape(n, d);
    sums.regression +=
      smoothL1(toFeatures.data, guesses.data, truths.data, n * d, (regression * weight * each) / d) / d;
    if (gradient === undefined) return;
    kernels.matmul(toFeatures.data, logits.data, this.#transposed, n, toFeatures.data);
    for (let i = 0; i < n; i++) {
      const to = rows[i]! * d;
      for (let j = 0; j < d; j++) gradient.data[to + j]! += toFeatures.data[i * d + j]!;
    }
  }
}

function countingRows(mask: Float32Array): Int32Array {
  return Int32Array.from(mask.keys()).filter((row) => mask[row] !== 0);
}

/** Σ ½x² where |x| < 1, else |x| - ½, of x = a - b; gradient = scale · x, cut to ±scale. */
function smoothL1(gradient: Float32Array, a: Float32Array, b: Float32Array, count: number, scale: number): number {
  let sum = 0;
  for (let i = 0; i < count; i++) {
    const x = a[i]! - b[i]!;
    const inside = Math.max(-1, Math.min(1, x));
    sum += inside * (x - 0.5 * inside);
    gradient[i] = scale * inside;
  }
  return sum;
}
