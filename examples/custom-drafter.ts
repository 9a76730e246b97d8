/**
 * A drafter of one's own: it guesses the token that came after the last one the last time (a bigram), and so on for three tokens. Whatever
 * it guesses, the text stays the model's: the loop verifies, a drafter can only save time.
 *
 *   npx tsx examples/custom-drafter.ts "Count from one to twenty, twice."
 */
import { type Drafter, type DraftTree, loadEngine } from '../src/index.ts'; // in your project: from 'eaglet'

const DEPTH = 3;

export class BigramDrafter implements Drafter {
  readonly name = 'bigram';
  readonly maxNodes = 1 + DEPTH;
  readonly #next = new Map<number, number>();
  #last = -1;
  /** A chain: each node hangs below the one before. */
  readonly #tree = { size: 1, tokens: new Int32Array(1 + DEPTH), parents: Int32Array.of(-1, 0, 1, 2) };

  /** Another text begins, of which `held` tokens are computed already. */
  resume(text: readonly number[], held: number): number {
    this.#next.clear();
    this.#last = -1;
    for (let i = 0; i < held; i++) this.#learn(text[i]!);
    return held;
  }

  /** The text goes on: rows[i] says which of the tokens is the i-th. */
  observe(tokens: Int32Array, _features: unknown, rows: Int32Array, count: number): void {
    for (let i = 0; i < count; i++) this.#learn(tokens[rows[i]!]!);
  }

  propose(root: number, maxDepth: number): DraftTree {
    const tree = this.#tree;
    tree.tokens[0] = root;
    tree.size = 1;
    while (tree.size <= Math.min(DEPTH, maxDepth)) {
      const guess = this.#next.get(tree.tokens[tree.size - 1]!);
      if (guess === undefined) break;
      tree.tokens[tree.size++] = guess;
    }
    return tree;
  }

  #learn(token: number): void {
    if (this.#last >= 0) this.#next.set(this.#last, token);
    this.#last = token;
  }

  [Symbol.dispose](): void {}
}

if (import.meta.filename === process.argv[1]) {
  using engine = await loadEngine();
  const messages = [{ role: 'user', content: process.argv[2] ?? 'Count from one to twenty, twice.' }];
  const { text, stats } = await engine.complete(messages, { drafter: new BigramDrafter(), maxTokens: 128 });
  console.log(text, `\n\n${stats.acceptanceLength.toFixed(2)} tokens a round`);
}
