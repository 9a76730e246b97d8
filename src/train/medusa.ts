/**
 * One step of training Medusa heads (arXiv:2401.10774 §2.2.1, Medusa-1: the target is frozen): texts in, gradients of the heads' parameters
 * out. The loss is the plain sum over heads of the mean cross-entropy of head i against the text's own token i + 2 places behind the
 * feature's (the authors' code; the paper weighs heads with 0.8^i).
 *
 * Left out on purpose, of what the authors' script does: it learns from the user's turns too, and it moves the shared LM head, which it then
 * does not save.
 */
import type { MedusaHeads } from '../draft/medusa-heads.ts';
import type { Kernels, PackedMatrix } from '../kernels/kernels.ts';
import { ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import type { StepLoss } from './loss.ts';
import type { LossVocabulary } from './loss-vocabulary.ts';
import { packF32 } from './matrices.ts';
import { Parameters } from './parameters.ts';
import type { Learner } from './run.ts';
import { Tape } from './tape.ts';
import { stackFeatures, type TrainingText } from './unroll.ts';

/** Rows whose logits are in memory at once: with 12,288 tokens 6 MB, and the teacher's. */
const CHUNK = 128;
/** Of a teacher who is sure: its soft-max is 0. */
const NEVER = -1e30;

/** The tokens that heads are held to, and the LM heads that tell these apart. */
export interface HeldTo {
  /** [Vl]; undefined is all tokens. */
  readonly targetIds: Int32Array | undefined;
  /** [K], each [Vl, d]; the same one where it is shared. */
  readonly lmHeads: readonly PackedMatrix[];
}

/**
 * Heads with LM heads of their own are held to their draft vocabulary, for they have nothing else to guess with.
 * @param vocabulary for heads that share the target's LM head; their draft vocabulary unless said.
 */
export function heldTo(heads: MedusaHeads, vocabulary?: Pick<LossVocabulary, 'targetIds' | 'lmHead'>): HeldTo {
  const each = Array.from({ length: heads.config.heads }, (_, head) => head);
  return heads.sharedLmHead && vocabulary !== undefined
    ? { targetIds: vocabulary.targetIds, lmHeads: each.map(() => vocabulary.lmHead) }
    : { targetIds: heads.targetIds, lmHeads: each.map((head) => heads.lmHead(head)) };
}

export class MedusaTraining implements Learner {
  readonly parameters: Parameters;
  readonly #kernels: Kernels;
  readonly #heads: MedusaHeads;
  readonly #hiddenSize: number;
  readonly #tape: Tape;
  readonly #lmHeads: readonly PackedMatrix[]; // [K], f32
  readonly #labels: Int32Array; // [V] row of the LM heads by target id, NO_LABEL where they have none
  readonly #stacked = new ScratchTensor();
  readonly #logits = new ScratchTensor();
  readonly #teacher = new ScratchTensor();
  readonly #losses = new Float32Array(CHUNK);
  readonly #rowWeights = new Float32Array(CHUNK);
  readonly #best = new Int32Array(CHUNK);

  /**
   * @param heads with f32 weights. @param hiddenSize and vocabSize of the target.
   * @param vocabulary that the loss tells apart where the heads share the target's LM head; their draft vocabulary unless said. It must
   *   outlive the training.
   */
  constructor(
    kernels: Kernels,
    heads: MedusaHeads,
    { hiddenSize, vocabSize }: { readonly hiddenSize: number; readonly vocabSize: number },
    vocabulary?: Pick<LossVocabulary, 'targetIds' | 'lmHead'>,
  ) {
    this.#kernels = kernels;
    this.#heads = heads;
    this.#hiddenSize = hiddenSize;
    this.parameters = new Parameters(kernels, heads.tensors());
    this.#tape = new Tape(kernels, this.parameters);
    const { targetIds, lmHeads } = heldTo(heads, vocabulary);
    const shared = heads.sharedLmHead ? packF32(kernels, lmHeads[0]!) : undefined;
    this.#lmHeads = lmHeads.map((own) => shared ?? own);
    const size = lmHeads[0]!.rows;
    this.#labels = new Int32Array(vocabSize).fill(NO_LABEL);
    for (let label = 0; label < size; label++)
      this.#labels[targetIds === undefined ? label : targetIds[label]!] = label;
    this.#teacher.reshape(CHUNK, size).data.fill(NEVER);
  }

  /** Each head's loss, and the share of rows whose best guess is the text's token. */
  gradients(texts: readonly TrainingText[]): StepLoss[] {
    const losses = this.#compute(texts, this.#tape);
    this.#tape.backward();
    return losses;
  }

  evaluate(texts: readonly TrainingText[]): StepLoss[] {
    return this.#compute(texts);
  }

  /** @param into gets the gradients of what the LM heads read, and adds to theirs; absent where only the loss is wanted. */
  #compute(texts: readonly TrainingText[], into?: Tape): StepLoss[] {
    const tape = this.#tape;
    tape.reset();
    const features = stackFeatures(this.#stacked, texts, this.#hiddenSize);
    return this.#lmHeads.map((lmHead, head) => {
      const { rows, labels } = this.#examples(texts, head);
      if (rows.length === 0) return { classification: 0, rows: 0, agreement: 0 };
      const outputs = this.#heads.forward(head, tape.selectRows(features, rows, rows.length), tape);
      return this.#loss(outputs, labels, lmHead, into);
    });
  }

  /** Rows of the features from which the head shall guess a token that counts, and that the loss tells apart. */
  #examples(texts: readonly TrainingText[], head: number): { readonly rows: Int32Array; readonly labels: Int32Array } {
    const rows: number[] = [];
    const labels: number[] = [];
    let first = 0;
    for (const { ids, mask } of texts) {
      for (let row = 0, at = 2 + head; at < ids.length; row++, at++) {
        const label = this.#labels[ids[at]!]!;
        if (mask[at] === 0 || label === NO_LABEL) continue;
        rows.push(first + row);
        labels.push(label);
      }
      first += ids.length;
    }
    return { rows: Int32Array.from(rows), labels: Int32Array.from(labels) };
  }

  /** The LM head is applied here and not on the tape, a few rows at a time: of all rows the logits would be gigabytes. */
  #loss(outputs: Tensor, labels: Int32Array, lmHead: PackedMatrix, into: Tape | undefined): StepLoss {
    const kernels = this.#kernels;
    const { rows: V, cols: d } = lmHead;
    const n = outputs.rows;
    const teacher = this.#teacher.data;
    this.#rowWeights.fill(1 / n);
    let classification = 0;
    let agreement = 0;
    for (let first = 0; first < n; first += CHUNK) {
      const rows = Math.min(CHUNK, n - first);
      const read = outputs.data.subarray(first * d);
      const logits = this.#logits.reshape(rows, V).data;
      kernels.matmul(logits, read, lmHead, rows, null);
      kernels.argmax(this.#best, logits, rows, V);
      for (let i = 0; i < rows; i++) teacher[i * V + labels[first + i]!] = 0;
      kernels.softCrossEntropy(this.#losses, logits, logits, teacher, this.#rowWeights, rows, V);
      for (let i = 0; i < rows; i++) {
        teacher[i * V + labels[first + i]!] = NEVER;
        classification += this.#losses[i]! / n;
        if (this.#best[i] === labels[first + i]) agreement += 1 / n;
      }
      if (into === undefined) continue;
      const dLmHead = into.parameters.gradient(lmHead);
      if (dLmHead !== undefined) kernels.accumulateOuter(dLmHead, logits, read, rows);
      const dOutputs = into.gradient(outputs)!.data.subarray(first * d);
      kernels.matmul(dOutputs, logits, into.transposed(lmHead), rows, dOutputs);
    }
    return { classification, rows: n, agreement };
  }

  [Symbol.dispose](): void {}
}

const NO_LABEL = -1;
