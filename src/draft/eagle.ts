/**
 * EAGLE drafting (arXiv:2401.15077 §3.1): the head extrapolates the target's top features, one forward per level of the tree. Its own
 * cache keeps only rows made from the target's features; what it made of its own guesses is dropped after every round.
 */
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import { type KvCache, type KvSequence, sharedPrefix } from '../model/kv-cache.ts';
import type { TargetModel } from '../model/target.ts';
import { copyRow, ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import type { Drafter } from './drafter.ts';
import type { EagleHead } from './eagle-head.ts';
import type { DraftTree, TreeShape } from './tree.ts';

/** Committed rows that wait for the head, and so the rows of one catching-up forward: a prefill chunk of the loop fits. */
const PENDING_ROWS = 64;

export class EagleDrafter implements Drafter {
  readonly name = 'eagle';
  readonly maxNodes: number;
  /** The head's. Committed: rows made from the target's features. */
  readonly cache: KvCache;
  readonly #target: TargetModel;
  readonly #head: EagleHead;
  readonly #shape: TreeShape;
  readonly #sequence: KvSequence;
  readonly #batch: ForwardBatch;

  // Features of committed rows that the head has not seen: row i of the head eats (feature i, token i + 1).
  readonly #pending = new ScratchTensor(); // [PENDING_ROWS, d], the first #pendingCount
  readonly #text: Int32Array; // [contextSize] tokens of the rows that the head has seen, then of the pending ones
  #pendingCount = 0;

  readonly #input = new ScratchTensor(); // [level's inner nodes, d] features of one forward
  readonly #hidden = new ScratchTensor(); // [maxNodes, d] the head's output at each inner node
  readonly #slots: Int32Array; // [maxNodes] where the node's head row lies
  readonly #ancestors: Int32Array; // [maxDepth]
  readonly #level: Int32Array; // inner nodes of the level in progress
  readonly #tree: { size: number; tokens: Int32Array; parents: Int32Array };
  readonly #hasChildren: Uint8Array;
  readonly #topIds: Int32Array; // [level's inner nodes, maxChildren]
  readonly #topValues: Float32Array; // as #topIds

  constructor(target: TargetModel, head: EagleHead, shape: TreeShape, contextSize: number) {
    this.#target = target;
    this.#head = head;
    this.#shape = shape;
    this.maxNodes = shape.size;
    this.cache = head.createCache(contextSize + shape.size);
    this.#sequence = this.cache.sequences[0]!;
    this.#text = new Int32Array(contextSize);
    this.#batch = new ForwardBatch(Math.max(PENDING_ROWS, shape.size), shape.size * (shape.maxDepth + 1));
    const d = head.config.hiddenSize;
    this.#pending.reshape(PENDING_ROWS, d);
    this.#input.reshape(shape.size, d);
    this.#hidden.reshape(shape.size, d);
    this.#slots = new Int32Array(shape.size);
    this.#ancestors = new Int32Array(shape.maxDepth + 1);
    this.#level = new Int32Array(shape.size);
    this.#tree = { size: 1, tokens: new Int32Array(shape.size), parents: Int32Array.from(shape.parents) };
    this.#hasChildren = new Uint8Array(shape.size);
    for (const parent of shape.parents) if (parent >= 0) this.#hasChildren[parent] = 1;
    this.#topIds = new Int32Array(shape.size * shape.maxChildren);
    this.#topValues = new Float32Array(shape.size * shape.maxChildren);
  }

  resume(text: readonly number[], held: number): number {
    if (this.maxNodes === 1) return held;
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
    if (this.#shape.size === 1) return; // nothing will ever be guessed
    for (let i = 0; i < count; i++) {
      if (this.#pendingCount === PENDING_ROWS) this.#feedAllButLast();
      const row = rows[i]!;
      this.#text[this.#sequence.length + this.#pendingCount] = tokens[row]!;
      copyRow(this.#pending, this.#pendingCount, features, row);
      this.#pendingCount++;
    }
  }

  propose(root: number, maxDepth: number): DraftTree {
    const shape = this.#shape;
    const tree = this.#tree;
    tree.tokens[0] = root;
    tree.size = 1;
    if (this.#pendingCount === 0 || maxDepth < 1) return tree;
    this.#feed(this.#pendingCount, root, true);
    copyRow(this.#hidden, 0, this.#predicted, this.#pendingCount - 1);
    this.#pendingCount = 0;

    // Level by level: nodes are ordered by depth, so each level is a range of nodes.
    let first = 1;
    this.#level[0] = 0;
    while (first < shape.size && shape.depths[first]! <= maxDepth) {
      const depth = shape.depths[first]!;
      let end = first;
      for (; end < shape.size && shape.depths[end] === depth; end++) this.#guess(end);
      tree.size = end;
      if (depth === maxDepth) break;
      let inner = 0;
      for (let node = first; node < end; node++) if (this.#hasChildren[node]) this.#level[inner++] = node;
      if (inner > 0) this.#expand(inner);
      first = end;
    }
    this.#sequence.rollback();
    return tree;
  }

  /** A node's token: the guess of its rank after its parent, which is one of the level just run. */
  #guess(node: number): void {
    const { parents, ranks, maxChildren } = this.#shape;
    let row = 0;
    while (this.#level[row] !== parents[node]) row++;
    const draftId = this.#topIds[row * maxChildren + ranks[node]!]!;
    this.#tree.tokens[node] = this.#head.targetIds === undefined ? draftId : this.#head.targetIds[draftId]!;
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
      copyRow(this.#input, row, this.#hidden, parents[node]!);
    }
    this.#run(this.#input);
    for (let i = 0; i < inner; i++) copyRow(this.#hidden, this.#level[i]!, this.#predicted, i);
  }

  #predicted!: Tensor;

  /** The batch through the head; guesses of its wanted rows to #topIds. */
  #run(features: ScratchTensor): void {
    const batch = this.#batch;
    const { maxChildren } = this.#shape;
    this.#predicted = this.#head.forward(batch, features.reshape(batch.rows, features.cols), this.cache);
    if (batch.logitCount === 0) return;
    const logits = this.#head.logits(batch, this.#predicted);
    this.#target.kernels.topK(this.#topIds, this.#topValues, logits.data, batch.logitCount, logits.cols, maxChildren);
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

  [Symbol.dispose](): void {
    this.cache[Symbol.dispose]();
    this.#head[Symbol.dispose]();
  }
}
