/**
 * Medusa's heads (arXiv:2401.10774 §2.1.1, published layouts): K small networks that all read the same feature, of the last token that the
 * target has seen. Head i guesses the token i + 2 places behind it, whatever the tokens between will be: L residual blocks
 * x + SiLU(W x + b), then an LM head. That is the target's own where the file has only blocks (the authors' version 2), else one of each
 * head's own (v0.1).
 */
import type { PackedMatrix } from '../kernels/kernels.ts';
import type { WeightTensor } from '../model/layers.ts';
import type { TargetModel } from '../model/target.ts';
import { WeightLoader } from '../model/weights.ts';
import { EagerOps, type Ops } from '../tensor/ops.ts';
import type { TensorSource } from '../tensor/source.ts';
import { copyRow, ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import type { HeadOptions } from './eagle-head.ts';
import { cutLmHead, readTargetIds } from './head-vocabulary.ts';
import type { MedusaConfig } from './medusa-config.ts';

interface ResidualBlock {
  readonly weight: PackedMatrix; // [d, d]
  readonly bias: Float32Array; // [d]
}

interface Head {
  readonly blocks: readonly ResidualBlock[]; // [L]
  readonly lmHead: PackedMatrix; // [Vd, d]
}

export class MedusaHeads implements Disposable {
  readonly config: MedusaConfig;
  /** Vd, tokens that the heads can guess. */
  readonly draftVocabSize: number;
  /** Target id of a draft id; undefined where the vocabularies are the same. */
  readonly targetIds: Int32Array | undefined; // [Vd]
  /** Whether all heads read one LM head, the target's. */
  readonly sharedLmHead: boolean;
  readonly #target: TargetModel;
  readonly #loader: WeightLoader;
  readonly #heads: readonly Head[]; // [K]
  readonly #buffers: ArrayBuffer[] = []; // the heads' own, beside the loader's
  readonly #ops: EagerOps;
  readonly #outputs = new ScratchTensor(); // [K, d]
  readonly #logits = new ScratchTensor(); // [K, Vd], of LM heads of their own

  /** @throws CheckpointError where the file's heads are not such, or made for another target. */
  constructor(target: TargetModel, config: MedusaConfig, source: TensorSource, options: HeadOptions) {
    const { kernels } = target;
    const { hiddenSize: d, vocabSize } = target.config;
    const { draftVocabSize = vocabSize, heads, layers } = config;
    this.config = config;
    this.#target = target;
    this.#ops = new EagerOps(kernels);
    this.targetIds = readTargetIds(source, { vocabSize, draftVocabSize });
    this.draftVocabSize = draftVocabSize;
    const loader = new WeightLoader(kernels, source, options.dtype);
    this.#loader = loader;
    this.sharedLmHead = !hasOwnLmHeads(source, config);
    this.#outputs.reshape(heads, d);
    this.#logits.reshape(this.sharedLmHead ? 0 : heads, draftVocabSize);
    try {
      const shared = this.sharedLmHead ? cutLmHead(target, this.targetIds, options.dtype, this.#buffers) : undefined;
      // v0.1 repeats one module, so that its L blocks are the same: the file has each of them.
      this.#heads = Array.from({ length: heads }, (_, head) => ({
        blocks: Array.from({ length: layers }, (_, layer) => ({
          weight: loader.matrix([{ name: `${blockName(head, layer)}.weight`, rows: d }], d),
          bias: loader.vector(`${blockName(head, layer)}.bias`, d),
        })),
        lmHead: shared ?? loader.matrix([{ name: lmHeadName(head, layers), rows: draftVocabSize }], d),
      }));
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * features [n, d], after the target's final norm → what the head's LM head reads, [n, d].
   * @param ops what computes, and whose scratch the result is: training gives a tape.
   */
  forward(head: number, features: Tensor, ops: Ops = this.#ops): Tensor {
    let x = features;
    for (const { weight, bias } of this.#heads[head]!.blocks) x = ops.silu(ops.linear(x, weight, undefined, bias), x);
    return x;
  }

  /**
   * One feature [1, d] through `count` heads from `first` on: logits over the draft vocabulary, [count, Vd], valid until the next call.
   * @param shared rows of the target's LM head, where that is shared: those of the draft vocabulary, unless said.
   */
  logits(feature: Tensor, count: number, first = 0, shared: PackedMatrix = this.lmHead(0)): Tensor {
    const ops = this.#ops;
    ops.release(0);
    const outputs = this.#outputs.reshape(count, feature.cols);
    for (let i = 0; i < count; i++) copyRow(outputs, i, this.forward(first + i, feature), 0);
    // One LM head reads all rows at once, at the cost of little more than one.
    if (this.sharedLmHead) return ops.linear(outputs, shared);
    const logits = this.#logits.reshape(count, this.draftVocabSize);
    for (let i = 0; i < count; i++)
      this.#target.kernels.matmul(logits.row(i), outputs.row(i), this.lmHead(first + i), 1, null);
    return logits;
  }

  /** [Vd, d]: where it is shared, the target's, frozen, or its rows that the draft vocabulary names. */
  lmHead(head: number): PackedMatrix {
    return this.#heads[head]!.lmHead;
  }

  /** What is trained, under the names of the published layouts. */
  tensors(): WeightTensor[] {
    const whole = (name: string, weight: PackedMatrix | Float32Array): WeightTensor => ({
      name,
      weight,
      first: 0,
      rows: weight instanceof Float32Array ? weight.length : weight.rows,
    });
    return this.#heads.flatMap(({ blocks, lmHead }, head) => [
      ...blocks.flatMap(({ weight, bias }, layer) => [
        whole(`${blockName(head, layer)}.weight`, weight),
        whole(`${blockName(head, layer)}.bias`, bias),
      ]),
      ...(this.sharedLmHead ? [] : [whole(lmHeadName(head, blocks.length), lmHead)]),
    ]);
  }

  [Symbol.dispose](): void {
    this.#loader[Symbol.dispose]();
    for (const buffer of this.#buffers.splice(0)) this.#target.kernels.release(buffer);
  }
}

/** Whether a file has an LM head for each head (v0.1): else all read the target's (version 2). */
export const hasOwnLmHeads = ({ entries }: TensorSource, { layers }: MedusaConfig): boolean =>
  entries.has(lmHeadName(0, layers));

const blockName = (head: number, layer: number): string => `${head}.${layer}.linear`;
/** Of a head's own LM head, if it has one. @param layers its blocks. */
export const lmHeadName = (head: number, layers: number): string => `${head}.${layers}.weight`;
