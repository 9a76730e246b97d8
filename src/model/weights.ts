/** Weights from a `TensorSource` into packed matrices, with every name, shape and type checked before memory is taken. */
import { CheckpointError } from '../errors.ts';
import {
  type Kernels,
  type PackedMatrix,
  packedBytes,
  SOURCE_TYPES,
  type SourceType,
  sourceRowBytes,
  TILE_ROWS,
  type WeightDtype,
} from '../kernels/kernels.ts';
import { absentTensor, type TensorEntry, type TensorSource } from '../tensor/source.ts';

/** `auto` keeps the file's own precision class per tensor. */
export const MODEL_DTYPES = ['auto', ...(['f32', 'q8', 'q4'] as const)] as const;
export type ModelDtype = (typeof MODEL_DTYPES)[number];

const PRECISION_CLASS = { F32: 'f32', F16: 'f32', BF16: 'f32', Q8_0: 'q8', Q4_0: 'q4', Q4_1: 'q4' } as const satisfies {
  [T in SourceType]: WeightDtype;
};
const WIDEST_FIRST = ['f32', 'q8', 'q4'] as const satisfies readonly WeightDtype[];

type SourceEntry = TensorEntry & { readonly type: SourceType };

/** Of one part of a tensor: from 1 MiB on, parts load no slower than whole tensors; a single tile of very wide rows may be more. */
const READ_BYTES = 2 ** 21;

/** One file tensor that becomes some rows of a matrix; `rowMap` reorders or selects its rows. */
export interface Part {
  readonly name: string;
  readonly rows: number;
  readonly rowMap?: Int32Array;
}

function isSourceType(type: string): type is SourceType {
  return (SOURCE_TYPES as readonly string[]).includes(type);
}

export class WeightLoader implements Disposable {
  readonly #kernels: Kernels;
  readonly #source: TensorSource;
  readonly #dtype: ModelDtype;
  readonly #onBytes: ((bytes: number) => void) | undefined;
  readonly #buffers: ArrayBuffer[] = [];
  /** Of all matrices and vectors, as packed. */
  bytes = 0;

  constructor(kernels: Kernels, source: TensorSource, dtype: ModelDtype, onBytes?: (bytes: number) => void) {
    this.#kernels = kernels;
    this.#source = source;
    this.#dtype = dtype;
    this.#onBytes = onBytes;
  }

  /** The entry of a floating-point tensor of exactly this shape. */
  entry(name: string, shape: readonly number[]): SourceEntry {
    const entry = this.#source.entries.get(name);
    if (entry === undefined) throw absentTensor(this.#source, name, `must be present, with shape [${shape}]`);
    if (entry.shape.length !== shape.length || entry.shape.some((size, i) => size !== shape[i])) {
      throw new CheckpointError(this.#source.path, name, `expected shape [${shape}], got [${entry.shape}]`);
    }
    const { type } = entry;
    if (!isSourceType(type)) throw new CheckpointError(this.#source.path, name, `expected floating point, got ${type}`);
    return { ...entry, type };
  }

  /** W [sum of the parts' selected rows, cols]: the parts below each other, so that one product computes them all. */
  matrix(parts: readonly Part[], cols: number): PackedMatrix {
    const entries = parts.map((part) => this.entry(part.name, [part.rows, cols]));
    const dtype =
      this.#dtype === 'auto'
        ? WIDEST_FIRST.find((d) => entries.some((entry) => PRECISION_CLASS[entry.type] === d))!
        : this.#dtype;
    const rows = parts.reduce((sum, part) => sum + (part.rowMap?.length ?? part.rows), 0);
    const bytes = packedBytes(dtype, rows, cols);
    const buffer = this.#kernels.allocate(bytes, true);
    this.#buffers.push(buffer);
    this.bytes += bytes;
    const matrix: PackedMatrix = { dtype, rows, cols, data: new Uint8Array(buffer) };
    let firstRow = 0;
    parts.forEach((part, i) => {
      const rowMap = part.rowMap ?? Int32Array.from({ length: part.rows }, (_, row) => row);
      this.#pack(matrix, firstRow, entries[i]!, rowMap);
      firstRow += rowMap.length;
    });
    return matrix;
  }

  /** Rows of the file's tensor to rows of the matrix, a part at a time: beside the weights, memory holds one part. */
  #pack(matrix: PackedMatrix, firstRow: number, entry: SourceEntry, rowMap: Int32Array): void {
    const rowBytes = sourceRowBytes(entry.type, matrix.cols);
    const rowsAtOnce = Math.max(1, Math.floor(READ_BYTES / rowBytes / TILE_ROWS)) * TILE_ROWS;
    for (let done = 0; done < rowMap.length; done += rowsAtOnce) {
      const wanted = rowMap.subarray(done, done + rowsAtOnce);
      const first = wanted.reduce((a, b) => Math.min(a, b));
      const last = wanted.reduce((a, b) => Math.max(a, b));
      const bytes = this.#source.read(entry.name, first, last - first + 1);
      const within = wanted.map((row) => row - first);
      this.#kernels.pack(matrix, firstRow + done, bytes, entry.type, within);
      this.#onBytes?.(wanted.length * rowBytes);
    }
  }

  /** A vector as f32 [length]. */
  vector(name: string, length: number): Float32Array {
    const entry = this.entry(name, [length]);
    const data = new Uint8Array(packedBytes('f32', 1, length));
    const row: PackedMatrix = { dtype: 'f32', rows: 1, cols: length, data };
    this.#kernels.pack(row, 0, this.#source.read(name), entry.type, new Int32Array(1));
    const out = new Float32Array(length);
    this.#kernels.gatherRows(out, length, row, new Int32Array(1), 1);
    this.#onBytes?.(entry.byteLength);
    this.bytes += out.byteLength;
    return out;
  }

  has(name: string): boolean {
    return this.#source.entries.has(name);
  }

  /** Gives all matrices back. */
  [Symbol.dispose](): void {
    for (const buffer of this.#buffers.splice(0)) this.#kernels.release(buffer);
  }
}

/** llama.cpp stores query and key rows of a head as pairs (i, i + headDim/2) interleaved: row order that undoes it. */
export function halvesFromPairs(heads: number, headDim: number): Int32Array {
  const half = headDim / 2;
  return Int32Array.from({ length: heads * headDim }, (_, row) => {
    const head = Math.floor(row / headDim);
    const within = row % headDim;
    return head * headDim + (within % half) * 2 + Math.floor(within / half);
  });
}
