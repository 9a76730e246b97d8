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

/** The target's LM head cut to the rows `ids`: [ids.length, d]. @param owned gets its buffer, for the caller to release. */
export function cutLmHead(
  target: TargetModel,
  ids: Int32Array,
  dtype: WeightDtype,
  owned: ArrayBuffer[],
): PackedMatrix {
  const { kernels, lmHead } = target;
  const { cols } = lmHead;
  const buffer = kernels.allocate(packedBytes(dtype, ids.length, cols), true);
  owned.push(buffer);
  const cut: PackedMatrix = { dtype, rows: ids.length, cols, data: new Uint8Array(buffer) };
  const rowsAtOnce = 256; // bounds the f32 copy to a few hundred kB
  const rows = new Float32Array(rowsAtOnce * cols);
  const identity = Int32Array.from({ length: rowsAtOnce }, (_, i) => i);
  for (let first = 0; first < ids.length; first += rowsAtOnce) {
    const part = ids.subarray(first, first + rowsAtOnce);
    kernels.gatherRows(rows, cols, lmHead, part, part.length);
    kernels.pack(cut, first, new Uint8Array(rows.buffer), 'F32', identity.subarray(0, part.length));
  }
  return cut;
}
