/**
 * What layers are written against. `EagerOps` computes at once on the kernels; a taped implementation for training has the same
 * face, so the head that is trained is the head that runs. Operations return new tensors of the arena and change no input.
 */
import type { AttentionLayout, Kernels, KvLayer, PackedMatrix } from '../kernels/kernels.ts';
import { Arena } from './arena.ts';
import { copyRow, type Tensor } from './tensor.ts';

/** Rotary tables [positions, headDim/2]. */
export interface RotaryTables {
  readonly cos: Float32Array;
  readonly sin: Float32Array;
}

/** How heads lie in a fused row [q | k | v]. */
export interface HeadShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

export interface Ops {
  /** Rows `ids` of a table: [ids.length → count, cols]. */
  gather(table: PackedMatrix, ids: Int32Array, count: number): Tensor;
  /** [a | b] row by row: [n, a.cols + b.cols]. */
  concat(a: Tensor, b: Tensor): Tensor;
  /** Rows `rows[0..count)` of x. */
  selectRows(x: Tensor, rows: Int32Array, count: number): Tensor;
  /** x [n, in] · Wᵀ + bias [out] + residual [n, out] → [n, out]. */
  linear(x: Tensor, weight: PackedMatrix, residual?: Tensor, bias?: Float32Array): Tensor;
  rmsNorm(x: Tensor, weight: Float32Array, eps: number): Tensor;
  /**
   * Causal attention of fused rows qkv [n, (heads + 2·kvHeads)·headDim] over the cache, which gets the rows' own keys and values first:
   * rotates q and k to `positions`, stores k and v, attends → [n, heads·headDim]. Consumes qkv.
   */
  attention(
    qkv: Tensor,
    shape: HeadShape,
    positions: Int32Array,
    rotary: RotaryTables,
    kv: KvLayer,
    layout: AttentionLayout,
  ): Tensor;
  /** silu(gate) · up of rows [gate | up]. */
  swiglu(gateUp: Tensor): Tensor;
  /** silu(x) + residual, both [n, cols]. */
  silu(x: Tensor, residual: Tensor): Tensor;
  mark(): number;
  release(mark: number): void;
  keep(mark: number, tensor: Tensor): Tensor;
}

export class EagerOps implements Ops {
  readonly kernels: Kernels;
  readonly arena = new Arena();

  constructor(kernels: Kernels) {
    this.kernels = kernels;
  }

  gather(table: PackedMatrix, ids: Int32Array, count: number): Tensor {
    const out = this.arena.allocate(count, table.cols);
    this.kernels.gatherRows(out.data, table.cols, table, ids, count);
    return out;
  }

  concat(a: Tensor, b: Tensor): Tensor {
    const cols = a.cols + b.cols;
    const out = this.arena.allocate(a.rows, cols);
    for (let row = 0; row < a.rows; row++) {
      out.data.set(a.row(row), row * cols);
      out.data.set(b.row(row), row * cols + a.cols);
    }
    return out;
  }

  selectRows(x: Tensor, rows: Int32Array, count: number): Tensor {
    const out = this.arena.allocate(count, x.cols);
    for (let i = 0; i < count; i++) copyRow(out, i, x, rows[i]!);
    return out;
  }

  linear(x: Tensor, weight: PackedMatrix, residual?: Tensor, bias?: Float32Array): Tensor {
    const out = this.arena.allocate(x.rows, weight.rows);
    this.kernels.matmul(out.data, x.data, weight, x.rows, residual?.data ?? null);
    if (bias !== undefined) {
      for (let i = 0, end = x.rows * weight.rows; i < end; i++) out.data[i] = out.data[i]! + bias[i % weight.rows]!;
    }
    return out;
  }

  rmsNorm(x: Tensor, weight: Float32Array, eps: number): Tensor {
    const out = this.arena.allocate(x.rows, x.cols);
    this.kernels.rmsNorm(out.data, x.data, weight, x.rows, x.cols, eps);
    return out;
  }

  attention(
    qkv: Tensor,
    shape: HeadShape,
    positions: Int32Array,
    rotary: RotaryTables,
    kv: KvLayer,
    layout: AttentionLayout,
  ): Tensor {
    const out = this.arena.allocate(qkv.rows, shape.heads * shape.headDim);
    this.store(qkv, shape, positions, rotary, kv, layout);
    this.kernels.attention(out.data, qkv.data, qkv.cols, shape.heads, kv, layout);
    return out;
  }

  /** Attention's first half alone: rotates to `positions`, stores keys and values. Consumes qkv. */
  store(
    qkv: Tensor,
    { heads, kvHeads, headDim }: HeadShape,
    positions: Int32Array,
    rotary: RotaryTables,
    kv: KvLayer,
    layout: AttentionLayout,
  ): void {
    this.kernels.rope(qkv.data, qkv.cols, qkv.rows, heads + kvHeads, headDim, positions, rotary.cos, rotary.sin);
    this.kernels.storeKv(kv, qkv.data, qkv.cols, heads * headDim, (heads + kvHeads) * headDim, layout);
  }

  swiglu(gateUp: Tensor): Tensor {
    const out = this.arena.allocate(gateUp.rows, gateUp.cols / 2);
    this.kernels.swiglu(out.data, gateUp.data, gateUp.rows, out.cols);
    return out;
  }

  /** By the kernel of SwiGLU, with ones beside the gate. */
  silu(x: Tensor, residual: Tensor): Tensor {
    const { rows, cols } = x;
    const gateUp = this.arena.allocate(rows, 2 * cols);
    for (let row = 0; row < rows; row++) {
      gateUp.row(row).set(x.row(row));
      gateUp.row(row).fill(1, cols);
    }
    const out = this.swiglu(gateUp);
    for (let i = 0, end = rows * cols; i < end; i++) out.data[i] = out.data[i]! + residual.data[i]!;
    return out;
  }

  mark(): number {
    return this.arena.mark();
  }

  release(mark: number): void {
    this.arena.release(mark);
  }

  keep(mark: number, tensor: Tensor): Tensor {
    return this.arena.keep(mark, tensor);
  }
}
