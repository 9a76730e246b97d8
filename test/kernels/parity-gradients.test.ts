/**
 * The gradient kernels of every C++ table against the TypeScript reference, as `parity.test.ts` does it for the others: awkward shapes,
 * tolerances of what f32 rounding explains. All outputs hold something before, since all but one are added to.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Kernels, KvLayer } from '../../src/kernels/kernels.ts';
import { floatsOf } from '../../src/kernels/layouts.ts';
import { createReferenceKernels } from '../../src/kernels/reference.ts';
import { attentionRows, HEAD_SHAPES, type HeadShape, SLOTS, WRITTEN_SLOTS, weightError } from '../support/attention.ts';
import {
  assertSameBits,
  assertWithin,
  emptyMatrix,
  layoutOf,
  nativeTableList,
  packed,
  poisonedKv,
  storeLayout,
} from '../support/kernels.ts';
import { awkwardFloats, randomFloats, randomInteger, xorshift } from '../support/random.ts';
import { EXP_ROUNDINGS, EXP_VANISHES, ROUNDING, sumError } from '../support/rounding.ts';

/** Outputs on both sides of the tile of 16; 35 tiles are several chunks per thread, and an odd number. */
const ROWS = [1, 15, 16, 17, 33, 547];
/** Inputs on both sides of the panels of 2, 6 and 8, of the tile of 16, and more than a group of 32 panels. */
const COLS = [1, 2, 5, 6, 7, 8, 9, 16, 17, 100, 300];
/** Rows of the batch on both sides of the chunk of 4 … */
const COUNTS = [1, 3, 4, 5, 17];
/** … and of the block of 192. */
const LONG_COUNTS = [191, 192, 193, 500];
/** Elements on both sides of the vector of 16. */
const WIDTHS = [1, 15, 16, 17, 33, 100, 576];

const reference = createReferenceKernels();

describe.each(nativeTableList())('$isa', (table) => {
  let kernels: Kernels;
  beforeAll(() => {
    kernels = table.create(2);
  });
  afterAll(() => kernels.dispose());

  test.each(COLS)('transpose of %d columns, bit for bit', (cols) => {
    for (const rows of ROWS) {
      const values = randomFloats(xorshift(rows), rows * cols);
      const [got, want] = [kernels, reference].map((each) => {
        const out = emptyMatrix(each, 'f32', cols, rows);
        out.data.fill(255);
        each.transpose(out, packed(each, 'f32', rows, cols, values));
        return out.data;
      });
      assertSameBits(got!, want!, `${rows} rows`);
    }
  });

  test.each(COLS)('accumulateOuter of %d inputs', (cols) => {
    for (const rows of ROWS)
      for (const n of rows === 33 ? [...COUNTS, ...LONG_COUNTS] : COUNTS) outerParity(kernels, rows, cols, n);
  });

  test('accumulateOuter of more than is laid out at once (16 MB)', () => {
    outerParity(kernels, 17, 21_000, 200);
  });

  test('accumulateOuter leaves padding alone, whatever the inputs hold', () => {
    const gradient = emptyMatrix(kernels, 'f32', 17, 9);
    kernels.accumulateOuter(gradient, new Float32Array(3 * 17).fill(1), new Float32Array(3 * 9).fill(NaN), 3);
    expect(floatsOf(gradient).filter((value) => !Number.isNaN(value))).toEqual(new Float32Array(15 * 9));
  });

  test.each(WIDTHS)('scatterAddRows of %d columns, bit for bit', (cols) => {
    const random = xorshift(cols);
    const [rows, count] = [35, 60];
    const ids = Int32Array.from({ length: count }, () => randomInteger(random, 0, rows));
    const [before, dy] = [randomFloats(random, rows * cols), randomFloats(random, count * cols)];
    const [got, want] = [kernels, reference].map((each) => {
      const gradient = packed(each, 'f32', rows, cols, before);
      each.scatterAddRows(gradient, ids, dy, count);
      return gradient.data;
    });
    assertSameBits(got!, want!, 'gradient');
  });

  test.each(WIDTHS)('rmsNormBackward of %d columns', (cols) => {
    for (const n of COUNTS) {
      const random = xorshift(cols);
      const x = awkwardFloats(random, n * cols, 1e12);
      const [dy, weight] = [randomFloats(random, n * cols), randomFloats(random, cols, 3)];
      const [dxBefore, dWeightBefore] = [randomFloats(random, n * cols), randomFloats(random, cols)];
      const [got, want] = [kernels, reference].map((each) => {
        const [dx, dWeight, frozen] = [dxBefore.slice(), dWeightBefore.slice(), dxBefore.slice()];
        each.rmsNormBackward(dx, dWeight, dy, x, weight, n, cols, 1e-5);
        each.rmsNormBackward(frozen, null, dy, x, weight, n, cols, 1e-5);
        assertSameBits(frozen, dx, 'dx with a frozen weight');
        return { dx, dWeight };
      });
      // As for rmsNorm: the mean of squares is off by cols + 2 roundings, which the square root halves, and the scale by 3 more.
      const scaleRoundings = (cols + 2) / 2 + 3;
      const scales = Array.from({ length: n }, (_, row) => {
        const squares = x.subarray(row * cols, (row + 1) * cols).reduce((sum, value) => sum + value * value, 0);
        return 1 / Math.sqrt(squares / cols + Math.fround(1e-5));
      });
      // own = scale·dy·w: 2 products. back = x·scale·scale·scale·(Σ dy·w·x / cols): cols + 2 roundings of the sum's terms, the quotient,
      // 4 products. Their sum, adding it to what was there, the reference.
      const magnitudes = Array.from({ length: n }, (_, row) => {
        let sum = 0;
        for (let k = 0; k < cols; k++) sum += Math.abs(dy[row * cols + k]! * weight[k]! * x[row * cols + k]!);
        return sum / cols;
      });
      const dxTolerance = (i: number) => {
        const [row, k] = [Math.floor(i / cols), i % cols];
        const own = Math.abs(scales[row]! * dy[i]! * weight[k]!);
        const back = Math.abs(x[i]! * scales[row]! ** 3 * magnitudes[row]!);
        return sumError(3 * scaleRoundings + cols + 2 + 1 + 4 + 3, own + back + Math.abs(dxBefore[i]!));
      };
      assertWithin(got!.dx, want!.dx, dxTolerance, `dx, ${n} rows`);
      const dWeightTolerance = (k: number) => {
        let sum = Math.abs(dWeightBefore[k]!);
        for (let row = 0; row < n; row++) sum += Math.abs(dy[row * cols + k]! * x[row * cols + k]! * scales[row]!);
        return sumError(scaleRoundings + 2 + n + 1, sum);
      };
      assertWithin(got!.dWeight, want!.dWeight, dWeightTolerance, `dWeight, ${n} rows`);
    }
  });

  test.each(WIDTHS)('swigluBackward of %d columns', (cols) => {
    const gates = [0, -0, 1e-30, -1e-30, 20, -20, 87, -87, 88, -88, 89, -89, 1e4, -1e4, 1e30, -1e30, -3e38];
    for (const n of COUNTS) {
      const random = xorshift(cols);
      const x = randomFloats(random, n * 2 * cols, 10);
      for (let row = 0; row < n; row++)
        for (let k = row % 2; k < cols; k += 2) x[row * 2 * cols + k] = gates[(row + k) % gates.length]!;
      const [dy, before] = [randomFloats(random, n * cols), randomFloats(random, n * 2 * cols)];
      const [got, want] = [kernels, reference].map((each) => {
        const dx = before.slice();
        each.swigluBackward(dx, dy, x, n, cols);
        return dx;
      });
      // σ = 1 / (1 + e^-g): e^, sum, quotient; below -88, where e^-g may be Infinity a little early, nothing is left of up to e^-88.
      // 1 - σ: one more; above 17.4 it is exactly 0 instead of e^-g, and g·e^-g is less than a rounding of 18.
      const tolerance = (i: number) => {
        const row = Math.floor(i / (2 * cols));
        const k = (i - row * 2 * cols) % cols;
        const isGate = i - row * 2 * cols < cols;
        const [gate, up] = [x[row * 2 * cols + k]!, x[row * 2 * cols + cols + k]!];
        const d = Math.abs(dy[row * cols + k]!);
        const sigmoid = 1 / (1 + Math.exp(-gate)) + (gate < -88 ? 6.1e-39 : 0);
        const magnitude = isGate
          ? d * Math.abs(up) * (sigmoid * (1 + Math.min(Math.abs(gate), gate > 0 ? 18 : 110)))
          : d * Math.abs(gate) * (gate < -110 ? 0 : sigmoid);
        const cut = gate < -88 && gate > -110 ? magnitude : 0;
        return sumError(EXP_ROUNDINGS + 9, magnitude + Math.abs(before[i]!)) + cut;
      };
      assertWithin(got!, want!, tolerance, `${n} rows`);
    }
  });

  test.each([...WIDTHS, 1000])('softCrossEntropy of %d columns', (cols) => {
    for (const n of COUNTS) {
      const random = xorshift(cols);
      const [logits, teacher] = [randomFloats(random, n * cols, 12), randomFloats(random, n * cols, 12)];
      for (let row = 0; row < n; row++) {
        // One value per row stays finite.
        for (let k = 1; k < cols; k++) {
          const i = row * cols + k;
          if (row % 3 === 1 && random() < 0.3) teacher[i] = -Infinity;
          if (row % 3 === 1 && random() < 0.3 && teacher[i] === -Infinity) logits[i] = -Infinity;
          if (row % 3 === 2 && random() < 0.1) logits[i] = [1e4, -1e4, 0][randomInteger(random, 0, 3)]!;
        }
      }
      const weights = randomFloats(random, n, 2);
      const [got, want] = [kernels, reference].map((each) => {
        const [losses, dLogits] = [new Float32Array(n).fill(NaN), new Float32Array(n * cols).fill(NaN)];
        each.softCrossEntropy(losses, dLogits, logits, teacher, weights, n, cols);
        const inPlace = logits.slice();
        each.softCrossEntropy(losses, inPlace, inPlace, teacher, weights, n, cols);
        assertSameBits(inPlace, dLogits, `${n} rows in place`);
        return { losses, dLogits };
      });
      const rows = Array.from({ length: n }, (_, row) => {
        const part = (x: Float32Array) => x.subarray(row * cols, (row + 1) * cols);
        return { own: softmaxOf(part(logits)), wanted: softmaxOf(part(teacher)) };
      });
      // A distance to the largest is off by 1 rounding, so e^-y by y, relative, and their sum by Σ y·e^-y <= cols/e beside its additions.
      const sumRoundings = EXP_ROUNDINGS + (1 + 1 / Math.E) * cols;
      const probabilityError = ({ distances, probabilities }: Softmax, k: number) =>
        sumError(EXP_ROUNDINGS + Math.min(distances[k]!, 88) + sumRoundings + 2, probabilities[k]!) + EXP_VANISHES;
      // Difference and product, the reference.
      const dTolerance = (i: number) => {
        const { own, wanted } = rows[Math.floor(i / cols)]!;
        const k = i % cols;
        const error = probabilityError(own, k) + probabilityError(wanted, k);
        return (
          Math.abs(weights[Math.floor(i / cols)]!) *
          (error + sumError(3, own.probabilities[k]! + wanted.probabilities[k]!))
        );
      };
      assertWithin(got!.dLogits, want!.dLogits, dTolerance, `dLogits, ${n} rows`);
      // Σ a·d / Σ a: a·d is off by what a is, d's rounding and cols additions. ln Σ b: a relative error of Σ b is an absolute one of its
      // logarithm, then half a unit of that. The sum, the reference.
      const lossTolerance = (row: number) => {
        const { own, wanted } = rows[row]!;
        let [distance, error] = [0, 0];
        for (let k = 0; k < cols; k++) {
          if (wanted.probabilities[k] === 0) continue;
          const term = wanted.probabilities[k]! * own.distances[k]!;
          distance += term;
          error += sumError(EXP_ROUNDINGS + Math.min(wanted.distances[k]!, 88) + sumRoundings + cols + 3, term);
          error += own.distances[k]! * EXP_VANISHES;
        }
        return error + sumRoundings * 1.01 * ROUNDING + sumError(4, distance + own.logSum);
      };
      assertWithin(got!.losses, want!.losses, lossTolerance, `losses, ${n} rows`);
    }
  });

  test.each(HEAD_SHAPES)('attentionBackward: $heads heads on $kvHeads of $headDim', (shape) => {
    for (const sharpness of [1, 16]) attentionBackwardParity(kernels, shape, sharpness);
  });
});

function outerParity(kernels: Kernels, rows: number, cols: number, n: number): void {
  const random = xorshift(rows * 1000 + cols);
  const before = awkwardFloats(random, rows * cols, 1e15);
  const [x, dy] = [awkwardFloats(random, n * cols, 1e15), awkwardFloats(random, n * rows, 1e15)];
  const accumulate = (each: Kernels, from: Float32Array, a: Float32Array, b: Float32Array) => {
    const gradient = packed(each, 'f32', rows, cols, from);
    each.accumulateOuter(gradient, a, b, n);
    return floatsOf(gradient);
  };
  const got = accumulate(kernels, before, dy, x);
  const want = accumulate(reference, before, dy, x);
  const magnitudes = accumulate(reference, before.map(Math.abs), dy.map(Math.abs), x.map(Math.abs));
  // A term is a product, then up to n additions, then the reference's rounding, which the magnitude has too.
  assertWithin(got, want, (i) => sumError(n + 3, magnitudes[i]!), `${rows} outputs, ${n} rows`);
}

interface Softmax {
  readonly probabilities: readonly number[];
  /** How far below the largest each input is. */
  readonly distances: readonly number[];
  /** ln Σ e^-distance. */
  readonly logSum: number;
}

function softmaxOf(x: Float32Array): Softmax {
  const top = Math.max(...x);
  const distances = Array.from(x, (value) => top - value);
  const sum = distances.reduce((total, distance) => total + Math.exp(-distance), 0);
  return { distances, probabilities: distances.map((distance) => Math.exp(-distance) / sum), logSum: Math.log(sum) };
}

/** Keys, values and dOut up to 1, queries up to `sharpness`. */
function attentionBackwardParity(kernels: Kernels, { heads, kvHeads, headDim }: HeadShape, sharpness: number): void {
  const random = xorshift(headDim);
  const width = kvHeads * headDim;
  const keysValues = randomFloats(random, WRITTEN_SLOTS.length * 2 * width);
  const rows = attentionRows(random);
  const layout = layoutOf(rows);
  const stride = heads * headDim + 5;
  const queries = randomFloats(random, rows.length * stride, sharpness);
  const dOut = randomFloats(random, rows.length * heads * headDim);
  const before = [rows.length * stride, SLOTS * width, SLOTS * width].map((length) => randomFloats(random, length));

  const run = (each: Kernels, dOuts: Float32Array, from: readonly Float32Array[]) => {
    const kv: KvLayer = poisonedKv('f32', kvHeads, headDim, SLOTS);
    each.storeKv(kv, keysValues, 2 * width, 0, width, storeLayout(WRITTEN_SLOTS));
    const [dQkv, dKeys, dValues] = from.map((array) => array.slice()) as [Float32Array, Float32Array, Float32Array];
    each.attentionBackward(dQkv, dKeys, dValues, dOuts, queries, stride, heads, kv, layout);
    return { dQkv, dKeys, dValues };
  };
  const got = run(kernels, dOut, before);
  const want = run(reference, dOut, before);
  // With dOut all ones, a slot's dValues add up the weights that it is given: its mass.
  const zeros = before.map((array) => new Float32Array(array.length));
  const mass = run(reference, new Float32Array(dOut.length).fill(1), zeros).dValues;
  const looks = new Float64Array(SLOTS);
  for (const { base, prefix, extras } of rows) {
    for (let j = 0; j < prefix; j++) looks[base + j]! += heads / kvHeads;
    for (const slot of extras) looks[slot]! += heads / kvHeads;
  }

  const most = Math.max(...rows.map((row) => row.prefix + row.extras.length));
  // A weight P is off by what it and its sum are off by, count additions, reciprocal and product.
  const weight = Math.expm1(2 * weightError(headDim, sharpness)) + sumError(most + 3, 1);
  // dP adds headDim products up to 1. Its mean under P adds count products of up to headDim.
  const dP = sumError(headDim + 1, headDim);
  const mean = weight * headDim + dP + sumError(most + 2, headDim);
  // dS = P·(dP - mean)·scale, |dP - mean| <= 2·headDim: difference, two products, scale (1/√headDim: 2). This times P.
  const scale = 1 / Math.sqrt(headDim);
  const dS = scale * (2 * headDim * weight + dP + mean + sumError(5, 2 * headDim));
  const vanished = EXP_VANISHES * most * 2 * headDim;

  // P adds up to 1: keys up to 1, count products, adding to what was there, the reference.
  const dQuery = dS + sumError(most + 3, scale * 2 * headDim + 1) + vanished;
  const inQuery = (i: number) => i % stride < heads * headDim;
  assertWithin(got.dQkv, want.dQkv, (i) => (inQuery(i) ? dQuery : 0), `dQkv, queries up to ${sharpness}`);
  const dKey = (i: number) => {
    const [own, seen] = [mass[i]!, looks[Math.floor(i / width)]!];
    if (seen === 0) return 0;
    return sharpness * (own * dS + sumError(seen + 3, own * scale * 2 * headDim) + seen * vanished) + sumError(2, 1);
  };
  assertWithin(got.dKeys, want.dKeys, dKey, `dKeys, queries up to ${sharpness}`);
  const dValue = (i: number) => {
    const [own, seen] = [mass[i]!, looks[Math.floor(i / width)]!];
    return seen === 0 ? 0 : own * weight + sumError(seen + 3, own + 1) + seen * EXP_VANISHES;
  };
  assertWithin(got.dValues, want.dValues, dValue, `dValues, queries up to ${sharpness}`);
}
