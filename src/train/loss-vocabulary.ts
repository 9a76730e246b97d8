/**
 * The tokens that the loss tells apart. A head's own draft vocabulary is small, for each pass of decoding pays for it; what is learned shall
 * serve the tokens of any text, which decoding adds to it. So the loss reads a larger part of the target's LM head.
 */
import { cutLmHead } from '../draft/head-vocabulary.ts';
import { RequestError } from '../errors.ts';
import type { PackedMatrix } from '../kernels/kernels.ts';
import type { TargetModel } from '../model/target.ts';
import { draftTargetIds } from './draft-vocabulary.ts';
import type { EncodedText } from './unroll.ts';

/** A quarter of SmolLM2's 49,152 tokens, which most of what it writes is made of, at a quarter of the LM head's cost. */
export const DEFAULT_LOSS_VOCABULARY = 12_288;

/** What the loss tells apart if nothing is said. */
export function defaultLossVocabSize(vocabSize: number): number {
  return Math.min(DEFAULT_LOSS_VOCABULARY, vocabSize);
}

export class LossVocabulary implements Disposable {
  /** [Vl], ascending; undefined is all tokens. */
  readonly targetIds: Int32Array | undefined;
  /** [Vl, d], frozen: the target's own where it is all tokens, else f32. */
  readonly lmHead: PackedMatrix;
  readonly #target: TargetModel;
  readonly #buffers: ArrayBuffer[] = [];

  /**
   * @param texts whose most frequent tokens it is made of.
   * @param size tokens, Vl; the default unless said.
   * @throws RequestError where the target has fewer.
   */
  constructor(target: TargetModel, texts: Iterable<EncodedText>, size = defaultLossVocabSize(target.config.vocabSize)) {
    const { vocabSize } = target.config;
    if (size > vocabSize)
      throw new RequestError('lossVocabSize', `must be at most the target's ${vocabSize}, got ${size}`);
    this.#target = target;
    this.targetIds = draftTargetIds(texts, size, vocabSize);
    this.lmHead = cutLmHead(target, this.targetIds, 'f32', this.#buffers);
  }

  /** Vl. */
  get size(): number {
    return this.lmHead.rows;
  }

  [Symbol.dispose](): void {
    for (const buffer of this.#buffers.splice(0)) this.#target.kernels.release(buffer);
  }
}
