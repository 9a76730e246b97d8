/**
 * Grows the tree that pays most (budget.ts): depth, width and size follow the head's confidence round by round. As in EAGLE-2
 * (arXiv:2406.16858 §4) the likeliest nodes of a level are looked at and the likeliest of all stay, but "likely" is calibrated by what was
 * accepted so far, and how many is decided by what a row more costs on this machine.
 */
import { MOST_NODES, type TreeBudget } from './budget.ts';
import { Calibration } from './calibration.ts';
import { plantBest, selectBest } from './select.ts';
import type { DraftTree } from './tree.ts';
import type { Guesses, TreeGrower } from './tree-grower.ts';
import { Trust } from './trust.ts';

/** Guesses after a node: those of the starter head below the fourth rank stand in fewer than one of twenty cases, and finding them takes time. */
export const MOST_GUESSES = 5;
/** Nodes of a level that the head looks at. */
const MOST_ROWS = 8;
/** The drafter's forwards after the first: at depth 9 a path that a head guessed has seldom any chance left. */
const MOST_LEVELS = 8;
/** Of a drafter that takes none: a passage that is copied goes on and on. */
const MOST_FREE_LEVELS = 24;
/** Expansions over which the worth of looking further is taken. */
const WORTH_ROUNDS = 20;
/** What it is taken for before anything was seen. */
const FIRST_WORTH = 0.4;

/** Of one tree. */
const MOST_GRAFTS = 64;

/** The root, as a parent of candidates. */
export const ROOT = -1;

/** Lays guesses of another source over a tree's, before it is chosen: see `BudgetGrower.graft`. */
export type Grafter = (grower: BudgetGrower) => void;

export interface BudgetGrowerOptions {
  readonly grafter?: Grafter;
}

export class BudgetGrower implements TreeGrower {
  readonly maxNodes = MOST_NODES;
  readonly branching: number;
  readonly maxRows = MOST_ROWS;
  readonly maxLevels: number;
  readonly levelTokens = new Int32Array(MOST_ROWS);
  readonly levelParents = new Int32Array(MOST_ROWS);
  readonly budget: TreeBudget;

  // Candidates in the order they are found, the first #count.
  readonly #tokens: Int32Array;
  readonly #parents: Int32Array; // candidate, or ROOT
  readonly #depths: Int32Array;
  readonly #logProbabilities: Float64Array; // of the token after its parent, as the head gave it
  readonly #reach: Float64Array; // chance that the whole path stands, calibrated
  readonly #guesses: Int32Array; // first candidate below it, 0 where the head did not look
  #count = 0;

  // Guesses of another source, the first #graftCount: below which candidate, which token, what its source believes.
  readonly #grafter: Grafter | undefined;
  readonly #graftParents: Int32Array;
  readonly #graftTokens: Int32Array;
  readonly #graftBeliefs: Float64Array;
  #graftCount = 0;
  readonly #graftCalibration = new Calibration();
  /** In guesses that the head did not have. */
  readonly #graftTrust = new Trust();
  #trusted = 1; // of them, in this round
  #headCount = 0; // candidates before them

  readonly #frontier = new Int32Array(MOST_ROWS); // candidates that the head was last asked to look at
  #rows = 0;
  #asksHead = false; // in this round
  #maxDepth = 0;
  #expansions = 0;
  #draftMs = 0; // of the round's forwards of the head
  #asked = 0; // when the head was last given rows
  /** By depth: chance of the best guess after a node that stands, which is what looking at it brings. */
  readonly #worth: Float64Array; // [maxLevels + 1]

  readonly #order: Int32Array; // candidates, likeliest first
  readonly #nodes: Int32Array; // a candidate's node, 0 where it has none
  readonly #candidates = new Int32Array(MOST_NODES); // a node's candidate
  readonly #tree = {
    size: 1,
    tokens: new Int32Array(MOST_NODES),
    parents: new Int32Array(MOST_NODES).fill(-1),
    logProbabilities: new Float64Array(MOST_NODES),
  };

  /** @param vocabSize of the drafter: it has no more guesses after a node. */
  constructor(budget: TreeBudget, vocabSize: number, { grafter }: BudgetGrowerOptions = {}) {
    this.budget = budget;
    this.maxLevels = budget.isFree ? MOST_FREE_LEVELS : MOST_LEVELS;
    this.#worth = new Float64Array(this.maxLevels + 1).fill(FIRST_WORTH);
    this.branching = Math.min(MOST_GUESSES, vocabSize);
    this.#grafter = grafter;
    const grafts = grafter === undefined ? 0 : MOST_GRAFTS;
    this.#graftParents = new Int32Array(grafts);
    this.#graftTokens = new Int32Array(grafts);
    this.#graftBeliefs = new Float64Array(grafts);
    const candidates = this.branching * (1 + MOST_ROWS * this.maxLevels) + grafts;
    this.#tokens = new Int32Array(candidates);
    this.#parents = new Int32Array(candidates);
    this.#depths = new Int32Array(candidates);
    this.#logProbabilities = new Float64Array(candidates);
    this.#reach = new Float64Array(candidates);
    this.#guesses = new Int32Array(candidates);
    this.#order = new Int32Array(MOST_NODES - 1);
    this.#nodes = new Int32Array(candidates);
  }

  beginText(): void {
    this.budget.beginText();
    this.#graftTrust.beginText();
  }

  start(root: number, context: number, maxDepth: number, rows: number): boolean {
    this.budget.begin(context);
    this.#tree.tokens[0] = root;
    this.#tree.size = 1;
    this.#count = 0;
    this.#graftCount = 0;
    this.#draftMs = 0;
    this.#expansions = 0;
    this.#maxDepth = maxDepth;
    this.#asksHead = rows > 0 && maxDepth >= 1 && this.budget.wantsDrafts();
    if (this.#asksHead) this.#ask(rows);
    return this.#asksHead;
  }

  grow(guesses: Guesses): number {
    const first = this.#count;
    this.#draftMs += this.budget.learnDraft(this.#rows, performance.now() - this.#asked);
    if (first === 0) this.#addGuesses(guesses, 0, ROOT);
    else for (let row = 0; row < this.#rows; row++) this.#addGuesses(guesses, row, this.#frontier[row]!);
    const rows = this.#expansions < Math.min(this.maxLevels, this.#maxDepth - 1) ? this.#rowsWorthLookingAt(first) : 0;
    if (rows === 0) return 0;
    this.#expansions++;
    for (let row = 0; row < rows; row++) {
      const candidate = this.#frontier[row]!;
      this.levelTokens[row] = this.#tokens[candidate]!;
      this.levelParents[row] = Math.floor((candidate - first) / this.branching);
    }
    this.#ask(rows);
    return rows;
  }

  #ask(rows: number): void {
    this.#rows = rows;
    this.#asked = performance.now();
  }

  #addGuesses(guesses: Guesses, row: number, parent: number): void {
    const { calibration } = this.budget;
    const reach = this.reach(parent);
    const depth = this.#depthBelow(parent);
    if (parent !== ROOT) this.#guesses[parent] = this.#count;
    let best = 0;
    for (let i = row * this.branching; i < (row + 1) * this.branching; i++) {
      const logProbability = guesses.logProbabilities[i]!;
      const probability = calibration.probability(logProbability, depth);
      this.#add(parent, depth, guesses.tokens[i]!, logProbability, reach * probability);
      best = Math.max(best, probability);
    }
    const worth = this.#worth;
    worth[depth - 1] = worth[depth - 1]! + ((best - worth[depth - 1]!) * reach) / WORTH_ROUNDS;
  }

  #add(parent: number, depth: number, token: number, logProbability: number, reach: number): number {
    const candidate = this.#count++;
    this.#tokens[candidate] = token;
    this.#parents[candidate] = parent;
    this.#depths[candidate] = depth;
    this.#logProbabilities[candidate] = logProbability;
    this.#reach[candidate] = reach;
    this.#guesses[candidate] = 0;
    return candidate;
  }

  #depthBelow(parent: number): number {
    return parent === ROOT ? 1 : this.#depths[parent]! + 1;
  }

  /** The chance that a candidate stands with all above it. */
  reach(candidate: number): number {
    return candidate === ROOT ? 1 : this.#reach[candidate]!;
  }

  /**
   * A guess of another source below a candidate or ROOT. What it believes is calibrated apart from the head's beliefs; a token that the head
   * guesses there too is as likely as the surer of the two says.
   * @returns the guess's candidate; undefined where it is too deep or one too many.
   */
  graft(parent: number, token: number, logProbability: number): number | undefined {
    const depth = this.#depthBelow(parent);
    if (depth > this.#maxDepth || this.#graftCount === this.#graftTokens.length) return undefined;
    this.#graftParents[this.#graftCount] = parent;
    this.#graftTokens[this.#graftCount] = token;
    this.#graftBeliefs[this.#graftCount++] = logProbability;
    const believed = this.#graftCalibration.probability(logProbability, depth);
    // Once a path: below the first such guess all stands on it.
    const reach = this.reach(parent) * believed * (parent < this.#headCount ? this.#trusted : 1);
    for (let candidate = 0; candidate < this.#count; candidate++) {
      if (this.#parents[candidate] !== parent || this.#tokens[candidate] !== token) continue;
      this.#reach[candidate] = Math.max(this.#reach[candidate]!, reach);
      return candidate;
    }
    return this.#add(parent, depth, token, logProbability, reach);
  }

  /** How many of the candidates from `first` on, likeliest first, the head shall look at; they are put in #frontier. */
  #rowsWorthLookingAt(first: number): number {
    const { budget } = this;
    const most = Math.min(MOST_ROWS, this.#count - first);
    selectBest(this.#reach, first, this.#count, this.#frontier, most);
    const ranked = this.#rank();
    const worth = this.#worth[this.#expansions + 1]!;
    let rows = 0;
    let highest = 0;
    for (let expanded = 0; expanded <= most; expanded++) {
      const draftMs = expanded === 0 ? 0 : budget.draft.at(expanded);
      const net = budget.netWorth(this.#reach, this.#order, ranked, this.#frontier, expanded, worth, draftMs);
      if (expanded > 0 && net <= highest) continue;
      highest = net;
      rows = expanded;
    }
    return rows;
  }

  /** The likeliest candidates to #order; returns how many. */
  #rank(): number {
    const count = Math.min(MOST_NODES - 1, this.#count);
    selectBest(this.#reach, 0, this.#count, this.#order, count);
    return count;
  }

  finish(): DraftTree {
    const tree = this.#tree;
    this.#headCount = this.#count;
    this.#trusted = this.#graftTrust.share;
    this.#grafter?.(this);
    if (this.#count === 0) return tree;
    const nodes = this.#nodes;
    const order = this.#order;
    const size = this.budget.treeSize(this.#reach, order, this.#rank());
    plantBest(tree, nodes, this.#tokens, this.#parents, this.#logProbabilities, this.#count, order, size - 1);
    for (let candidate = 0; candidate < this.#count; candidate++)
      if (nodes[candidate] !== 0) this.#candidates[nodes[candidate]!] = candidate;
    return tree;
  }

  /** Every guess after a node that stands was right or wrong, in the tree or not: the target's own token there says which. */
  settle(path: Int32Array, pathLength: number, bonus: number, forwardMs: number): void {
    const { budget } = this;
    const { size, tokens } = this.#tree;
    budget.settle(pathLength, size, forwardMs, this.#asksHead ? this.#draftMs : undefined);
    this.#settleGrafts(path, pathLength, bonus);
    this.#settleGraftTrust(path, pathLength);
    if (!this.#asksHead || this.#headCount === 0) return; // not asked, or without a guess
    for (let i = 0; i < pathLength; i++) {
      const first = i === 0 ? 0 : this.#guesses[this.#candidates[path[i]!]!]!;
      if (i > 0 && first === 0) return;
      const token = i + 1 < pathLength ? tokens[path[i + 1]!]! : bonus;
      for (let guess = first; guess < first + this.branching; guess++)
        budget.calibration.learn(this.#logProbabilities[guess]!, i + 1, this.#tokens[guess] === token);
    }
  }

  #settleGraftTrust(path: Int32Array, pathLength: number): void {
    let promised = 0;
    let came = 0;
    for (let node = 1, at = 1; node < this.#tree.size; node++) {
      const stands = at < pathLength && path[at] === node;
      if (stands) at++;
      const candidate = this.#candidates[node]!;
      if (candidate < this.#headCount) continue;
      promised += this.#reach[candidate]! / this.#trusted;
      if (stands) came++;
    }
    if (promised > 0) this.#graftTrust.learn(promised, came);
  }

  #settleGrafts(path: Int32Array, pathLength: number, bonus: number): void {
    const { tokens } = this.#tree;
    for (let i = 0; i < this.#graftCount; i++) {
      const parent = this.#graftParents[i]!;
      const above = this.#depthBelow(parent) - 1; // nodes of the path before the parent
      if (above >= pathLength || (parent !== ROOT && this.#nodes[parent] !== path[above])) continue;
      const token = above + 1 < pathLength ? tokens[path[above + 1]!]! : bonus;
      this.#graftCalibration.learn(this.#graftBeliefs[i]!, above + 1, this.#graftTokens[i] === token);
    }
  }
}
