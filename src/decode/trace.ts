/** A round as data that can be written down: plain numbers and lists, nothing that the next round changes. */
import type { DraftTree } from '../draft/tree.ts';
import type { Round } from './generate.ts';

export interface RoundTrace {
  /** Counts a text's rounds from 1. */
  readonly round: number;
  /** Tokens in the target's cache before the round: the text but its last token, which is the root. */
  readonly committed: number;
  /** By node; node 0 is the root, and parents come before their children. */
  readonly tokens: readonly number[];
  /** Of the root -1. */
  readonly parents: readonly number[];
  readonly positions: readonly number[];
  /** The drafter's log-probability of a node's token after its parent; of the root 0. Null where the drafter gave none, or nothing finite. */
  readonly logProbs: readonly (number | null)[];
  /** Nodes that the target agreed with, root first. */
  readonly acceptedPath: readonly number[];
  /** The target's own token after the last of them. */
  readonly bonus: number;
  /** Milliseconds, draft to commit. */
  readonly ms: number;
  /** Tokens that the round gave to the text; absent where it gave all of its path and the bonus, as it does unless the text ended within. */
  readonly emitted?: number;
}

/** @param kept tokens of the round that became output. @throws TypeError for the token that prefill yields, which had no round. */
export function traceRound({ tree, verdict, committed, times }: Round, round: number, kept: number): RoundTrace {
  if (tree === undefined || verdict === undefined) throw new TypeError('trace: the token of prefill has no tree');
  const parents = Array.from(tree.parents.subarray(0, tree.size));
  const positions = [committed];
  for (const parent of parents.slice(1)) positions.push(positions[parent]! + 1);
  return {
    round,
    committed,
    tokens: Array.from(tree.tokens.subarray(0, tree.size)),
    parents,
    positions,
    logProbs: logProbabilities(tree),
    acceptedPath: Array.from(verdict.path.subarray(0, verdict.pathLength)),
    bonus: verdict.bonus,
    ms: times.draft + times.verify + times.sample + times.commit,
    ...(kept < verdict.pathLength && { emitted: kept }),
  };
}

function logProbabilities(tree: DraftTree): (number | null)[] {
  return Array.from({ length: tree.size }, (_, node) => {
    const value = node === 0 ? 0 : tree.logProbabilities?.[node];
    return value !== undefined && Number.isFinite(value) ? value : null;
  });
}
