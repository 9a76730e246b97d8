/** The target model as decoding sees it: rows in, logits and features out. Knows token ids only; nothing of text or drafting. */
import type { Kernels, PackedMatrix } from '../kernels/kernels.ts';
import type { Tensor } from '../tensor/tensor.ts';
import type { ModelConfig } from './config.ts';
import type { ForwardBatch } from './forward-batch.ts';
import type { KvCache } from './kv-cache.ts';

/** Valid until the model's next forward. */
export interface ForwardOutput {
  /** [batch.logitCount, V], in the order of batch.logitRows. */
  readonly logits: Tensor;
  /** [batch.rows, d], the last hidden state after the final norm: what EAGLE-1/2 and Medusa heads read (EAGLE, arXiv:2401.15077, §3). */
  readonly features: Tensor;
}

export interface TargetModel extends Disposable {
  readonly config: ModelConfig;
  readonly kernels: Kernels;
  /** [V, d]; also the LM head where they are tied. */
  readonly embedding: PackedMatrix;
  readonly lmHead: PackedMatrix;
  /** Bytes of all weights in memory. */
  readonly weightBytes: number;
  /** @param capacity slots per sequence. Positions stay below config.contextLength. */
  createCache(sequences: number, capacity: number): KvCache;
  /** Computes the batch's rows; their keys and values become provisional rows of their sequences. */
  forward(batch: ForwardBatch, cache: KvCache): ForwardOutput;
}
