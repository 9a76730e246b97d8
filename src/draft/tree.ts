/**
 * Draft trees. Node 0 is the root (the last token drawn, not yet in the target's cache); parents come before children. A shape says
 * where nodes hang and which rank of its parent's guesses each one takes; a tree adds the tokens of one round.
 */
import type { DraftLaws } from './draft-laws.ts';

/** Nodes of the largest tree, root included: each may be a row of the target's forward, which pays for a few dozen on any machine. */
export const MAX_TREE_NODES = 1024;
/** Guesses after a node at most: they are found by insertion. */
export const MAX_CHILDREN = 128;

export interface TreeShape {
  readonly kind: 'fixed';
  /** Nodes, root included. */
  readonly size: number;
  readonly parents: Int32Array; // [size], root -1
  /** A node takes its parent's rank-th best guess (0-based). */
  readonly ranks: Int32Array; // [size]
  readonly depths: Int32Array; // [size], root 0
  readonly maxDepth: number;
  /** Most children of a node. */
  readonly maxChildren: number;
}

/** Valid until the drafter's next `propose`. */
export interface DraftTree {
  readonly size: number;
  readonly tokens: Int32Array; // [size], root first
  readonly parents: Int32Array; // [size], root -1
  /** Absent where every node was chosen, none drawn. */
  readonly laws?: DraftLaws | undefined;
  /** What the drafter believes of a node's token, given the path down to its parent; absent where it has no such belief. */
  readonly logProbabilities?: Float64Array; // [size], root 0
}

/** The root's is 0. */
export function depthOf(parents: Int32Array, node: number): number {
  let depth = 0;
  for (let above = node; above > 0; above = parents[above]!) depth++;
  return depth;
}

/**
 * The tree whose nodes are these paths of child ranks ([0, 1] = second guess below the first guess). Nodes are ordered by depth, then
 * by path, as EAGLE's static tree is.
 */
export function shapeFromPaths(paths: readonly (readonly number[])[]): TreeShape {
  const sorted = [...paths].sort((a, b) => a.length - b.length || comparePaths(a, b));
  const nodeOf = new Map<string, number>([['', 0]]);
  const parents = [-1];
  const ranks = [0];
  const depths = [0];
  for (const path of sorted) {
    const key = path.join();
    const parent = nodeOf.get(path.slice(0, -1).join());
    if (path.length === 0 || path.some((rank) => !Number.isInteger(rank) || rank < 0)) {
      throw new RangeError(`tree: a path is a list of child ranks, got [${path}]`);
    }
    if (parent === undefined) throw new RangeError(`tree: the parent of [${path}] is missing`);
    if (nodeOf.has(key)) throw new RangeError(`tree: [${path}] is given twice`);
    nodeOf.set(key, parents.length);
    parents.push(parent);
    ranks.push(path.at(-1)!);
    depths.push(path.length);
  }
  return {
    kind: 'fixed',
    size: parents.length,
    parents: Int32Array.from(parents),
    ranks: Int32Array.from(ranks),
    depths: Int32Array.from(depths),
    maxDepth: Math.max(...depths),
    maxChildren: Math.max(...ranks) + 1,
  };
}

function comparePaths(a: readonly number[], b: readonly number[]): number {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i]! - b[i]!;
  return 0;
}

/** `depth` nodes below each other. */
export function chainShape(depth: number): TreeShape {
  return shapeFromPaths(Array.from({ length: depth }, (_, i) => new Array<number>(i + 1).fill(0)));
}

/** EAGLE-1's sparse tree `mc_sim_7b_63`, used by its authors for every model (EAGLE, arXiv:2401.15077, repository branch v1). */
export const EAGLE_STATIC_PATHS: readonly (readonly number[])[] = [
  [0], [1], [2], [3],
  [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0], [2, 1], [3, 0],
  [0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 2, 0], [0, 2, 1], [1, 0, 0],
  [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2],
  [0, 0, 0, 0, 0], [0, 0, 0, 0, 1],
]; // biome-ignore format: one depth a line

/** How often the rank-th guess was the target's token, measured for the starter head on the development questions' chains and trees. */
export const RANK_ACCEPTANCE = [0.38, 0.13, 0.07, 0.05] as const;

/** The `nodes` (root included) likeliest nodes of the static tree, by the product of their ranks' acceptance; closed under parents. */
export function staticShape(
  nodes: number = EAGLE_STATIC_PATHS.length + 1,
  acceptance: readonly number[] = RANK_ACCEPTANCE,
): TreeShape {
  if (!Number.isInteger(nodes) || nodes < 1 || nodes > EAGLE_STATIC_PATHS.length + 1) {
    throw new RangeError(`tree: the static tree has 1..${EAGLE_STATIC_PATHS.length + 1} nodes, got ${nodes}`);
  }
  const likelihood = (path: readonly number[]): number => path.reduce((p, rank) => p * acceptance[rank]!, 1);
  const ranked = [...EAGLE_STATIC_PATHS].sort((a, b) => likelihood(b) - likelihood(a));
  return shapeFromPaths(ranked.slice(0, nodes - 1));
}
