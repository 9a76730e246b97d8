/** Drafters for tests: they say what they are told, and know how far the text is. */
import type { DraftLaws } from '../../src/draft/draft-laws.ts';
import type { Drafter } from '../../src/draft/drafter.ts';
import type { DraftTree } from '../../src/draft/tree.ts';
import type { Tensor } from '../../src/tensor/tensor.ts';

/** Nodes below the root: [parent, token], parents first; the root is 0. */
export type Script = (at: {
  /** Index of the root in the text: tokens before it are in the target's cache. */
  readonly position: number;
  readonly maxDepth: number;
}) => readonly (readonly [parent: number, token: number])[];

export class ScriptedDrafter implements Drafter {
  readonly name = 'scripted';
  readonly maxNodes = 16;
  readonly #script: Script;
  readonly #laws: DraftLaws | undefined;
  #position = 0;

  constructor(script: Script, laws?: DraftLaws) {
    this.#script = script;
    this.#laws = laws;
  }

  resume(_text: readonly number[], held: number): number {
    this.#position = held;
    return held;
  }

  observe(_tokens: Int32Array, _features: Tensor, _rows: Int32Array, count: number): void {
    this.#position += count;
  }

  propose(root: number, maxDepth: number): DraftTree {
    const nodes = this.#script({ position: this.#position, maxDepth });
    return {
      size: nodes.length + 1,
      tokens: Int32Array.from([root, ...nodes.map(([, token]) => token)]),
      parents: Int32Array.from([-1, ...nodes.map(([parent]) => parent)]),
      laws: this.#laws,
    };
  }

  [Symbol.dispose](): void {}
}

/** A drafter whose first guess at every node is put right, so that both caches live through long accepted paths. */
export class CorrectedDrafter implements Drafter {
  readonly name = 'corrected';
  readonly maxNodes: number;
  readonly #inner: Drafter;
  readonly #text: readonly number[];
  #position = 0;

  /** @param text prompt and plain continuation. */
  constructor(inner: Drafter, text: readonly number[]) {
    this.#inner = inner;
    this.#text = text;
    this.maxNodes = inner.maxNodes;
  }

  resume(text: readonly number[], held: number): number {
    this.#position = this.#inner.resume(text, held);
    return this.#position;
  }

  observe(tokens: Int32Array, features: Tensor, rows: Int32Array, count: number): void {
    this.#position += count;
    this.#inner.observe(tokens, features, rows, count);
  }

  observeProposal(logits: Tensor): void {
    this.#inner.observeProposal?.(logits);
  }

  propose(root: number, maxDepth: number): DraftTree {
    const tree = this.#inner.propose(root, maxDepth);
    const depths = [0];
    const spine = new Set([0]); // nodes whose path is right
    for (let node = 1; node < tree.size; node++) {
      const parent = tree.parents[node]!;
      depths.push(depths[parent]! + 1);
      const isFirst = !tree.parents.subarray(1, node).includes(parent);
      const right = this.#text[this.#position + depths[node]!];
      if (!isFirst || !spine.has(parent) || right === undefined) continue;
      tree.tokens[node] = right;
      spine.add(node);
    }
    return tree;
  }

  [Symbol.dispose](): void {
    this.#inner[Symbol.dispose]();
  }
}
