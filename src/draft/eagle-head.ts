/**
 * The EAGLE-1/2 head (arXiv:2401.15077 §3, published layout): x = fc([embedding of the token one ahead | feature]), one decoder layer
 * without input norm; its output is the predicted next feature, and the target's frozen LM head reads it.
 */
import { CheckpointError } from '../errors.ts';
import type { PackedMatrix, WeightDtype } from '../kernels/kernels.ts';
import type { ForwardBatch, ForwardRows } from '../model/forward-batch.ts';
import { KvCache } from '../model/kv-cache.ts';
import {
  decoderLayer,
  type LayerSettings,
  type LayerWeights,
  layerTensors,
  loadLayer,
  storeKeysAndValues,
  type WeightTensor,
} from '../model/layers.ts';
import { rotaryTables } from '../model/rope.ts';
import type { TargetModel } from '../model/target.ts';
import { WeightLoader } from '../model/weights.ts';
import { EagerOps, type Ops } from '../tensor/ops.ts';
import type { TensorSource } from '../tensor/source.ts';
import type { Tensor } from '../tensor/tensor.ts';
import type { HeadConfig } from './head-config.ts';
import { cutLmHead, readTargetIds } from './head-vocabulary.ts';

export interface HeadOptions {
  /** Of the head and its cut LM head: it never changes the text, only how often guesses are right. */
  readonly dtype: WeightDtype;
}

export class EagleHead implements Disposable {
  readonly config: HeadConfig;
  readonly #target: TargetModel;
  readonly #loader: WeightLoader;
  readonly #fc: PackedMatrix; // [d, 2d]
  readonly #fcBias: Float32Array | undefined; // [d]
  readonly #layer: LayerWeights;
  readonly #lmHead: PackedMatrix; // [Vd, d]
  readonly #buffers: ArrayBuffer[] = []; // the head's own, beside the loader's
  readonly #settings: LayerSettings;
  readonly #ops: EagerOps;
  /** Target id of a draft id; undefined where the vocabularies are the same. */
  readonly targetIds: Int32Array | undefined; // [Vd]

  constructor(target: TargetModel, config: HeadConfig, source: TensorSource, options: HeadOptions) {
    const { kernels } = target;
    const d = config.hiddenSize;
    if (d !== target.config.hiddenSize) {
      throw new CheckpointError(
        source.path,
        'hidden_size',
        `must be the target's ${target.config.hiddenSize}, got ${d}`,
      );
    }
    if (config.vocabSize !== target.config.vocabSize) {
      throw new CheckpointError(
        source.path,
        'vocab_size',
        `must be the target's ${target.config.vocabSize}, got ${config.vocabSize}`,
      );
    }
    this.config = config;
    this.#target = target;
    this.#ops = new EagerOps(kernels);
    this.targetIds = readTargetIds(source, config);
    const rotary = rotaryTables(target.config.contextLength, config.headDim, config.ropeTheta);
    this.#settings = { shape: config, eps: config.rmsNormEps, rotary };
    const loader = new WeightLoader(kernels, source, options.dtype);
    this.#loader = loader;
    try {
      this.#fc = loader.matrix([{ name: 'fc.weight', rows: d }], 2 * d);
      this.#fcBias = loader.has('fc.bias') ? loader.vector('fc.bias', d) : undefined;
      // The target's own matrix is used; one of another shape says that the head was made for another target.
      if (loader.has('embed_tokens.weight')) loader.entry('embed_tokens.weight', [config.vocabSize, d]);
      // As with `fc.bias`, the file decides; a part of the three is an error.
      const qkvBias = ['q', 'k', 'v'].some((of) => loader.has(`layers.0.self_attn.${of}_proj.bias`));
      this.#layer = loadLayer(loader, 'layers.0.', config, { rotaryLayout: 'half', inputNorm: false, qkvBias });
      this.#lmHead = cutLmHead(target, this.targetIds, options.dtype, this.#buffers);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  createCache(capacity: number): KvCache {
    const dtype = this.#fc.dtype === 'f32' ? 'f32' : 'f16';
    return new KvCache(this.#target.kernels, { ...this.config, layers: 1, sequences: 1, capacity, dtype });
  }

  /**
   * features [rows, d] beside the batch's tokens (each one ahead of its feature) → predicted features [rows, d]; valid until the next call.
   * @param ops what computes: training gives a tape.
   */
  forward(batch: ForwardRows, features: Tensor, cache: KvCache, ops: Ops = this.#ops): Tensor {
    return decoderLayer(ops, this.#layer, this.#join(batch, features, ops), cache.layers[0]!, this.#settings, batch);
  }

  /** `forward` for rows that are only looked back at: the cache gets the same bits, nothing is predicted. A third of the arithmetic. */
  remember(batch: ForwardRows, features: Tensor, cache: KvCache): void {
    const ops = this.#ops;
    storeKeysAndValues(ops, this.#layer, this.#join(batch, features, ops), cache.layers[0]!, this.#settings, batch);
  }

  /** fc([embedding of the token one ahead | feature]): [rows, d]. */
  #join(batch: ForwardRows, features: Tensor, ops: Ops): Tensor {
    ops.release(0);
    const embedded = ops.gather(this.#target.embedding, batch.tokens, batch.rows);
    return ops.linear(ops.concat(embedded, features), this.#fc, undefined, this.#fcBias);
  }

  /**
   * Logits of the batch's wanted rows: [batch.logitCount, lmHead.rows].
   * @param lmHead rows of the target's: those of the draft vocabulary, unless said.
   */
  logits(batch: ForwardBatch, predicted: Tensor, lmHead: PackedMatrix = this.#lmHead): Tensor {
    const wanted = this.#ops.selectRows(predicted, batch.logitRows, batch.logitCount);
    return this.#ops.linear(wanted, lmHead);
  }

  /** [Vd, d], frozen: the target's, or the rows of it that the draft vocabulary names. */
  get lmHead(): PackedMatrix {
    return this.#lmHead;
  }

  /** What is trained, under the names of the published layout; fused matrices appear in parts. */
  tensors(): WeightTensor[] {
    const rows = this.config.hiddenSize;
    return [
      { name: 'fc.weight', weight: this.#fc, first: 0, rows },
      ...(this.#fcBias === undefined ? [] : [{ name: 'fc.bias', weight: this.#fcBias, first: 0, rows }]),
      ...layerTensors('layers.0.', this.#layer, this.config),
    ];
  }

  [Symbol.dispose](): void {
    this.#loader[Symbol.dispose]();
    for (const buffer of this.#buffers.splice(0)) this.#target.kernels.release(buffer);
  }
}
