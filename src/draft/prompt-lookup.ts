/**
 * Prompt lookup (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): what came after the same words earlier in prompt and answer is
 * guessed to come again. No model is asked, so a guess costs nothing but its row of the target's forward.
 *
 * The longest suffix that occurred before is what is looked up, not an n-gram of settled length, and a node's children are found the same
 * way as the root's: by the text with the node's path behind it.
 */
import type { Tensor } from '../tensor/tensor.ts';
import type { TreeBudget } from './budget.ts';
import { ContextLookup, type Cursor, isAmong } from './context-lookup.ts';
import type { Drafter } from './drafter.ts';
import type { DraftTree } from './tree.ts';
import { createGuesses, type Guesses, type TreeGrower } from './tree-grower.ts';
import { createGrower, type TreePolicy } from './tree-policy.ts';

export class PromptLookupDrafter implements Drafter {
  readonly name = 'prompt-lookup';
  readonly maxNodes: number;
  readonly #grower: TreeGrower;
  readonly #lookup: ContextLookup;
  readonly #guesses: Guesses;
  #cursors: Cursor[]; // [maxRows] of a level's rows
  #parents: Cursor[]; // of the level before

  constructor(vocabSize: number, policy: TreePolicy, contextSize: number) {
    const grower = createGrower(policy, vocabSize);
    const { maxRows, branching } = grower;
    this.#grower = grower;
    this.maxNodes = grower.maxNodes;
    const lookup = new ContextLookup(vocabSize, contextSize);
    this.#lookup = lookup;
    this.#guesses = createGuesses(maxRows, branching);
    this.#cursors = Array.from({ length: maxRows }, () => lookup.createCursor());
    this.#parents = Array.from({ length: maxRows }, () => lookup.createCursor());
  }

  resume(text: readonly number[], held: number): number {
    this.#grower.beginText?.();
    this.#lookup.resume(text, held);
    return held;
  }

  observe(tokens: Int32Array, _features: Tensor, rows: Int32Array, count: number): void {
    for (let i = 0; i < count; i++) this.#lookup.observe(tokens[rows[i]!]!);
  }

  propose(root: number, maxDepth: number): DraftTree {
    const grower = this.#grower;
    const known = this.#lookup.begin(root, this.#cursors[0]!);
    if (!grower.start(root, this.#lookup.committed, maxDepth, 1) || maxDepth < 1 || !known) return grower.finish();
    for (let rows = 1; rows > 0; ) {
      for (let row = 0; row < rows; row++) this.#guessAfter(row);
      rows = grower.grow(this.#guesses);
      this.#step(rows);
    }
    return grower.finish();
  }

  /** The level's rows from the rows before: each is a guess of its parent's. */
  #step(rows: number): void {
    const { levelTokens, levelParents } = this.#grower;
    const parents = this.#cursors;
    this.#cursors = this.#parents;
    this.#parents = parents;
    for (let row = 0; row < rows; row++)
      this.#lookup.follow(this.#cursors[row]!, parents[levelParents[row]!]!, levelTokens[row]!);
  }

  /** Where fewer tokens are found than are wanted, others that are not believed in. */
  #guessAfter(row: number): void {
    const { branching } = this.#grower;
    const { tokens, logProbabilities } = this.#guesses;
    const first = row * branching;
    const end = first + branching;
    let found = first + this.#lookup.guess(this.#cursors[row]!, tokens, logProbabilities, first, branching);
    for (let token = 0; found < end; token++) {
      if (isAmong(tokens, first, found, token)) continue;
      tokens[found] = token;
      logProbabilities[found++] = Number.NEGATIVE_INFINITY;
    }
  }

  get budget(): TreeBudget | undefined {
    return this.#grower.budget;
  }

  settle(path: Int32Array, pathLength: number, bonus: number, forwardMs: number): void {
    this.#grower.settle?.(path, pathLength, bonus, forwardMs);
  }

  [Symbol.dispose](): void {}
}
