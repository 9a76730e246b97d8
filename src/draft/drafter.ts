/** What guesses the next tokens. Rivals differ here only: the loop, the verifier and the statistics are the same for all. */
import type { Tensor } from '../tensor/tensor.ts';
import type { TreeBudget } from './budget.ts';
import type { DraftSampling } from './draft-laws.ts';
import { type DraftTree, depthOf } from './tree.ts';

export interface Drafter extends Disposable {
  readonly name: string;
  /** Most nodes of a tree, root included. */
  readonly maxNodes: number;
  /** What decides how much is drafted, if a budget does. */
  readonly budget?: TreeBudget | undefined;
  /**
   * A new text, of which the target still holds the first `held` tokens. Keeps what it has seen of them and forgets the rest; returns how
   * many it needs not observe again: the target computes the others once more, for their features.
   * @param sampling asks for drawn guesses; a drafter that cannot draw, or draws by a law that it cannot tell, chooses as ever.
   */
  resume(text: readonly number[], held: number, sampling?: DraftSampling): number;
  /**
   * Rows just committed by the target, in order: tokens[rows[i]] with its feature row rows[i], i < count. Called after every prefill
   * chunk and every round, before the next `propose`. Features are valid during the call only.
   */
  observe(tokens: Int32Array, features: Tensor, rows: Int32Array, count: number): void;
  /** A tree below `root`, the token drawn last. Nodes deeper than `maxDepth` would pass a limit and must not be proposed. */
  propose(root: number, maxDepth: number): DraftTree;
  /**
   * What the target says after every node of the last proposal, those that fell too: for drafters that ask it something by their nodes.
   * Called after every round, before its rows are observed.
   * @param logits [tree.size, V], row i after node i; valid during the call only, and to be left as they are.
   */
  observeProposal?(logits: Tensor): void;
  /**
   * How the last proposal fared, for drafters that learn from it.
   * @param path nodes that stand, root first, `pathLength` of them. @param bonus the token after the last.
   * @param forwardMs milliseconds of the target's forward over the tree.
   */
  settle?(path: Int32Array, pathLength: number, bonus: number, forwardMs: number): void;
}

/**
 * Holds a proposal against the rules before any of it reaches the target. A drafter that breaks one is a bug, not bad luck: a guess may
 * be wrong, but it is a token of the vocabulary at an allowed place.
 * @param root and maxDepth as given to `propose`.
 * @throws RangeError naming the drafter, the node and the rule.
 */
export function checkProposal(
  drafter: Drafter,
  { size, tokens, parents }: DraftTree,
  root: number,
  maxDepth: number,
  vocabSize: number,
): void {
  const { maxNodes } = drafter;
  if (!(size >= 1 && size <= maxNodes && size <= tokens.length && size <= parents.length)) {
    fail(drafter, `a tree has 1..${maxNodes} nodes, got ${size}`);
  }
  if (tokens[0] !== root || parents[0] !== -1) {
    fail(drafter, `the root is token ${root} with parent -1, got token ${tokens[0]} with parent ${parents[0]}`);
  }
  for (let node = 1; node < size; node++) {
    const token = tokens[node]!;
    const parent = parents[node]!;
    if (token < 0 || token >= vocabSize) {
      fail(drafter, `node ${node} must be a token of 0..${vocabSize - 1}, got ${token}`);
    }
    if (parent < 0 || parent >= node) fail(drafter, `node ${node}'s parent must come before it, got ${parent}`);
    const depth = depthOf(parents, node);
    if (depth > maxDepth) fail(drafter, `node ${node} must be at most ${maxDepth} deep, got ${depth}`);
  }
}

function fail(drafter: Drafter, rule: string): never {
  throw new RangeError(`drafter "${drafter.name}": ${rule}`);
}
