/**
 * EAGLE drafting (arXiv:2401.15077 §3.1): the head extrapolates the target's top features, one forward per level of the tree. Its own
 * cache keeps only rows made from the target's features; what it made of its own guesses is dropped after every round.
 */
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import { type KvCache, type KvSequence, sharedPrefix } from '../model/kv-cache.ts';
import type { TargetModel } from '../model/target.ts';
import { copyRow, ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import type { TreeBudget } from './budget.ts';
import { DRAFT_ROWS, type DraftForwards, fillFlat } from './costs.ts';
import type { DraftLaws, DraftSampling } from './draft-laws.ts';
import type { Drafter } from './drafter.ts';
import { DrawnGuesses } from './drawn-guesses.ts';
import type { EagleHead } from './eagle-head.ts';
import type { DraftTree } from './tree.ts';
import type { Guesses, TreeGrower } from './tree-grower.ts';
import { createGrower, type TreePolicy } from './tree-policy.ts';

/** Committed rows that wait for the head, and so the rows of one catching-up forward: a prefill chunk of the loop fits. */
const PENDING_ROWS = 64;

export class EagleDrafter implements Drafter {
  readonly name = 'eagle';
  readonly maxNodes: number;
  /** The head's. Committed: rows made from the target's features. */
  readonly cache: KvCache;
  readonly #target: TargetModel;
  readonly #head: EagleHead;
  readonly #grower: TreeGrower;
  readonly #sequence: KvSequence;
  readonly #batch: ForwardBatch;

  // Features of committed rows that the head has not seen: row i of the head eats (feature i, token i + 1).
  readonly #pending = new ScratchTensor(); // [PENDING_ROWS, d], the first #pendingCount
  readonly #text: Int32Array; // [contextSize] tokens of the rows that the head has seen, then of the pending ones
  #pendingCount = 0;

  readonly #input = new ScratchTensor(); // [level's rows, d] features of one forward
  readonly #guesses: Guesses;
  readonly #topValues: Float32Array; // as #guesses
  /** What the running text asks for; undefined chooses the best guesses. */
  #sampling: DraftSampling | undefined;
  #drawn: DrawnGuesses | undefined; // made when first asked for
  readonly #laws: DraftLaws = {
    draft: (node) => this.#drawn!.law(this.#grower.drawnRows![node]!),
    drawing: () => 'without-replacement',
  };
  // Slots of the head's rows along the path down to each row of a level, its own last.
  #paths: Int32Array; // [level's rows, maxLevels]
  #parentPaths: Int32Array; // of the level before
  readonly #ancestors: Int32Array; // [maxLevels]

  constructor(target: TargetModel, head: EagleHead, policy: TreePolicy, contextSize: number) {
    this.#target = target;
    this.#head = head;
    const { hiddenSize, draftVocabSize } = head.config;
    const grower = createGrower(policy, draftVocabSize);
    const { maxRows, maxLevels, branching } = grower;
    this.#grower = grower;
    this.maxNodes = grower.maxNodes;
    this.cache = head.createCache(contextSize + maxRows * maxLevels);
    this.#sequence = this.cache.sequences[0]!;
    this.#text = new Int32Array(contextSize);
    this.#batch = new ForwardBatch(Math.max(PENDING_ROWS, maxRows), PENDING_ROWS + maxRows * maxLevels);
    this.#pending.reshape(PENDING_ROWS, hiddenSize);
    this.#input.reshape(maxRows, hiddenSize);
    const guesses = maxRows * branching;
    this.#guesses = { tokens: new Int32Array(guesses), logProbabilities: new Float64Array(guesses) };
    this.#topValues = new Float32Array(guesses);
    this.#paths = new Int32Array(maxRows * maxLevels);
    this.#parentPaths = new Int32Array(maxRows * maxLevels);
    this.#ancestors = new Int32Array(maxLevels);
  }

  resume(text: readonly number[], held: number, sampling?: DraftSampling): number {
    if (this.maxNodes === 1) return held;
    this.#sampling = this.#grower.drawnRows === undefined ? undefined : sampling;
    const seen = this.#sequence.length;
    const shared = Math.min(held, sharedPrefix(this.#text, text, seen + this.#pendingCount));
    // The head's last row has eaten the first pending token. Where the texts part before that, the row that eats the first new token needs
    // a feature that is gone.
    const kept = shared > seen ? shared : Math.max(shared - 1, 0);
    this.#sequence.truncate(Math.min(seen, kept));
    this.#pendingCount = Math.max(kept - seen, 0);
    return kept;
  }

  observe(tokens: Int32Array, features: Tensor, rows: Int32Array, count: number): void {
    if (this.maxNodes === 1) return; // nothing will ever be guessed
    for (let i = 0; i < count; i++) {
      if (this.#pendingCount === PENDING_ROWS) this.#feedAllButLast();
      const row = rows[i]!;
      this.#text[this.#sequence.length + this.#pendingCount] = tokens[row]!;
      copyRow(this.#pending, this.#pendingCount, features, row);
      this.#pendingCount++;
    }
  }

  propose(root: number, maxDepth: number): DraftTree {
    const grower = this.#grower;
    const position = this.#sequence.length + this.#pendingCount;
    const wanted = grower.start(root, maxDepth, this.#pendingCount, this.#startDrawing(position));
    if (!wanted || this.#pendingCount === 0 || maxDepth < 1) return grower.finish();
    this.#feed(this.#pendingCount, root, true);
    let parents = this.#pendingCount - 1; // first row of the level before in the last forward
    this.#pendingCount = 0;
    for (let depth = 1, rows = grower.grow(this.#guesses); rows > 0; rows = grower.grow(this.#guesses), depth++) {
      this.#expand(depth, rows, parents);
      parents = 0;
    }
    this.#sequence.rollback();
    return grower.finish();
  }

  /** The laws of the next tree, if its nodes shall be drawn. */
  #startDrawing(position: number): DraftLaws | undefined {
    if (this.#sampling === undefined) return undefined;
    this.#drawn ??= this.#createDrawnGuesses();
    this.#drawn.start(this.#sampling, position);
    return this.#laws;
  }

  #createDrawnGuesses(): DrawnGuesses {
    const { branching, drawnRows } = this.#grower;
    const rows = Math.max(...drawnRows!) + 1;
    return new DrawnGuesses(this.#target.kernels, this.#head.config.vocabSize, this.#head.targetIds, rows, branching);
  }

  /** Runs the next level in one batch: token of the node, feature predicted at its parent. */
  #expand(depth: number, rows: number, firstParent: number): void {
    const { levelTokens, levelParents, maxLevels } = this.#grower;
    const batch = this.#batch;
    const paths = this.#parentPaths;
    const parentPaths = this.#paths;
    this.#paths = paths;
    this.#parentPaths = parentPaths;
    const ancestors = depth - 1; // the root's row is committed
    batch.clear();
    for (let row = 0; row < rows; row++) {
      const parent = levelParents[row]!;
      for (let i = 0; i < ancestors; i++) {
        const slot = parentPaths[parent * maxLevels + i]!;
        this.#ancestors[i] = slot;
        paths[row * maxLevels + i] = slot;
      }
      batch.appendAfter(this.#sequence, levelTokens[row]!, this.#ancestors, ancestors, true);
      paths[row * maxLevels + ancestors] = batch.layout.slots[row]!;
      copyRow(this.#input, row, this.#predicted, firstParent + parent);
    }
    this.#run(this.#input);
  }

  #predicted!: Tensor;

  /** The batch through the head; guesses of its wanted rows to #guesses. */
  #run(features: ScratchTensor): void {
    const batch = this.#batch;
    this.#predicted = this.#head.forward(batch, features.reshape(batch.rows, features.cols), this.cache);
    const count = batch.logitCount;
    if (count === 0) return;
    const { branching } = this.#grower;
    const { tokens } = this.#guesses;
    const logits = this.#head.logits(batch, this.#predicted);
    if (this.#sampling !== undefined) {
      this.#drawn!.draw(logits, count, this.#guesses);
    } else {
      this.#target.kernels.topK(tokens, this.#topValues, logits.data, count, logits.cols, branching);
      this.#weigh(logits, count);
    }
    const { targetIds } = this.#head;
    if (targetIds === undefined) return;
    for (let i = 0; i < count * branching; i++) tokens[i] = targetIds[tokens[i]!]!;
  }

  /** Log-soft-max of the best guesses, of which #guesses still has draft ids; makes probabilities of the logits. */
  #weigh({ data, cols }: Tensor, rows: number): void {
    const { branching } = this.#grower;
    const { tokens, logProbabilities } = this.#guesses;
    const values = this.#topValues;
    this.#target.kernels.softmax(data, data, rows, cols, 1);
    for (let row = 0; row < rows; row++) {
      const first = row * branching;
      // The best guess's probability is at least 1 / Vd; one far behind it would have underflowed.
      const best = Math.log(data[row * cols + tokens[first]!]!);
      for (let i = first; i < first + branching; i++) logProbabilities[i] = best + (values[i]! - values[first]!);
    }
  }

  #feedAllButLast(): void {
    const last = this.#pendingCount - 1;
    this.#feed(last, this.#text[this.#sequence.length + last]!, false);
    copyRow(this.#pending, 0, this.#pending, last);
    this.#pendingCount = 1;
  }

  /** The first `count` pending rows, each with its next token (`next` after the last), which become committed. */
  #feed(count: number, next: number, wantGuesses: boolean): void {
    const batch = this.#batch;
    batch.clear();
    for (let i = 0, parent = COMMITTED; i < count; i++) {
      const token = i + 1 < count ? this.#text[this.#sequence.length + i + 1]! : next;
      parent = batch.append(this.#sequence, token, parent, wantGuesses && i === count - 1);
    }
    this.#run(this.#pending);
    this.#sequence.commitAll();
  }

  get budget(): TreeBudget | undefined {
    return this.#grower.budget;
  }

  settle(path: Int32Array, pathLength: number, bonus: number, forwardMs: number): void {
    this.#grower.settle?.(path, pathLength, bonus, forwardMs);
  }

  [Symbol.dispose](): void {
    this.cache[Symbol.dispose]();
    this.#head[Symbol.dispose]();
  }
}

/** The head's forwards with the choice of the best guesses, to be timed. */
export class EagleForwards implements DraftForwards {
  readonly #target: TargetModel;
  readonly #head: EagleHead;
  readonly #cache: KvCache;
  readonly #batch = new ForwardBatch(Math.max(...DRAFT_ROWS));
  readonly #features = new ScratchTensor();
  readonly #tokens: Int32Array;
  readonly #values: Float32Array;

  /** @param guesses wanted after each row. */
  constructor(target: TargetModel, head: EagleHead, guesses: number) {
    this.#target = target;
    this.#head = head;
    this.#cache = head.createCache(this.#batch.maxRows);
    const count = this.#batch.maxRows * Math.min(guesses, head.config.draftVocabSize);
    this.#tokens = new Int32Array(count);
    this.#values = new Float32Array(count);
  }

  forward(rows: number): void {
    const batch = this.#batch;
    fillFlat(batch, this.#cache, rows);
    const features = this.#features.reshape(rows, this.#head.config.hiddenSize);
    const logits = this.#head.logits(batch, this.#head.forward(batch, features, this.#cache));
    const guesses = this.#tokens.length / batch.maxRows;
    this.#target.kernels.topK(this.#tokens, this.#values, logits.data, rows, logits.cols, guesses);
  }

  [Symbol.dispose](): void {
    this.#cache[Symbol.dispose]();
  }
}
