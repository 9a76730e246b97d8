/** The one operation that has no kernel, and so no test among theirs. */
import { expect, test } from 'vitest';
import { createKernels } from '../../src/kernels/choose.ts';
import { EagerOps } from '../../src/tensor/ops.ts';
import { ScratchTensor, type Tensor } from '../../src/tensor/tensor.ts';
import { Parameters } from '../../src/train/parameters.ts';
import { Tape } from '../../src/train/tape.ts';
import { randomFloats, xorshift } from '../support/random.ts';

const kernels = createKernels();
const ROWS = 3;
const COLS = 5;

test('silu adds x · logistic(x), whatever x is', () => {
  const x = new ScratchTensor().reshape(1, 6);
  const residual = new ScratchTensor().reshape(1, 6);
  x.data.set([0, 1, -1, 80, -80, Number.NaN]);
  residual.data.set([5, 0, 0, 0, 0, 0]);
  const out = new EagerOps(kernels).silu(x, residual).data;
  const wanted = [5, 0.7310585786300049, -0.2689414213699951, 80, -80 * Math.exp(-80), Number.NaN];
  expect([...out.subarray(0, 6)]).toEqual(wanted.map(Math.fround));
});

test("silu's gradients are the slopes", () => {
  const random = xorshift(3);
  const table = randomFloats(random, 2 * ROWS * COLS, 4);
  const dy = randomFloats(random, ROWS * COLS, 1);
  // Rows that are parameters: biases of a product with nothing.
  const zeros = new ScratchTensor().reshape(ROWS, 1);
  const matrix = { dtype: 'f32', rows: COLS, cols: 1, data: new Uint8Array(kernels.allocate(4096, true)) } as const;
  const biases = Array.from({ length: 2 * ROWS }, (_, i) => table.subarray(i * COLS, (i + 1) * COLS));
  const parameters = new Parameters(
    kernels,
    biases.map((weight, i) => ({ name: String(i), weight })),
  );
  const tape = new Tape(kernels, parameters);
  const row = (i: number): Tensor =>
    tape.linear(tape.selectRows(zeros, Int32Array.of(0), 1), matrix, undefined, biases[i]!);
  for (let i = 0; i < ROWS; i++) {
    const y = tape.silu(row(i), row(ROWS + i));
    tape.gradient(y)!.data.set(dy.subarray(i * COLS, (i + 1) * COLS));
  }
  tape.backward();

  const silu = (x: number): number => x / (1 + Math.exp(-x));
  const step = 1e-5;
  for (let i = 0; i < ROWS * COLS; i++) {
    const x = table[i]!;
    const slope = (silu(x + step) - silu(x - step)) / (2 * step);
    const [bias, residual] = [biases[Math.floor(i / COLS)]!, biases[ROWS + Math.floor(i / COLS)]!];
    expect(parameters.gradient(bias)![i % COLS]).toBeCloseTo(dy[i]! * slope, 5);
    expect(parameters.gradient(residual)![i % COLS]).toBe(dy[i]!);
  }
});
