/**
 * One rule per operation: from the gradient of its output to those of its inputs, which are added to, for an input may be used several
 * times. A rule is given what the operation was given.
 */
import type { Ops } from '../tensor/ops.ts';
import type { Tensor } from '../tensor/tensor.ts';
import type { Tape } from './tape.ts';

/** The operations; the rest of `Ops` is book-keeping. */
export type Differentiable = Exclude<keyof Ops, 'mark' | 'release' | 'keep'>;

/** @param dy the output's gradient, complete. */
type Backward<K extends Differentiable> = (tape: Tape, dy: Tensor, ...args: Parameters<Ops[K]>) => void;

export const BACKWARD: { readonly [K in Differentiable]: Backward<K> } = {
  gather(tape, dy, table, ids, count) {
    const gradient = tape.parameters.gradient(table);
    if (gradient !== undefined) tape.kernels.scatterAddRows(gradient, ids, dy.data, count);
  },

  concat(tape, dy, a, b) {
    addColumns(tape.gradient(a), dy, 0);
    addColumns(tape.gradient(b), dy, a.cols);
  },

  selectRows(tape, dy, x, rows, count) {
    const dx = tape.gradient(x);
    if (dx === undefined) return;
    for (let i = 0; i < count; i++) addTo(dx.row(rows[i]!), dy.row(i));
  },

  /** y = x Wᵀ + b + r: dx = dy W, dW = dyᵀ x, db = Σ dy, dr = dy. */
  linear(tape, dy, x, weight, residual, bias) {
    const { kernels, parameters } = tape;
    const dWeight = parameters.gradient(weight);
    if (dWeight !== undefined) kernels.accumulateOuter(dWeight, dy.data, x.data, x.rows);
    const dBias = bias && parameters.gradient(bias);
    if (dBias !== undefined) for (let row = 0; row < dy.rows; row++) addTo(dBias, dy.row(row));
    const dResidual = residual && tape.gradient(residual);
    if (dResidual !== undefined) addColumns(dResidual, dy, 0);
    const dx = tape.gradient(x);
    if (dx !== undefined) kernels.matmul(dx.data, dy.data, tape.transposed(weight), x.rows, dx.data);
  },

  rmsNorm(tape, dy, x, weight, eps) {
    const dWeight = tape.parameters.gradient(weight);
    const dx = tape.gradient(x) ?? tape.discarded(x);
    tape.kernels.rmsNormBackward(dx.data, dWeight ?? null, dy.data, x.data, weight, x.rows, x.cols, eps);
  },

  /**
   * Rows write their keys and values to the cache, then attend over it; so what their keys and values are worth is known when every
   * later row has gone its way back, which is the case here: the tape runs backwards. Positions turn back by the opposite angle.
   */
  attention(tape, dy, qkv, { heads, kvHeads, headDim }, positions, rotary, kv, layout) {
    const dQkv = tape.gradient(qkv);
    if (dQkv === undefined) return;
    const { kernels } = tape;
    const { keys, values } = tape.kvGradient(kv);
    kernels.attentionBackward(dQkv.data, keys, values, dy.data, qkv.data, qkv.cols, heads, kv, layout);
    const width = kvHeads * headDim;
    for (let row = 0; row < qkv.rows; row++) {
      const slot = layout.slots[row]! * width;
      const own = row * qkv.cols + heads * headDim;
      for (let i = 0; i < width; i++) {
        dQkv.data[own + i]! += keys[slot + i]!;
        dQkv.data[own + width + i]! += values[slot + i]!;
      }
    }
    const back = tape.opposite(rotary);
    kernels.rope(dQkv.data, qkv.cols, qkv.rows, heads + kvHeads, headDim, positions, back.cos, back.sin);
  },

  swiglu(tape, dy, gateUp) {
    const dx = tape.gradient(gateUp);
    if (dx !== undefined) tape.kernels.swigluBackward(dx.data, dy.data, gateUp.data, dy.rows, dy.cols);
  },

  /** With s the logistic function of x: dx = dy · s · (1 + x · (1 - s)), dr = dy. */
  silu(tape, dy, x, residual) {
    addColumns(tape.gradient(residual), dy, 0);
    const dx = tape.gradient(x);
    if (dx === undefined) return;
    for (let i = 0, end = dy.rows * dy.cols; i < end; i++) {
      const s = 1 / (1 + Math.exp(-x.data[i]!));
      dx.data[i]! += dy.data[i]! * s * (1 + x.data[i]! * (1 - s));
    }
  },
};

/** dx += columns [first, first + dx.cols) of dy. */
function addColumns(dx: Tensor | undefined, dy: Tensor, first: number): void {
  if (dx === undefined) return;
  for (let row = 0; row < dx.rows; row++) {
    const to = row * dx.cols;
    const from = row * dy.cols + first;
    for (let i = 0; i < dx.cols; i++) dx.data[to + i]! += dy.data[from + i]!;
  }
}

function addTo(sum: Float32Array, values: Float32Array): void {
  for (let i = 0; i < sum.length; i++) sum[i]! += values[i]!;
}
