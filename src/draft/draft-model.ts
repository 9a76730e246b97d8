/**
 * Standard speculative sampling (Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318): a small model of the same vocabulary
 * writes ahead, as a chain or a tree, and the target verifies. It sees tokens only, never the target's features. How far it writes is the
 * tree's affair: with a budget its own confidence decides, round by round.
 */
import { RequestError } from '../errors.ts';
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import { type KvCache, type KvSequence, sharedPrefix } from '../model/kv-cache.ts';
import type { TargetModel } from '../model/target.ts';
import type { Tensor } from '../tensor/tensor.ts';
import type { TreeBudget } from './budget.ts';
import type { DraftSampling } from './draft-laws.ts';
import type { Drafter } from './drafter.ts';
import { LevelDrafting, LevelForwards, type LevelModel, levelExtras } from './level-drafting.ts';
import { DRAFT_ROWS, type DraftForwards } from './measure-costs.ts';
import type { DraftTree } from './tree.ts';
import type { TreeGrower } from './tree-grower.ts';
import { createGrower, type TreePolicy } from './tree-policy.ts';

/** Committed tokens that wait for the draft model, and so the rows of one catching-up forward beside the root's. */
const PENDING_ROWS = 64;

export class DraftModelDrafter implements Drafter, LevelModel {
  readonly name = 'draft';
  readonly maxNodes: number;
  readonly targetIds = undefined;
  /** The draft model's. Committed: rows of the text, the root's not among them. */
  readonly cache: KvCache;
  readonly #model: TargetModel;
  readonly #grower: TreeGrower;
  readonly #levels: LevelDrafting;
  readonly #sequence: KvSequence;
  readonly #batch: ForwardBatch;
  readonly #text: Int32Array; // [contextSize] observed tokens, #length of them
  #length = 0;
  /** Longest text below whose root a whole tree has places in the model's context; beyond it nothing is drafted. */
  readonly #longest: number;

  /** @param model owned from here on. @throws RequestError where its vocabulary has another size than the target's. */
  constructor(target: TargetModel, model: TargetModel, policy: TreePolicy, contextSize: number) {
    checkVocabulary(target, model);
    const { vocabSize, contextLength } = model.config;
    this.#model = model;
    const grower = createGrower(policy, vocabSize);
    const { maxRows, maxLevels } = grower;
    this.#grower = grower;
    this.maxNodes = grower.maxNodes;
    this.#longest = Math.min(contextSize, contextLength - maxLevels - 1);
    this.#text = new Int32Array(contextSize);
    this.#batch = new ForwardBatch(Math.max(PENDING_ROWS + 1, maxRows), PENDING_ROWS + 1 + levelExtras(grower));
    this.cache = model.createCache(1, Math.min(contextSize, contextLength) + 1 + maxRows * maxLevels);
    this.#sequence = this.cache.sequences[0]!;
    this.#levels = new LevelDrafting(model.kernels, vocabSize, grower, this, this.#sequence, this.#batch);
  }

  resume(text: readonly number[], held: number, sampling?: DraftSampling): number {
    this.#levels.resume(sampling);
    this.#sequence.truncate(sharedPrefix(this.#text, text, Math.min(held, this.#sequence.length)));
    for (let i = 0; i < held; i++) this.#text[i] = text[i]!;
    this.#length = held;
    return held;
  }

  observe(tokens: Int32Array, _features: Tensor, rows: Int32Array, count: number): void {
    for (let i = 0; i < count; i++) {
      this.#text[this.#length++] = tokens[rows[i]!]!;
      if (this.#pending === PENDING_ROWS && this.#canDraft) this.#feedPending();
    }
  }

  /** Observed tokens that the model has not seen. */
  get #pending(): number {
    return this.#length - this.#sequence.length;
  }

  get #canDraft(): boolean {
    return this.maxNodes > 1 && this.#length <= this.#longest;
  }

  propose(root: number, maxDepth: number): DraftTree {
    const rows = this.#canDraft ? this.#pending + 1 : 0;
    if (!this.#levels.start(root, this.#length, maxDepth, rows)) return this.#levels.finish();
    // A text that was resumed may bring more than observing leaves.
    while (this.#pending > PENDING_ROWS) this.#feedPending();
    this.#batch.append(this.#sequence, root, this.#fillPending(), true);
    const tree = this.#levels.grow();
    // Whether the root stays is the target's affair: it may end the text before.
    this.#sequence.truncate(this.#length);
    return tree;
  }

  #feedPending(): void {
    this.#fillPending();
    this.#model.forward(this.#batch, this.cache);
    this.#sequence.commitAll();
  }

  /** A batch of pending tokens, at most PENDING_ROWS; returns the last row. */
  #fillPending(): number {
    const first = this.#sequence.length;
    const count = Math.min(this.#pending, PENDING_ROWS);
    let parent = COMMITTED;
    this.#batch.clear();
    for (let i = 0; i < count; i++) parent = this.#batch.append(this.#sequence, this.#text[first + i]!, parent, false);
    return parent;
  }

  forward(batch: ForwardBatch): Tensor {
    return this.#model.forward(batch, this.cache).logits;
  }

  get budget(): TreeBudget | undefined {
    return this.#grower.budget;
  }

  settle(path: Int32Array, pathLength: number, bonus: number, forwardMs: number): void {
    this.#grower.settle?.(path, pathLength, bonus, forwardMs);
  }

  [Symbol.dispose](): void {
    this.cache[Symbol.dispose]();
    this.#model[Symbol.dispose]();
  }
}

/** The ids must mean the same: here their number is compared, what they stand for where the draft model has a tokenizer. */
function checkVocabulary(target: TargetModel, model: TargetModel): void {
  const [wanted, got] = [target.config.vocabSize, model.config.vocabSize];
  if (wanted !== got)
    throw new RequestError('draftModel', `must have the target's vocabulary of ${wanted} tokens, has ${got}`);
}

/** The draft model's forwards, to be timed. @param guesses wanted after each row. */
export function draftModelForwards(model: TargetModel, guesses: number): DraftForwards {
  const cache = model.createCache(1, Math.max(...DRAFT_ROWS));
  return new LevelForwards(
    model.kernels,
    Math.min(guesses, model.config.vocabSize),
    cache,
    (batch) => model.forward(batch, cache).logits,
  );
}
