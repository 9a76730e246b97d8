/** Every table there is, packed matrices and caches made in memory, and comparisons by bits and by tolerance. */
import {
  type AttentionLayout,
  type Kernels,
  type KvDtype,
  type KvLayer,
  type PackedMatrix,
  packedBytes,
  type WeightDtype,
} from '../../src/kernels/kernels.ts';
import { createNativeKernels, nativeTables } from '../../src/kernels/native.ts';
import { createReferenceKernels } from '../../src/kernels/reference.ts';

export interface KernelTable {
  readonly isa: string;
  /** The native pool is one per process: the youngest living instance decides its threads. */
  create(threads: number): Kernels;
}

/** The C++ tables that this machine runs; none where the add-on was not compiled. */
export function nativeTableList(): readonly KernelTable[] {
  return nativeTables().map((isa) => ({ isa, create: (threads) => createNativeKernels({ isa, threads }) }));
}

export function availableTables(): readonly KernelTable[] {
  return [{ isa: 'reference', create: () => createReferenceKernels() }, ...nativeTableList()];
}

export const bytesOf = (array: Float32Array | Int32Array | Uint16Array): Uint8Array =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

export function emptyMatrix(kernels: Kernels, dtype: WeightDtype, rows: number, cols: number): PackedMatrix {
  return { dtype, rows, cols, data: new Uint8Array(kernels.allocate(packedBytes(dtype, rows, cols))) };
}

/** @param values [rows, cols] */
export function packed(
  kernels: Kernels,
  dtype: WeightDtype,
  rows: number,
  cols: number,
  values: Float32Array,
): PackedMatrix {
  const matrix = emptyMatrix(kernels, dtype, rows, cols);
  kernels.pack(
    matrix,
    0,
    bytesOf(values),
    'F32',
    Int32Array.from({ length: rows }, (_, row) => row),
  );
  return matrix;
}

/** A cache of NaN: a slot that nobody wrote and somebody uses shows. */
export function poisonedKv(dtype: KvDtype, kvHeads: number, headDim: number, slots: number): KvLayer {
  const elements = slots * kvHeads * headDim;
  const poisoned = () =>
    dtype === 'f16' ? new Uint16Array(elements).fill(0x7e00) : new Float32Array(elements).fill(NaN);
  return { dtype, kvHeads, headDim, slots, keys: poisoned(), values: poisoned() };
}

/** One row of a layout: where it is written and what it looks at. */
export interface LayoutRow {
  readonly slot: number;
  readonly base: number;
  readonly prefix: number;
  readonly extras: readonly number[];
}

export function layoutOf(rows: readonly LayoutRow[]): AttentionLayout {
  const ends = rows.map((_, i) => rows.slice(0, i + 1).reduce((sum, row) => sum + row.extras.length, 0));
  return {
    rows: rows.length,
    base: Int32Array.from(rows, (row) => row.base),
    prefix: Int32Array.from(rows, (row) => row.prefix),
    slots: Int32Array.from(rows, (row) => row.slot),
    extrasStart: Int32Array.from([0, ...ends]),
    extras: Int32Array.from(rows.flatMap((row) => [...row.extras])),
  };
}

/** A layout that only says where rows are written. */
export const storeLayout = (slots: readonly number[]): AttentionLayout =>
  layoutOf(slots.map((slot) => ({ slot, base: 0, prefix: 1, extras: [] })));

type Words = Float32Array | Int32Array | Uint16Array | Uint8Array;

/** Throws at the first byte that differs. */
export function assertSameBits(got: Words, want: Words, what: string): void {
  const a = new Uint8Array(got.buffer, got.byteOffset, got.byteLength);
  const b = new Uint8Array(want.buffer, want.byteOffset, want.byteLength);
  if (a.length !== b.length) throw new Error(`${what}: got ${got.length} elements, want ${want.length}`);
  if (Buffer.compare(a, b) === 0) return;
  const i = got.findIndex((_: number, at: number) => {
    const size = got.BYTES_PER_ELEMENT;
    return Buffer.compare(a.subarray(at * size, (at + 1) * size), b.subarray(at * size, (at + 1) * size)) !== 0;
  });
  throw new Error(`${what}: differs first at ${i}, got ${got[i]}, want ${want[i]}`);
}

/** Throws at the first element further from its wanted value than its tolerance. NaN is near nothing. */
export function assertWithin(
  got: Float32Array,
  want: Float32Array,
  tolerance: (index: number) => number,
  what: string,
): void {
  for (let i = 0; i < want.length; i++) {
    const error = Math.abs(got[i]! - want[i]!);
    const limit = tolerance(i);
    if (!(error <= limit)) {
      throw new Error(`${what}: element ${i} is ${error} off, allowed ${limit}, got ${got[i]}, want ${want[i]}`);
    }
  }
}
