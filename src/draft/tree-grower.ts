/**
 * How a draft tree comes about, level by level: a grower takes what the head holds likeliest after each row of a level, and says which
 * nodes the head shall look at next. It sees tokens and log-probabilities only; forwards and caches are the drafter's.
 */
import type { TreeBudget } from './budget.ts';
import type { DraftLaws, DraftSampling } from './draft-laws.ts';
import type { DraftTree } from './tree.ts';

/** The head's best guesses after each row of a level, best first. */
export interface Guesses {
  readonly tokens: Int32Array; // [rows, branching], the target's ids
  /** Without temperature: what the head believes, not what the target will draw. */
  readonly logProbabilities: Float64Array; // as tokens
}

export const createGuesses = (rows: number, branching: number): Guesses => ({
  tokens: new Int32Array(rows * branching),
  logProbabilities: new Float64Array(rows * branching),
});

export interface TreeGrower {
  /** Nodes of the largest tree, root included. */
  readonly maxNodes: number;
  /** Guesses wanted after each row. */
  readonly branching: number;
  /** Most rows of a level. */
  readonly maxRows: number;
  /** Most levels that the head is asked to look at; the root, which it has seen, is none. */
  readonly maxLevels: number;
  /**
   * Where nodes hang is settled beforehand, so that guesses may be drawn instead of chosen: of a node with children, the row that its
   * children come from, counted over all levels, the root's the first. Absent where confidence decides.
   */
  readonly drawnRows?: Int32Array; // [maxNodes]

  /** The trees to come are of another text. */
  beginText?(): void;
  /**
   * A new tree, below a root with `context` tokens before it. No node will be deeper than `maxDepth`, which is at least 1. `drawn` guesses
   * come in the order of their draws.
   * @param rows that the head has to look at for the root's guesses: it sees the tokens of the round before for the first time.
   * @returns false where no guesses are wanted: the tree is the root.
   */
  start(root: number, context: number, maxDepth: number, rows: number, drawn?: DraftLaws): boolean;
  /** Takes the guesses after the level's rows, at first after the root alone; returns the number of rows of the next level, 0 when grown. */
  grow(guesses: Guesses): number;
  /** Of the next level's rows. */
  readonly levelTokens: Int32Array; // [maxRows]
  /** The parent's row in the level before. */
  readonly levelParents: Int32Array; // [maxRows]
  /** Valid until the next `start`. */
  finish(): DraftTree;
  /** What decides the tree, if a budget does. */
  readonly budget?: TreeBudget;
  /** How the tree fared: see `Drafter.settle`. */
  settle?(path: Int32Array, pathLength: number, bonus: number, forwardMs: number): void;
}

/** What guesses come about by where `grower` grows their trees: none are drawn whose place confidence decides. */
export function samplingFor({ drawnRows }: TreeGrower, sampling: DraftSampling | undefined): DraftSampling | undefined {
  return sampling?.kind === 'urn' && drawnRows === undefined ? sampling.instead : sampling;
}
