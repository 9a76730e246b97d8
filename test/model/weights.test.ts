/** Loading reads tensors in parts: the matrices are those of reading them whole, and no part is large. */
import { afterAll, expect, it } from 'vitest';
import { halvesFromPairs, type ModelDtype, type Part, WeightLoader } from '../../src/model/weights.ts';
import { memorySource } from '../../src/tensor/memory-source.ts';
import type { TensorSource } from '../../src/tensor/source.ts';
import { availableTables, bytesOf, packed } from '../support/kernels.ts';
import { permutation, randomFloats, xorshift } from '../support/random.ts';

const COLS = 512;
const ROWS = 2592; // 5.3 MB of f32: three parts, none of them of whole heads of 48 rows
const random = xorshift(3);
const values = randomFloats(random, ROWS * COLS);
const memory = memorySource('made up', { w: { shape: [ROWS, COLS], data: values } });
const kernels = availableTables().at(-1)!.create(2);
afterAll(() => kernels.dispose());

/** The bytes of each read, and the source that reads so. */
function watched(): { readonly reads: number[]; readonly source: TensorSource } {
  const reads: number[] = [];
  const read: TensorSource['read'] = (...range) => {
    const bytes = memory.read(...range);
    reads.push(bytes.length);
    return bytes.slice(); // rows beside the part are not there
  };
  return { reads, source: { ...memory, read } };
}

const every2nd = Int32Array.from({ length: ROWS / 2 }, (_, i) => 2 * i + 1);

it.each<[string, ModelDtype, Part['rowMap'], number]>([
  ['rows in the order of the file', 'q8', undefined, 1],
  ['heads whose rows change places', 'f32', halvesFromPairs(ROWS / 48, 48), 1.1],
  ['some rows', 'q4', every2nd, 2.1],
  ['rows in any order', 'f32', permutation(random, ROWS), 4],
])('packs %s', (_, dtype, rowMap, mostReading) => {
  const { reads, source } = watched();
  using loader = new WeightLoader(kernels, source, dtype);
  const matrix = loader.matrix([{ name: 'w', rows: ROWS, ...(rowMap && { rowMap }) }], COLS);
  const order = rowMap ?? Int32Array.from({ length: ROWS }, (_, row) => row);
  const wanted = new Float32Array(order.length * COLS);
  for (const [i, row] of order.entries()) wanted.set(values.subarray(row * COLS, (row + 1) * COLS), i * COLS);
  const whole = packed(kernels, matrix.dtype, order.length, COLS, wanted);
  expect(Buffer.from(matrix.data).equals(whole.data)).toBe(true);
  expect(reads.length).toBeGreaterThan(1);
  expect(Math.max(...reads)).toBeLessThan(2.2e6 * mostReading);
  expect(reads.reduce((a, b) => a + b)).toBeLessThanOrEqual(bytesOf(values).length * mostReading);
});
