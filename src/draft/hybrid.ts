/**
 * EAGLE's tree with prompt lookup's branches: what the head extrapolates and what the text repeats, in one tree of one budget. The head is
 * asked as ever; then passages that came after the same words before are laid over what it guessed: a token that both guess is one node, as
 * likely as the surer of the two says. They cost no forward, so they are looked up in rounds without the head too.
 */
import type { Tensor } from '../tensor/tensor.ts';
import type { TreeBudget } from './budget.ts';
import { type BudgetGrower, type Grafter, ROOT } from './budget-grower.ts';
import { ContextLookup, type Cursor } from './context-lookup.ts';
import type { DraftSampling } from './draft-laws.ts';
import type { Drafter } from './drafter.ts';
import type { EagleDrafter } from './eagle.ts';
import type { DraftTree } from './tree.ts';

/** Passages after the root: what came after it the last time, and what came else. */
const PASSAGES = 2;
/** No row of a forward is so cheap that a node with less chance pays. */
const LEAST_REACH = 0.01;

export class HybridDrafter implements Drafter {
  readonly name = 'hybrid';
  readonly maxNodes: number;
  readonly #eagle: EagleDrafter;
  readonly #lookup: ContextLookup;
  readonly #root: Cursor;
  readonly #cursor: Cursor;
  // Of each passage's first token, and of the one that comes next.
  readonly #tokens = new Int32Array(PASSAGES);
  readonly #logProbabilities = new Float64Array(PASSAGES);
  readonly #nextToken = new Int32Array(1);
  readonly #nextLogProbability = new Float64Array(1);
  #known = false;

  /** @param makeEagle the drafter whose grower has this grafter; it belongs to this one. */
  constructor(vocabSize: number, contextSize: number, makeEagle: (grafter: Grafter) => EagleDrafter) {
    this.#lookup = new ContextLookup(vocabSize, contextSize);
    this.#root = this.#lookup.createCursor();
    this.#cursor = this.#lookup.createCursor();
    this.#eagle = makeEagle((grower) => this.#graft(grower));
    this.maxNodes = this.#eagle.maxNodes;
  }

  resume(text: readonly number[], held: number, sampling?: DraftSampling): number {
    const kept = this.#eagle.resume(text, held, sampling);
    this.#lookup.resume(text, kept);
    return kept;
  }

  observe(tokens: Int32Array, features: Tensor, rows: Int32Array, count: number): void {
    for (let i = 0; i < count; i++) this.#lookup.observe(tokens[rows[i]!]!);
    this.#eagle.observe(tokens, features, rows, count);
  }

  propose(root: number, maxDepth: number): DraftTree {
    this.#known = this.#lookup.begin(root, this.#root);
    return this.#eagle.propose(root, maxDepth);
  }

  #graft(grower: BudgetGrower): void {
    if (!this.#known) return;
    const passages = this.#lookup.guess(this.#root, this.#tokens, this.#logProbabilities, 0, PASSAGES);
    for (let i = 0; i < passages; i++) this.#graftPassage(grower, this.#tokens[i]!, this.#logProbabilities[i]!);
  }

  /** A token after the root and what came after it, while it is likely enough to be worth a thought. */
  #graftPassage(grower: BudgetGrower, first: number, logProbability: number): void {
    const lookup = this.#lookup;
    const cursor = this.#cursor;
    let candidate = grower.graft(ROOT, first, logProbability);
    lookup.follow(cursor, this.#root, first);
    while (candidate !== undefined && grower.reach(candidate) > LEAST_REACH) {
      if (lookup.guess(cursor, this.#nextToken, this.#nextLogProbability, 0, 1) === 0) return;
      const token = this.#nextToken[0]!;
      candidate = grower.graft(candidate, token, this.#nextLogProbability[0]!);
      lookup.follow(cursor, cursor, token);
    }
  }

  get budget(): TreeBudget | undefined {
    return this.#eagle.budget;
  }

  settle(path: Int32Array, pathLength: number, bonus: number, forwardMs: number): void {
    this.#eagle.settle(path, pathLength, bonus, forwardMs);
  }

  [Symbol.dispose](): void {
    this.#eagle[Symbol.dispose]();
  }
}
