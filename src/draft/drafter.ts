/** What guesses the next tokens. Rivals differ here only: the loop, the verifier and the statistics are the same for all. */
import type { Tensor } from '../tensor/tensor.ts';
import type { DraftTree } from './tree.ts';

export interface Drafter extends Disposable {
  readonly name: string;
  /** Most nodes of a tree, root included. */
  readonly maxNodes: number;
  /** Forgets the sequence. */
  reset(): void;
  /**
   * Rows just committed by the target, in order: tokens[rows[i]] with its feature row rows[i], i < count. Called after every prefill
   * chunk and every round, before the next `propose`. Features are valid during the call only.
   */
  observe(tokens: Int32Array, features: Tensor, rows: Int32Array, count: number): void;
  /** A tree below `root`, the token drawn last. Nodes deeper than `maxDepth` would pass a limit and must not be proposed. */
  propose(root: number, maxDepth: number): DraftTree;
}
