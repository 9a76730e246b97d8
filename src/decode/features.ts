/** The target's features of a text that is known already: prefill, nothing else. */
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import type { TargetModel } from '../model/target.ts';
import { copyRow, ScratchTensor, type Tensor } from '../tensor/tensor.ts';

/** Rows of one forward: from here on a row costs no less. */
const CHUNK = 64;

/** Computes one text after another with the same buffers. */
export class FeatureReader implements Disposable {
  readonly #target: TargetModel;
  readonly #cache: ReturnType<TargetModel['createCache']>;
  readonly #batch = new ForwardBatch(CHUNK);
  readonly #features = new ScratchTensor();

  /** @param capacity tokens of the longest text. */
  constructor(target: TargetModel, capacity: number) {
    this.#target = target;
    this.#cache = target.createCache(1, capacity);
  }

  /** Features [ids.length, d] after the final norm; valid until the next call. */
  read(ids: ArrayLike<number>): Tensor {
    const sequence = this.#cache.sequences[0]!;
    const all = this.#features.reshape(ids.length, this.#target.config.hiddenSize);
    const batch = this.#batch;
    sequence.truncate(0);
    for (let start = 0; start < ids.length; start += CHUNK) {
      batch.clear();
      const rows = Math.min(CHUNK, ids.length - start);
      for (let row = 0, parent = COMMITTED; row < rows; row++)
        parent = batch.append(sequence, ids[start + row]!, parent, false);
      const { features } = this.#target.forward(batch, this.#cache);
      sequence.commitAll();
      for (let row = 0; row < rows; row++) copyRow(all, start + row, features, row);
    }
    return all;
  }

  [Symbol.dispose](): void {
    this.#cache[Symbol.dispose]();
  }
}
