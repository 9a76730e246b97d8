/**
 * N-grams by their first token, the key: of each key the continuations seen last, at most so many (lookahead decoding, arXiv:2402.02057,
 * §3, where it is the n-gram pool). Knows nothing of where n-grams come from.
 */
export class NgramPool {
  /** Tokens of a continuation. */
  readonly #length: number;
  /** Continuations of a key at most. */
  readonly #most: number;
  readonly #counts: Int32Array; // [V]
  /** Of each key the oldest first. Memory is mapped lazily: keys that never come cost nothing. */
  readonly #continuations: Int32Array; // [V, most, length]

  /** @param ngram tokens of an n-gram, key included. @param most continuations of a key. */
  constructor(vocabSize: number, ngram: number, most: number) {
    this.#length = ngram - 1;
    this.#most = most;
    this.#counts = new Int32Array(vocabSize);
    this.#continuations = new Int32Array(vocabSize * most * this.#length);
  }

  clear(): void {
    this.#counts.fill(0);
  }

  /** Continuations of a key. */
  count(key: number): number {
    return this.#counts[key]!;
  }

  /** The i-th token of the key's rank-th continuation, of which the first is the oldest. */
  token(key: number, rank: number, i: number): number {
    return this.#continuations[this.#start(key, rank) + i]!;
  }

  /** Takes the n-gram tokens[at], tokens[at + 1], …: it becomes its key's newest, known or not; where there is no room, the oldest goes. */
  insert(tokens: Int32Array, at: number): void {
    const key = tokens[at]!;
    const continuations = this.#continuations;
    const count = this.#counts[key]!;
    let gone = 0; // the continuation that makes room
    while (gone < count && !this.#equals(key, gone, tokens, at + 1)) gone++;
    if (gone === count && count === this.#most) gone = 0;
    if (gone === count) this.#counts[key] = count + 1;
    else continuations.copyWithin(this.#start(key, gone), this.#start(key, gone + 1), this.#start(key, count));
    const newest = this.#start(key, this.#counts[key]! - 1);
    for (let i = 0; i < this.#length; i++) continuations[newest + i] = tokens[at + 1 + i]!;
  }

  #start(key: number, rank: number): number {
    return (key * this.#most + rank) * this.#length;
  }

  #equals(key: number, rank: number, tokens: Int32Array, at: number): boolean {
    const start = this.#start(key, rank);
    for (let i = 0; i < this.#length; i++) if (this.#continuations[start + i] !== tokens[at + i]) return false;
    return true;
  }
}
