/** An EAGLE-1 head before training. */
import { uniformAt } from '../decode/rng.ts';
import type { HeadConfig } from '../draft/head-config.ts';
import { memorySource } from '../tensor/memory-source.ts';
import type { TensorSource } from '../tensor/source.ts';

export const INITIAL_HEADS = ['identity', 'random'] as const;
export type InitialHead = (typeof INITIAL_HEADS)[number];

/** Llama's `initializer_range`. */
const DEVIATION = 0.02;
/** Of the matrices that write to the residual stream, for the identity start: the layer begins as hardly more than nothing. */
const SMALL_DEVIATION = 0.002;

/**
 * `random`: as the authors start. `identity`: fc = [small | identity], small output projections, so that the head begins as "the next
 * feature is this one", which is far nearer to the truth.
 * @param targetIds of the draft vocabulary, ascending; undefined where it is the target's.
 */
export function initialHead(
  start: InitialHead,
  config: HeadConfig,
  targetIds: Int32Array | undefined,
  seed: number,
): TensorSource {
  const { hiddenSize: d, intermediateSize, heads, kvHeads, headDim } = config;
  let stream = 0;
  const matrix = (rows: number, cols: number, deviation = DEVIATION) => ({
    shape: [rows, cols],
    data: gaussian(rows * cols, deviation, seed, stream++),
  });
  const outputs = start === 'identity' ? SMALL_DEVIATION : DEVIATION;
  const fc = matrix(d, 2 * d);
  if (start === 'identity')
    for (let row = 0; row < d; row++)
      for (let col = 0; col < d; col++) fc.data[row * 2 * d + d + col] = row === col ? 1 : 0;
  return memorySource(`the ${start} start`, {
    'fc.weight': fc,
    'layers.0.self_attn.q_proj.weight': matrix(heads * headDim, d),
    'layers.0.self_attn.k_proj.weight': matrix(kvHeads * headDim, d),
    'layers.0.self_attn.v_proj.weight': matrix(kvHeads * headDim, d),
    'layers.0.self_attn.o_proj.weight': matrix(d, heads * headDim, outputs),
    'layers.0.post_attention_layernorm.weight': { shape: [d], data: new Float32Array(d).fill(1) },
    'layers.0.mlp.gate_proj.weight': matrix(intermediateSize, d),
    'layers.0.mlp.up_proj.weight': matrix(intermediateSize, d),
    'layers.0.mlp.down_proj.weight': matrix(d, intermediateSize, outputs),
    ...(targetIds !== undefined && { d2t: { shape: [targetIds.length], data: draftOffsets(targetIds) } }),
  });
}

/** EAGLE-3's map: target id = draft id + d2t[draft id]. */
export function draftOffsets(targetIds: Int32Array): BigInt64Array {
  return BigInt64Array.from(targetIds, (target, draft) => BigInt(target - draft));
}

/** Box and Muller's method, one stream per tensor. */
function gaussian(count: number, deviation: number, seed: number, stream: number): Float32Array<ArrayBuffer> {
  const key = Math.imul(seed + 1, 0x9e3779b1) ^ stream;
  return new Float32Array(count).map((_, i) => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniformAt(key, 2 * i)));
    return deviation * radius * Math.cos(2 * Math.PI * uniformAt(key, 2 * i + 1));
  });
}
