/** The draft vocabulary: a head may guess fewer tokens than the target has, and its LM head is cut to them. */
import { CheckpointError } from '../errors.ts';
import type { PackedMatrix } from '../kernels/kernels.ts';
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

/** Rows `ids` of the target's LM head become `to` [ids.length, d], of whatever type that is. */
export function selectMatrixRows(target: TargetModel, to: PackedMatrix, ids: Int32Array): void {
  const rowsAtOnce = 256; // bounds the f32 copy to a few hundred kB
  const rows = new Float32Array(rowsAtOnce * to.cols);
  const identity = Int32Array.from({ length: rowsAtOnce }, (_, i) => i);
  for (let first = 0; first < ids.length; first += rowsAtOnce) {
    const part = ids.subarray(first, first + rowsAtOnce);
    target.kernels.gatherRows(rows, to.cols, target.lmHead, part, part.length);
    target.kernels.pack(to, first, new Uint8Array(rows.buffer), 'F32', identity.subarray(0, part.length));
  }
}
