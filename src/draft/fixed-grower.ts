/** Fills a shape that is the same every round (EAGLE, arXiv:2401.15077 §3.1: the sparse tree; a chain is one too). */
import type { DraftLaws } from './draft-laws.ts';
import type { DraftTree, TreeShape } from './tree.ts';
import type { Guesses, TreeGrower } from './tree-grower.ts';

export class FixedGrower implements TreeGrower {
  readonly maxNodes: number;
  readonly branching: number;
  readonly maxRows: number;
  readonly maxLevels: number;
  readonly levelTokens: Int32Array;
  readonly levelParents: Int32Array;
  readonly #shape: TreeShape;
  readonly drawnRows: Int32Array; // [size]
  readonly #tree: {
    size: number;
    tokens: Int32Array;
    parents: Int32Array;
    logProbabilities: Float64Array;
    laws: DraftLaws | undefined;
  };
  /** Of a node with children, among those of its depth; -1 where there are none: the head need not look at it. */
  readonly #rows: Int32Array; // [size]
  /** Of a node among its siblings. Drawn guesses must all be kept, so a shape that skips ranks takes the first ones drawn. */
  readonly #ordinals: Int32Array; // [size]
  #maxDepth = 0;

  constructor(shape: TreeShape) {
    this.#shape = shape;
    const { size, parents, depths } = shape;
    this.#tree = {
      size: 1,
      tokens: new Int32Array(size),
      parents: Int32Array.from(parents),
      logProbabilities: new Float64Array(size),
      laws: undefined,
    };
    this.#rows = new Int32Array(size).fill(-1);
    const rowsAt = new Int32Array(shape.maxDepth + 1);
    const children = new Int32Array(size);
    this.#ordinals = Int32Array.from(parents, (parent) => (parent < 0 ? 0 : children[parent]!++));
    this.drawnRows = new Int32Array(size).fill(-1);
    for (let node = 0, inner = 0; node < size; node++) {
      if (children[node] === 0) continue;
      this.#rows[node] = rowsAt[depths[node]!]!++;
      this.drawnRows[node] = inner++;
    }
    this.maxNodes = size;
    this.branching = shape.maxChildren;
    this.maxRows = Math.max(1, ...rowsAt);
    this.maxLevels = Math.max(0, shape.maxDepth - 1);
    this.levelTokens = new Int32Array(this.maxRows);
    this.levelParents = new Int32Array(this.maxRows);
  }

  start(root: number, _context: number, maxDepth: number, _rows: number, drawn?: DraftLaws): boolean {
    this.#tree.tokens[0] = root;
    this.#tree.laws = drawn;
    this.#tree.size = 1;
    this.#maxDepth = maxDepth;
    return true;
  }

  /** Nodes are ordered by depth, so each level is a range of nodes. */
  grow(guesses: Guesses): number {
    const { size, parents, depths, maxChildren } = this.#shape;
    const { tokens, logProbabilities, laws } = this.#tree;
    const ranks = laws === undefined ? this.#shape.ranks : this.#ordinals;
    const rows = this.#rows;
    const first = this.#tree.size;
    if (first === size) return 0;
    const depth = depths[first]!;
    let inner = 0;
    let node = first;
    for (; node < size && depths[node] === depth; node++) {
      const parentRow = rows[parents[node]!]!;
      const guess = parentRow * maxChildren + ranks[node]!;
      tokens[node] = guesses.tokens[guess]!;
      logProbabilities[node] = guesses.logProbabilities[guess]!;
      if (rows[node]! < 0) continue;
      this.levelTokens[inner] = tokens[node]!;
      this.levelParents[inner++] = parentRow;
    }
    this.#tree.size = node;
    return depth < this.#maxDepth ? inner : 0;
  }

  finish(): DraftTree {
    return this.#tree;
  }
}
