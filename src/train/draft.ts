/** One step of training a draft model: texts in, gradients of all its weights out, embeddings too. */
import type { Llama } from '../model/llama.ts';
import type { TargetModel } from '../model/target.ts';
import { copyRow, ScratchTensor } from '../tensor/tensor.ts';
import { DistillationLoss, type DraftPrediction } from './distillation.ts';
import type { StepLoss } from './loss.ts';
import { Parameters } from './parameters.ts';
import type { Learner } from './run.ts';
import { StepCache } from './step-cache.ts';
import { Tape } from './tape.ts';
import { stackFeatures, type TrainingText, unroll } from './unroll.ts';

export interface DraftTrainingOptions {
  /** Of the text's own next token in what is learned, in [0, 1); the rest is the target's law. */
  readonly textShare: number;
}

export class DraftTraining implements Learner {
  readonly parameters: Parameters;
  readonly #model: Llama;
  readonly #hiddenSize: number; // of the target
  readonly #tape: Tape;
  readonly #loss: DistillationLoss;
  readonly #stacked = new ScratchTensor();
  readonly #truth = new ScratchTensor();
  readonly #cache: StepCache;

  /** @param model with f32 weights and the target's vocabulary. */
  constructor(target: TargetModel, model: Llama, { textShare }: DraftTrainingOptions) {
    const { kernels } = target;
    this.#model = model;
    this.#hiddenSize = target.config.hiddenSize;
    this.parameters = new Parameters(kernels, model.tensors());
    this.#tape = new Tape(kernels, this.parameters);
    this.#loss = new DistillationLoss(target, model.lmHead, textShare);
    this.#cache = new StepCache(this.#tape, (slots) => model.createCache(1, slots));
  }

  gradients(texts: readonly TrainingText[]): StepLoss[] {
    const prediction = this.#predict(texts);
    const loss = this.#loss.compute(prediction, this.#tape);
    this.#tape.backward();
    return [loss];
  }

  evaluate(texts: readonly TrainingText[]): StepLoss[] {
    return [this.#loss.compute(this.#predict(texts))];
  }

  /** A head's rows of step 0 (`unroll.ts`), but each eats the token in its own place and tells the next one; it counts if that one does. */
  #predict(texts: readonly TrainingText[]): DraftPrediction {
    const tape = this.#tape;
    tape.reset();
    const { steps, slots } = unroll(texts, 1);
    const { source, tokens: next, ...rows } = steps[0]!;
    const ids = texts.flatMap((text) => [...text.ids]);
    const mask = texts.flatMap((text) => [...text.mask]);
    const tokens = source.map((at) => ids[at]!);
    const all = this.#model.features({ ...rows, tokens }, this.#cache.reserve(slots), tape);

    const counting = Int32Array.from(source.keys()).filter((row) => mask[source[row]! + 1] !== 0);
    const n = counting.length;
    const features = tape.selectRows(all, counting, n);
    const stacked = stackFeatures(this.#stacked, texts, this.#hiddenSize);
    const truth = this.#truth.reshape(n, this.#hiddenSize);
    for (let i = 0; i < n; i++) copyRow(truth, i, stacked, source[counting[i]!]!);
    return { features, truth, next: counting.map((row) => next[row]!) };
  }

  [Symbol.dispose](): void {
    this.#cache[Symbol.dispose]();
  }
}
