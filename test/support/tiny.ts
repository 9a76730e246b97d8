/** A tiny random Llama, a tiny random EAGLE-1 head and tiny random Medusa heads for it, made in memory: every path of decoding in microseconds a row. */
import { EagleHead } from '../../src/draft/eagle-head.ts';
import type { HeadConfig } from '../../src/draft/head-config.ts';
import { MedusaHeads } from '../../src/draft/medusa-heads.ts';
import type { Kernels } from '../../src/kernels/kernels.ts';
import type { ModelConfig } from '../../src/model/config.ts';
import { loadTarget } from '../../src/model/registry.ts';
import type { TargetModel } from '../../src/model/target.ts';
import type { ModelDtype } from '../../src/model/weights.ts';
import { type MemoryTensor, memorySource } from '../../src/tensor/memory-source.ts';
import type { TensorSource } from '../../src/tensor/source.ts';
import { headConfig } from '../../src/train/eagle-run.ts';
import { randomFloats, xorshift } from './random.ts';

export const TINY_CONFIG: ModelConfig = {
  architecture: 'llama',
  layers: 2,
  hiddenSize: 32,
  intermediateSize: 64,
  heads: 2,
  kvHeads: 1,
  headDim: 16,
  vocabSize: 96,
  contextLength: 256,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tiedEmbeddings: true,
  rotaryLayout: 'half',
};

interface LayerSizes {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

function layerTensors(
  prefix: string,
  { hiddenSize: d, intermediateSize, heads, kvHeads, headDim }: LayerSizes,
  random: (rows: number, cols: number) => MemoryTensor,
): Record<string, MemoryTensor> {
  return {
    [`${prefix}input_layernorm.weight`]: ones(d),
    [`${prefix}self_attn.q_proj.weight`]: random(heads * headDim, d),
    [`${prefix}self_attn.k_proj.weight`]: random(kvHeads * headDim, d),
    [`${prefix}self_attn.v_proj.weight`]: random(kvHeads * headDim, d),
    [`${prefix}self_attn.o_proj.weight`]: random(d, heads * headDim),
    [`${prefix}post_attention_layernorm.weight`]: ones(d),
    [`${prefix}mlp.gate_proj.weight`]: random(intermediateSize, d),
    [`${prefix}mlp.up_proj.weight`]: random(intermediateSize, d),
    [`${prefix}mlp.down_proj.weight`]: random(d, intermediateSize),
  };
}

const ones = (length: number): MemoryTensor => ({ shape: [length], data: new Float32Array(length).fill(1) });

/** Uniform with about unit gain: sqrt(3 / cols) has variance 1 / cols. Twice that makes attention and text lively. */
function randomMatrices(seed: number): (rows: number, cols: number) => MemoryTensor {
  const random = xorshift(seed);
  return (rows, cols) => ({ shape: [rows, cols], data: randomFloats(random, rows * cols, 2 * Math.sqrt(3 / cols)) });
}

/** The weights of a tiny random Llama with tied embeddings. */
export function tinyModelSource(config: ModelConfig, seed: number): TensorSource {
  const random = randomMatrices(seed);
  const tensors: Record<string, MemoryTensor> = {
    'model.embed_tokens.weight': random(config.vocabSize, config.hiddenSize),
    'model.norm.weight': ones(config.hiddenSize),
  };
  for (let i = 0; i < config.layers; i++) Object.assign(tensors, layerTensors(`model.layers.${i}.`, config, random));
  return memorySource('tiny', tensors);
}

export function tinyTarget(
  kernels: Kernels,
  options: { readonly seed?: number; readonly dtype?: ModelDtype; readonly config?: ModelConfig } = {},
): TargetModel {
  const { seed = 1, dtype = 'f32', config = TINY_CONFIG } = options;
  return loadTarget(kernels, config, tinyModelSource(config, seed), { dtype });
}

/** `d2t` of every k-th token. */
function draftMap(draftVocabSize: number, vocabSize: number): MemoryTensor {
  const every = Math.floor(vocabSize / draftVocabSize);
  const offsets = BigInt64Array.from({ length: draftVocabSize }, (_, draft) => BigInt(draft * every - draft));
  return { shape: [draftVocabSize], data: offsets };
}

/** A head that fits `target`; `draftVocabSize` below the target's gives it every k-th token. */
export function tinyHeadParts(
  target: TargetModel,
  options: { readonly seed?: number; readonly draftVocabSize?: number } = {},
): { readonly config: HeadConfig; readonly tensors: Record<string, MemoryTensor> } {
  const { hiddenSize, intermediateSize, vocabSize } = target.config;
  const draftVocabSize = options.draftVocabSize ?? vocabSize;
  const config = headConfig(target.config, { draftVocabSize, intermediateSize });
  const random = randomMatrices(options.seed ?? 2);
  return {
    config,
    tensors: {
      'fc.weight': random(hiddenSize, 2 * hiddenSize),
      ...layerTensors('layers.0.', config, random),
      ...(draftVocabSize < vocabSize && { d2t: draftMap(draftVocabSize, vocabSize) }),
    },
  };
}

export function tinyHead(
  target: TargetModel,
  options: { readonly seed?: number; readonly draftVocabSize?: number } = {},
): EagleHead {
  const { config, tensors } = tinyHeadParts(target, options);
  return new EagleHead(target, config, memorySource('tiny-head', tensors), { dtype: 'f32' });
}

/** Medusa heads that fit `target`: with its own LM head, or `own` ones. */
export function tinyMedusa(
  target: TargetModel,
  options: {
    readonly heads?: number;
    readonly layers?: number;
    readonly own?: boolean;
    readonly draftVocabSize?: number;
  } = {},
): MedusaHeads {
  const { hiddenSize: d, vocabSize } = target.config;
  const { heads = 3, layers = 1, own = false, draftVocabSize = vocabSize } = options;
  const random = randomMatrices(4);
  const tensors: Record<string, MemoryTensor> = {};
  for (let head = 0; head < heads; head++) {
    for (let layer = 0; layer < layers; layer++) {
      tensors[`${head}.${layer}.linear.weight`] = random(d, d);
      tensors[`${head}.${layer}.linear.bias`] = { shape: [d], data: random(1, d).data };
    }
    if (own) tensors[`${head}.${layers}.weight`] = random(draftVocabSize, d);
  }
  if (draftVocabSize < vocabSize) tensors.d2t = draftMap(draftVocabSize, vocabSize);
  const config = { heads, layers, ...(draftVocabSize < vocabSize && { draftVocabSize }) };
  return new MedusaHeads(target, config, memorySource('tiny-medusa', tensors), { dtype: 'f32' });
}
