/**
 * Medusa's sparse trees (arXiv:2401.10774 §2.1.2, §2.3.3): which part of the product of all heads' guesses is looked at. A path's chance is the
 * product of how often the guess of that rank is right, head by head.
 */
import { shapeFromPaths, type TreeShape } from './tree.ts';

/** The authors', by their own names. EAGLE's static tree, of 25 nodes, bears the first one's name too, but is another. */
// biome-ignore format: a depth begins a line
export const MEDUSA_TREES = {
  mc_sim_7b_63: [
    [0], [1], [2], [3], [4], [5], [6], [7], [8], [9],
    [0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [0, 6], [0, 7], [0, 8], [0, 9], [1, 0], [1, 1], [1, 2], [1, 3],
    [1, 4], [1, 5], [1, 6], [2, 0], [2, 1], [2, 2], [3, 0], [3, 1], [4, 0], [5, 0], [6, 0], [7, 0], [8, 0], [9, 0],
    [0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 4], [0, 0, 5], [0, 0, 6], [0, 0, 7], [0, 0, 8], [0, 0, 9],
    [0, 1, 0], [0, 1, 1], [0, 1, 2], [0, 2, 0], [0, 2, 1], [0, 3, 0], [0, 4, 0], [0, 5, 0], [0, 6, 0], [0, 7, 0],
    [1, 0, 0], [1, 0, 1], [2, 0, 0],
    [0, 0, 0, 0], [0, 0, 0, 1],
  ],
  vicuna_7b_stage2: [
    [0], [1], [2], [3], [4], [5], [6], [7], [8], [9],
    [0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [0, 6], [0, 7], [0, 8], [0, 9], [1, 0], [1, 1], [1, 2], [1, 3],
    [1, 4], [2, 0], [2, 1], [3, 0], [3, 1], [4, 0], [5, 0], [6, 0], [7, 0],
    [0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 4], [0, 0, 5], [0, 0, 6], [0, 0, 7], [0, 0, 8], [0, 1, 0],
    [0, 1, 1], [0, 1, 2], [0, 1, 3], [0, 2, 0], [0, 2, 1], [0, 3, 0], [0, 4, 0], [0, 5, 0], [1, 0, 0], [1, 0, 1],
    [1, 0, 2], [1, 1, 0], [2, 0, 0],
    [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 3], [0, 0, 1, 0], [0, 0, 2, 0], [0, 1, 0, 0],
  ],
} as const satisfies Readonly<Record<string, readonly (readonly number[])[]>>;

export type MedusaTreeName = keyof typeof MEDUSA_TREES;
export const MEDUSA_TREE_NAMES = Object.keys(MEDUSA_TREES) as readonly MedusaTreeName[];

export interface MedusaTreeLimits {
  /** Nodes below the root. */
  readonly nodes: number;
  /** At most as many as there are heads, which it is by default. */
  readonly maxDepth?: number;
  /** By depth, the first is 1; all ranks of the table by default. */
  readonly maxChildren?: readonly number[];
}

/**
 * The likeliest tree for heads whose accuracy was measured: from the best first guess on, the likeliest neighbour of what is there is
 * added, which is a node's next sibling or its first child. The authors' builder, ties and rounding included: products are float32, and of
 * equal neighbours the one found first wins, in the order in which the nodes were added, siblings before children.
 * @param accuracies [heads][ranks] how often the guess of that rank is the token.
 * @returns paths of child ranks in the order of their adding; fewer than asked for where nothing that is left is ever right.
 * @throws RangeError for limits that the table does not cover.
 */
export function growMedusaTree(
  accuracies: readonly (readonly number[])[],
  { nodes, maxDepth = accuracies.length, maxChildren = accuracies.map((ranks) => ranks.length) }: MedusaTreeLimits,
): readonly (readonly number[])[] {
  if (!Number.isInteger(nodes) || nodes < 1) throw new RangeError(`medusa tree: at least 1 node, got ${nodes}`);
  checkTable(accuracies, maxDepth, maxChildren);
  const chance = (path: readonly number[]): number =>
    path.reduce((product, rank, depth) => Math.fround(product * Math.fround(accuracies[depth]![rank]!)), 1);
  const paths: (readonly number[])[] = [[0]];
  const taken = new Set(['0']);
  while (paths.length < nodes) {
    let best: readonly number[] | undefined;
    let highest = 0;
    for (const path of paths) {
      for (const neighbour of neighboursOf(path, maxDepth, maxChildren)) {
        if (taken.has(neighbour.join())) continue;
        const value = chance(neighbour);
        if (!(value > highest)) continue;
        highest = value;
        best = neighbour;
      }
    }
    if (best === undefined) break;
    paths.push(best);
    taken.add(best.join());
  }
  return paths;
}

function* neighboursOf(
  path: readonly number[],
  maxDepth: number,
  maxChildren: readonly number[],
): Generator<readonly number[]> {
  const sibling = path.at(-1)! + 1;
  if (sibling < maxChildren[path.length - 1]!) yield [...path.slice(0, -1), sibling];
  if (path.length < maxDepth) yield [...path, 0];
}

function checkTable(
  accuracies: readonly (readonly number[])[],
  maxDepth: number,
  maxChildren: readonly number[],
): void {
  const fail = (rule: string): never => {
    throw new RangeError(`medusa tree: ${rule}`);
  };
  const heads = accuracies.length;
  if (!Number.isInteger(maxDepth) || maxDepth < 1 || maxDepth > heads)
    fail(`the depth is a whole number of 1..${heads}, for which there are heads, got ${maxDepth}`);
  for (let depth = 0; depth < maxDepth; depth++) {
    const ranks = accuracies[depth]!.length;
    const children = maxChildren[depth];
    if (children === undefined || !Number.isInteger(children) || children < 1 || children > ranks)
      fail(`a node at depth ${depth} has 1..${ranks} children, for which there are accuracies, got ${children}`);
  }
}

/** A published tree. */
export function medusaShape(name: MedusaTreeName): TreeShape {
  return shapeFromPaths(MEDUSA_TREES[name]);
}
