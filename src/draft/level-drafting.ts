/**
 * A tree grown by a model with a cache of its own, one forward per level: what the EAGLE head and a draft model have in common. The grower
 * says which nodes come next, the model guesses after them; rows of guesses are dropped when the tree is grown.
 */
import type { Kernels } from '../kernels/kernels.ts';
import { ForwardBatch } from '../model/forward-batch.ts';
import type { KvCache, KvSequence } from '../model/kv-cache.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { ChosenGuesses } from './chosen-guesses.ts';
import type { DraftLaws, DraftSampling } from './draft-laws.ts';
import { DrawnGuesses } from './drawn-guesses.ts';
import { DRAFT_ROWS, type DraftForwards, fillFlat } from './measure-costs.ts';
import { RacedGuesses } from './raced-guesses.ts';
import type { DraftTree } from './tree.ts';
import { createGuesses, type Guesses, samplingFor, type TreeGrower } from './tree-grower.ts';

export interface LevelModel {
  /** Target id of a draft id, as it stands in the round; undefined where both vocabularies are the same. */
  readonly targetIds: Int32Array | undefined; // [Vd] or longer
  /** Logits of the batch's wanted rows over the Vd tokens that may be guessed in this round, [logitCount, Vd]; they may be overwritten. */
  forward(batch: ForwardBatch): Tensor;
  /** Row `row` of the coming forward hangs below row `parent` of the last one. */
  descend?(row: number, parent: number): void;
}

export class LevelDrafting {
  readonly #kernels: Kernels;
  readonly #grower: TreeGrower;
  readonly #model: LevelModel;
  readonly #sequence: KvSequence;
  readonly #batch: ForwardBatch;
  readonly #vocabSize: number;
  readonly #guesses: Guesses;
  readonly #chosen: ChosenGuesses;
  readonly #raced: RacedGuesses;
  /** What the running text asks for; undefined chooses the best guesses. */
  #sampling: DraftSampling | undefined;
  #drawn: DrawnGuesses | undefined; // made when first asked for
  #position = 0; // of the tokens that the coming forward guesses
  readonly #laws: DraftLaws = {
    draft: (node) => this.#drawn!.law(this.#grower.drawnRows![node]!),
    drawing: () => 'without-replacement',
  };
  // Slots of the model's rows along the path down to each row of a level, its own last.
  #paths: Int32Array; // [level's rows, maxLevels]
  #parentPaths: Int32Array; // of the level before
  readonly #ancestors: Int32Array; // [maxLevels]

  /**
   * @param vocabSize of the target. @param sequence of the model's cache.
   * @param batch with room for a level's rows, each with its ancestors: see `levelExtras`.
   */
  constructor(
    kernels: Kernels,
    vocabSize: number,
    grower: TreeGrower,
    model: LevelModel,
    sequence: KvSequence,
    batch: ForwardBatch,
  ) {
    this.#kernels = kernels;
    this.#vocabSize = vocabSize;
    this.#grower = grower;
    this.#model = model;
    this.#sequence = sequence;
    this.#batch = batch;
    const { maxRows, maxLevels, branching } = grower;
    this.#guesses = createGuesses(maxRows, branching);
    this.#chosen = new ChosenGuesses(kernels, maxRows, branching);
    this.#raced = new RacedGuesses(kernels, model.targetIds, maxRows, branching);
    this.#paths = new Int32Array(maxRows * maxLevels);
    this.#parentPaths = new Int32Array(maxRows * maxLevels);
    this.#ancestors = new Int32Array(maxLevels);
  }

  /** A new text. @param sampling asks for drawn guesses, where the tree allows them. */
  resume(sampling: DraftSampling | undefined): void {
    this.#grower.beginText?.();
    this.#sampling = samplingFor(this.#grower, sampling);
  }

  /**
   * A new tree below the root, which has `context` tokens before it.
   * @param rows that the model has to look at for the root's guesses. @returns false where none are wanted: `finish` is all.
   */
  start(root: number, context: number, maxDepth: number, rows: number): boolean {
    this.#position = context + 1;
    const wanted = this.#grower.start(root, context, maxDepth, rows, this.#startDrawing(context));
    return wanted && rows > 0 && maxDepth >= 1;
  }

  /**
   * The tree from the root's guesses down. The batch holds rows that become committed, the last of which guesses what follows the root and
   * is the only one whose logits are wanted.
   */
  grow(): DraftTree {
    const grower = this.#grower;
    let parents = this.#batch.rows - 1; // first row of the level before in the last forward
    this.#run();
    this.#sequence.commitAll();
    for (let depth = 1, rows = grower.grow(this.#guesses); rows > 0; rows = grower.grow(this.#guesses), depth++) {
      this.#expand(depth, rows, parents);
      parents = 0;
    }
    this.#sequence.rollback();
    return grower.finish();
  }

  finish(): DraftTree {
    return this.#grower.finish();
  }

  /** The laws of the next tree, if its nodes shall be drawn. */
  #startDrawing(position: number): DraftLaws | undefined {
    const sampling = this.#sampling;
    if (sampling?.kind !== 'urn') return undefined;
    this.#drawn ??= this.#createDrawnGuesses();
    this.#drawn.start(sampling, position);
    return this.#laws;
  }

  #createDrawnGuesses(): DrawnGuesses {
    const { branching, drawnRows } = this.#grower;
    const rows = Math.max(...drawnRows!) + 1;
    return new DrawnGuesses(this.#kernels, this.#vocabSize, this.#model.targetIds, rows, branching);
  }

  /** Runs the next level in one batch. */
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
      this.#model.descend?.(row, firstParent + parent);
    }
    this.#run();
  }

  /** The batch through the model; guesses after its wanted rows to #guesses. */
  #run(): void {
    const { branching } = this.#grower;
    const { tokens } = this.#guesses;
    const { targetIds } = this.#model;
    const logits = this.#model.forward(this.#batch);
    const count = this.#batch.logitCount;
    switch (this.#sampling?.kind) {
      case undefined:
        this.#chosen.choose(logits, count, this.#guesses);
        break;
      case 'urn':
        this.#drawn!.draw(logits, count, this.#guesses);
        break;
      case 'race':
        this.#raced.race(logits.data, count, logits.cols, this.#sampling, this.#position++, this.#guesses);
        break;
    }
    if (targetIds === undefined) return;
    for (let i = 0; i < count * branching; i++) tokens[i] = targetIds[tokens[i]!]!;
  }
}

/** Ancestors of all rows of a level together, at most: a batch needs room for them. */
export function levelExtras({ maxRows, maxLevels }: TreeGrower): number {
  return maxRows * maxLevels;
}

/** The forwards of a model that grows trees level by level, with the choice of the best guesses, to be timed. */
export class LevelForwards implements DraftForwards {
  readonly #cache: KvCache;
  readonly #logits: (batch: ForwardBatch) => Tensor;
  readonly #batch = new ForwardBatch(Math.max(...DRAFT_ROWS));
  readonly #chosen: ChosenGuesses;
  readonly #guesses: Guesses;

  /**
   * @param guesses wanted after each row. @param cache of this alone, for DRAFT_ROWS rows; owned from here on.
   * @param logits of the batch's wanted rows, computed on that cache.
   */
  constructor(kernels: Kernels, guesses: number, cache: KvCache, logits: (batch: ForwardBatch) => Tensor) {
    this.#cache = cache;
    this.#logits = logits;
    const { maxRows } = this.#batch;
    this.#chosen = new ChosenGuesses(kernels, maxRows, guesses);
    this.#guesses = createGuesses(maxRows, guesses);
  }

  forward(rows: number): void {
    fillFlat(this.#batch, this.#cache, rows);
    this.#chosen.choose(this.#logits(this.#batch), rows, this.#guesses);
  }

  [Symbol.dispose](): void {
    this.#cache[Symbol.dispose]();
  }
}
