/**
 * Batch invariance: a row's bits depend on its own logical inputs alone, not on how many rows are computed with it, on threads, or on
 * where its keys and values lie. What speculation rests on: a verified row is the row that plain decoding would have computed.
 */
import { describe, test } from 'vitest';
import { type Kernels, KV_DTYPES, type KvDtype, type KvLayer, WEIGHT_DTYPES } from '../../src/kernels/kernels.ts';
import { floatsOf } from '../../src/kernels/layouts.ts';
import {
  assertSameBits,
  availableTables,
  type KernelTable,
  type LayoutRow,
  layoutOf,
  nativeTableList,
  packed,
  poisonedKv,
  storeLayout,
} from '../support/kernels.ts';
import { permutation, type Random, randomFloats, randomInteger, xorshift } from '../support/random.ts';

const MOST_ROWS = 64;
const THREADS = [1, 2];
/** More than heads too: then threads share a head's positions and dimensions. */
const ATTENTION_THREADS = [1, 2, 5];

describe.each(availableTables())('$isa', (table) => {
  test.each(WEIGHT_DTYPES)('matmul of %s: a row is the same alone and among 1 to 64', (dtype) => {
    const random = xorshift(1);
    // 21 tiles: several chunks per thread. Not a multiple of anything.
    const [rows, cols] = [331, 100];
    const values = randomFloats(random, rows * cols);
    const residual = randomFloats(random, MOST_ROWS * rows);
    aloneAndTogether(table, random, cols, rows, (kernels) => {
      const weight = packed(kernels, dtype, rows, cols, values);
      return (out, x, n, first) => kernels.matmul(out, x, weight, n, residual.subarray(first * rows));
    });
  });

  test.each([1, 15, 16, 17, 100, 576])('rmsNorm of %d columns', (cols) => {
    const random = xorshift(2);
    const weight = randomFloats(random, cols);
    aloneAndTogether(
      table,
      random,
      cols,
      cols,
      (kernels) => (out, x, n) => kernels.rmsNorm(out, x, weight, n, cols, 1e-5),
    );
  });

  test.each([2, 18, 32, 64])('rope of heads of %d', (headDim) => {
    const random = xorshift(3);
    const heads = 3;
    const stride = heads * headDim + 1;
    const [cos, sin] = [randomFloats(random, 100 * headDim), randomFloats(random, 100 * headDim)];
    const positions = Int32Array.from({ length: MOST_ROWS }, () => randomInteger(random, 0, 200));
    aloneAndTogether(table, random, stride, stride, (kernels) => (out, x, n, first) => {
      out.set(x.subarray(0, n * stride));
      kernels.rope(out, stride, n, heads, headDim, positions.subarray(first), cos, sin);
    });
  });

  test.each([1, 15, 16, 17, 100, 576])('swiglu of %d columns', (cols) => {
    aloneAndTogether(table, xorshift(4), 2 * cols, cols, (kernels) => (out, x, n) => kernels.swiglu(out, x, n, cols));
  });

  test.each([1, 15, 16, 17, 100, 1000])('softmax of %d columns', (cols) => {
    aloneAndTogether(table, xorshift(5), cols, cols, (kernels) => (out, x, n) => kernels.softmax(out, x, n, cols, 0.8));
  });

  describe.each(KV_DTYPES)('attention on an %s cache', (dtype) => {
    test.each([
      { heads: 6, kvHeads: 2, headDim: 40 },
      { heads: 9, kvHeads: 3, headDim: 64 },
      { heads: 2, kvHeads: 2, headDim: 18 },
    ])('wherever positions lie, whoever else is computed: $heads heads on $kvHeads of $headDim', (shape) => {
      const subject = new AttentionSubject(dtype, shape, xorshift(6));
      let want: Float32Array | undefined;
      for (const threads of ATTENTION_THREADS) {
        withKernels(table, threads, (kernels) => {
          want ??= subject.contiguous(kernels);
          assertSameBits(subject.contiguous(kernels), want, `${threads} threads`);
          for (const prefix of [0, 1, 15, 16, 17, 32, 36]) {
            for (const mates of [0, 1, 3, 4, 11]) {
              const what = `prefix ${prefix}, ${mates} batch-mates, ${threads} threads`;
              assertSameBits(subject.scattered(kernels, prefix, mates), want, what);
            }
            assertSameBits(subject.moved(kernels, prefix), want, `moved, prefix ${prefix}, ${threads} threads`);
          }
        });
      }
    });

    // Long enough that no thread is left to wait for another's head.
    test('behind a thousand positions, whoever else is computed', () => {
      const random = xorshift(7);
      const [heads, kvHeads, headDim, positions] = [9, 3, 64, 1001];
      const width = kvHeads * headDim;
      const stride = heads * headDim;
      const keysValues = randomFloats(random, positions * 2 * width, 2);
      const queries = randomFloats(random, 4 * stride, 2);
      let want: Float32Array | undefined;
      for (const threads of ATTENTION_THREADS) {
        withKernels(table, threads, (kernels) => {
          const kv = poisonedKv(dtype, kvHeads, headDim, 1008);
          kernels.storeKv(
            kv,
            keysValues,
            2 * width,
            0,
            width,
            storeLayout(Array.from({ length: positions }, (_, i) => i)),
          );
          for (const rows of want === undefined ? [1] : [1, 2, 4]) {
            const row = { slot: 0, base: 0, prefix: positions, extras: [] };
            const out = new Float32Array(rows * stride);
            kernels.attention(out, queries, stride, heads, kv, layoutOf(Array.from({ length: rows }, () => row)));
            want ??= out;
            assertSameBits(out.subarray(0, stride), want, `${rows} rows, ${threads} threads`);
          }
        });
      }
    });
  });
});

describe.each(nativeTableList())('$isa', (table) => {
  // On both sides of where many rows of many inputs go another way (48 rows, 2,048 inputs), of their groups (96 rows), blocks (768 inputs)
  // and of what is laid out at once (16 MB).
  test.each([
    { dtype: 'f32', rows: 150, cols: 400, counts: [47, 48, 95, 97, 200] },
    { dtype: 'f32', rows: 17, cols: 2048, counts: [49] },
    { dtype: 'f32', rows: 150, cols: 2049, counts: [47, 48, 95, 96, 97, 200] },
    { dtype: 'f32', rows: 17, cols: 3840, counts: [191] },
    { dtype: 'f32', rows: 67, cols: 12_300, counts: [289, 310] },
    // 57 tiles, in chunks of seven or three, which pairs do not come out even in.
    { dtype: 'q8', rows: 900, cols: 576, counts: [35, 36, 64, 131] },
    { dtype: 'q4', rows: 900, cols: 576, counts: [35, 36, 64, 131] },
    { dtype: 'q4', rows: 900, cols: 1000, counts: [20, 21, 64] },
  ] as const)(
    'matmul of $dtype: a row is the same alone and among many, $cols inputs',
    ({ dtype, rows, cols, counts }) => {
      const random = xorshift(11);
      const most = Math.max(...counts);
      const [values, x] = [randomFloats(random, rows * cols), randomFloats(random, most * cols)];
      const residual = randomFloats(random, most * rows);
      const alone = residual.slice();
      withKernels(table, 1, (kernels) => {
        const weight = packed(kernels, dtype, rows, cols, values);
        for (let row = 0; row < most; row++) {
          const out = alone.subarray(row * rows, (row + 1) * rows);
          kernels.matmul(out, x.subarray(row * cols), weight, 1, out);
        }
      });
      for (const threads of THREADS) {
        withKernels(table, threads, (kernels) => {
          const weight = packed(kernels, dtype, rows, cols, values);
          for (const n of counts) {
            const [out, inPlace] = [new Float32Array(n * rows), residual.slice(0, n * rows)];
            kernels.matmul(out, x, weight, n, residual);
            kernels.matmul(inPlace, x, weight, n, inPlace);
            const want = alone.subarray(0, n * rows);
            assertSameBits(out, want, `${n} rows, ${threads} threads`);
            assertSameBits(inPlace, want, `${n} rows in place, ${threads} threads`);
          }
        });
      }
    },
  );
});

describe.each(availableTables())('$isa: gradients do not depend on threads', (table) => {
  /** Runs on one thread, then on two and three, into copies of `before`. */
  function sameOnThreads(
    before: readonly Float32Array[],
    run: (kernels: Kernels, outputs: Float32Array[]) => void,
  ): void {
    let want: readonly Float32Array[] | undefined;
    for (const threads of [1, 2, 3]) {
      withKernels(table, threads, (kernels) => {
        const outputs = before.map((array) => array.slice());
        run(kernels, outputs);
        want ??= outputs;
        for (const [i, output] of outputs.entries())
          assertSameBits(output, want[i]!, `output ${i}, ${threads} threads`);
      });
    }
  }

  test('accumulateOuter, and the same in two parts', () => {
    const random = xorshift(7);
    const [n, rows, cols] = [300, 331, 100];
    const [x, dy] = [randomFloats(random, n * cols), randomFloats(random, n * rows)];
    const values = randomFloats(random, rows * cols);
    // The reference rounds at the end of a call: only in one part is it one sum.
    for (const part of table.isa === 'reference' ? [n] : [n, 100, 299]) {
      sameOnThreads([new Float32Array(336 * cols)], (kernels, [out]) => {
        const gradient = packed(kernels, 'f32', rows, cols, values);
        kernels.accumulateOuter(gradient, dy, x, part);
        kernels.accumulateOuter(gradient, dy.subarray(part * rows), x.subarray(part * cols), n - part);
        const whole = packed(kernels, 'f32', rows, cols, values);
        kernels.accumulateOuter(whole, dy, x, n);
        assertSameBits(gradient.data, whole.data, `${part} rows, then the rest`);
        out!.set(floatsOf(gradient));
      });
    }
  });

  test('scatterAddRows', () => {
    const random = xorshift(8);
    const [count, cols] = [100, 200];
    const ids = Int32Array.from({ length: count }, () => randomInteger(random, 0, 7));
    const dy = randomFloats(random, count * cols);
    sameOnThreads([new Float32Array(16 * cols)], (kernels, [out]) => {
      const gradient = packed(kernels, 'f32', 16, cols, new Float32Array(16 * cols));
      kernels.scatterAddRows(gradient, ids, dy, count);
      out!.set(floatsOf(gradient));
    });
  });

  test('rmsNormBackward, swigluBackward and softCrossEntropy', () => {
    const random = xorshift(9);
    const [n, cols] = [37, 200];
    const [x, dy, weight] = [
      randomFloats(random, n * 2 * cols),
      randomFloats(random, n * 2 * cols),
      randomFloats(random, cols),
    ];
    const outputs = [randomFloats(random, n * cols), randomFloats(random, cols)];
    sameOnThreads(outputs, (kernels, [dx, dWeight]) =>
      kernels.rmsNormBackward(dx!, dWeight!, dy, x, weight, n, cols, 1e-5),
    );
    sameOnThreads([randomFloats(random, n * 2 * cols)], (kernels, [dx]) => kernels.swigluBackward(dx!, dy, x, n, cols));
    sameOnThreads([new Float32Array(n), new Float32Array(n * cols)], (kernels, [losses, dLogits]) =>
      kernels.softCrossEntropy(losses!, dLogits!, x, dy, weight, n, cols),
    );
  });

  test('attentionBackward: sequences apart and sequences that share a slot', () => {
    const random = xorshift(10);
    const [heads, kvHeads, headDim] = [6, 2, 24];
    const width = kvHeads * headDim;
    // Twelve sequences of 20 rows, each row with a slot of its own elsewhere; those of the last four also look at one slot of the first.
    const sequences = Array.from({ length: 12 }, (_, i) => ({ base: 32 * i, own: 384 + 20 * i }));
    const rows: LayoutRow[] = sequences.flatMap(({ base, own }, i) =>
      Array.from({ length: 20 }, (_, j) => ({
        slot: 0,
        base,
        prefix: j,
        extras: i < 8 ? [own + j] : [own + j, 5],
      })),
    );
    const layout = layoutOf(Array.from(permutation(random, rows.length), (i) => rows[i]!));
    const slots = 624;
    const stored = randomFloats(random, slots * 2 * width);
    const [qkv, dOut] = [
      randomFloats(random, rows.length * heads * headDim),
      randomFloats(random, rows.length * heads * headDim),
    ];
    const outputs = [qkv.length, slots * width, slots * width].map((length) => randomFloats(random, length));
    sameOnThreads(outputs, (kernels, [dQkv, dKeys, dValues]) => {
      const kv = poisonedKv('f32', kvHeads, headDim, slots);
      kernels.storeKv(kv, stored, 2 * width, 0, width, storeLayout(Array.from({ length: slots }, (_, slot) => slot)));
      for (let repeat = 0; repeat < 5; repeat++)
        kernels.attentionBackward(dQkv!, dKeys!, dValues!, dOut, qkv, heads * headDim, heads, kv, layout);
    });
  });
});

function withKernels(table: KernelTable, threads: number, use: (kernels: Kernels) => void): void {
  const kernels = table.create(threads);
  try {
    use(kernels);
  } finally {
    kernels.dispose();
  }
}

/** Computes n rows of x; they are rows `first` … of the whole. */
type RowKernel = (out: Float32Array, x: Float32Array, n: number, first: number) => void;

/** Each of 64 rows alone on one thread, then in every batch size, at several places of the batch, on one thread and on two. */
function aloneAndTogether(
  table: KernelTable,
  random: Random,
  inCols: number,
  outCols: number,
  prepare: (kernels: Kernels) => RowKernel,
): void {
  const x = randomFloats(random, MOST_ROWS * inCols, 3);
  const alone = new Float32Array(MOST_ROWS * outCols);
  withKernels(table, 1, (kernels) => {
    const run = prepare(kernels);
    for (let row = 0; row < MOST_ROWS; row++) {
      run(alone.subarray(row * outCols, (row + 1) * outCols), x.subarray(row * inCols, (row + 1) * inCols), 1, row);
    }
  });
  for (const threads of THREADS) {
    withKernels(table, threads, (kernels) => {
      const run = prepare(kernels);
      for (let n = 1; n <= MOST_ROWS; n++) {
        const first = randomInteger(random, 0, MOST_ROWS - n + 1);
        const out = new Float32Array(n * outCols).fill(NaN);
        run(out, x.subarray(first * inCols), n, first);
        const want = alone.subarray(first * outCols, (first + n) * outCols);
        assertSameBits(out, want, `rows ${first}..${first + n - 1}, ${threads} threads`);
      }
    });
  }
}

interface HeadShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

const POSITIONS = 37;
const SLOTS = 256;
/** Where scattered rows keep their prefix: room above it to move rows down, and below it to scatter them. */
const BASE = 128;
/** Another sequence, of OTHER_POSITIONS, lies behind. */
const OTHER_BASE = SLOTS;
const OTHER_POSITIONS = 20;

/** One query row over 37 logical positions, laid out in a cache in different ways. Slots out of use hold NaN. */
class AttentionSubject {
  readonly #dtype: KvDtype;
  readonly #shape: HeadShape;
  readonly #random: Random;
  readonly #query: Float32Array; // [heads * headDim]
  readonly #keysValues: Float32Array; // [POSITIONS, 2, kvHeads * headDim]

  constructor(dtype: KvDtype, shape: HeadShape, random: Random) {
    this.#dtype = dtype;
    this.#shape = shape;
    this.#random = random;
    this.#query = randomFloats(random, shape.heads * shape.headDim, 2);
    this.#keysValues = randomFloats(random, POSITIONS * 2 * shape.kvHeads * shape.headDim, 2);
  }

  /** All positions from slot 32 on, nobody else. */
  contiguous(kernels: Kernels): Float32Array {
    const row = { slot: 0, base: 32, prefix: POSITIONS, extras: [] };
    return this.#attend(kernels, this.#store(kernels, row), [row], 0);
  }

  /** `prefix` positions from BASE on, the rest anywhere, among rows of this sequence and of another. */
  scattered(kernels: Kernels, prefix: number, mates: number): Float32Array {
    const extras = this.#slots(POSITIONS - prefix, (slot) => slot < BASE || slot >= BASE + prefix);
    const row = { slot: 0, base: BASE, prefix, extras };
    const index = Math.floor(mates / 2);
    const rows = Array.from({ length: mates + 1 }, (_, i) => (i === index ? row : this.#mate(row)));
    return this.#attend(kernels, this.#store(kernels, row), rows, index);
  }

  /** As scattered, then moved down behind the prefix. */
  moved(kernels: Kernels, prefix: number): Float32Array {
    const from = this.#slots(POSITIONS - prefix, (slot) => slot >= BASE + prefix).sort((a, b) => a - b);
    const to = from.map((_, i) => BASE + prefix + i);
    const kv = this.#store(kernels, { slot: 0, base: BASE, prefix, extras: from });
    kernels.moveKv(kv, Int32Array.from(from), Int32Array.from(to), from.length);
    return this.#attend(kernels, kv, [{ slot: 0, base: BASE, prefix: POSITIONS, extras: [] }], 0);
  }

  /** Random slots in random order. */
  #slots(count: number, allowed: (slot: number) => boolean): number[] {
    return [...permutation(this.#random, SLOTS)].filter(allowed).slice(0, count);
  }

  /** A row of the other sequence, or one that sees part of what the subject sees. */
  #mate(row: LayoutRow): LayoutRow {
    const other = {
      slot: 0,
      base: OTHER_BASE,
      prefix: randomInteger(this.#random, 1, OTHER_POSITIONS + 1),
      extras: [],
    };
    if (this.#random() < 0.4) return other;
    const prefix = randomInteger(this.#random, 0, row.prefix + 1);
    const extras = row.extras.filter(() => this.#random() < 0.5);
    return prefix + extras.length > 0 ? { ...row, prefix, extras } : other;
  }

  #store(kernels: Kernels, { base, prefix, extras }: LayoutRow): KvLayer {
    const { kvHeads, headDim } = this.#shape;
    const width = kvHeads * headDim;
    const kv = poisonedKv(this.#dtype, kvHeads, headDim, SLOTS + 32);
    const from = (start: number, count: number) => Array.from({ length: count }, (_, j) => start + j);
    const store = (slots: readonly number[]) =>
      kernels.storeKv(kv, this.#keysValues, 2 * width, 0, width, storeLayout(slots));
    store([...from(base, prefix), ...extras]);
    store(from(OTHER_BASE, OTHER_POSITIONS));
    return kv;
  }

  /** Row `index` asks the subject's query, every other row one of its own. */
  #attend(kernels: Kernels, kv: KvLayer, rows: readonly LayoutRow[], index: number): Float32Array {
    const { heads, headDim } = this.#shape;
    const stride = heads * headDim;
    const queries = randomFloats(this.#random, rows.length * stride, 2);
    queries.set(this.#query, index * stride);
    const out = new Float32Array(rows.length * stride);
    kernels.attention(out, queries, stride, heads, kv, layoutOf(rows));
    return out.subarray(index * stride, (index + 1) * stride);
  }
}
