/** Packed f32 matrices that training makes of others. */
import { type Kernels, type PackedMatrix, packedBytes } from '../kernels/kernels.ts';
import type { WeightTensor } from '../model/layers.ts';

export function allocateF32(kernels: Kernels, rows: number, cols: number): PackedMatrix {
  return { dtype: 'f32', rows, cols, data: new Uint8Array(kernels.allocate(packedBytes('f32', rows, cols), true)) };
}

/** The matrix itself where it is f32, else its numbers as such. */
export function packF32(kernels: Kernels, matrix: PackedMatrix): PackedMatrix {
  if (matrix.dtype === 'f32') return matrix;
  const { rows, cols } = matrix;
  const packed = allocateF32(kernels, rows, cols);
  const all = rowMajor(kernels, { weight: matrix, first: 0, rows });
  const everyRow = Int32Array.from({ length: rows }, (_, row) => row);
  kernels.pack(packed, 0, new Uint8Array(all.buffer), 'F32', everyRow);
  return packed;
}

export function transposeF32(kernels: Kernels, matrix: PackedMatrix): PackedMatrix {
  const transposed = allocateF32(kernels, matrix.cols, matrix.rows);
  kernels.transpose(transposed, matrix);
  return transposed;
}

/** A tensor's numbers as files have them: row-major [rows, cols], or a vector. */
export function rowMajor(kernels: Kernels, { weight, first, rows }: Omit<WeightTensor, 'name'>): Float32Array {
  if (weight instanceof Float32Array) return weight.slice(first, first + rows);
  const all = new Float32Array(rows * weight.cols);
  const ids = Int32Array.from({ length: rows }, (_, row) => first + row);
  kernels.gatherRows(all, weight.cols, weight, ids, rows);
  return all;
}
