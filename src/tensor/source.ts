/**
 * Where weights come from, as the model sees it: named matrices in some element type. `checkpoint/` implements it for
 * GGUF and safetensors; tests implement it in memory. Names are the Hugging Face ones (`model.layers.0.self_attn.q_proj.weight`).
 */
import { CheckpointError } from '../errors.ts';
import { SOURCE_TYPES, type SourceType } from '../kernels/kernels.ts';

/** I64 and BOOL appear in draft-vocabulary maps only. */
export type TensorType = SourceType | 'I64' | 'BOOL';

export interface TensorEntry {
  readonly name: string;
  readonly type: TensorType;
  /** Row-major, outermost first: a linear weight is [out, in]. */
  readonly shape: readonly number[];
  readonly byteLength: number;
}

/** A tensor that is in the file and whose element type nothing here reads. */
export interface UnsupportedTensor {
  /** As the file calls it. */
  readonly ownName: string;
  readonly type: string;
}

export interface TensorSource extends Disposable {
  /** The file's path, for messages. */
  readonly path: string;
  readonly entries: ReadonlyMap<string, TensorEntry>;
  /** By the name that an entry would have. */
  readonly unsupported?: ReadonlyMap<string, UnsupportedTensor>;
  /**
   * The bytes of `rows` rows from `firstRow` on, a row being what one index of the outermost size holds; by default all of the tensor's.
   * The view is valid until the next `read`: a staging buffer is used again.
   * @throws CheckpointError if the name is missing, RangeError for rows that the tensor does not have.
   */
  read(name: string, firstRow?: number, rows?: number): Uint8Array;
}

/** Says why a tensor without an entry cannot be read. */
export function absentTensor(
  { path, unsupported }: Pick<TensorSource, 'path' | 'unsupported'>,
  name: string,
  rule: string,
): CheckpointError {
  const found = unsupported?.get(name);
  if (found === undefined) return new CheckpointError(path, name, rule);
  const { ownName, type } = found;
  return new CheckpointError(path, ownName, `must be of type ${SOURCE_TYPES.join(', ')}, got ${type}`);
}

/** Where rows lie within their tensor, in bytes. */
export function rowExtent(
  { name, shape, byteLength }: TensorEntry,
  firstRow = 0,
  rows?: number,
): { readonly offset: number; readonly bytes: number } {
  const [all = 1] = shape;
  const count = rows ?? all - firstRow;
  if (!Number.isInteger(firstRow) || !Number.isInteger(count) || firstRow < 0 || count < 0 || firstRow + count > all) {
    throw new RangeError(`read: ${name} has ${all} rows, got ${count} from row ${firstRow} on`);
  }
  const rowBytes = byteLength / all;
  return { offset: firstRow * rowBytes, bytes: count * rowBytes };
}
