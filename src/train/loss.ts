/**
 * EAGLE-1's loss (arXiv:2401.15077 §3.2): smooth-L1 between predicted and true feature, and the soft cross-entropy between what the frozen
 * LM head makes of both. The head may be unrolled on its own features for several steps, as EAGLE-3's training-time test
 * (arXiv:2503.01840 §3.2) and HASS (arXiv:2408.15766) do: then every step is held against the truth, with a weight of its own.
 */
import type { Kernels, PackedMatrix } from '../kernels/kernels.ts';
import { copyRow, ScratchTensor, type Tensor } from '../tensor/tensor.ts';
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

/** Means over the rows that count. */
export interface StepLoss {
  /** Smooth-L1 (β = 1), mean over d too; absent where no features are predicted. */
  readonly regression?: number;
  /** Soft cross-entropy in nats. */
  readonly classification: number;
  /** Rows that count. */
  readonly rows: number;
  /** Of these, rows whose likeliest token (of those that the loss tells apart) is the target's likeliest. A share of 1. */
  readonly agreement: number;
}

export type EagleStepLoss = Required<StepLoss>;

export interface LossWeights {
  readonly regression: number;
  readonly classification: number;
}

/** The authors': `v_w` 1.0 and `p_w` 0.1. */
export const EAGLE_LOSS_WEIGHTS: LossWeights = { regression: 1, classification: 0.1 };

/** The authors' guard against an empty mask. */
const EPSILON = 1e-5;
/** Rows whose logits are in memory at once: with 12,288 tokens 6 MB twice, within a last-level cache. */
const CHUNK = 128;

export class EagleLoss {
  readonly #kernels: Kernels;
  readonly #lmHead: PackedMatrix; // [Vl, d]
  readonly #transposed: PackedMatrix; // [d, Vl]
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

  /** @param lmHead [Vl, d], cut to the tokens that the loss tells apart; frozen. */
  constructor(kernels: Kernels, lmHead: PackedMatrix, weights: LossWeights = EAGLE_LOSS_WEIGHTS) {
    this.#kernels = kernels;
    this.#lmHead = packF32(kernels, lmHead);
    this.#transposed = transposeF32(kernels, this.#lmHead);
    this.#weights = weights;
  }

  /**
   * The steps' losses; fills the predictions' gradients with those of Σ weight · (regression + classification). What the LM head makes of a
   * true feature is computed once for all steps.
   * @param truth [m, d] the target's own features.
   */
  compute(predictions: readonly Prediction[], truth: Tensor): EagleStepLoss[] {
    const sums = predictions.map((prediction) => new Sums(prediction, truth.rows));
    const wanted = Int32Array.from({ length: truth.rows }, (_, row) => row).filter((row) =>
      sums.some(({ rowOf }) => rowOf[row] !== NO_ROW),
    );
    for (let first = 0; first < wanted.length; first += CHUNK) {
      const rows = wanted.subarray(first, first + CHUNK);
      const truths = gatherRows(this.#truth, truth, rows);
      const teacher = this.#apply(this.#teacher, truths);
      this.#kernels.argmax(this.#teachersBest, teacher.data, rows.length, teacher.cols);
      for (const sum of sums) this.#step(sum, rows, truths, teacher);
    }
    return sums.map((sum) => sum.mean());
  }

  /** One step's share of a chunk. Rows that it does not predict, the first few of a text, are computed with weight 0. */
  #step(sums: Sums, truthRows: Int32Array, truths: Tensor, teacher: Tensor): void {
    const kernels = this.#kernels;
    const { prediction, each, rowOf } = sums;
    const { gradient, weight } = prediction;
    const n = truthRows.length;
    const d = truths.cols;
    const own = truthRows.map((row) => rowOf[row]!);
    const guesses = gatherRows(this.#guess, prediction.features, own);
    const logits = this.#apply(this.#logits, guesses);
    kernels.argmax(this.#best, logits.data, n, logits.cols);
    const classification = this.#weights.classification * weight * each;
    for (let i = 0; i < n; i++) this.#rowWeights[i] = own[i] === NO_ROW ? 0 : classification;
    kernels.softCrossEntropy(this.#losses, logits.data, logits.data, teacher.data, this.#rowWeights, n, logits.cols);

    const toFeatures = this.#gradient.reshape(n, d);
    const scale = (this.#weights.regression * weight * each) / d;
    for (let i = 0; i < n; i++) {
      const first = i * d;
      if (own[i] === NO_ROW) {
        toFeatures.data.fill(0, first, first + d);
        continue;
      }
      if (this.#best[i] === this.#teachersBest[i]) sums.agreement++;
      sums.classification += this.#losses[i]!;
      sums.regression += smoothL1(toFeatures.data, guesses.data, truths.data, first, d, scale) / d;
    }
    if (gradient === undefined) return;
    kernels.matmul(toFeatures.data, logits.data, this.#transposed, n, toFeatures.data);
    for (let i = 0; i < n; i++) {
      if (own[i] === NO_ROW) continue;
      const to = own[i]! * d;
      for (let j = 0; j < d; j++) gradient.data[to + j]! += toFeatures.data[i * d + j]!;
    }
  }

  /** x [n, d] through the LM head: [n, Vl]. */
  #apply(into: ScratchTensor, x: Tensor): Tensor {
    const logits = into.reshape(x.rows, this.#lmHead.rows);
    this.#kernels.matmul(logits.data, x.data, this.#lmHead, x.rows, null);
    return logits;
  }
}

const NO_ROW = -1;

/** What a step's rows add up to. */
class Sums {
  readonly prediction: Prediction;
  /** The step's row that predicts each row of the truth, where it counts. */
  readonly rowOf: Int32Array;
  readonly rows: number;
  /** A row's share of the mean. */
  readonly each: number;
  regression = 0;
  classification = 0;
  agreement = 0;

  constructor(prediction: Prediction, truthRows: number) {
    const { mask, targets } = prediction;
    this.prediction = prediction;
    this.rowOf = new Int32Array(truthRows).fill(NO_ROW);
    let rows = 0;
    for (let row = 0; row < mask.length; row++) {
      if (mask[row] === 0) continue;
      this.rowOf[targets[row]!] = row;
      rows++;
    }
    this.rows = rows;
    this.each = 1 / (rows + EPSILON);
  }

  mean(): EagleStepLoss {
    const { rows, each, regression, classification, agreement } = this;
    return {
      rows,
      regression: regression * each,
      classification: classification * each,
      agreement: agreement * each,
    };
  }
}

/** Rows of x below each other; zeros for NO_ROW. */
function gatherRows(into: ScratchTensor, x: Tensor, rows: Int32Array): Tensor {
  const out = into.reshape(rows.length, x.cols);
  for (let i = 0; i < rows.length; i++) {
    if (rows[i] === NO_ROW) out.data.fill(0, i * x.cols, (i + 1) * x.cols);
    else copyRow(out, i, x, rows[i]!);
  }
  return out;
}

/** Σ ½x² where |x| < 1, else |x| - ½, of x = a - b from `first` on; gradient = scale · x, cut to ±scale. */
function smoothL1(
  gradient: Float32Array,
  a: Float32Array,
  b: Float32Array,
  first: number,
  count: number,
  scale: number,
): number {
  let sum = 0;
  for (let i = first; i < first + count; i++) {
    const x = a[i]! - b[i]!;
    const inside = Math.max(-1, Math.min(1, x));
    sum += inside * (x - 0.5 * inside);
    gradient[i] = scale * inside;
  }
  return sum;
}
