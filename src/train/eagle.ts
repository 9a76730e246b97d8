/** One step of training an EAGLE-1 head (arXiv:2401.15077 §3.2): texts in, gradients of the head's parameters out. */
import { uniformAt } from '../decode/rng.ts';
import type { EagleHead } from '../draft/eagle-head.ts';
import type { Kernels, PackedMatrix } from '../kernels/kernels.ts';
import { copyRow, ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import { EagleLoss, type EagleStepLoss, type LossWeights, type Prediction } from './loss.ts';
import { Parameters } from './parameters.ts';
import { StepCache } from './step-cache.ts';
import { Tape } from './tape.ts';
import { stackFeatures, type TrainingText, unroll } from './unroll.ts';

export interface EagleTrainingOptions {
  readonly loss?: LossWeights;
  /** Steps that the head is unrolled on its own predictions; 1 is EAGLE-1's own training. */
  readonly steps: number;
  /** The epochs before it train the first step alone: most of what is to be learned, at a fraction of the cost. Counted from 0. */
  readonly unrollFromEpoch: number;
  /** Weight of a step's loss beside the step's before. */
  readonly stepDecay: number;
  /** Uniform noise on the true features, ±: against the errors that predicted ones will have (§3.2: 0.1). */
  readonly noise: number;
}

export class EagleTraining implements Disposable {
  readonly parameters: Parameters;
  readonly #head: EagleHead;
  readonly #tape: Tape;
  readonly #loss: EagleLoss;
  readonly #options: EagleTrainingOptions;
  readonly #truth = new ScratchTensor();
  readonly #input = new ScratchTensor();
  readonly #cache: StepCache;

  /**
   * @param head with f32 weights.
   * @param lmHead [Vl, d], frozen: the target's rows of the tokens that the loss tells apart; the head's own unless said. It must outlive
   *   the training.
   */
  constructor(kernels: Kernels, head: EagleHead, options: EagleTrainingOptions, lmHead: PackedMatrix = head.lmHead) {
    this.#head = head;
    this.#options = options;
    this.parameters = new Parameters(kernels, head.tensors());
    this.#tape = new Tape(kernels, this.parameters);
    this.#cache = new StepCache(this.#tape, (slots) => head.createCache(slots));
    this.#loss = new EagleLoss(kernels, lmHead, options.loss);
  }

  /** Leaves the gradients of Σ decayʲ · loss of step j in the parameters. @param seed of the noise. @param epoch from 0. */
  gradients(texts: readonly TrainingText[], seed: number, epoch: number): EagleStepLoss[] {
    const tape = this.#tape;
    const { noise, steps, unrollFromEpoch } = this.#options;
    tape.reset();
    const predictions = this.#predict(texts, epoch < unrollFromEpoch ? 1 : steps, noise, seed);
    const losses = this.#loss.compute(predictions, this.#truth);
    tape.backward();
    return losses;
  }

  /** The losses of all steps without noise and without gradients. */
  evaluate(texts: readonly TrainingText[]): EagleStepLoss[] {
    this.#tape.reset();
    const predictions = this.#predict(texts, this.#options.steps).map((prediction) => ({
      ...prediction,
      gradient: undefined,
    }));
    return this.#loss.compute(predictions, this.#truth);
  }

  #predict(texts: readonly TrainingText[], steps: number, noise = 0, seed = 0): Prediction[] {
    const { stepDecay } = this.#options;
    const plan = unroll(texts, steps);
    const cache = this.#cache.reserve(plan.slots);
    const truth = stackFeatures(this.#truth, texts, this.#head.config.hiddenSize);
    const predictions: Prediction[] = [];
    let features: Tensor = truth;
    for (const [j, step] of plan.steps.entries()) {
      const input =
        j === 0
          ? this.#noisy(truth, step.source, noise, seed)
          : this.#tape.selectRows(features, step.source, step.rows);
      features = this.#head.forward(step, input, cache, this.#tape);
      const { targets, mask } = step;
      predictions.push({ features, gradient: this.#tape.gradient(features), targets, mask, weight: stepDecay ** j });
    }
    return predictions;
  }

  /** Rows of the true features, each number moved by up to ±noise. */
  #noisy(truth: Tensor, rows: Int32Array, noise: number, seed: number): Tensor {
    const { cols } = truth;
    const input = this.#input.reshape(rows.length, cols);
    for (let i = 0; i < rows.length; i++) copyRow(input, i, truth, rows[i]!);
    if (noise > 0) for (let i = 0; i < rows.length * cols; i++) input.data[i]! += noise * (2 * uniformAt(seed, i) - 1);
    return input;
  }

  [Symbol.dispose](): void {
    this.#cache[Symbol.dispose]();
  }
}
