/**
 * Lookahead decoding (arXiv:2402.02057): no head, no training; the target is asked about its own guesses. The tree of a round has two
 * parts. The window's tokens, a Jacobi iteration over the coming places, whose columns become n-grams (§3, lookahead branch); and the
 * n-grams so found that begin with the text's last token (verification branch). Both are nodes like any others: a token of the window
 * that happens to be the target's stands too, which the authors' code does not allow, and a guess that stands as a whole has its bonus.
 *
 * That is the published form. Where a budget decides (`lookahead-budget.ts`), the guesses that pay are drafted, and the window while it pays.
 *
 * Every new text starts with a new window and empty pools. Where the end is nearer than the window is deep, or the window pauses, it is left
 * out and stays as it is: what it holds may still come true, and to fill a new one takes rounds that bring no n-grams.
 */
import type { TargetModel } from '../model/target.ts';
import type { Tensor } from '../tensor/tensor.ts';
import type { TreeBudget } from './budget.ts';
import type { TreeCosts } from './costs.ts';
import type { Drafter } from './drafter.ts';
import { LookaheadBudget } from './lookahead-budget.ts';
import { checkLookahead, type LookaheadOptions, lookaheadNodes } from './lookahead-options.ts';
import { LookaheadWindow } from './lookahead-window.ts';
import { NgramPool } from './ngram-pool.ts';
import { PathTree } from './path-tree.ts';
import type { DraftTree } from './tree.ts';

export interface LookaheadParts {
  /** Of forwards: with them a budget decides what is drafted. */
  readonly costs?: TreeCosts;
  /** That the window starts with, by default the prompt's: spread evenly (the authors draw them at random). */
  readonly firstTokens?: readonly number[];
}

export class LookaheadDrafter implements Drafter {
  readonly name = 'lookahead';
  readonly maxNodes: number;
  /** N-grams of the window. */
  readonly pool: NgramPool;
  /** Those of the text, which are in the same pool unless a budget weighs the two. */
  readonly #textPool: NgramPool;
  readonly #poolsText: boolean;
  readonly #budget: LookaheadBudget | undefined;
  readonly #target: TargetModel;
  readonly #options: LookaheadOptions;
  readonly #firstTokens: readonly number[] | undefined;
  readonly #window: LookaheadWindow;
  readonly #tree: PathTree;
  readonly #text: Int32Array; // [contextSize] tokens of the committed rows, then the root
  #committed = 0;
  /** N-grams of the text that are in the pool: where the next one starts. */
  #pooled = 0;
  #started = false;
  /** Whether the last proposal had the window. */
  #asking = false;
  readonly #answer = new Int32Array(1);

  /** @throws RangeError for options that make no lookahead. */
  constructor(
    target: TargetModel,
    options: LookaheadOptions,
    contextSize: number,
    { costs, firstTokens }: LookaheadParts = {},
  ) {
    checkLookahead(options);
    const { window, ngram, guesses } = options;
    const createPool = (): NgramPool => new NgramPool(target.config.vocabSize, ngram, guesses);
    this.#target = target;
    this.#options = options;
    this.#firstTokens = firstTokens;
    this.maxNodes = lookaheadNodes(options);
    this.#window = new LookaheadWindow(window, ngram);
    this.pool = createPool();
    this.#textPool = costs === undefined ? this.pool : createPool();
    this.#poolsText = options.fromText ?? costs !== undefined;
    this.#budget = costs && new LookaheadBudget(costs, options, this.#textPool, this.pool);
    this.#tree = new PathTree(this.maxNodes);
    this.#text = new Int32Array(contextSize);
  }

  resume(text: readonly number[], held: number): number {
    for (let i = 0; i < held; i++) this.#text[i] = text[i]!;
    this.#committed = held;
    this.#pooled = 0;
    this.pool.clear();
    this.#textPool.clear();
    this.#started = false;
    return held;
  }

  observe(tokens: Int32Array, _features: Tensor, rows: Int32Array, count: number): void {
    for (let i = 0; i < count; i++) this.#text[this.#committed++] = tokens[rows[i]!]!;
  }

  propose(root: number, maxDepth: number): DraftTree {
    const window = this.#window;
    this.#text[this.#committed] = root;
    if (!this.#started) this.#startWindow();
    if (this.#poolsText) this.#poolText();
    this.#tree.start(root);
    if (this.#budget === undefined) this.#plantGuesses(root, maxDepth);
    else this.#budget.plantGuesses(this.#tree, this.#committed, maxDepth);
    this.#asking = maxDepth >= window.depth && (this.#budget?.wantsWindow(this.#tree.size, window.rows) ?? true);
    if (this.#asking) window.plant(this.#tree);
    return this.#tree;
  }

  /** Likeliest tokens without temperature or penalties, whatever the text is drawn with. */
  observeProposal(logits: Tensor): void {
    if (!this.#asking) return;
    const window = this.#window;
    for (let column = 0; column < window.width; column++) {
      this.#target.kernels.argmax(this.#answer, logits.row(window.nodes[column]!), 1, logits.cols);
      window.answer(column, this.#answer[0]!);
    }
    window.advance(this.pool);
  }

  #startWindow(): void {
    if (this.#firstTokens === undefined) this.#window.start(this.#text, this.#committed + 1);
    else this.#window.start(this.#firstTokens, this.#firstTokens.length);
    this.#started = true;
  }

  /** The n-grams that the text has been completed by, the one that ends with the root the last. */
  #poolText(): void {
    const last = this.#committed + 1 - this.#options.ngram;
    for (; this.#pooled <= last; this.#pooled++) this.#textPool.insert(this.#text, this.#pooled);
  }

  #plantGuesses(root: number, maxDepth: number): void {
    const depth = Math.min(this.#options.ngram - 1, maxDepth);
    const count = this.pool.count(root);
    for (let rank = 0; rank < count; rank++) {
      for (let i = 0, node = 0; i < depth; i++) node = this.#tree.child(node, this.pool.token(root, rank, i));
    }
  }

  get budget(): TreeBudget | undefined {
    return this.#budget?.budget;
  }

  settle(path: Int32Array, pathLength: number, bonus: number, forwardMs: number): void {
    this.#budget?.settle(this.#tree, path, pathLength, bonus, forwardMs);
  }

  [Symbol.dispose](): void {}
}
