/**
 * Medusa drafting (arXiv:2401.10774 §2.1): every head looks at the target's feature of the last token it has seen, once a round at most, and
 * guesses for its own depth. So the guesses below a node are the same whatever the node says: child rank r at depth s is the r-th best
 * of head s - 1 (a Cartesian product, of which the tree keeps the likely part). There is no cache, and nothing to catch up with.
 */
import type { TargetModel } from '../model/target.ts';
import { copyRow, ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import type { TreeBudget } from './budget.ts';
import { ChosenGuesses } from './chosen-guesses.ts';
import type { DraftLaws, DraftSampling } from './draft-laws.ts';
import type { Drafter } from './drafter.ts';
import { DrawnGuesses } from './drawn-guesses.ts';
import type { DraftForwards } from './measure-costs.ts';
import type { MedusaHeads } from './medusa-heads.ts';
import { RacedGuesses } from './raced-guesses.ts';
import { TextVocabulary } from './text-vocabulary.ts';
import { type DraftTree, depthOf } from './tree.ts';
import { createGuesses, type Guesses, samplingFor, type TreeGrower } from './tree-grower.ts';
import { createGrower, type TreePolicy } from './tree-policy.ts';

export class MedusaDrafter implements Drafter {
  readonly name = 'medusa';
  readonly maxNodes: number;
  readonly #target: TargetModel;
  readonly #heads: MedusaHeads;
  readonly #grower: TreeGrower;
  /** Heads that the tree has a level for. */
  readonly #levels: number;
  /** Of one pass. A tree of settled shape wants all, and they read the LM head together; a budget asks for one more while that pays. */
  readonly #headsTogether: number;
  /** Undefined where all tokens may be guessed, or no other ones: heads with LM heads of their own. */
  readonly #vocabulary: TextVocabulary | undefined;
  readonly #targetIds: Int32Array | undefined; // of draft ids, as they stand in the round

  /** Of the last committed row. Known once a row of the running text was observed. */
  readonly #feature = new ScratchTensor(); // [1, d]
  #known = false;
  #committed = 0; // rows of the running text

  readonly #headGuesses: Guesses; // [levels, branching]
  readonly #guessesFrom: readonly Guesses[]; // by head: the same from its row on
  readonly #guesses: Guesses; // [level's rows, branching]
  readonly #chosen: ChosenGuesses;
  readonly #raced: RacedGuesses;
  /** What the running text asks for; undefined chooses the best guesses. */
  #sampling: DraftSampling | undefined;
  #drawn: DrawnGuesses | undefined; // made when first asked for
  /**
   * A head draws once for all nodes of its depth. Siblings come from its law without replacement, whatever stands above them, and of a
   * depth only the children of one node are ever verified: that other nodes have the same ones makes no difference.
   */
  readonly #laws: DraftLaws = {
    draft: (node) => this.#drawn!.law(depthOf(this.#tree.parents, node)),
    drawing: () => 'without-replacement',
  };
  #tree!: DraftTree;

  /** @param policy whose nodes deeper than there are heads are never proposed. @param contextSize tokens of a text, at most. */
  constructor(target: TargetModel, heads: MedusaHeads, policy: TreePolicy, contextSize: number) {
    this.#target = target;
    this.#heads = heads;
    const grower = createGrower(policy, heads.draftVocabSize);
    const { maxRows, maxLevels, branching } = grower;
    this.#grower = grower;
    this.maxNodes = grower.maxNodes;
    this.#levels = Math.min(heads.config.heads, maxLevels + 1);
    this.#headsTogether = grower.budget === undefined ? this.#levels : 1;
    this.#feature.reshape(1, target.config.hiddenSize);
    this.#headGuesses = createGuesses(this.#levels, branching);
    this.#guessesFrom = Array.from({ length: this.#levels }, (_, head) => ({
      tokens: this.#headGuesses.tokens.subarray(head * branching),
      logProbabilities: this.#headGuesses.logProbabilities.subarray(head * branching),
    }));
    this.#guesses = createGuesses(maxRows, branching);
    this.#chosen = new ChosenGuesses(target.kernels, this.#levels, branching);
    this.#vocabulary =
      heads.sharedLmHead && heads.targetIds !== undefined
        ? new TextVocabulary(target, heads.targetIds, heads.lmHead(0), contextSize)
        : undefined;
    this.#targetIds = this.#vocabulary?.targetIds ?? heads.targetIds;
    this.#raced = new RacedGuesses(target.kernels, this.#targetIds, 1, branching);
  }

  /** The loop computes the last token of every prompt, and that is the row whose feature the heads will read. */
  resume(text: readonly number[], held: number, sampling?: DraftSampling): number {
    this.#grower.beginText?.();
    this.#sampling = samplingFor(this.#grower, sampling);
    this.#vocabulary?.resume(text, held);
    this.#known = false;
    this.#committed = held;
    return held;
  }

  observe(tokens: Int32Array, features: Tensor, rows: Int32Array, count: number): void {
    if (count === 0) return;
    if (this.#vocabulary !== undefined) for (let i = 0; i < count; i++) this.#vocabulary.add(tokens[rows[i]!]!);
    copyRow(this.#feature, 0, features, rows[count - 1]!);
    this.#known = true;
    this.#committed += count;
  }

  propose(root: number, maxDepth: number): DraftTree {
    const grower = this.#grower;
    const levels = Math.min(maxDepth, this.#levels);
    this.#vocabulary?.add(root);
    const wanted = grower.start(root, this.#committed, levels, this.#known ? 1 : 0, this.#startDrawing());
    if (wanted && this.#known && levels > 0 && this.maxNodes > 1) {
      for (let level = 0, known = 0, rows = 1; rows > 0; level++) {
        if (level === known) known += this.#guess(level, Math.min(this.#headsTogether, levels - level));
        this.#spread(level, rows);
        rows = grower.grow(this.#guesses);
      }
    }
    this.#tree = grower.finish();
    return this.#tree;
  }

  /** The laws of the next tree, if its nodes shall be drawn. */
  #startDrawing(): DraftLaws | undefined {
    const sampling = this.#sampling;
    if (sampling?.kind !== 'urn') return undefined;
    this.#drawn ??= this.#createDrawnGuesses();
    this.#drawn.start(sampling, this.#committed);
    return this.#laws;
  }

  #createDrawnGuesses(): DrawnGuesses {
    const { vocabSize } = this.#target.config;
    const { branching } = this.#grower;
    return new DrawnGuesses(this.#target.kernels, vocabSize, this.#targetIds, this.#levels, branching);
  }

  /** What `count` heads from `first` on guess. @returns how many. */
  #guess(first: number, count: number): number {
    const logits = this.#heads.logits(this.#feature, count, first, this.#vocabulary?.lmHead);
    const guesses = this.#guessesFrom[first]!;
    switch (this.#sampling?.kind) {
      case undefined:
        this.#chosen.choose(logits, count, guesses);
        break;
      case 'urn':
        this.#drawn!.draw(logits, count, guesses);
        break;
      case 'race':
        // A head a position: the first guesses what follows the root.
        for (let i = 0; i < count; i++) {
          const position = this.#committed + 1 + first + i;
          // A view of a row is kept for each width, which grows with the text: a budget asks for one row, and none is made.
          const row = i === 0 ? logits.data : logits.row(i);
          this.#raced.race(row, 1, logits.cols, this.#sampling, position, this.#guessesFrom[first + i]!);
        }
        break;
    }
    const targetIds = this.#targetIds;
    const { tokens } = guesses;
    if (targetIds !== undefined)
      for (let i = 0; i < count * this.#grower.branching; i++) tokens[i] = targetIds[tokens[i]!]!;
    return count;
  }

  /** One head's guesses after each row of a level. */
  #spread(level: number, rows: number): void {
    const { branching } = this.#grower;
    const { tokens, logProbabilities } = this.#headGuesses;
    const from = level * branching;
    for (let i = 0; i < rows * branching; i++) {
      this.#guesses.tokens[i] = tokens[from + (i % branching)]!;
      this.#guesses.logProbabilities[i] = logProbabilities[from + (i % branching)]!;
    }
  }

  get budget(): TreeBudget | undefined {
    return this.#grower.budget;
  }

  settle(path: Int32Array, pathLength: number, bonus: number, forwardMs: number): void {
    this.#grower.settle?.(path, pathLength, bonus, forwardMs);
  }

  [Symbol.dispose](): void {
    this.#vocabulary?.[Symbol.dispose]();
    this.#heads[Symbol.dispose]();
  }
}

/** One head with the choice of its best guesses, to be timed: it takes as long for a level of any size. */
export class MedusaForwards implements DraftForwards {
  readonly #heads: MedusaHeads;
  readonly #feature = new ScratchTensor();
  readonly #chosen: ChosenGuesses;
  readonly #guesses: Guesses;

  /** @param guesses wanted of each head. */
  constructor(target: TargetModel, heads: MedusaHeads, guesses: number) {
    const branching = Math.min(guesses, heads.draftVocabSize);
    this.#heads = heads;
    this.#feature.reshape(1, target.config.hiddenSize);
    this.#chosen = new ChosenGuesses(target.kernels, 1, branching);
    this.#guesses = createGuesses(1, branching);
  }

  forward(): void {
    this.#chosen.choose(this.#heads.logits(this.#feature, 1), 1, this.#guesses);
  }

  [Symbol.dispose](): void {}
}
