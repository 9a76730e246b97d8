/**
 * The matrix products of training against what the machine could do: y = x·Wᵀ and its two gradients, at the shapes of a draft head for
 * SmolLM2-135M, beside the same products by OpenBLAS where that is installed; then whole updates.
 */
import type { Command } from 'commander';
import { type Kernels, type PackedMatrix, packedBytes } from '../kernels/kernels.ts';
import { floatAt, floatsOf } from '../kernels/layouts.ts';
import { defaultLossVocabSize } from '../train/loss-vocabulary.ts';
import {
  type ModelOptions,
  openEngine,
  positiveNumber,
  positiveNumbers,
  printJson,
  withTargetOptions,
} from './common.ts';
import { formatTable } from './format.ts';
import { fillValue, OpenBlas, PRODUCTS, type Product, type ProductTime } from './openblas.ts';
import { ProgressBar } from './progress.ts';
import { median, sum } from './statistics.ts';
import { timeUpdate, type UpdateTime } from './training-update.ts';

interface Flags extends ModelOptions {
  readonly rows: readonly number[];
  readonly repeats: number;
  readonly steps: readonly number[];
  readonly json?: boolean;
}

/** Hidden size 576, 9 query and 3 key-value heads of 64, intermediate size 1,536, a loss that tells 12,288 tokens apart. */
const WEIGHTS: readonly { readonly name: string; readonly outputs: number; readonly inputs: number }[] = [
  { name: 'fc', outputs: 576, inputs: 1152 },
  { name: 'q, k, v', outputs: 960, inputs: 576 },
  { name: 'o', outputs: 576, inputs: 576 },
  { name: 'gate, up', outputs: 3072, inputs: 576 },
  { name: 'down', outputs: 576, inputs: 1536 },
  { name: 'LM head', outputs: 12288, inputs: 576 },
];

/** Updates are long: a few tell enough. */
const MOST_UPDATES = 5;

/** Two sums of thousands of products below ¼ agree far better; a wrong element is off by some units. */
const SAME = 1e-2;

export function register(bench: Command): void {
  withTargetOptions(
    bench
      .command('train')
      .description('the products of training against the f32 limit of this machine and OpenBLAS, and whole updates'),
  )
    .option('--rows <list>', 'tokens of a product; of an update the most of them', positiveNumbers, [512, 2048])
    .option('--repeats <n>', 'interleaved repeats; the median counts', positiveNumber, 9)
    .option('--steps <list>', 'of the updates: how far the head is unrolled', positiveNumbers, [1, 3])
    .option('--json', 'one JSON line')
    .action(benchTrain);
}

type Medians = { readonly [K in Product]: number };

/** Medians in ms. */
interface Measured {
  readonly name: string;
  /** Outputs x inputs. */
  readonly shape: string;
  readonly rows: number;
  /** Of one product. */
  readonly multiplyAdds: number;
  readonly ours: Medians;
  readonly openblas: Medians | null;
  /** The copy that the gradient by the input is computed with; made once a step. */
  readonly transposeMs: number;
}

async function benchTrain(flags: Flags): Promise<void> {
  using engine = await openEngine(flags);
  const { kernels, target } = engine;
  const started = OpenBlas.start(kernels.threads);
  using openblas = typeof started === 'string' ? null : started;
  const { measured, limits } = await measureAll(kernels, openblas, flags);
  const tokens = Math.max(...flags.rows);
  const updates = flags.steps.map((steps) =>
    timeUpdate(
      target,
      defaultLossVocabSize(target.config.vocabSize),
      { steps, tokens, repeats: Math.min(flags.repeats, MOST_UPDATES) },
      () => limits.push(kernels.fmaLimit(1)),
    ),
  );
  const limit = median(limits);
  const best = Math.max(...limits);
  const { isa, threads } = kernels;
  const absence = typeof started === 'string' ? started : null;
  const lines = flags.rows.flatMap((rows) => {
    const all = measured.filter((each) => each.rows === rows);
    return [...all, total(all)];
  });
  if (flags.json) {
    const products = lines.map((each) => toJson(each, limit));
    return printJson({
      isa,
      threads,
      limitGflops: limit,
      bestLimitGflops: best,
      products,
      updates: updates.map((update) => ({ ...update, ...ratesOf(update, limit) })),
      ...(absence !== null && { openblas: absence }),
    });
  }
  process.stdout.write(
    `${isa} · ${threads} threads · f32 limit ${limit.toFixed(0)} GFLOP/s (best ${best.toFixed(0)})\n` +
      `GFLOP/s and % of the limit: a product and its gradients by input and by weight\n\n` +
      formatTable(
        HEADER,
        lines.map((each) => cells(each, limit)),
      ),
  );
  if (absence !== null) process.stdout.write(`\nOpenBLAS: ${absence}\n`);
  process.stdout.write(
    `\n${formatTable(
      ['update', 'tokens', 'ms', 'tokens/s', 'GFLOP/s of its products'],
      updates.map((update) => updateCells(update, limit)),
    )}`,
  );
}

/** GFLOP/s of the products over all the time of an update, and their share of the limit. */
function ratesOf(update: UpdateTime, limit: number) {
  const rate = gflops(update, update.ms);
  return { tokensPerSecond: (1000 * update.tokens) / update.ms, gflops: rate, ofLimit: rate / limit };
}

function updateCells(update: UpdateTime, limit: number): readonly string[] {
  const { tokensPerSecond, gflops: rate, ofLimit } = ratesOf(update, limit);
  return [
    update.steps === 1 ? 'one step' : `${update.steps} steps`,
    String(update.tokens),
    update.ms.toFixed(0),
    tokensPerSecond.toFixed(0),
    `${rate.toFixed(0)} (${(100 * ofLimit).toFixed(0)} %)`,
  ];
}

/** Ours, OpenBLAS's and the loop that sets the limit take turns, so that a slow moment of the machine falls on all. */
async function measureAll(
  kernels: Kernels,
  openblas: OpenBlas | null,
  { rows: sizes, repeats }: Flags,
): Promise<{ readonly measured: readonly Measured[]; readonly limits: number[] }> {
  const measured: Measured[] = [];
  const limits: number[] = [];
  using progress = new ProgressBar('measuring', sizes.length * WEIGHTS.length);
  for (const rows of sizes) {
    for (const { name, outputs, inputs } of WEIGHTS) {
      using products = new OurProducts(kernels, rows, outputs, inputs);
      await openblas?.shape(rows, outputs, inputs);
      const ours = noTimes();
      const theirs = noTimes();
      const transposes: number[] = [];
      for (let repeat = -1; repeat < repeats; repeat++) {
        limits.push(kernels.fmaLimit(1));
        const transposeMs = products.transpose();
        if (repeat >= 0) transposes.push(transposeMs);
        for (const product of PRODUCTS) {
          const own = products.run(product);
          const other = await openblas?.run(product);
          if (repeat >= 0) {
            ours[product].push(own.ms);
            if (other) theirs[product].push(other.ms);
          } else if (other) assertSame(own, other, `${product} of ${name}`); // the first round warms up
        }
      }
      const medians = (times: Times): Medians => ({
        forward: median(times.forward),
        input: median(times.input),
        weight: median(times.weight),
      });
      measured.push({
        name,
        shape: `${outputs} x ${inputs}`,
        rows,
        multiplyAdds: rows * outputs * inputs,
        ours: medians(ours),
        openblas: openblas && medians(theirs),
        transposeMs: median(transposes),
      });
      progress.update(measured.length);
    }
  }
  return { measured, limits };
}

type Times = { readonly [K in Product]: number[] };
const noTimes = (): Times => ({ forward: [], input: [], weight: [] });

function assertSame(own: ProductTime, other: ProductTime, what: string): void {
  if (Math.abs(own.first - other.first) > SAME || Math.abs(own.last - other.last) > SAME) {
    throw new Error(
      `bench train: ${what} differs from OpenBLAS's, got ${own.first} … ${own.last}, want ${other.first} … ${other.last}`,
    );
  }
}

function fill(array: Float32Array, seed: number): Float32Array {
  for (let i = 0; i < array.length; i++) array[i] = fillValue(i, seed);
  return array;
}

/** The matrices of one weight, filled as OpenBLAS's are. */
class OurProducts {
  readonly #kernels: Kernels;
  readonly #rows: number;
  readonly #buffers: ArrayBuffer[] = [];
  readonly #x: Float32Array; // [rows, inputs]
  readonly #dy: Float32Array; // [rows, outputs]
  readonly #y: Float32Array; // [rows, outputs]
  readonly #dx: Float32Array; // [rows, inputs]
  readonly #weight: PackedMatrix; // [outputs, inputs]
  readonly #transposed: PackedMatrix; // [inputs, outputs]
  readonly #gradient: PackedMatrix; // [outputs, inputs]

  constructor(kernels: Kernels, rows: number, outputs: number, inputs: number) {
    this.#kernels = kernels;
    this.#rows = rows;
    this.#x = fill(this.#floats(rows * inputs), 1);
    this.#dy = fill(this.#floats(rows * outputs), 3);
    this.#y = this.#floats(rows * outputs);
    this.#dx = this.#floats(rows * inputs);
    this.#weight = this.#matrix(outputs, inputs);
    this.#transposed = this.#matrix(inputs, outputs);
    this.#gradient = this.#matrix(outputs, inputs);
    const values = fill(new Float32Array(outputs * inputs), 2);
    const everyRow = Int32Array.from({ length: outputs }, (_, row) => row);
    kernels.pack(this.#weight, 0, new Uint8Array(values.buffer, 0, values.byteLength), 'F32', everyRow);
  }

  /** Milliseconds. */
  transpose(): number {
    const began = performance.now();
    this.#kernels.transpose(this.#transposed, this.#weight);
    return performance.now() - began;
  }

  run(product: Product): ProductTime {
    const began = performance.now();
    switch (product) {
      case 'forward':
        this.#kernels.matmul(this.#y, this.#x, this.#weight, this.#rows, null);
        return this.#timed(began, this.#y);
      case 'input':
        this.#kernels.matmul(this.#dx, this.#dy, this.#transposed, this.#rows, null);
        return this.#timed(began, this.#dx);
      case 'weight': {
        this.#kernels.accumulateOuter(this.#gradient, this.#dy, this.#x, this.#rows);
        const ms = performance.now() - began;
        const values = floatsOf(this.#gradient);
        const last = floatAt(this.#gradient, this.#gradient.rows - 1, this.#gradient.cols - 1);
        return { ms, first: values[0]!, last: values[last]! };
      }
    }
  }

  [Symbol.dispose](): void {
    for (const buffer of this.#buffers) this.#kernels.release(buffer);
  }

  #timed(began: number, result: Float32Array): ProductTime {
    return { ms: performance.now() - began, first: result[0]!, last: result[result.length - 1]! };
  }

  #allocate(bytes: number): ArrayBuffer {
    const buffer = this.#kernels.allocate(bytes, true);
    this.#buffers.push(buffer);
    return buffer;
  }

  #floats(length: number): Float32Array {
    return new Float32Array(this.#allocate(4 * length));
  }

  #matrix(rows: number, cols: number): PackedMatrix {
    return { dtype: 'f32', rows, cols, data: new Uint8Array(this.#allocate(packedBytes('f32', rows, cols))) };
  }
}

/** All weights of a step one after the other. */
function total(measured: readonly Measured[]): Measured {
  const add = (of: (each: Measured) => Medians | null): Medians | null => {
    const all = measured.map(of).filter((medians) => medians !== null);
    if (all.length < measured.length) return null;
    return {
      forward: sum(all.map(({ forward }) => forward)),
      input: sum(all.map(({ input }) => input)),
      weight: sum(all.map(({ weight }) => weight)),
    };
  };
  return {
    name: 'all',
    shape: '',
    rows: measured[0]!.rows,
    multiplyAdds: sum(measured.map(({ multiplyAdds }) => multiplyAdds)),
    ours: add(({ ours }) => ours)!,
    openblas: add(({ openblas }) => openblas),
    transposeMs: sum(measured.map(({ transposeMs }) => transposeMs)),
  };
}

/** GFLOP/s: 10⁹ floating-point operations a second, a multiply-add being two. */
const gflops = ({ multiplyAdds }: Pick<Measured, 'multiplyAdds'>, ms: number): number => (2 * multiplyAdds) / ms / 1e6;

function toJson(each: Measured, limit: number) {
  const rates = (medians: Medians) => {
    const rate = (ms: number) => ({ ms, gflops: gflops(each, ms), ofLimit: gflops(each, ms) / limit });
    return { forward: rate(medians.forward), input: rate(medians.input), weight: rate(medians.weight) };
  };
  const { name, shape, rows, ours, openblas, transposeMs } = each;
  return { name, shape, rows, transposeMs, ours: rates(ours), openblas: openblas && rates(openblas) };
}

const HEADER = ['weight', 'shape', 'rows', 'y', 'dX', 'dW', 'Wᵀ ms', 'OpenBLAS y', 'dX', 'dW'] as const;

function cells(each: Measured, limit: number): readonly string[] {
  const rate = (medians: Medians | null, product: Product): string => {
    if (medians === null) return '–';
    const value = gflops(each, medians[product]);
    return `${value.toFixed(0)} (${((100 * value) / limit).toFixed(0)} %)`;
  };
  return [
    each.name,
    each.shape,
    String(each.rows),
    ...PRODUCTS.map((product) => rate(each.ours, product)),
    each.transposeMs.toFixed(2),
    ...PRODUCTS.map((product) => rate(each.openblas, product)),
  ];
}
