/**
 * Tensors that lie in one open file at known, already checked places. GGUF and safetensors both end here; this module
 * knows neither format.
 */
import { closeSync } from 'node:fs';
import { CheckpointError, DisposedError } from '../errors.ts';
import {
  absentTensor,
  rowExtent,
  type TensorEntry,
  type TensorSource,
  type UnsupportedTensor,
} from '../tensor/source.ts';
import { readExactly } from './file.ts';

/** A tensor and where it starts in the file, in bytes. The reader has checked offset + byteLength <= file size. */
export interface PlacedTensor {
  readonly entry: TensorEntry;
  readonly offset: number;
}

export class FileTensorSource implements TensorSource {
  readonly path: string;
  readonly entries: ReadonlyMap<string, TensorEntry>;
  readonly unsupported: ReadonlyMap<string, UnsupportedTensor>;
  readonly #offsets: ReadonlyMap<string, number>;
  #fd: number | null;
  /** Grows to the most bytes read at once so far, so loading a model allocates a handful of times. */
  #staging = new Uint8Array(0);

  constructor(
    path: string,
    fd: number,
    tensors: readonly PlacedTensor[],
    unsupported: ReadonlyMap<string, UnsupportedTensor> = new Map(),
  ) {
    this.path = path;
    this.#fd = fd;
    this.entries = new Map(tensors.map(({ entry }) => [entry.name, entry]));
    this.#offsets = new Map(tensors.map(({ entry, offset }) => [entry.name, offset]));
    this.unsupported = unsupported;
  }

  read(name: string, firstRow?: number, rows?: number): Uint8Array {
    if (this.#fd === null) throw new DisposedError(`the tensor source of ${this.path}`);
    const entry = this.entries.get(name);
    const offset = this.#offsets.get(name);
    if (entry === undefined || offset === undefined)
      throw absentTensor(this, name, 'the tensor is missing from the file');
    const extent = rowExtent(entry, firstRow, rows);
    if (this.#staging.length < extent.bytes) {
      try {
        this.#staging = new Uint8Array(extent.bytes);
      } catch (cause) {
        throw new CheckpointError(this.path, name, `no memory for ${extent.bytes} bytes of it`, { cause });
      }
    }
    const view = this.#staging.subarray(0, extent.bytes);
    readExactly(this.path, this.#fd, offset + extent.offset, view, name);
    return view;
  }

  [Symbol.dispose](): void {
    if (this.#fd === null) return;
    closeSync(this.#fd);
    this.#fd = null;
    this.#staging = new Uint8Array(0);
  }
}

/**
 * The number of elements of a shape, and the only place where sizes from a file are multiplied. Doubles are exact up to
 * 2^53, and a product is compared before it is multiplied on, so nothing can wrap.
 */
export function countElements(path: string, name: string, shape: readonly number[]): number {
  let elements = 1;
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || size <= 0) {
      throw new CheckpointError(path, name, `sizes of the shape must be positive integers, got [${shape.join(', ')}]`);
    }
    elements *= size;
    if (elements > Number.MAX_SAFE_INTEGER) {
      throw new CheckpointError(path, name, `shape [${shape.join(', ')}] has more elements than any file`);
    }
  }
  return elements;
}

/** Refuses tensors that share bytes: no writer makes them, and a reader that trusts them can be fooled. */
export function refuseOverlaps(
  path: string,
  extents: readonly { readonly name: string; readonly begin: number; readonly end: number }[],
): void {
  const sorted = [...extents].sort((a, b) => a.begin - b.begin);
  for (let i = 1; i < sorted.length; i++) {
    const before = sorted[i - 1]!;
    const after = sorted[i]!;
    if (after.begin < before.end) {
      throw new CheckpointError(
        path,
        after.name,
        `starts at byte ${after.begin}, inside "${before.name}" which ends at byte ${before.end}`,
      );
    }
  }
}
