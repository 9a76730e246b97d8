/** Which drafted tokens stand. Pure: knows trees and choices, nothing of models. */
import type { DraftTree } from '../draft/tree.ts';

/** Filled by `verifyMatch`, used again every round. */
export interface Verdict {
  /** Nodes from the root down, root first. */
  readonly path: Int32Array;
  /** Nodes in `path`: accepted drafts + 1. */
  pathLength: number;
  /** The target's own token after the last accepted node. */
  bonus: number;
}

export function createVerdict(maxNodes: number): Verdict {
  return { path: new Int32Array(maxNodes), pathLength: 0, bonus: -1 };
}

/**
 * Match verification: one draw from the target per emitted position; descend to the child that equals it, else it is the bonus token.
 * As often right as sequential tests of the children, and the drawn text is plain decoding's text for the same seed.
 * @param choose the target's token after a node of the given depth.
 */
export function verifyMatch(tree: DraftTree, choose: (node: number, depth: number) => number, verdict: Verdict): void {
  let node = 0;
  verdict.path[0] = 0;
  verdict.pathLength = 1;
  for (;;) {
    const token = choose(node, verdict.pathLength - 1);
    const child = childWithToken(tree, node, token);
    if (child < 0) {
      verdict.bonus = token;
      return;
    }
    verdict.path[verdict.pathLength++] = child;
    node = child;
  }
}

function childWithToken(tree: DraftTree, parent: number, token: number): number {
  for (let node = parent + 1; node < tree.size; node++) {
    if (tree.parents[node] === parent && tree.tokens[node] === token) return node;
  }
  return -1;
}
