/**
 * The window of lookahead decoding (arXiv:2402.02057, §3): W columns of tokens ahead of the text, N - 1 levels deep. Level 0 is a guess at
 * the coming tokens; each level holds what the target said after the level before it, one place further on: the steps of a Jacobi
 * iteration. So a column, with what the target says after its last token, is an n-gram that the target itself might write.
 *
 * Column 0 of level 0 is the text's last token, the root of the draft tree. The rest of level 0 is a chain below it, and a column's token
 * on a later level is the child of its token on the level before: positions and what tokens see of each other follow from that.
 */
import type { NgramPool } from './ngram-pool.ts';
import type { PathTree } from './path-tree.ts';

export class LookaheadWindow {
  /** How deep its tokens hang below the root. */
  readonly depth: number;
  /** Nodes of all its tokens once all levels are filled, root left out; fewer where a guess has some of them too. */
  readonly rows: number;
  /** Columns that count: W once all levels are filled, and until then one more for every level that is missing. */
  width = 0;
  /** Of the last filled level, by column: where the target is asked for the next one. */
  readonly nodes: Int32Array; // [W + N - 2]
  readonly #ngram: number;
  readonly #columns: Int32Array; // [W + N - 2, N] level by level, then the target's answer
  #levels = 0; // filled ones

  /** @param columns W. @param ngram N. */
  constructor(columns: number, ngram: number) {
    const most = columns + ngram - 2;
    this.depth = most - 1;
    this.rows = columns * (ngram - 1) - 1;
    this.nodes = new Int32Array(most);
    this.#ngram = ngram;
    this.#columns = new Int32Array(most * ngram);
  }

  /** Fills level 0 with tokens spread evenly over the first `length` of these; later levels are empty. Where it starts matters little. */
  start(tokens: ArrayLike<number>, length: number): void {
    this.#levels = 1;
    this.width = this.depth + 1;
    for (let column = 1; column < this.width; column++)
      this.#columns[column * this.#ngram] = tokens[Math.floor(((column - 1) * length) / this.depth)]!;
  }

  /** Hangs all tokens below the tree's root. */
  plant(tree: PathTree): void {
    const columns = this.#columns;
    const nodes = this.nodes;
    columns[0] = tree.tokens[0]!;
    nodes[0] = 0;
    for (let column = 1; column < this.width; column++)
      nodes[column] = tree.child(nodes[column - 1]!, columns[column * this.#ngram]!);
    for (let level = 1; level < this.#levels; level++) {
      for (let column = 0; column < this.width; column++)
        nodes[column] = tree.child(nodes[column]!, columns[column * this.#ngram + level]!);
    }
  }

  /** The target's next token after a column. */
  answer(column: number, token: number): void {
    this.#columns[column * this.#ngram + this.#levels] = token;
  }

  /**
   * Moves one token on, once all columns have their answers. They are the next level while one is missing, and the first column has been
   * overtaken by the text; later they complete n-grams, and take the place of the last level, as each level does of the one before.
   */
  advance(pool: NgramPool): void {
    const columns = this.#columns;
    const ngram = this.#ngram;
    if (this.#levels < ngram - 1) {
      columns.copyWithin(0, ngram);
      this.width--;
      this.#levels++;
      return;
    }
    for (let column = 0; column < this.width; column++) pool.insert(columns, column * ngram);
    columns.copyWithin(0, 1);
  }
}
