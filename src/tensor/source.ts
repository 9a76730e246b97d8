/**
 * Where weights come from, as the model sees it: named matrices in some element type. `checkpoint/` implements it for
 * GGUF and safetensors; tests implement it in memory. Names are the Hugging Face ones (`model.layers.0.self_attn.q_proj.weight`).
 */
import type { SourceType } from '../kernels/kernels.ts';

/** I64 and BOOL appear in draft-vocabulary maps only. */
export type TensorType = SourceType | 'I64' | 'BOOL';

export interface TensorEntry {
  readonly name: string;
  readonly type: TensorType;
  /** Row-major, outermost first: a linear weight is [out, in]. */
  readonly shape: readonly number[];
  readonly byteLength: number;
}

export interface TensorSource extends Disposable {
  /** The file's path, for messages. */
  readonly path: string;
  readonly entries: ReadonlyMap<string, TensorEntry>;
  /** The tensor's bytes. The view is valid until the next `read`: a staging buffer is used again. Throws CheckpointError if the name is missing. */
  read(name: string): Uint8Array;
}
