/**
 * EAGLE-2's dynamic tree (arXiv:2406.16858 §4; the authors' code is the reference where the paper leaves room). The head's confidence
 * tells how likely a guess is to be accepted, and so does the product along a path. Expansion: the head looks at the `topK` likeliest
 * nodes of each level and guesses `topK` tokens after each. Reranking: of all candidates so found, at any depth, the likeliest stay.
 *
 * Candidates are numbered as they are found: the topK guesses after the root, then topK x topK for each expansion (row: the node that was
 * looked at, column: rank of the guess).
 */
import { plantBest, selectBest } from './select.ts';
import { type DraftTree, MAX_CHILDREN, MAX_TREE_NODES } from './tree.ts';
import type { Guesses, TreeGrower } from './tree-grower.ts';

/** The settings in the authors' meaning. Their evaluations use 5, 10, 60. */
export interface DynamicTree {
  readonly kind: 'dynamic';
  /** Expansions after the first guesses: a path has up to depth + 1 drafted tokens. */
  readonly depth: number;
  /** Nodes that are looked at per expansion, and guesses after each. */
  readonly topK: number;
  /** Nodes that stay, root included. */
  readonly total: number;
}

/** What is kept of each is 32 bytes. */
const MAX_CANDIDATES = 2 ** 18;

/** @throws RangeError where no such tree can be grown. */
export function checkDynamicTree({ depth, topK, total }: DynamicTree): void {
  const rule = (what: string, value: number, least: number, most: number): void => {
    if (Number.isInteger(value) && value >= least && value <= most) return;
    throw new RangeError(`tree: a dynamic tree's ${what} is a whole number of ${least}..${most}, got ${value}`);
  };
  rule('depth', depth, 0, MAX_TREE_NODES - 2);
  rule('topk', topK, 1, MAX_CHILDREN);
  rule('total', total, 1, MAX_TREE_NODES);
  const candidates = topK + depth * topK * topK;
  if (candidates > MAX_CANDIDATES) {
    throw new RangeError(`tree: depth ${depth} and topk ${topK} find ${candidates} nodes, at most ${MAX_CANDIDATES}`);
  }
  if (total > candidates + 1) {
    throw new RangeError(
      `tree: depth ${depth} and topk ${topK} find ${candidates} nodes below the root, got total ${total}`,
    );
  }
}

export class DynamicGrower implements TreeGrower {
  readonly maxNodes: number;
  readonly branching: number;
  readonly maxRows: number;
  readonly maxLevels: number;
  readonly levelTokens: Int32Array;
  readonly levelParents: Int32Array;

  // Candidates in the order they are found, the first #count.
  readonly #tokens: Int32Array;
  readonly #scores: Float64Array; // log-probability of the path
  readonly #parents: Int32Array; // candidate, -1 the root
  readonly #logProbabilities: Float64Array; // of the token after its parent, as the head gave it
  #count = 0;

  /** Candidates that the head was last asked to look at, likeliest first. */
  readonly #frontier: Int32Array; // [topK]
  #expansions = 0;
  #maxExpansions = 0;

  readonly #best: Int32Array; // [total - 1]
  readonly #nodes: Int32Array; // [candidates] a chosen candidate's node, 0 where it is not chosen
  readonly #tree: { size: number; tokens: Int32Array; parents: Int32Array; logProbabilities: Float64Array };

  constructor(settings: DynamicTree) {
    checkDynamicTree(settings);
    const { depth, topK, total } = settings;
    this.maxNodes = total;
    this.branching = topK;
    this.maxRows = topK;
    this.maxLevels = depth;
    this.levelTokens = new Int32Array(topK);
    this.levelParents = new Int32Array(topK);
    const candidates = topK + depth * topK * topK;
    this.#tokens = new Int32Array(candidates);
    this.#scores = new Float64Array(candidates);
    this.#parents = new Int32Array(candidates);
    this.#logProbabilities = new Float64Array(candidates);
    this.#frontier = new Int32Array(topK);
    this.#best = new Int32Array(total - 1);
    this.#nodes = new Int32Array(candidates);
    this.#tree = {
      size: 1,
      tokens: new Int32Array(total),
      parents: new Int32Array(total),
      logProbabilities: new Float64Array(total),
    };
    this.#tree.parents[0] = -1;
  }

  start(root: number, _context: number, maxDepth: number): boolean {
    this.#tree.tokens[0] = root;
    this.#count = 0;
    this.#expansions = 0;
    this.#maxExpansions = Math.min(this.maxLevels, maxDepth - 1);
    return true;
  }

  /** Expansion phase: the guesses become candidates, the likeliest of them the next level. */
  grow(guesses: Guesses): number {
    const topK = this.branching;
    const first = this.#count;
    if (first === 0) this.#addGuesses(guesses, 0, -1, 0);
    else
      for (let row = 0; row < topK; row++)
        this.#addGuesses(guesses, row, this.#frontier[row]!, this.#scores[this.#frontier[row]!]!);
    if (this.#expansions === this.#maxExpansions) return 0;
    this.#expansions++;
    selectBest(this.#scores, first, this.#count, this.#frontier, topK);
    for (let row = 0; row < topK; row++) {
      const candidate = this.#frontier[row]!;
      this.levelTokens[row] = this.#tokens[candidate]!;
      this.levelParents[row] = Math.floor((candidate - first) / topK);
    }
    return topK;
  }

  #addGuesses(guesses: Guesses, row: number, parent: number, score: number): void {
    const topK = this.branching;
    for (let rank = 0; rank < topK; rank++) {
      const logProbability = guesses.logProbabilities[row * topK + rank]!;
      const candidate = this.#count++;
      this.#tokens[candidate] = guesses.tokens[row * topK + rank]!;
      // Never above the parent's, whatever rounding does, and comparable: the best are closed under parents then.
      this.#scores[candidate] = Number.isNaN(logProbability) ? -Infinity : score + Math.min(0, logProbability);
      this.#logProbabilities[candidate] = logProbability;
      this.#parents[candidate] = parent;
    }
  }

  /** Reranking phase. A parent is found before its children, so in order of finding it also comes before them in the tree. */
  finish(): DraftTree {
    const tree = this.#tree;
    const nodes = this.#nodes;
    const chosen = Math.min(this.maxNodes - 1, this.#count);
    selectBest(this.#scores, 0, this.#count, this.#best, chosen);
    plantBest(tree, nodes, this.#tokens, this.#parents, this.#logProbabilities, this.#count, this.#best, chosen);
    return tree;
  }
}
