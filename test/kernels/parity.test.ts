/**
 * Every C++ table against the TypeScript reference at awkward shapes. Copies and integers must be equal; sums may differ by what f32
 * rounding explains and no more. The reference sums in f64 and rounds once, so a bound counts the table's roundings and that one.
 *
 * Arrays are exactly as long as the contract asks, so that a sanitizer sees an access beyond (`npm run test:sanitize`).
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { floatToHalf } from '../../src/kernels/half.ts';
import {
  BLOCK,
  type Kernels,
  KV_DTYPES,
  type KvDtype,
  type KvLayer,
  type PackedMatrix,
  SOURCE_TYPES,
  type SourceType,
  WEIGHT_DTYPES,
  type WeightDtype,
} from '../../src/kernels/kernels.ts';
import { createReferenceKernels } from '../../src/kernels/reference.ts';
import {
  attentionError,
  attentionRows,
  HEAD_SHAPES,
  type HeadShape,
  SLOTS,
  WRITTEN_SLOTS,
} from '../support/attention.ts';
import {
  assertSameBits,
  assertWithin,
  bytesOf,
  emptyMatrix,
  layoutOf,
  nativeTableList,
  packed,
  poisonedKv,
  storeLayout,
} from '../support/kernels.ts';
import { awkwardFloats, permutation, type Random, randomFloats, randomInteger, xorshift } from '../support/random.ts';
import { EXP_ROUNDINGS, EXP_VANISHES, sumError } from '../support/rounding.ts';

/** Rows on both sides of the tile of 16, and 21 tiles: several chunks per thread. */
const ROWS = [1, 15, 16, 17, 33, 331];
/** Inputs on both sides of the block of 32. */
const COLS = [1, 31, 32, 33, 64, 100, 576];
/** Batch rows on both sides of every pass (2, 6 or 8 rows) and of the chunk of 4. */
const COUNTS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 17];
const MOST = 17;
/** Elements on both sides of the vector of 16. */
const WIDTHS = [1, 2, 15, 16, 17, 31, 33, 100, 576];

const reference = createReferenceKernels();
const pairsFitting = createReferenceKernels({ pairsFit: true });

describe.each(nativeTableList())('$isa', (table) => {
  let kernels: Kernels;
  beforeAll(() => {
    kernels = table.create(2);
  });
  afterAll(() => kernels.dispose());

  describe.each(WEIGHT_DTYPES)('matmul of %s', (dtype) => {
    const oracle = table.isa === 'avx2' && dtype === 'q8' ? pairsFitting : reference;
    test.each(COLS)('%d inputs', (cols) => {
      for (const rows of ROWS) {
        const random = xorshift(rows * 1000 + cols);
        const values = awkwardFloats(random, rows * cols, LARGEST_WEIGHT);
        const x = awkwardFloats(random, MOST * cols, 1e15);
        const residual = awkwardFloats(random, MOST * rows, 1e15);
        const judge = matmulJudge(oracle, dtype, rows, cols, values, x);
        const weight = packed(kernels, dtype, rows, cols, values);
        for (const n of COUNTS) {
          const xs = x.slice(0, n * cols);
          const rest = residual.slice(0, n * rows);
          const out = new Float32Array(n * rows).fill(NaN);
          kernels.matmul(out, xs, weight, n, null);
          judge(out, null, `${rows} outputs, ${n} rows`);
          kernels.matmul(out, xs, weight, n, rest);
          judge(out, residual, `${rows} outputs, ${n} rows, residual`);
          kernels.matmul(rest, xs, weight, n, rest);
          assertSameBits(rest, out, `${rows} outputs, ${n} rows, residual in place`);
        }
      }
    });
  });

  // Products of bytes are added in pairs, on AVX2 in 16 bits: the largest there are, of every sign.
  test('sums of the largest bytes hold', () => {
    const [rows, cols] = [32, 64];
    const codes = [-128, -127, 127];
    const source = new Uint8Array((rows * cols * 34) / 32);
    const one = floatToHalf(1);
    for (let i = 0; i < source.length; i++) {
      const [block, at] = [Math.floor(i / 34), i % 34];
      source[i] = at < 2 ? one >> (8 * at) : codes[(at * at + block * 7) % 3]!;
    }
    const weight = emptyMatrix(kernels, 'q8', rows, cols);
    const everyRow = Int32Array.from({ length: rows }, (_, row) => row);
    kernels.pack(weight, 0, source, 'Q8_0', everyRow);
    const exact = new Float32Array(rows * cols);
    kernels.gatherRows(exact, cols, weight, everyRow, rows);
    const patterns = [
      [1, 1],
      [-1, -1],
      [1, -1],
      [1, 0],
      [1, 0.5, -0.5, -1],
      [127, 126, 1, 2],
    ];
    const n = patterns.length;
    const x = Float32Array.from({ length: n * cols }, (_, i) => {
      const pattern = patterns[Math.floor(i / cols)]!;
      return pattern[i % pattern.length]!;
    });
    const out = new Float32Array(n * rows);
    kernels.matmul(out, x, weight, n, null);
    const want = Float32Array.from(out, (_, i) => {
      let sum = 0;
      for (let k = 0; k < cols; k++) sum += x[Math.floor(i / rows) * cols + k]! * exact[(i % rows) * cols + k]!;
      return sum;
    });
    // Half a step of each input, of at most twice the largest over 127, times the largest weight.
    const tolerance = (i: number) => (cols * 128 * (Math.floor(i / rows) === n - 1 ? 127 : 1)) / 127;
    assertWithin(out, want, tolerance, 'largest bytes');
  });

  describe.each(['q8', 'q4'] as const)('matmul of %s', (dtype) => {
    const [rows, cols, n] = [33, 100, 9];
    test.each([NaN, Infinity, -Infinity, 3.4e38, -3.4e38, 1e-40])('%d among the inputs stays in its row', (poison) => {
      const random = xorshift(7);
      const weight = packed(kernels, dtype, rows, cols, randomFloats(random, rows * cols));
      const x = randomFloats(random, n * cols);
      const clean = new Float32Array(n * rows);
      kernels.matmul(clean, x, weight, n, null);
      for (const row of [0, 4, n - 1]) {
        for (const col of [0, 15, 16, 40, cols - 1]) {
          const poisoned = x.slice();
          poisoned[row * cols + col] = poison;
          const out = new Float32Array(n * rows);
          kernels.matmul(out, poisoned, weight, n, null);
          out.set(clean.subarray(row * rows, (row + 1) * rows), row * rows);
          assertSameBits(out, clean, `input ${col} of row ${row}`);
        }
      }
    });
  });

  describe.each(SOURCE_TYPES)('pack from %s', (type) => {
    test.each(WEIGHT_DTYPES)('to %s, byte for byte', (dtype) => {
      for (const cols of type.startsWith('Q') ? [32, 64, 576] : COLS) {
        const random = xorshift(cols);
        const sourceRows = 40;
        const source = randomSource(random, type, sourceRows * cols);
        // 130 rows: three chunks. Repeated, out of order, in two parts, the first row and the last left zero.
        const maps = [70, 60].map((rows) =>
          Int32Array.from({ length: rows }, () => randomInteger(random, 0, sourceRows)),
        );
        const [got, want] = [kernels, reference].map((each) => {
          const matrix = emptyMatrix(each, dtype, 132, cols);
          each.pack(matrix, 1, source, type, maps[0]!);
          each.pack(matrix, 71, source, type, maps[1]!);
          return matrix;
        });
        assertSameBits(got!.data, want!.data, `${cols} columns`);
      }
    });
  });

  test.each(WEIGHT_DTYPES)('gatherRows of %s, bit for bit', (dtype) => {
    const ids = Int32Array.of(32, 0, 17, 16, 15, 17, 1);
    for (const cols of COLS) {
      const values = awkwardFloats(xorshift(cols), 33 * cols, LARGEST_WEIGHT);
      for (const stride of [cols, cols + 3]) {
        const [got, want] = [kernels, reference].map((each) => {
          const out = new Float32Array((ids.length - 1) * stride + cols).fill(NaN);
          each.gatherRows(out, stride, packed(each, dtype, 33, cols, values), ids, ids.length);
          return out;
        });
        assertSameBits(got!, want!, `${cols} columns, stride ${stride}`);
      }
    }
  });

  test.each(WIDTHS)('rmsNorm of %d columns', (cols) => {
    const random = xorshift(cols);
    const x = awkwardFloats(random, MOST * cols, 1e15);
    const weight = randomFloats(random, cols, 3);
    for (const n of COUNTS) {
      for (const eps of [1e-5, 1e-6]) {
        const [got, want] = both(kernels, n * cols, (each, out) =>
          each.rmsNorm(out, x.slice(0, n * cols), weight, n, cols, eps),
        );
        // Squares are positive, so their sum is off by cols roundings, relative; with mean and eps cols + 2, which the square root
        // halves. Square root, reciprocal, two products, and the reference's own: 5. Squares that vanish beside eps: 1e-38 / 1e-6.
        const tolerance = (i: number) => sumError((cols + 2) / 2 + 6, Math.abs(want[i]!));
        assertWithin(got, want, tolerance, `${n} rows, eps ${eps}`);
      }
    }
  });

  test.each([2, 18, 32, 34, 64, 128])('rope of heads of %d', (headDim) => {
    const random = xorshift(headDim);
    const [heads, rest, places] = [3, 5, 40];
    const stride = heads * headDim + rest;
    const [cos, sin] = [randomFloats(random, (places * headDim) / 2), randomFloats(random, (places * headDim) / 2)];
    const x = awkwardFloats(random, MOST * stride, 1e15);
    for (const n of COUNTS) {
      const positions = Int32Array.from({ length: n }, (_, i) => (i === 0 ? places - 1 : randomInteger(random, 0, 40)));
      const [got, want] = both(kernels, n * stride, (each, out) => {
        out.set(x.subarray(0, n * stride));
        each.rope(out, stride, n, heads, headDim, positions, cos, sin);
      });
      // a·c - b·s: a product, a difference, the reference; |c| and |s| are at most 1.
      const tolerance = (i: number) => {
        const inRow = i % stride;
        if (inRow >= heads * headDim) return 0; // not rotated
        const partner = inRow % headDim < headDim / 2 ? i + headDim / 2 : i - headDim / 2;
        return sumError(3, Math.abs(x[i]!) + Math.abs(x[partner]!));
      };
      assertWithin(got, want, tolerance, `${n} rows`);
    }
  });

  test.each(WIDTHS)('swiglu of %d columns', (cols) => {
    const random = xorshift(cols);
    const gates = [0, -0, 1e-30, -1e-30, 20, -20, 87, -87, 88, -88, 89, -89, 1e4, -1e4, 1e30, -1e30, 1e37, -3e38];
    const x = randomFloats(random, MOST * 2 * cols, 10);
    for (let row = 0; row < MOST; row++) {
      for (let k = row % 2; k < cols; k += 2) x[row * 2 * cols + k] = gates[(row + k) % gates.length]!;
    }
    for (const n of COUNTS) {
      const [got, want] = both(kernels, n * cols, (each, out) => each.swiglu(out, x.slice(0, n * 2 * cols), n, cols));
      // e^-g, 1 + e^-g, quotient, product, the reference. Below -88, where e^-g may be Infinity a little early, nothing is left of what
      // should be up to |g·u|·e^-88, e^-88 being below 6.1e-39; from -104 on nothing is what f32 can say.
      const tolerance = (i: number) => {
        const row = Math.floor(i / cols);
        const [gate, up] = [x[row * cols + i]!, x[row * cols + cols + i]!];
        const cut = gate < -88 && gate > -104 ? 6.1e-39 * Math.abs(gate * up) : 0;
        return sumError(EXP_ROUNDINGS + 4, Math.abs(want[i]!)) + cut;
      };
      assertWithin(got, want, tolerance, `${n} rows`);
    }
  });

  test('swiglu keeps NaN and Infinity in their place, and makes no ordinary number of them', () => {
    const cols = 33;
    for (const poison of [NaN, Infinity, -Infinity]) {
      for (const at of [0, 16, 32, cols, cols + 32]) {
        const x = randomFloats(xorshift(at + 1), 2 * cols).map((value) => value + 2); // positive: Infinity · up is Infinity
        const clean = new Float32Array(cols);
        kernels.swiglu(clean, x, 1, cols);
        x[at] = poison;
        const out = new Float32Array(cols);
        kernels.swiglu(out, x, 1, cols);
        const got = out[at % cols]!;
        if (poison > 0 || at >= cols) expect(got).toBe(poison);
        else expect(got === 0 || !Number.isFinite(got), `silu(${poison}) gave ${got}`).toBe(true);
        out[at % cols] = clean[at % cols]!;
        assertSameBits(out, clean, `${poison} at ${at}`);
      }
    }
  });

  test.each([...WIDTHS, 1000])('softmax of %d columns', (cols) => {
    const random = xorshift(cols);
    const x = randomFloats(random, MOST * cols, 12);
    for (let row = 0; row < MOST; row++) {
      // One value per row stays finite.
      for (let k = 1; k < cols; k++) {
        if (row % 3 === 1 && random() < 0.5) x[row * cols + k] = -Infinity;
        if (row % 3 === 2 && random() < 0.1) x[row * cols + k] = [1e4, -1e4, -3e38, 0][randomInteger(random, 0, 4)]!;
      }
    }
    const largest = Array.from({ length: MOST }, (_, row) => Math.max(...x.subarray(row * cols, (row + 1) * cols)));
    for (const n of COUNTS) {
      for (const inverseTemperature of [1, 0.3, 7]) {
        const xs = x.slice(0, n * cols);
        const [got, want] = both(kernels, n * cols, (each, out) => each.softmax(out, xs, n, cols, inverseTemperature));
        kernels.softmax(xs, xs, n, cols, inverseTemperature);
        assertSameBits(xs, got, `${n} rows in place`);
        // y = (largest - x)·t is off by 2 roundings, so e^-y by 2y, relative. The sum of e^-y (>= 1) is off by cols roundings and by
        // those of its terms: e^, and 2·Σ y·e^-y <= 2·cols/e. Reciprocal, product, the reference: 3.
        const tolerance = (i: number) => {
          const y = Math.min((largest[Math.floor(i / cols)]! - x[i]!) * inverseTemperature, 88);
          return sumError(2 * EXP_ROUNDINGS + 2 * y + (1 + 2 / Math.E) * cols + 3, want[i]!) + EXP_VANISHES;
        };
        assertWithin(got, want, tolerance, `${n} rows, inverse temperature ${inverseTemperature}`);
        expect(got.every((value, i) => x[i] !== -Infinity || value === 0)).toBe(true);
      }
    }
  });

  test.each(WIDTHS)('softmax of %d columns that are no numbers, or forbidden', (cols) => {
    const values = [-Infinity, NaN, 1.5, -2];
    const x = Float32Array.from({ length: 4 * cols }, (_, i) => {
      const row = Math.floor(i / cols);
      return values[row === 2 ? i % 2 : row === 3 ? (i * i) % 4 : row]!;
    });
    const [got, want] = both(kernels, 4 * cols, (each, out) => each.softmax(out, x, 4, cols, 1));
    expect([...got.subarray(0, 3 * cols)]).toEqual(new Array(3 * cols).fill(0));
    assertWithin(got, want, () => 1e-6, 'with numbers among them');
    expect(got.every((value, i) => x[i]! > -Infinity || value === 0)).toBe(true);
  });

  describe.each([...WIDTHS, 1000])('of %d columns', (cols) => {
    const { x, rows } = rankingRows(xorshift(cols), cols);

    test('argmax, exactly', () => {
      for (const n of [1, 3, 4, rows]) {
        const [got, want] = [kernels, reference].map((each) => {
          const out = new Int32Array(n).fill(-1);
          each.argmax(out, x.slice(0, n * cols), n, cols);
          return out;
        });
        expect(got).toEqual(want);
      }
    });

    test('topK, exactly', () => {
      for (const k of new Set([1, Math.min(2, cols), Math.min(10, cols), Math.min(17, cols), cols])) {
        const [got, want] = [kernels, reference].map((each) => {
          const ids = new Int32Array(rows * k).fill(-1);
          const values = new Float32Array(rows * k).fill(-1);
          each.topK(ids, values, x, rows, cols, k);
          return { ids, values };
        });
        expect(got, `k ${k}`).toEqual(want);
      }
    });

    test('race: the same arrivals, at times that a logarithm rounds', () => {
      const random = xorshift(cols + 1);
      const spread = Float32Array.from({ length: 4 * cols }, () => Math.exp(-20 * random() ** 2));
      const awkward = [0, Number.NaN, Number.POSITIVE_INFINITY, 1e-38, 1e-45, 3e38, -1];
      const mixed = spread.map((rate) => (random() < 0.5 ? awkward[randomInteger(random, 0, awkward.length)]! : rate));
      const still = new Float32Array(4 * cols);
      for (const rates of [spread, mixed, still]) {
        for (const labels of [null, permutation(random, cols).map((label) => label * 3)]) {
          for (const k of new Set([1, Math.min(2, cols), Math.min(17, cols), cols])) {
            const key = Int32Array.of(randomInteger(random, -(2 ** 31), 2 ** 31), randomInteger(random, 0, 2 ** 31));
            const [got, want] = [kernels, reference].map((each) => {
              const ids = new Int32Array(4 * k).fill(-1);
              const times = new Float32Array(4 * k).fill(-1);
              each.race(ids, times, rates, 4, cols, k, key, labels);
              return { ids, times };
            });
            expect(got!.ids, `k ${k}`).toEqual(want!.ids);
            // Infinity as a number that nothing else is: those that never arrive.
            const [gotTimes, wantTimes] = [got, want].map((each) => each!.times.map((time) => Math.min(time, 3e38)));
            assertWithin(gotTimes!, wantTimes!, (i) => wantTimes![i]! * 2 ** -23, `k ${k}`);
          }
        }
      }
    });
  });

  describe.each(KV_DTYPES)('on an %s cache', (dtype) => {
    test.each(HEAD_SHAPES)('storeKv and attention: $heads heads on $kvHeads of $headDim', (shape) => {
      for (const sharpness of [1, 16]) attentionParity(kernels, dtype, shape, sharpness);
    });

    test('attention of no rows', () => {
      const kv = poisonedKv(dtype, 1, 16, 16);
      kernels.attention(new Float32Array(0), new Float32Array(0), 64, 2, kv, layoutOf([]));
    });

    test.each(HEAD_SHAPES)('moveKv, bit for bit: $kvHeads heads of $headDim', (shape) => {
      const random = xorshift(shape.headDim);
      const from = Int32Array.of(3, 16, 17, 18, 33, 40, 41, 63);
      const to = Int32Array.of(0, 1, 2, 15, 16, 17, 41, 42);
      const rows = randomFloats(random, 64 * 2 * shape.kvHeads * shape.headDim);
      const [got, want] = [kernels, reference].map((each) => {
        const kv = poisonedKv(dtype, shape.kvHeads, shape.headDim, 64);
        const width = shape.kvHeads * shape.headDim;
        each.storeKv(kv, rows, 2 * width, 0, width, storeLayout([...permutation(xorshift(1), 64)]));
        each.moveKv(kv, from, to, from.length);
        return kv;
      });
      assertSameBits(got!.keys, want!.keys, 'keys');
      assertSameBits(got!.values, want!.values, 'values');
    });
  });
});

/** One call on a table and on the reference, into arrays of NaN. */
function both(
  kernels: Kernels,
  length: number,
  run: (kernels: Kernels, out: Float32Array) => void,
): readonly [got: Float32Array, want: Float32Array] {
  const outs = [kernels, reference].map((each) => {
    const out = new Float32Array(length).fill(NaN);
    run(each, out);
    return out;
  });
  return [outs[0]!, outs[1]!];
}

// Matrix products

/** Its f16 scale and minimum stay finite. */
const LARGEST_WEIGHT = 6e4;
/** An input block whose largest is below this has an infinite 127/largest; which integers it gets is left open. */
const TINY_INPUT = 127 / 3.4028234663852886e38;

/** Throws where rows of x [MOST, cols] · valuesᵀ are further from the reference than rounding explains. */
function matmulJudge(
  oracle: Kernels,
  dtype: WeightDtype,
  rows: number,
  cols: number,
  values: Float32Array,
  x: Float32Array,
) {
  const weight = packed(reference, dtype, rows, cols, values);
  const product = new Float32Array(MOST * rows);
  oracle.matmul(product, x, weight, MOST, null);
  const magnitudes = new Float32Array(MOST * rows);
  const bounds = packed(reference, 'f32', rows, cols, weightBounds(weight, values));
  reference.matmul(magnitudes, dtype === 'f32' ? x.map(Math.abs) : inputBounds(x, cols, oracle), bounds, MOST, null);

  // What is added up in f32. Inside a block integers are multiplied, which is exact, and the sum, below 2^24, becomes an f32 exactly.
  const terms = { f32: cols, q8: Math.ceil(cols / BLOCK), q4: 2 * Math.ceil(cols / BLOCK) }[dtype];
  // A term is a product of at most three factors (input scale, weight scale, integer); then terms - 1 additions to the first, the
  // residual, and the reference's rounding.
  const roundings = 2 + (terms - 1) + 2;
  // A code of a tiny block is anything in -128..127, and its scale is below TINY_INPUT/127.
  const left = dtype === 'f32' ? 0 : cols * (255 / 127) * TINY_INPUT * LARGEST_WEIGHT;
  const wanted = new Float32Array(MOST * rows);

  return (got: Float32Array, residual: Float32Array | null, what: string): void => {
    for (let i = 0; i < got.length; i++) wanted[i] = product[i]! + (residual?.[i] ?? 0);
    const tolerance = (i: number) => sumError(roundings, magnitudes[i]! + Math.abs(residual?.[i] ?? 0)) + left;
    assertWithin(got, wanted.subarray(0, got.length), tolerance, what);
  };
}

/** What |w| is multiplied by |x| at most: itself, or for q4 d·nibble and the minimum m apart, |w - m| + |m| <= |w| + 2·|m|. */
function weightBounds(weight: PackedMatrix, values: Float32Array): Float32Array {
  const { dtype, rows, cols } = weight;
  const bounds = new Float32Array(rows * cols);
  const everyRow = Int32Array.from({ length: rows }, (_, row) => row);
  reference.gatherRows(bounds, cols, weight, everyRow, rows);
  for (let i = 0; i < bounds.length; i++) {
    // The minimum in f16: 2^-11 larger at most, or half an f16 denormal.
    const minimum = dtype === 'q4' ? largestOfBlock(values, i, cols) * (1 + 2 ** -11) + 2 ** -25 : 0;
    bounds[i] = Math.abs(bounds[i]!) + 2 * minimum;
  }
  return bounds;
}

/** |x| as int8 at most: half a step of largest/127 more, where pairs have to fit of two neighbours' sum, at most twice as much. */
const inputBounds = (x: Float32Array, cols: number, oracle: Kernels): Float32Array =>
  x.map((value, i) => Math.abs(value) + largestOfBlock(x, i, cols) / (oracle === pairsFitting ? 127 : 254));

/** max |x| of the block of 32 that element i of a [·, cols] matrix lies in. */
function largestOfBlock(x: Float32Array, i: number, cols: number): number {
  const start = i - ((i % cols) % BLOCK);
  const end = Math.min(start + BLOCK, i - (i % cols) + cols);
  let largest = 0;
  for (let k = start; k < end; k++) largest = Math.max(largest, Math.abs(x[k]!));
  return largest;
}

// Sources

/** No -0: which of 0 and -0 is a block's minimum is left open. */
const halfBits = (value: number): number => {
  const bits = floatToHalf(value);
  return bits === 0x8000 ? 0 : bits;
};

const BLOCK_BYTES = { Q8_0: 34, Q4_0: 18, Q4_1: 20 } as const;

/** `count` elements as a file holds them. */
function randomSource(random: Random, type: SourceType, count: number): Uint8Array {
  switch (type) {
    case 'F32':
      return bytesOf(awkwardFloats(random, count, 3e38));
    case 'F16':
      return bytesOf(Uint16Array.from(awkwardFloats(random, count, LARGEST_WEIGHT), halfBits));
    case 'BF16':
      // The upper half of an f32.
      return bytesOf(
        Uint16Array.from(new Uint32Array(awkwardFloats(random, count, 3e38).buffer), (bits) =>
          bits === 0x80000000 ? 0 : bits >>> 16,
        ).map((bits) => (bits === 0x8000 ? 0 : bits)),
      );
    case 'Q8_0':
    case 'Q4_0':
    case 'Q4_1':
      return randomBlocks(random, type, count / BLOCK);
  }
}

/** Blocks of any codes, with scales and minimums from f16 denormals to what times 15 and 8 stays finite. */
function randomBlocks(random: Random, type: keyof typeof BLOCK_BYTES, blocks: number): Uint8Array {
  const size = BLOCK_BYTES[type];
  const source = Uint8Array.from({ length: blocks * size }, () => randomInteger(random, 0, 256));
  const view = new DataView(source.buffer);
  const scales = [1, 1, 1e-3, 1e-7, 4000];
  const half = () => halfBits((2 * random() - 1) * scales[randomInteger(random, 0, scales.length)]!);
  for (let block = 0; block < blocks; block++) {
    const at = block * size;
    view.setUint16(at, half(), true);
    if (type === 'Q4_1') view.setUint16(at + 2, half(), true);
    if (random() < 0.1 || view.getUint16(at, true) === 0) source.fill(0, at, at + size); // an empty block, as files have them
  }
  return source;
}

// Ranking

/** Rows of everything that decides an order: ties, signs of zero, infinities, NaN in front, behind and everywhere. */
function rankingRows(random: Random, cols: number): { readonly x: Float32Array; readonly rows: number } {
  const few = [0, -0, 1, -1, NaN, -Infinity];
  const makers: ((k: number) => number)[] = [
    () => 2 * random() - 1,
    () => randomInteger(random, 0, 3),
    (k) => k,
    (k) => -k,
    () => 1,
    () => NaN,
    () => -Infinity,
    (k) => (k === 0 ? NaN : -Infinity),
    (k) => (k === cols - 1 ? -1e30 : NaN),
    (k) => (k < cols / 2 ? NaN : k % 3),
    (k) => (k % 2 ? Infinity : -Infinity),
    () => few[randomInteger(random, 0, few.length)]!,
    () => (random() < 0.9 ? -Infinity : random()),
    () => (random() < 0.9 ? NaN : random()),
  ];
  const x = new Float32Array(makers.length * cols).map((_, i) => makers[Math.floor(i / cols)]!(i % cols));
  return { x, rows: makers.length };
}

// Attention

function attentionParity(kernels: Kernels, dtype: KvDtype, shape: HeadShape, sharpness: number): void {
  const { heads, kvHeads, headDim } = shape;
  const random = xorshift(headDim);
  const width = kvHeads * headDim;
  const keysValues = randomFloats(random, WRITTEN_SLOTS.length * (2 * width + 3));
  const store = (each: Kernels): KvLayer => {
    const kv = poisonedKv(dtype, kvHeads, headDim, SLOTS);
    each.storeKv(kv, keysValues, 2 * width + 3, 1, width + 2, storeLayout(WRITTEN_SLOTS));
    return kv;
  };
  const [gotKv, wantKv] = [store(kernels), store(reference)];
  assertSameBits(gotKv.keys, wantKv.keys, 'stored keys');
  assertSameBits(gotKv.values, wantKv.values, 'stored values');

  const rows = attentionRows(random);
  const layout = layoutOf(rows);
  const stride = heads * headDim + 2 * width;
  const queries = randomFloats(random, rows.length * stride, sharpness);
  const [got, want] = both(kernels, rows.length * heads * headDim, (each, out) =>
    each.attention(out, queries, stride, heads, each === reference ? wantKv : gotKv, layout),
  );
  const tolerance = rows.map((row) => attentionError(headDim, row.prefix + row.extras.length, sharpness));
  assertWithin(got, want, (i) => tolerance[Math.floor(i / (heads * headDim))]!, `queries up to ${sharpness}`);
}
