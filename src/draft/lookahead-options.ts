/** The settings of lookahead decoding: as a value of the API, or as text of the command line. */
import { MAX_TREE_NODES } from './tree.ts';

export interface LookaheadOptions {
  /** W: columns of the window. */
  readonly window: number;
  /** N: tokens of an n-gram; the window has one level less. */
  readonly ngram: number;
  /** G: n-grams that are kept for a first token, and tried together. */
  readonly guesses: number;
  /** Whether n-grams of the prompt and of the text so far are kept too; by default those of the window alone, but all where a budget decides. */
  readonly fromText?: boolean;
}

/**
 * Of the settings that the authors' code was run with here (test/golden/lookahead-tiny) the smaller: a CPU pays for every row. Under a budget
 * they are the greatest: it drafts of the guesses those that pay, and has the window whole or not at all.
 */
export const DEFAULT_LOOKAHEAD: LookaheadOptions = { window: 5, ngram: 3, guesses: 5 };

/** @throws RangeError for anything but W,N,G, and for a lookahead that fits no model. */
export function parseLookahead(text: string): LookaheadOptions {
  const [, window, ngram, guesses] = /^(\d{1,9}),(\d{1,9}),(\d{1,9})$/.exec(text) ?? [];
  if (window === undefined)
    throw new RangeError(`lookahead: expected window,ngram,guesses such as 5,3,5, got "${text}"`);
  const options = { window: Number(window), ngram: Number(ngram), guesses: Number(guesses) };
  checkLookahead(options);
  return options;
}

/**
 * @param contextSize tokens of prompt and answer, which the window must fit in.
 * @throws RangeError where it does not fit, or where the options make no tree at all.
 */
export function checkLookahead(options: LookaheadOptions, contextSize = Number.POSITIVE_INFINITY): void {
  const rule = (what: 'window' | 'ngram' | 'guesses', least: number): void => {
    const value = options[what];
    if (Number.isInteger(value) && value >= least && value <= MAX_TREE_NODES) return;
    throw new RangeError(`lookahead: ${what} is a whole number of ${least}..${MAX_TREE_NODES}, got ${value}`);
  };
  rule('window', 1);
  rule('ngram', 2);
  rule('guesses', 1);
  const { window, ngram, guesses } = options;
  const settings = `a window of ${window} and ${guesses} guesses of ${ngram}-grams`;
  const nodes = lookaheadNodes(options);
  if (nodes > MAX_TREE_NODES)
    throw new RangeError(`lookahead: ${settings} make trees of ${nodes} nodes, at most ${MAX_TREE_NODES}`);
  // A prompt of one token and the one drawn after it are the shortest text that a window can lie behind.
  const least = window + ngram;
  if (least > contextSize)
    throw new RangeError(`lookahead: ${settings} need a context of ${least} tokens, got ${contextSize}`);
}

/** Nodes of the largest tree, root included. */
export function lookaheadNodes({ window, ngram, guesses }: LookaheadOptions): number {
  // With k levels the window has window + ngram - 1 - k columns: most tokens where the two are as good as equal, if it gets there.
  const levels = Math.min(ngram - 1, Math.floor((window + ngram - 1) / 2));
  return levels * (window + ngram - 1 - levels) + guesses * (ngram - 1);
}
