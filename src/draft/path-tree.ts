/**
 * A draft tree made of paths: where two begin alike they share their nodes. So a token is paid for once in a place, and no path is lost:
 * match verification would follow the first of two equal siblings only.
 */
import type { DraftTree } from './tree.ts';

export class PathTree implements DraftTree {
  size = 1;
  readonly tokens: Int32Array; // [maxNodes]
  readonly parents: Int32Array; // [maxNodes]

  constructor(maxNodes: number) {
    this.tokens = new Int32Array(maxNodes);
    this.parents = new Int32Array(maxNodes);
    this.parents[0] = -1;
  }

  /** A new tree: the root alone. */
  start(root: number): void {
    this.tokens[0] = root;
    this.size = 1;
  }

  /** The node of `token` below `parent`, which is added where there is none. */
  child(parent: number, token: number): number {
    const { tokens, parents } = this;
    for (let node = parent + 1; node < this.size; node++) {
      if (parents[node] === parent && tokens[node] === token) return node;
    }
    tokens[this.size] = token;
    parents[this.size] = parent;
    return this.size++;
  }
}
