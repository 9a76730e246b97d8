/**
 * How much of a lookahead is worth its rows (`--tree auto`). As published it drafts its window and all its guesses in every round, which a GPU
 * has rows to spare for; on a CPU each costs. Here the likeliest guesses are drafted that pay (budget.ts), of two pools, whose beliefs are counted
 * apart: the n-grams of prompt and text, which cost nothing to find, and those of the window, which is asked while it pays (window-account.ts).
 */
import { MOST_NODES, TreeBudget } from './budget.ts';
import type { TreeCosts } from './costs.ts';
import type { LookaheadOptions } from './lookahead-options.ts';
import type { NgramPool } from './ngram-pool.ts';
import { PathTree } from './path-tree.ts';
import { PoolGuesses } from './pool-guesses.ts';
import { selectBest } from './select.ts';
import type { DraftTree } from './tree.ts';
import { WindowAccount } from './window-account.ts';

export class LookaheadBudget {
  readonly budget: TreeBudget;
  readonly #account = new WindowAccount();
  readonly #fromText: PoolGuesses;
  readonly #fromWindow: PoolGuesses;

  // The guesses of both pools, those of the text first: what both guess is there once.
  readonly #candidates: PathTree;
  readonly #reach: Float64Array; // [candidates] chance that the whole path stands
  readonly #places: Int32Array; // [nodes of a pool's guesses] their candidates
  readonly #order: Int32Array; // [most guesses of a tree] candidates, likeliest first
  readonly #nodes: Int32Array; // [candidates] a candidate's node, 0 where it has none

  /** Of the tree: nodes that the text's n-grams have, root included; and with those of the window's, before the window itself. */
  #textNodes = 1;
  #guessed = 1;
  #asked = false;

  constructor(costs: TreeCosts, { ngram, guesses }: LookaheadOptions, textPool: NgramPool, windowPool: NgramPool) {
    const most = guesses * (ngram - 1);
    this.budget = new TreeBudget(costs);
    this.#fromText = new PoolGuesses(textPool, ngram, guesses);
    this.#fromWindow = new PoolGuesses(windowPool, ngram, guesses);
    this.#candidates = new PathTree(1 + 2 * most);
    this.#reach = new Float64Array(1 + 2 * most);
    this.#places = new Int32Array(1 + most);
    this.#order = new Int32Array(Math.min(most, MOST_NODES - 1));
    this.#nodes = new Int32Array(1 + 2 * most);
    this.#reach[0] = 1;
  }

  /** Hangs the guesses that pay below the tree's root, which has `context` tokens before it. */
  plantGuesses(tree: PathTree, context: number, maxDepth: number): void {
    this.budget.begin(context);
    const root = tree.tokens[0]!;
    const candidates = this.#candidates;
    candidates.start(root);
    this.#fromText.collect(root, maxDepth);
    this.#add(this.#fromText);
    const known = candidates.size;
    this.#fromWindow.collect(root, maxDepth);
    this.#add(this.#fromWindow);
    this.#choose();
    this.#textNodes = 1;
    for (let candidate = 1; candidate < candidates.size; candidate++) {
      if (this.#nodes[candidate] === 0) continue;
      const parent = this.#nodes[candidates.parents[candidate]!]!;
      this.#nodes[candidate] = tree.child(parent, candidates.tokens[candidate]!);
      if (candidate < known) this.#textNodes++;
    }
    this.#guessed = tree.size;
    this.#asked = false;
  }

  /** A node that paths share is as likely as the surest of them says. */
  #add(guesses: PoolGuesses): void {
    const { size, tokens, parents } = guesses.tree;
    const reach = this.#reach;
    const places = this.#places;
    for (let node = 1; node < size; node++) {
      const parent = places[parents[node]!]!;
      const known = this.#candidates.size;
      const candidate = this.#candidates.child(parent, tokens[node]!);
      const chance = reach[parent]! * guesses.chance(node);
      reach[candidate] = candidate < known ? Math.max(reach[candidate]!, chance) : chance;
      places[node] = candidate;
    }
  }

  /** Marks the candidates of the tree worth most in #nodes. No node is as likely as its parent, so with it the parent is marked. */
  #choose(): void {
    const { size } = this.#candidates;
    if (size === 1) return; // a round without candidates says nothing about how they fare
    const order = this.#order;
    const count = Math.min(order.length, size - 1);
    selectBest(this.#reach, 1, size, order, count);
    const chosen = this.budget.treeSize(this.#reach, order, count) - 1;
    this.#nodes.fill(0, 0, size);
    for (let i = 0; i < chosen; i++) this.#nodes[order[i]!] = 1;
  }

  /** Whether the window shall be asked in this round. @param nodes of the tree without it. @param rows that it adds once its levels are filled. */
  wantsWindow(nodes: number, rows: number): boolean {
    const { budget } = this;
    this.#asked = this.#account.wants(budget.price * (budget.forwardMs(nodes + rows) - budget.forwardMs(nodes)));
    return this.#asked;
  }

  /** @param tree with the window, if that was asked; the rest as in `Drafter.settle`. */
  settle(tree: DraftTree, path: Int32Array, pathLength: number, bonus: number, forwardMs: number): void {
    const { budget } = this;
    const known = this.#fromText.learn(tree, path, pathLength, bonus);
    this.#fromWindow.learn(tree, path, pathLength, bonus);
    // What the tree had beside the text's n-grams: rows of the window, and of n-grams that it found.
    const brought = pathLength - 1 - known;
    const ms = budget.forwardMs(tree.size) - budget.forwardMs(this.#textNodes);
    this.#account.settle(brought - budget.price * ms, this.#asked);
    // Guesses stand above all that the window added.
    let accepted = pathLength - 1;
    while (path[accepted]! >= this.#guessed) accepted--;
    budget.settle(pathLength, tree.size, forwardMs, 0, accepted);
  }
}
