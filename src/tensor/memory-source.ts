/** Tensors made in memory, as a file would give them. */
import { CheckpointError } from '../errors.ts';
import { rowExtent, type TensorEntry, type TensorSource } from './source.ts';

export interface MemoryTensor {
  readonly shape: readonly number[];
  /** Row-major. */
  readonly data: Float32Array | BigInt64Array;
}

/** @param path stands in messages. */
export function memorySource(path: string, tensors: Readonly<Record<string, MemoryTensor>>): TensorSource {
  const entries = new Map<string, TensorEntry>(
    Object.entries(tensors).map(([name, { shape, data }]) => [
      name,
      { name, shape, type: data instanceof BigInt64Array ? 'I64' : 'F32', byteLength: data.byteLength },
    ]),
  );
  return {
    path,
    entries,
    read(name, firstRow, rows) {
      const tensor = tensors[name];
      if (tensor === undefined) throw new CheckpointError(path, name, 'must be present');
      const { offset, bytes } = rowExtent(entries.get(name)!, firstRow, rows);
      return new Uint8Array(tensor.data.buffer, tensor.data.byteOffset + offset, bytes);
    },
    [Symbol.dispose]() {},
  };
}
