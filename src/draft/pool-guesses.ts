/**
 * What an n-gram pool guesses after the text's last token, as a tree, and how often such guesses stand. A guess is believed the less the more
 * there are in its place, and the more of them are newer, until counts say better.
 */
import { Calibration } from './calibration.ts';
import type { NgramPool } from './ngram-pool.ts';
import { PathTree } from './path-tree.ts';
import type { DraftTree } from './tree.ts';

/** A guess is believed so much less than the one that was seen after it in the same place. */
const OLDER = Math.log(1 / 4);

export class PoolGuesses {
  readonly tree: PathTree;
  readonly #pool: NgramPool;
  readonly #length: number;
  readonly #calibration = new Calibration();
  readonly #depths: Int32Array; // [maxNodes]
  readonly #newer: Int32Array; // [maxNodes] guesses in the same place
  readonly #children: Int32Array; // [maxNodes]

  /** @param ngram tokens of the pool's n-grams. @param most continuations that it keeps of a key. */
  constructor(pool: NgramPool, ngram: number, most: number) {
    const maxNodes = 1 + most * (ngram - 1);
    this.#pool = pool;
    this.#length = ngram - 1;
    this.tree = new PathTree(maxNodes);
    this.#depths = new Int32Array(maxNodes);
    this.#newer = new Int32Array(maxNodes);
    this.#children = new Int32Array(maxNodes);
  }

  /** All that the pool has after `root`, cut at `maxDepth`, the newest first. */
  collect(root: number, maxDepth: number): void {
    const pool = this.#pool;
    const depth = Math.min(this.#length, maxDepth);
    this.tree.start(root);
    this.#children[0] = 0;
    for (let rank = pool.count(root) - 1; rank >= 0; rank--) {
      for (let i = 0, node = 0; i < depth; i++) node = this.#child(node, pool.token(root, rank, i));
    }
  }

  #child(parent: number, token: number): number {
    const { size } = this.tree;
    const node = this.tree.child(parent, token);
    if (node < size) return node;
    this.#depths[node] = this.#depths[parent]! + 1;
    this.#newer[node] = this.#children[parent]!;
    this.#children[parent] = this.#children[parent]! + 1;
    this.#children[node] = 0;
    return node;
  }

  /** How likely a node is to stand if its parent does. */
  chance(node: number): number {
    return this.#calibration.probability(this.#belief(node), this.#depths[node]!);
  }

  /** Of n that were seen in a place, one more that was not is as likely as the newest. */
  #belief(node: number): number {
    return this.#newer[node]! * OLDER - Math.log(this.#children[this.tree.parents[node]!]! + 1);
  }

  /**
   * Every guess after a node that stands was right or wrong, drafted or not. @param path as in `Drafter.settle`, of the tree that was drafted.
   * @returns how many of the accepted drafts were guessed here, from the first on.
   */
  learn({ tokens }: DraftTree, path: Int32Array, pathLength: number, bonus: number): number {
    for (let i = 0, node = 0; i < pathLength; i++) {
      node = this.#learnAfter(node, i + 1 < pathLength ? tokens[path[i + 1]!]! : bonus);
      if (node === 0) return i;
    }
    return pathLength - 1;
  }

  /** @returns the guess that is `token`; 0, which is the root, where none is. */
  #learnAfter(parent: number, token: number): number {
    const { size, tokens, parents } = this.tree;
    let right = 0;
    for (let node = parent + 1; node < size; node++) {
      if (parents[node] !== parent) continue;
      if (tokens[node] === token) right = node;
      this.#calibration.learn(this.#belief(node), this.#depths[node]!, tokens[node] === token);
    }
    return right;
  }
}
