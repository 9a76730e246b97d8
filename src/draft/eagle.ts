/**
 * EAGLE drafting (arXiv:2401.15077 §3.1): the head extrapolates the target's top features, one forward per level of the tree. Its own
 * cache keeps only rows made from the target's features; what it made of its own guesses is dropped after every round.
 */
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import { type KvCache, type KvSequence, sharedPrefix } from '../model/kv-cache.ts';
import type { TargetModel } from '../model/target.ts';
import { copyRow, ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import type { TreeBudget } from './budget.ts';
import type { DraftSampling } from './draft-laws.ts';
import type { Drafter } from './drafter.ts';
import type { EagleHead } from './eagle-head.ts';
import { LevelDrafting, LevelForwards, type LevelModel, levelExtras } from './level-drafting.ts';
import { DRAFT_ROWS, type DraftForwards } from './measure-costs.ts';
import { TextVocabulary } from './text-vocabulary.ts';
import type { DraftTree } from './tree.ts';
import type { TreeGrower } from './tree-grower.ts';
import { createGrower, type TreePolicy } from './tree-policy.ts';

/**
 * Committed rows that wait for the head. All but the last are only looked back at and remembered by the way (9 us each by fifteens, 7 by
 * sixty, where a forward takes 25); those that still wait when guesses are wanted go through that forward with the row that makes them (15 rows 0.2 ms
 * longer than one, 63 rows 1.3 ms).
 */
const PENDING_ROWS = 16;

export class EagleDrafter implements Drafter, LevelModel {
  readonly name = 'eagle';
  readonly maxNodes: number;
  readonly targetIds: Int32Array | undefined;
  /** The head's. Committed: rows made from the target's features. */
  readonly cache: KvCache;
  readonly #head: EagleHead;
  readonly #grower: TreeGrower;
  readonly #levels: LevelDrafting;
  readonly #sequence: KvSequence;
  readonly #batch: ForwardBatch;
  /** Undefined where all tokens may be guessed. */
  readonly #vocabulary: TextVocabulary | undefined;

  // Features of committed rows that the head has not seen: row i of the head eats (feature i, token i + 1).
  readonly #pending = new ScratchTensor(); // [PENDING_ROWS, d], the first #pendingCount
  readonly #text: Int32Array; // [contextSize] tokens of the rows that the head has seen, then of the pending ones
  #pendingCount = 0;

  readonly #level = new ScratchTensor(); // [level's rows, d] features of one forward
  #input: ScratchTensor = this.#pending; // of the next forward
  #predicted!: Tensor; // by the last

  constructor(target: TargetModel, head: EagleHead, policy: TreePolicy, contextSize: number) {
    this.#head = head;
    const { hiddenSize, vocabSize, draftVocabSize } = head.config;
    const grower = createGrower(policy, draftVocabSize);
    const { maxRows, maxLevels } = grower;
    this.#grower = grower;
    this.maxNodes = grower.maxNodes;
    this.#text = new Int32Array(contextSize);
    this.#batch = new ForwardBatch(Math.max(PENDING_ROWS, maxRows), PENDING_ROWS + levelExtras(grower));
    this.#vocabulary = head.targetIds && new TextVocabulary(target, head.targetIds, head.lmHead, contextSize);
    this.targetIds = this.#vocabulary?.targetIds;
    try {
      this.cache = head.createCache(contextSize + maxRows * maxLevels);
    } catch (error) {
      this.#vocabulary?.[Symbol.dispose](); // the head is the caller's until this is made
      throw error;
    }
    this.#sequence = this.cache.sequences[0]!;
    this.#levels = new LevelDrafting(target.kernels, vocabSize, grower, this, this.#sequence, this.#batch);
    this.#pending.reshape(PENDING_ROWS, hiddenSize);
    this.#level.reshape(maxRows, hiddenSize);
  }

  resume(text: readonly number[], held: number, sampling?: DraftSampling): number {
    if (this.maxNodes === 1) return held;
    this.#levels.resume(sampling);
    const seen = this.#sequence.length;
    const shared = Math.min(held, sharedPrefix(this.#text, text, seen + this.#pendingCount));
    // The head's last row has eaten the first pending token. Where the texts part before that, the row that eats the first new token needs
    // a feature that is gone.
    const kept = shared > seen ? shared : Math.max(shared - 1, 0);
    this.#vocabulary?.resume(text, kept);
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
      this.#vocabulary?.add(tokens[row]!);
      copyRow(this.#pending, this.#pendingCount, features, row);
      this.#pendingCount++;
    }
  }

  propose(root: number, maxDepth: number): DraftTree {
    const context = this.#sequence.length + this.#pendingCount;
    if (!this.#levels.start(root, context, maxDepth, this.#pendingCount)) return this.#levels.finish();
    this.#vocabulary?.add(root);
    this.#fillPending(this.#pendingCount, root);
    this.#input = this.#pending;
    this.#pendingCount = 0;
    return this.#levels.grow();
  }

  forward(batch: ForwardBatch): Tensor {
    const input = this.#input;
    this.#predicted = this.#head.forward(batch, input.reshape(batch.rows, input.cols), this.cache);
    return this.#head.logits(batch, this.#predicted, this.#vocabulary?.lmHead);
  }

  /** A guess's feature is what was predicted at its parent. */
  descend(row: number, parent: number): void {
    this.#input = this.#level;
    copyRow(this.#level, row, this.#predicted, parent);
  }

  #feedAllButLast(): void {
    const last = this.#pendingCount - 1;
    this.#fillPending(last, this.#text[this.#sequence.length + last]!);
    this.#head.remember(this.#batch, this.#pending.reshape(last, this.#pending.cols), this.cache);
    this.#sequence.commitAll();
    copyRow(this.#pending, 0, this.#pending, last);
    this.#pendingCount = 1;
  }

  /** A batch of the first `count` pending rows, each with its next token, `next` after the last, whose guesses are wanted. */
  #fillPending(count: number, next: number): void {
    const batch = this.#batch;
    batch.clear();
    for (let i = 0, parent = COMMITTED; i < count; i++) {
      const token = i + 1 < count ? this.#text[this.#sequence.length + i + 1]! : next;
      parent = batch.append(this.#sequence, token, parent, i === count - 1);
    }
  }

  get budget(): TreeBudget | undefined {
    return this.#grower.budget;
  }

  settle(path: Int32Array, pathLength: number, bonus: number, forwardMs: number): void {
    this.#grower.settle?.(path, pathLength, bonus, forwardMs);
  }

  [Symbol.dispose](): void {
    this.cache[Symbol.dispose]();
    this.#vocabulary?.[Symbol.dispose]();
    this.#head[Symbol.dispose]();
  }
}

/** The head's forwards, to be timed. @param guesses wanted after each row. */
export function eagleForwards(target: TargetModel, head: EagleHead, guesses: number): DraftForwards {
  const features = new ScratchTensor();
  const { hiddenSize, draftVocabSize } = head.config;
  const cache = head.createCache(Math.max(...DRAFT_ROWS));
  return new LevelForwards(target.kernels, Math.min(guesses, draftVocabSize), cache, (batch) =>
    head.logits(batch, head.forward(batch, features.reshape(batch.rows, hiddenSize), cache)),
  );
}
