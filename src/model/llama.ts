/** Llama: token embedding, pre-norm decoder layers with grouped-query attention and SwiGLU, final norm, LM head. */
import type { Kernels, KvDtype, PackedMatrix } from '../kernels/kernels.ts';
import { EagerOps, type Ops } from '../tensor/ops.ts';
import type { TensorSource } from '../tensor/source.ts';
import type { Tensor } from '../tensor/tensor.ts';
import type { ModelConfig } from './config.ts';
import type { ForwardBatch, ForwardRows } from './forward-batch.ts';
import { KvCache } from './kv-cache.ts';
import {
  decoderLayer,
  type LayerSettings,
  type LayerWeights,
  layerTensors,
  loadLayer,
  type WeightTensor,
} from './layers.ts';
import { rotaryTables } from './rope.ts';
import type { ForwardOutput, TargetModel } from './target.ts';
import { type ModelDtype, WeightLoader } from './weights.ts';

export interface LoadOptions {
  readonly dtype: ModelDtype;
  /** KV cache; by default f32 for f32 weights, else f16. */
  readonly kvDtype?: KvDtype;
  /** Hears of every part of a tensor that was read, how many bytes it has in the file. */
  readonly onBytes?: (bytes: number) => void;
}

export function loadLlama(
  kernels: Kernels,
  config: ModelConfig,
  source: TensorSource,
  options: LoadOptions,
): TargetModel {
  return new Llama(kernels, config, source, options);
}

export class Llama implements TargetModel {
  readonly config: ModelConfig;
  readonly kernels: Kernels;
  readonly embedding: PackedMatrix;
  readonly lmHead: PackedMatrix;
  readonly #loader: WeightLoader;
  readonly #layers: readonly LayerWeights[];
  readonly #finalNorm: Float32Array;
  readonly #settings: LayerSettings;
  readonly #kvDtype: KvDtype;
  readonly #ops: EagerOps;

  constructor(kernels: Kernels, config: ModelConfig, source: TensorSource, options: LoadOptions) {
    this.config = config;
    this.kernels = kernels;
    this.#ops = new EagerOps(kernels);
    const { hiddenSize: d, vocabSize } = config;
    const rotary = rotaryTables(config.contextLength, config.headDim, config.ropeTheta);
    this.#settings = { shape: config, eps: config.rmsNormEps, rotary };
    const loader = new WeightLoader(kernels, source, options.dtype, options.onBytes);
    this.#loader = loader;
    try {
      this.embedding = loader.matrix([{ name: 'model.embed_tokens.weight', rows: vocabSize }], d);
      this.lmHead = config.tiedEmbeddings
        ? this.embedding
        : loader.matrix([{ name: 'lm_head.weight', rows: vocabSize }], d);
      this.#layers = Array.from({ length: config.layers }, (_, i) =>
        loadLayer(loader, `model.layers.${i}.`, config, { rotaryLayout: config.rotaryLayout, inputNorm: true }),
      );
      this.#finalNorm = loader.vector('model.norm.weight', d);
    } catch (error) {
      loader[Symbol.dispose]();
      throw error;
    }
    this.#kvDtype = options.kvDtype ?? (this.embedding.dtype === 'f32' ? 'f32' : 'f16');
  }

  get weightBytes(): number {
    return this.#loader.bytes;
  }

  createCache(sequences: number, capacity: number): KvCache {
    return new KvCache(this.kernels, { ...this.config, sequences, capacity, dtype: this.#kvDtype });
  }

  forward(batch: ForwardBatch, cache: KvCache): ForwardOutput {
    const ops = this.#ops;
    const features = this.features(batch, cache);
    const wanted =
      batch.logitCount === batch.rows ? features : ops.selectRows(features, batch.logitRows, batch.logitCount);
    return { features, logits: ops.linear(wanted, this.lmHead) };
  }

  /**
   * The last hidden state after the final norm, what the LM head reads: [rows, d], valid until the model's next forward.
   * @param ops what computes: training gives a tape.
   */
  features(batch: ForwardRows, cache: KvCache, ops: Ops = this.#ops): Tensor {
    ops.release(0);
    const start = ops.mark();
    let x = ops.gather(this.embedding, batch.tokens, batch.rows);
    for (let i = 0; i < this.#layers.length; i++) {
      x = ops.keep(start, decoderLayer(ops, this.#layers[i]!, x, cache.layers[i]!, this.#settings, batch));
    }
    return ops.rmsNorm(x, this.#finalNorm, this.config.rmsNormEps);
  }

  /** All weights under the names of the published layout; fused matrices appear in parts, tied ones once. */
  tensors(): WeightTensor[] {
    const { config, embedding, lmHead } = this;
    const rows = config.vocabSize;
    return [
      { name: 'model.embed_tokens.weight', weight: embedding, first: 0, rows },
      ...this.#layers.flatMap((layer, i) => layerTensors(`model.layers.${i}.`, layer, config)),
      { name: 'model.norm.weight', weight: this.#finalNorm, first: 0, rows: config.hiddenSize },
      ...(lmHead === embedding ? [] : [{ name: 'lm_head.weight', weight: lmHead, first: 0, rows }]),
    ];
  }

  [Symbol.dispose](): void {
    this.#loader[Symbol.dispose]();
  }
}
