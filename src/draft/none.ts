/** Plain decoding: a tree of one node. The baseline comes from the same loop as everything else. */
import type { Drafter } from './drafter.ts';
import type { DraftTree } from './tree.ts';

export class NoDrafter implements Drafter {
  readonly name = 'none';
  readonly maxNodes = 1;
  readonly #tree = { size: 1, tokens: new Int32Array(1), parents: Int32Array.of(-1) } satisfies DraftTree;

  resume(_text: readonly number[], held: number): number {
    return held;
  }

  observe(): void {}

  propose(root: number): DraftTree {
    this.#tree.tokens[0] = root;
    return this.#tree;
  }

  [Symbol.dispose](): void {}
}
