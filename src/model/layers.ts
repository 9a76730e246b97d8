/** The pre-norm decoder layer of the Llama family, against `Ops`: eager or taped. */
import type { KvLayer, PackedMatrix } from '../kernels/kernels.ts';
import type { HeadShape, Ops, RotaryTables } from '../tensor/ops.ts';
import type { Tensor } from '../tensor/tensor.ts';
import type { ForwardBatch } from './forward-batch.ts';
import { halvesFromPairs, type WeightLoader } from './weights.ts';

export interface LayerShape extends HeadShape {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
}

export interface LayerWeights {
  /** Absent in the first layer of an EAGLE head (reference: cnets, `layers.0` has no input norm). */
  readonly inputNorm: Float32Array | undefined; // [d]
  readonly qkv: PackedMatrix; // [(heads + 2·kvHeads)·headDim, d]
  readonly output: PackedMatrix; // [d, heads·headDim]
  readonly postAttentionNorm: Float32Array; // [d]
  readonly gateUp: PackedMatrix; // [2·intermediate, d]
  readonly down: PackedMatrix; // [d, intermediate]
}

/** What all layers of a model share, whatever rows they are given. */
export interface LayerSettings {
  readonly shape: LayerShape;
  readonly eps: number;
  readonly rotary: RotaryTables;
}

export function loadLayer(
  loader: WeightLoader,
  prefix: string,
  shape: LayerShape,
  options: { readonly rotaryLayout: 'half' | 'interleaved'; readonly inputNorm: boolean },
): LayerWeights {
  const { hiddenSize: d, intermediateSize, heads, kvHeads, headDim } = shape;
  const rotary = (name: string, count: number) => ({
    name,
    rows: count * headDim,
    ...(options.rotaryLayout === 'interleaved' && { rowMap: halvesFromPairs(count, headDim) }),
  });
  return {
    inputNorm: options.inputNorm ? loader.vector(`${prefix}input_layernorm.weight`, d) : undefined,
    qkv: loader.matrix(
      [
        rotary(`${prefix}self_attn.q_proj.weight`, heads),
        rotary(`${prefix}self_attn.k_proj.weight`, kvHeads),
        { name: `${prefix}self_attn.v_proj.weight`, rows: kvHeads * headDim },
      ],
      d,
    ),
    output: loader.matrix([{ name: `${prefix}self_attn.o_proj.weight`, rows: d }], heads * headDim),
    postAttentionNorm: loader.vector(`${prefix}post_attention_layernorm.weight`, d),
    gateUp: loader.matrix(
      [
        { name: `${prefix}mlp.gate_proj.weight`, rows: intermediateSize },
        { name: `${prefix}mlp.up_proj.weight`, rows: intermediateSize },
      ],
      d,
    ),
    down: loader.matrix([{ name: `${prefix}mlp.down_proj.weight`, rows: d }], intermediateSize),
  };
}

/** x [n, d], the rows of `batch` → [n, d]. Settings and batch stay apart so that a forward makes no object of both. */
export function decoderLayer(
  ops: Ops,
  weights: LayerWeights,
  x: Tensor,
  kv: KvLayer,
  { shape, eps, rotary }: LayerSettings,
  { positions, layout }: ForwardBatch,
): Tensor {
  const normed = weights.inputNorm === undefined ? x : ops.rmsNorm(x, weights.inputNorm, eps);
  const attended = ops.attention(ops.linear(normed, weights.qkv), shape, positions, rotary, kv, layout);
  const h = ops.linear(attended, weights.output, x);
  const gated = ops.swiglu(ops.linear(ops.rmsNorm(h, weights.postAttentionNorm, eps), weights.gateUp));
  return ops.linear(gated, weights.down, h);
}
