/** One step of training a draft model: texts in, gradients of all its weights out, embeddings too. */
import { type AttentionLayout, KV_TILE } from '../kernels/kernels.ts';
import type { ForwardRows } from '../model/forward-batch.ts';
import type { Llama } from '../model/llama.ts';
import type { TargetModel } from '../model/target.ts';
import { ScratchTensor } from '../tensor/tensor.ts';
import { DistillationLoss, type DraftPrediction } from './distillation.ts';
import type { StepLoss } from './loss.ts';
import { Parameters } from './parameters.ts';
import type { Learner } from './run.ts';
import { StepCache } from './step-cache.ts';
import { Tape } from './tape.ts';
import type { TrainingText } from './unroll.ts';

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

  #predict(texts: readonly TrainingText[]): DraftPrediction {
    const tape = this.#tape;
    tape.reset();
    const { slots, counting, ...rows } = textRows(texts);
    const all = this.#model.features(rows, this.#cache.reserve(slots), tape);
    const n = counting.length;
    const features = tape.selectRows(
      all,
      Int32Array.from(counting, ({ row }) => row),
      n,
    );
    const truth = this.#truth.reshape(n, this.#hiddenSize);
    for (const [i, { text, index }] of counting.entries())
      truth.data.set(text.features.subarray(index * truth.cols, (index + 1) * truth.cols), i * truth.cols);
    return { features, truth, next: Int32Array.from(counting, ({ text, index }) => text.ids[index + 1]!) };
  }

  [Symbol.dispose](): void {
    this.#cache[Symbol.dispose]();
  }
}

/** A row whose loss counts: the token that it shall tell does. */
interface CountingRow {
  readonly row: number;
  readonly text: TrainingText;
  /** Of the token that it eats. */
  readonly index: number;
}

interface TextRows extends ForwardRows {
  /** Slots of the cache that the rows use. */
  readonly slots: number;
  readonly counting: readonly CountingRow[];
}

/** Whole texts side by side, each with slots of its own. Row i of a text eats token i and shall tell token i + 1. */
function textRows(texts: readonly TrainingText[]): TextRows {
  const rows = texts.reduce((sum, { ids }) => sum + ids.length - 1, 0);
  const tokens = new Int32Array(rows);
  const positions = new Int32Array(rows);
  const layout: AttentionLayout = {
    rows,
    base: new Int32Array(rows),
    prefix: new Int32Array(rows),
    slots: new Int32Array(rows),
    extrasStart: new Int32Array(rows + 1),
    extras: new Int32Array(0),
  };
  const counting: CountingRow[] = [];
  let slots = 0;
  let row = 0;
  for (const text of texts) {
    const { ids, mask } = text;
    for (let index = 0; index + 1 < ids.length; index++, row++) {
      tokens[row] = ids[index]!;
      positions[row] = index;
      layout.base[row] = slots;
      layout.prefix[row] = index + 1;
      layout.slots[row] = slots + index;
      if (mask[index + 1] !== 0) counting.push({ row, text, index });
    }
    slots += Math.ceil((ids.length - 1) / KV_TILE) * KV_TILE;
  }
  return { rows, tokens, positions, layout, slots, counting };
}
