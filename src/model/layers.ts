/** The pre-norm decoder layer of the Llama family, against `Ops`: eager or taped. */
import type { KvLayer, PackedMatrix } from '../kernels/kernels.ts';
import type { EagerOps, HeadShape, Ops } from '../tensor/ops.ts';
import type { Tensor } from '../tensor/tensor.ts';
import type { ForwardBatch } from './forward-batch.ts';
import type { Rotary } from './rope.ts';
import { halvesFromPairs, type Part, type WeightLoader } from './weights.ts';

export interface LayerShape extends HeadShape {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
}

export interface LayerWeights {
  /** Absent in the first layer of an EAGLE head (reference: cnets, `layers.0` has no input norm). */
  readonly inputNorm: Float32Array | undefined; // [d]
  readonly qkv: PackedMatrix; // [(heads + 2·kvHeads)·headDim, d]
  readonly qkvBias: Float32Array | undefined; // [(heads + 2·kvHeads)·headDim]
  readonly output: PackedMatrix; // [d, heads·headDim]
  readonly postAttentionNorm: Float32Array; // [d]
  readonly gateUp: PackedMatrix; // [2·intermediate, d]
  readonly down: PackedMatrix; // [d, intermediate]
}

/** A file's tensor and where it lies in memory: rows of a matrix, or elements of a vector. */
export interface WeightTensor {
  readonly name: string;
  readonly weight: PackedMatrix | Float32Array;
  readonly first: number;
  readonly rows: number;
}

/** What all layers of a model share, whatever rows they are given. */
export interface LayerSettings {
  readonly shape: LayerShape;
  readonly eps: number;
  readonly rotary: Rotary;
}

export function loadLayer(
  loader: WeightLoader,
  prefix: string,
  shape: LayerShape,
  options: {
    readonly rotaryLayout: 'half' | 'interleaved';
    readonly inputNorm: boolean;
    /** With `q_proj.bias` and so on, as Qwen2's heads have. */
    readonly qkvBias?: boolean;
  },
): LayerWeights {
  const { hiddenSize: d, intermediateSize, heads, kvHeads, headDim } = shape;
  const rotary = (name: string, count: number): Part => ({
    name,
    rows: count * headDim,
    ...(options.rotaryLayout === 'interleaved' && { rowMap: halvesFromPairs(count, headDim) }),
  });
  const qkv: readonly Part[] = [
    rotary(`${prefix}self_attn.q_proj`, heads),
    rotary(`${prefix}self_attn.k_proj`, kvHeads),
    { name: `${prefix}self_attn.v_proj`, rows: kvHeads * headDim },
  ];
  return {
    inputNorm: options.inputNorm ? loader.vector(`${prefix}input_layernorm.weight`, d) : undefined,
    qkv: loader.matrix(
      qkv.map((part) => ({ ...part, name: `${part.name}.weight` })),
      d,
    ),
    qkvBias: options.qkvBias ? loadBias(loader, qkv) : undefined,
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

/** The tensors that `loadLayer` made a layer of, for writing them again. Rotary rows are in rotate-half order. */
export function layerTensors(
  prefix: string,
  weights: LayerWeights,
  { heads, kvHeads, headDim, intermediateSize }: LayerShape,
): WeightTensor[] {
  const { inputNorm, qkv, qkvBias, output, postAttentionNorm, gateUp, down } = weights;
  const whole = (name: string, weight: PackedMatrix | Float32Array): WeightTensor => {
    const rows = weight instanceof Float32Array ? weight.length : weight.rows;
    return { name: prefix + name, weight, first: 0, rows };
  };
  const q = { first: 0, rows: heads * headDim };
  const k = { first: q.rows, rows: kvHeads * headDim };
  const v = { first: q.rows + k.rows, rows: k.rows };
  const projections = Object.entries({ q, k, v });
  const attention = (kind: string, weight: PackedMatrix | Float32Array): WeightTensor[] =>
    projections.map(([of, place]) => ({ name: `${prefix}self_attn.${of}_proj.${kind}`, weight, ...place }));
  return [
    ...(inputNorm === undefined ? [] : [whole('input_layernorm.weight', inputNorm)]),
    ...attention('weight', qkv),
    ...(qkvBias === undefined ? [] : attention('bias', qkvBias)),
    whole('self_attn.o_proj.weight', output),
    whole('post_attention_layernorm.weight', postAttentionNorm),
    { name: `${prefix}mlp.gate_proj.weight`, weight: gateUp, first: 0, rows: intermediateSize },
    { name: `${prefix}mlp.up_proj.weight`, weight: gateUp, first: intermediateSize, rows: intermediateSize },
    whole('mlp.down_proj.weight', down),
  ];
}

/** The parts' biases one after another, in the order of the rows that they are added to. */
function loadBias(loader: WeightLoader, parts: readonly Part[]): Float32Array {
  const biases = parts.map(({ name, rows, rowMap }) => {
    const bias = loader.vector(`${name}.bias`, rows);
    return rowMap === undefined ? bias : Float32Array.from(rowMap, (row) => bias[row]!);
  });
  return Float32Array.from(biases.flatMap((bias) => [...bias]));
}

/** x [n, d], the rows of `batch` → [n, d]. Settings and batch stay apart so that a forward makes no object of both. */
export function decoderLayer(
  ops: Ops,
  weights: LayerWeights,
  x: Tensor,
  kv: KvLayer,
  { shape, eps, rotary }: LayerSettings,
  { positions, layout }: Pick<ForwardBatch, 'positions' | 'layout'>,
): Tensor {
  const tables = rotary(positions, x.rows);
  const attended = ops.attention(project(ops, weights, x, eps), shape, positions, tables, kv, layout);
  const h = ops.linear(attended, weights.output, x);
  const gated = ops.swiglu(ops.linear(ops.rmsNorm(h, weights.postAttentionNorm, eps), weights.gateUp));
  return ops.linear(gated, weights.down, h);
}

/** Only what later rows need of rows x [n, d] whose own output nobody reads: their keys and values, the same bits as `decoderLayer` stores. */
export function storeKeysAndValues(
  ops: EagerOps,
  weights: LayerWeights,
  x: Tensor,
  kv: KvLayer,
  { shape, eps, rotary }: LayerSettings,
  { positions, layout }: Pick<ForwardBatch, 'positions' | 'layout'>,
): void {
  ops.store(project(ops, weights, x, eps), shape, positions, rotary(positions, x.rows), kv, layout);
}

/** x [n, d] → [n, (heads + 2·kvHeads)·headDim], not yet rotated. */
function project(ops: Ops, { inputNorm, qkv, qkvBias }: LayerWeights, x: Tensor, eps: number): Tensor {
  return ops.linear(inputNorm === undefined ? x : ops.rmsNorm(x, inputNorm, eps), qkv, undefined, qkvBias);
}
