/** The draft vocabulary: a head may guess fewer tokens than the target has, and its LM head is cut to them. */
import { CheckpointError } from '../errors.ts';
import { type PackedMatrix, packedBytes, type WeightDtype } from '../kernels/kernels.ts';
import type { TargetModel } from '../model/target.ts';
import type { TensorSource } from '../tensor/source.ts';

export interface VocabularySizes {
  /** V, the target's. */
  readonly vocabSize: number;
  readonly draftVocabSize: number;
}

/**
 * `d2t` holds offsets: target id = draft id + d2t[draft id], ascending (EAGLE-3's convention). Undefined where both vocabularies are the same.
 * @throws CheckpointError where the map is missing or is none.
 */
export function readTargetIds(source: TensorSource, config: VocabularySizes): Int32Array | undefined {
  const entry = source.entries.get('d2t');
  if (entry === undefined) {
    if (config.draftVocabSize === config.vocabSize) return undefined;
    throw new CheckpointError(
      source.path,
      'd2t',
      `must be present: the draft vocabulary has ${config.draftVocabSize} tokens`,
    );
  }
  if (entry.type !== 'I64' || entry.shape.length !== 1 || entry.shape[0] !== config.draftVocabSize) {
    throw new CheckpointError(
      source.path,
      'd2t',
      `expected I64 [${config.draftVocabSize}], got ${entry.type} [${entry.shape}]`,
    );
  }
  const bytes = source.read('d2t');
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const ids = new Int32Array(config.draftVocabSize);
  let last = -1;
  for (let draft = 0; draft < ids.length; draft++) {
    const target = BigInt(draft) + view.getBigInt64(draft * 8, true);
    if (target <= BigInt(last) || target >= BigInt(config.vocabSize)) {
      throw new CheckpointError(
        source.path,
        `d2t[${draft}]`,
        `target ids must ascend below ${config.vocabSize}, got ${target} after ${last}`,
      );
    }
    last = Number(target);
    ids[draft] = last;
  }
  return ids;
}

/** Copies rows of the target's LM head to other matrices. What it works in is made once. */
export class LmHeadRows {
  readonly #target: TargetModel;
  readonly #rows: Float32Array; // [most, d]
  readonly #bytes: Uint8Array; // the same
  readonly #order: Int32Array; // [most] 0, 1, …

  /** @param most rows of one copy. */
  constructor(target: TargetModel, most: number) {
    this.#target = target;
    this.#rows = new Float32Array(most * target.lmHead.cols);
    this.#bytes = new Uint8Array(this.#rows.buffer);
    this.#order = Int32Array.from({ length: most }, (_, row) => row);
  }

  /** Rows ids[0..count) to rows `first` on of `to`, [more, d]. */
  copy(ids: Int32Array, count: number, to: PackedMatrix, first: number): void {
    const { kernels, lmHead } = this.#target;
    kernels.gatherRows(this.#rows, lmHead.cols, lmHead, ids, count);
    kernels.pack(to, first, this.#bytes, 'F32', this.#order.subarray(0, count));
  }
}

/** Rows of a copy: bounds its f32 numbers to a few hundred kB. */
const ROWS_AT_ONCE = 256;

/** The target's LM head cut to the rows `ids`: [ids.length, d]; undefined leaves it whole. @param owned gets its buffer, for the caller to release. */
export function cutLmHead(
  target: TargetModel,
  ids: Int32Array | undefined,
  dtype: WeightDtype,
  owned: ArrayBuffer[],
): PackedMatrix {
  const { kernels, lmHead } = target;
  if (ids === undefined) return lmHead;
  const { cols } = lmHead;
  const buffer = kernels.allocate(packedBytes(dtype, ids.length, cols), true);
  owned.push(buffer);
  const cut: PackedMatrix = { dtype, rows: ids.length, cols, data: new Uint8Array(buffer) };
  const rows = new LmHeadRows(target, ROWS_AT_ONCE);
  for (let first = 0; first < ids.length; first += ROWS_AT_ONCE) {
    const part = ids.subarray(first, first + ROWS_AT_ONCE);
    rows.copy(part, part.length, cut, first);
  }
  return cut;
}
