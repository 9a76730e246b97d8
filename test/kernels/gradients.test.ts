/**
 * The reference's gradients against central differences of forwards written here, in f64. Every output of a kernel is weighted by dy and
 * added up: the gradient of that sum is what the kernel returns. What tables make of it is `parity-gradients.test.ts`'s business.
 */
import { describe, expect, test } from 'vitest';
import { KV_TILE, type KvLayer } from '../../src/kernels/kernels.ts';
import { createReferenceKernels } from '../../src/kernels/reference.ts';
import { assertSameBits, emptyMatrix, type LayoutRow, layoutOf, packed, storeLayout } from '../support/kernels.ts';
import { randomFloats, xorshift } from '../support/random.ts';

const kernels = createReferenceKernels();

/** Truncation is h²·f‴/6, f64 rounding 2^-52·f/h: both below 1e-9 where values and derivatives are a few dozen at most. */
const STEP = 1e-5;
const DIFFERENCE_ERROR = 1e-8;

/**
 * Holds `got` against the numeric gradient of `f` at x, plus what was there before. One f32 rounding of the result and of what was added
 * to it on the way is allowed.
 */
function assertGradient(
  got: Float32Array,
  before: Float32Array,
  x: Float32Array,
  f: (x: Float64Array) => number,
  what: string,
): void {
  const at = Float64Array.from(x);
  for (let i = 0; i < x.length; i++) {
    at[i] = x[i]! + STEP;
    const above = f(at);
    at[i] = x[i]! - STEP;
    const below = f(at);
    at[i] = x[i]!;
    const want = before[i]! + (above - below) / (2 * STEP);
    const tolerance = DIFFERENCE_ERROR + 2 * 2 ** -24 * (Math.abs(want) + Math.abs(before[i]!));
    if (!(Math.abs(got[i]! - want) <= tolerance))
      throw new Error(`${what}: element ${i} got ${got[i]}, differences say ${want}`);
  }
}

const dot = (a: Float32Array, b: Float64Array): number => b.reduce((sum, value, i) => sum + a[i]! * value, 0);

test('accumulateOuter is the gradient of a product by its weight, on top of what was there', () => {
  const random = xorshift(1);
  const [n, rows, cols] = [5, 19, 7];
  const [x, dy] = [randomFloats(random, n * cols), randomFloats(random, n * rows)];
  const [weight, before] = [randomFloats(random, rows * cols), randomFloats(random, rows * cols)];
  const gradient = packed(kernels, 'f32', rows, cols, before);
  kernels.accumulateOuter(gradient, dy, x, n);
  const product = (w: Float64Array): number => {
    let sum = 0;
    for (let i = 0; i < n; i++)
      for (let row = 0; row < rows; row++)
        for (let k = 0; k < cols; k++) sum += dy[i * rows + row]! * x[i * cols + k]! * w[row * cols + k]!;
    return sum;
  };
  assertGradient(unpacked(gradient), before, weight, product, 'weight');
});

test('a product by the transposed weight is the gradient by its input', () => {
  const random = xorshift(2);
  const [n, rows, cols] = [3, 19, 33];
  const [x, dy, values] = [
    randomFloats(random, n * cols),
    randomFloats(random, n * rows),
    randomFloats(random, rows * cols),
  ];
  const transposed = emptyMatrix(kernels, 'f32', cols, rows);
  transposed.data.fill(255); // padding must become zero
  kernels.transpose(transposed, packed(kernels, 'f32', rows, cols, values));
  const dx = new Float32Array(n * cols);
  kernels.matmul(dx, dy, transposed, n, null);
  const product = (inputs: Float64Array): number => {
    let sum = 0;
    for (let i = 0; i < n; i++)
      for (let row = 0; row < rows; row++)
        for (let k = 0; k < cols; k++) sum += dy[i * rows + row]! * inputs[i * cols + k]! * values[row * cols + k]!;
    return sum;
  };
  assertGradient(dx, new Float32Array(dx.length), x, product, 'input');
  const back = emptyMatrix(kernels, 'f32', rows, cols);
  kernels.transpose(back, transposed);
  assertSameBits(back.data, packed(kernels, 'f32', rows, cols, values).data, 'transposed twice');
  const padded = packed(
    kernels,
    'f32',
    cols,
    rows,
    Float32Array.from({ length: cols * rows }, (_, i) => values[(i % rows) * cols + Math.floor(i / rows)]!),
  );
  assertSameBits(transposed.data, padded.data, 'transposed, with its padding');
});

test('scatterAddRows adds every row where its id says, repeated ids too', () => {
  const gradient = packed(kernels, 'f32', 18, 2, new Float32Array(36).fill(1));
  kernels.scatterAddRows(gradient, Int32Array.of(17, 0, 17), Float32Array.of(1, 2, 10, 20, 100, 200), 3);
  const want = new Float32Array(36).fill(1);
  want.set([11, 21], 0);
  want.set([102, 203], 34);
  expect(unpacked(gradient)).toEqual(want);
});

test('rmsNormBackward', () => {
  const random = xorshift(3);
  const [n, cols, eps] = [3, 21, 1e-2];
  const [x, weight, dy] = [randomFloats(random, n * cols), randomFloats(random, cols), randomFloats(random, n * cols)];
  const [dxBefore, dWeightBefore] = [randomFloats(random, n * cols), randomFloats(random, cols)];
  const forward = (inputs: ArrayLike<number>, by: ArrayLike<number>): number => {
    const out = new Float64Array(n * cols);
    for (let row = 0; row < n; row++) {
      const values = Array.from({ length: cols }, (_, k) => inputs[row * cols + k]!);
      const mean = values.reduce((sum, value) => sum + value * value, 0) / cols;
      for (const [k, value] of values.entries())
        out[row * cols + k] = (value / Math.sqrt(mean + Math.fround(eps))) * by[k]!;
    }
    return dot(dy, out);
  };
  const [dx, dWeight] = [dxBefore.slice(), dWeightBefore.slice()];
  kernels.rmsNormBackward(dx, dWeight, dy, x, weight, n, cols, eps);
  assertGradient(dx, dxBefore, x, (inputs) => forward(inputs, weight), 'x');
  assertGradient(dWeight, dWeightBefore, weight, (by) => forward(x, by), 'weight');

  const frozen = dxBefore.slice();
  kernels.rmsNormBackward(frozen, null, dy, x, weight, n, cols, eps);
  assertSameBits(frozen, dx, 'dx with a frozen weight');
});

test('swigluBackward', () => {
  const random = xorshift(4);
  const [n, cols] = [2, 5];
  const [x, dy, before] = [
    randomFloats(random, n * 2 * cols, 4),
    randomFloats(random, n * cols),
    randomFloats(random, n * 2 * cols),
  ];
  const dx = before.slice();
  kernels.swigluBackward(dx, dy, x, n, cols);
  const forward = (inputs: Float64Array): number => {
    const out = new Float64Array(n * cols).map((_, i) => {
      const at = Math.floor(i / cols) * 2 * cols + (i % cols);
      return (inputs[at]! / (1 + Math.exp(-inputs[at]!))) * inputs[at + cols]!;
    });
    return dot(dy, out);
  };
  assertGradient(dx, before, x, forward, 'x');
});

describe('softCrossEntropy', () => {
  const random = xorshift(5);
  const [n, cols] = [3, 9];
  const [logits, teacher] = [randomFloats(random, n * cols, 3), randomFloats(random, n * cols, 3)];
  const weights = Float32Array.of(0.5, 0, 2);
  const softmax = (x: readonly number[]) => {
    const sum = x.reduce((total, value) => total + Math.exp(value), 0);
    return x.map((value) => Math.exp(value) / sum);
  };
  const rowOf = (x: ArrayLike<number>, row: number) => Array.from({ length: cols }, (_, k) => x[row * cols + k]!);
  const loss = (x: ArrayLike<number>, row: number): number => {
    const wanted = softmax(rowOf(teacher, row));
    return softmax(rowOf(x, row)).reduce((sum, p, k) => sum - wanted[k]! * Math.log(p), 0);
  };

  test('losses and gradient', () => {
    const [losses, dLogits] = [new Float32Array(n), new Float32Array(n * cols).fill(NaN)];
    kernels.softCrossEntropy(losses, dLogits, logits, teacher, weights, n, cols);
    for (let row = 0; row < n; row++) expect(losses[row]).toBeCloseTo(loss(logits, row), 5);
    const total = (x: Float64Array) => weights.reduce((sum, weight, row) => sum + weight * loss(x, row), 0);
    assertGradient(dLogits, new Float32Array(n * cols), logits, total, 'logits');
  });

  test('in place, and with tokens that are out of the question', () => {
    const shut = (x: Float32Array) => x.map((value, i) => (i % cols === 4 ? -Infinity : value));
    const [losses, dLogits, inPlace] = [new Float32Array(n), new Float32Array(n * cols), shut(logits)];
    kernels.softCrossEntropy(losses, dLogits, shut(logits), shut(teacher), weights, n, cols);
    expect(losses.every(Number.isFinite)).toBe(true);
    for (let row = 0; row < n; row++) expect(dLogits[row * cols + 4]).toBe(0);
    kernels.softCrossEntropy(losses, inPlace, inPlace, shut(teacher), weights, n, cols);
    assertSameBits(inPlace, dLogits, 'in place');
  });
});

test('attentionBackward: several sequences, shared heads, tree ancestors', () => {
  const random = xorshift(6);
  const [heads, kvHeads, headDim, slots] = [4, 2, 6, 48];
  const [width, stride] = [kvHeads * headDim, heads * headDim + 3];
  const rows: LayoutRow[] = [
    { slot: 0, base: 0, prefix: 1, extras: [] },
    { slot: 1, base: 0, prefix: 2, extras: [20, 9] },
    { slot: 2, base: 0, prefix: 0, extras: [21] },
    { slot: 32, base: 32, prefix: 3, extras: [9] },
  ];
  const layout = layoutOf(rows);
  const sees = rows.map(({ base, prefix, extras }) => [
    ...Array.from({ length: prefix }, (_, j) => base + j),
    ...extras,
  ]);
  const [keys, values] = [randomFloats(random, slots * width, 2), randomFloats(random, slots * width)];
  const [qkv, dOut] = [
    randomFloats(random, rows.length * stride, 2),
    randomFloats(random, rows.length * heads * headDim),
  ];
  const kv: KvLayer = {
    dtype: 'f32',
    kvHeads,
    headDim,
    slots,
    keys: new Float32Array(slots * width),
    values: new Float32Array(slots * width),
  };
  const both = Float32Array.from({ length: 2 * slots * width }, (_, i) => {
    const [slot, k] = [Math.floor(i / (2 * width)), i % (2 * width)];
    return k < width ? keys[slot * width + k]! : values[slot * width + k - width]!;
  });
  kernels.storeKv(kv, both, 2 * width, 0, width, storeLayout(Array.from({ length: slots }, (_, slot) => slot)));
  expect(kv.keys[5 * KV_TILE + 3]).toBe(keys[3 * width + 5]);

  const forward = (q: ArrayLike<number>, k: ArrayLike<number>, v: ArrayLike<number>): number => {
    let sum = 0;
    for (const [row, seen] of sees.entries()) {
      for (let head = 0; head < heads; head++) {
        const shared = Math.floor(head / (heads / kvHeads)) * headDim;
        const weights = seen.map((slot) => {
          let score = 0;
          for (let d = 0; d < headDim; d++)
            score += q[row * stride + head * headDim + d]! * k[slot * width + shared + d]!;
          return Math.exp(score / Math.sqrt(headDim));
        });
        const total = weights.reduce((a, b) => a + b);
        for (const [j, slot] of seen.entries())
          for (let d = 0; d < headDim; d++)
            sum += (dOut[(row * heads + head) * headDim + d]! * weights[j]! * v[slot * width + shared + d]!) / total;
      }
    }
    return sum;
  };
  const before = [qkv, keys, values].map((x) => randomFloats(random, x.length));
  const [dQkv, dKeys, dValues] = before.map((x) => x.slice()) as [Float32Array, Float32Array, Float32Array];
  kernels.attentionBackward(dQkv, dKeys, dValues, dOut, qkv, stride, heads, kv, layout);
  assertGradient(dQkv, before[0]!, qkv, (q) => forward(q, keys, values), 'queries');
  assertGradient(dKeys, before[1]!, keys, (k) => forward(qkv, k, values), 'keys');
  assertGradient(dValues, before[2]!, values, (v) => forward(qkv, keys, v), 'values');
});

function unpacked(matrix: Parameters<typeof kernels.gatherRows>[2]): Float32Array {
  const out = new Float32Array(matrix.rows * matrix.cols);
  const everyRow = Int32Array.from({ length: matrix.rows }, (_, row) => row);
  kernels.gatherRows(out, matrix.cols, matrix, everyRow, matrix.rows);
  return out;
}
