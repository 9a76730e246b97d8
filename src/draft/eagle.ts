/**
 * EAGLE drafting (arXiv:2401.15077 §3.1): the head extrapolates the target's top features, one forward per level of the tree. Its own
 * cache keeps only rows made from the target's features; what it made of its own guesses is dropped after every round.
 */
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import type { KvCache, KvSequence } from '../model/kv-cache.ts';
import type { TargetModel } from '../model/target.ts';
import type { Tensor } from '../tensor/tensor.ts';
import type { Drafter } from './drafter.ts';
import type { EagleHead } from './eagle-head.ts';
import type { DraftTree, TreeShape } from './tree.ts';

/** Committed rows that wait for the head: a prefill chunk of the loop fits. */
const PENDING_ROWS = 512;
/** Rows of one catching-up forward. */
const FEED_ROWS = 64;

export class EagleDrafter implements Drafter {
  readonly name = 'eagle';
  readonly maxNodes: number;
  readonly #target: TargetModel;
  readonly #head: EagleHead;
  readonly #shape: TreeShape;
  readonly #cache: KvCache;
  readonly #sequence: KvSequence;
  readonly #batch: ForwardBatch;
  readonly #d: number;

  // Features of committed rows whose next token was not known yet: row i of the head eats (feature i, token i + 1).
  readonly #pending: Float32Array; // [PENDING_ROWS, d]
  readonly #pendingTokens = new Int32Array(PENDING_ROWS);
  #pendingCount = 0;

  readonly #input: { data: Float32Array; rows: number; cols: number }; // features of one forward
  readonly #hidden: Float32Array; // [maxNodes, d] the head's output at each node
  readonly #slots: Int32Array; // [maxNodes] where the node's head row lies
  readonly #ancestors: Int32Array;
  readonly #level: Int32Array; // inner nodes of the level in progress
  readonly #tree: { size: number; tokens: Int32Array; parents: Int32Array };
  readonly #hasChildren: Uint8Array;
  readonly #topIds: Int32Array;
  readonly #topValues: Float32Array;

  constructor(target: TargetModel, head: EagleHead, shape: TreeShape, contextSize: number) {
    this.#target = target;
    this.#head = head;
    this.#shape = shape;
    this.maxNodes = shape.size;
    this.#d = head.config.hiddenSize;
    this.#cache = head.createCache(contextSize + shape.size);
    this.#sequence = this.#cache.sequences[0]!;
    const rows = Math.max(FEED_ROWS, shape.size);
    this.#batch = new ForwardBatch(rows, shape.size * (shape.maxDepth + 1));
    this.#pending = new Float32Array(PENDING_ROWS * this.#d);
    this.#input = { data: new Float32Array(rows * this.#d), rows: 0, cols: this.#d };
    this.#hidden = new Float32Array(shape.size * this.#d);
    this.#slots = new Int32Array(shape.size);
    this.#ancestors = new Int32Array(shape.maxDepth + 1);
    this.#level = new Int32Array(shape.size);
    this.#tree = { size: 1, tokens: new Int32Array(shape.size), parents: Int32Array.from(shape.parents) };
    this.#hasChildren = new Uint8Array(shape.size);
    for (const parent of shape.parents) if (parent >= 0) this.#hasChildren[parent] = 1;
    this.#topIds = new Int32Array(shape.size * shape.maxChildren);
    this.#topValues = new Float32Array(shape.size * shape.maxChildren);
  }

  reset(): void {
    this.#sequence.truncate(0);
    this.#pendingCount = 0;
  }

  observe(tokens: Int32Array, features: Tensor, rows: Int32Array, count: number): void {
    for (let i = 0; i < count; i++) {
      if (this.#pendingCount === PENDING_ROWS) this.#feedAllButLast();
      const row = rows[i]!;
      this.#pendingTokens[this.#pendingCount] = tokens[row]!;
      copyRow(this.#pending, this.#pendingCount, features.data, row, this.#d);
      this.#pendingCount++;
    }
  }

  propose(root: number, maxDepth: number): DraftTree {
    const shape = this.#shape;
    const tree = this.#tree;
    tree.tokens[0] = root;
    tree.size = 1;
    if (this.#pendingCount === 0) return tree;
    this.#feed(this.#pendingCount, root);
    if (maxDepth < 1 || shape.size === 1) return tree;

    // Level by level: nodes are ordered by depth, so each level is a range of nodes.
    let parentsEnd = 1;
    this.#level[0] = 0;
    let inner = 1;
    while (parentsEnd < shape.size && shape.depths[parentsEnd]! <= maxDepth) {
      const depth = shape.depths[parentsEnd]!;
      let end = parentsEnd;
      for (; end < shape.size && shape.depths[end] === depth; end++) {
        const parent = shape.parents[end]!;
        let row = 0;
        while (this.#level[row] !== parent) row++;
        const draftId = this.#topIds[row * shape.maxChildren + shape.ranks[end]!]!;
        tree.tokens[end] = this.#head.targetIds === undefined ? draftId : this.#head.targetIds[draftId]!;
      }
      tree.size = end;
      if (depth === maxDepth) break;
      inner = 0;
      for (let node = parentsEnd; node < end; node++) if (this.#hasChildren[node]) this.#level[inner++] = node;
      parentsEnd = end;
      if (inner > 0) this.#expand(inner);
    }
    this.#sequence.rollback();
    return tree;
  }

  /** Runs the level's inner nodes in one batch: token of the node, feature predicted at its parent. */
  #expand(inner: number): void {
    const { parents } = this.#shape;
    const batch = this.#batch;
    batch.clear();
    for (let i = 0; i < inner; i++) {
      const node = this.#level[i]!;
      let count = 0;
      for (let a = parents[node]!; a > 0; a = parents[a]!) count++;
      for (let a = parents[node]!, at = count - 1; a > 0; a = parents[a]!, at--) this.#ancestors[at] = this.#slots[a]!;
      const row = batch.appendAfter(this.#sequence, this.#tree.tokens[node]!, this.#ancestors, count, true);
      this.#slots[node] = batch.layout.slots[row]!;
      copyRow(this.#input.data, row, this.#hidden, parents[node]!, this.#d);
    }
    this.#run();
    for (let i = 0; i < inner; i++) copyRow(this.#hidden, this.#level[i]!, this.#predicted.data, i, this.#d);
  }

  #predicted!: Tensor;

  /** The batch through the head; guesses of its wanted rows to #topIds. */
  #run(): void {
    const batch = this.#batch;
    const { maxChildren } = this.#shape;
    this.#input.rows = batch.rows;
    this.#predicted = this.#head.forward(batch, this.#input, this.#cache);
    if (batch.logitCount === 0) return;
    const logits = this.#head.logits(batch, this.#predicted);
    this.#target.kernels.topK(this.#topIds, this.#topValues, logits.data, batch.logitCount, logits.cols, maxChildren);
  }

  #feedAllButLast(): void {
    const last = this.#pendingCount - 1;
    this.#feed(last, this.#pendingTokens[last]!);
    copyRow(this.#pending, 0, this.#pending, last, this.#d);
    this.#pendingTokens[0] = this.#pendingTokens[last]!;
    this.#pendingCount = 1;
  }

  /** The first `count` pending rows, each with its next token (`next` after the last); the guesses after the last row are kept. */
  #feed(count: number, next: number): void {
    const batch = this.#batch;
    for (let first = 0; first < count; first += FEED_ROWS) {
      const end = Math.min(first + FEED_ROWS, count);
      batch.clear();
      for (let i = first, parent = COMMITTED; i < end; i++) {
        const token = i + 1 < count ? this.#pendingTokens[i + 1]! : next;
        parent = batch.append(this.#sequence, token, parent, i === count - 1);
        copyRow(this.#input.data, i - first, this.#pending, i, this.#d);
      }
      this.#run();
      this.#sequence.commitAll();
    }
    copyRow(this.#hidden, 0, this.#predicted.data, this.#predicted.rows - 1, this.#d);
    this.#pendingCount = 0;
  }

  [Symbol.dispose](): void {
    this.#cache[Symbol.dispose]();
    this.#head[Symbol.dispose]();
  }
}

function copyRow(to: Float32Array, toRow: number, from: Float32Array, fromRow: number, width: number): void {
  for (let i = 0; i < width; i++) to[toRow * width + i] = from[fromRow * width + i]!;
}
