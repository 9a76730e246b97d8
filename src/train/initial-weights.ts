/** Weights before training: normally distributed numbers that follow from a seed. */
import { uniformAt } from '../decode/rng.ts';
import type { LayerShape } from '../model/layers.ts';
import type { MemoryTensor } from '../tensor/memory-source.ts';

/** Llama's `initializer_range`. */
const DEVIATION = 0.02;

export class InitialWeights {
  readonly #seed: number;
  #streams = 0; // one per matrix

  constructor(seed: number) {
    this.#seed = seed;
  }

  matrix(rows: number, cols: number, deviation = DEVIATION): MemoryTensor & { readonly data: Float32Array } {
    const key = Math.imul(this.#seed + 1, 0x9e3779b1) ^ this.#streams++;
    return { shape: [rows, cols], data: gaussian(rows * cols, deviation, key) };
  }

  norm(length: number): MemoryTensor {
    return { shape: [length], data: new Float32Array(length).fill(1) };
  }

  /** A decoder layer without its input norm. @param outputs deviation of the matrices that write to the residual stream. */
  layer(prefix: string, shape: LayerShape, outputs = DEVIATION): Record<string, MemoryTensor> {
    const { hiddenSize: d, intermediateSize, heads, kvHeads, headDim } = shape;
    return {
      [`${prefix}self_attn.q_proj.weight`]: this.matrix(heads * headDim, d),
      [`${prefix}self_attn.k_proj.weight`]: this.matrix(kvHeads * headDim, d),
      [`${prefix}self_attn.v_proj.weight`]: this.matrix(kvHeads * headDim, d),
      [`${prefix}self_attn.o_proj.weight`]: this.matrix(d, heads * headDim, outputs),
      [`${prefix}post_attention_layernorm.weight`]: this.norm(d),
      [`${prefix}mlp.gate_proj.weight`]: this.matrix(intermediateSize, d),
      [`${prefix}mlp.up_proj.weight`]: this.matrix(intermediateSize, d),
      [`${prefix}mlp.down_proj.weight`]: this.matrix(d, intermediateSize, outputs),
    };
  }
}

/** Box and Muller's method. */
function gaussian(count: number, deviation: number, key: number): Float32Array<ArrayBuffer> {
  return new Float32Array(count).map((_, i) => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniformAt(key, 2 * i)));
    return deviation * radius * Math.cos(2 * Math.PI * uniformAt(key, 2 * i + 1));
  });
}
