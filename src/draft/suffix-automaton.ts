/**
 * Every substring of a text, in memory and time proportional to its length, one token at a time (Blumer et al. 1985, The smallest automaton
 * recognizing the subwords of a text). A state stands for the substrings that end at the same places; its longest one has `matched` tokens,
 * and its link is the state of the longest suffix that ends at other places too. State 0 is the empty string.
 *
 * So the link of the whole text's state is the longest suffix that occurred before, found by no search; and its edges are all the tokens
 * that ever came next.
 */

export const EMPTY = 0;
const NONE = -1;
/** Links that one token's edge is remembered along: a text of one token over and over has as many links as tokens. */
const MOST_LINKS = 16;

export class SuffixAutomaton {
  /** Tokens so far. */
  length = 0;
  readonly capacity: number;
  #last = EMPTY; // the whole text
  #states = 1;
  readonly #matched: Int32Array; // [states]
  readonly #links: Int32Array; // [states]

  // Edges of a state are a list. The empty string's would be long: they are found by their token.
  readonly #first: Int32Array; // [states] edge
  readonly #fromEmpty: Int32Array; // [V] edge
  #edges = 0;
  readonly #next: Int32Array; // [edges] edge of the same state
  readonly #tokens: Int32Array; // [edges]
  readonly #targets: Int32Array; // [edges]
  readonly #seen: Int32Array; // [edges] where the token last came after the state, as far as MOST_LINKS tell

  /** @param capacity tokens of the longest text. */
  constructor(capacity: number, vocabSize: number) {
    this.capacity = capacity;
    // A text of n tokens has at most 2n states and 3n edges (Blumer et al., theorem 2.2).
    const states = 2 * capacity + 2;
    const edges = 3 * capacity + 3;
    this.#matched = new Int32Array(states);
    this.#links = new Int32Array(states).fill(NONE);
    this.#first = new Int32Array(states).fill(NONE);
    this.#fromEmpty = new Int32Array(vocabSize).fill(NONE);
    this.#next = new Int32Array(edges);
    this.#tokens = new Int32Array(edges);
    this.#targets = new Int32Array(edges);
    this.#seen = new Int32Array(edges);
  }

  clear(): void {
    this.length = 0;
    this.#last = EMPTY;
    this.#states = 1;
    this.#edges = 0;
    this.#first[EMPTY] = NONE;
    this.#fromEmpty.fill(NONE);
  }

  /** @throws RangeError beyond the capacity. */
  append(token: number): void {
    if (this.length === this.capacity) throw new RangeError(`suffix automaton: its ${this.capacity} tokens are full`);
    const links = this.#links;
    const matched = this.#matched;
    const whole = this.#addState(this.length + 1);
    let state = this.#last;
    let edge = NONE;
    for (; state !== NONE; state = links[state]!) {
      edge = this.edge(state, token);
      if (edge !== NONE) break;
      this.#addEdge(state, token, whole, this.length);
    }
    if (state === NONE) links[whole] = EMPTY;
    else {
      this.#remember(state, token);
      const target = this.#targets[edge]!;
      links[whole] = matched[target] === matched[state]! + 1 ? target : this.#split(state, token, target);
    }
    this.#last = whole;
    this.length++;
  }

  /** The longest suffix of the text that occurred before; EMPTY where none did. */
  get repeated(): number {
    return this.#last === EMPTY ? EMPTY : this.#links[this.#last]!;
  }

  /** Tokens of the state's longest string. */
  matched(state: number): number {
    return this.#matched[state]!;
  }

  /** The state of the longest suffix that occurs elsewhere too. @param state not EMPTY. */
  link(state: number): number {
    return this.#links[state]!;
  }

  /** Of the tokens that came after the state's strings, in no order; -1 ends. @param state not EMPTY. */
  firstEdge(state: number): number {
    return this.#first[state]!;
  }

  nextEdge(edge: number): number {
    return this.#next[edge]!;
  }

  /** -1 where the token never came after the state. */
  edge(state: number, token: number): number {
    if (state === EMPTY) return this.#fromEmpty[token]!;
    let edge = this.#first[state]!;
    while (edge !== NONE && this.#tokens[edge] !== token) edge = this.#next[edge]!;
    return edge;
  }

  token(edge: number): number {
    return this.#tokens[edge]!;
  }

  target(edge: number): number {
    return this.#targets[edge]!;
  }

  /** Larger where the token came later. */
  seen(edge: number): number {
    return this.#seen[edge]!;
  }

  #addState(matched: number): number {
    const state = this.#states++;
    this.#matched[state] = matched;
    this.#first[state] = NONE;
    return state;
  }

  #addEdge(state: number, token: number, target: number, seen: number): void {
    const edge = this.#edges++;
    this.#tokens[edge] = token;
    this.#targets[edge] = target;
    this.#seen[edge] = seen;
    if (state === EMPTY) {
      this.#fromEmpty[token] = edge;
      return;
    }
    this.#next[edge] = this.#first[state]!;
    this.#first[state] = edge;
  }

  /** The token came after the state once more, and so after its suffixes. */
  #remember(state: number, token: number): void {
    for (let i = 0; i < MOST_LINKS && state !== NONE; i++, state = this.#links[state]!)
      this.#seen[this.edge(state, token)] = this.length;
  }

  /** A state of its own for those strings of `target` that are a string of `state` with the token behind it: they end here too. */
  #split(state: number, token: number, target: number): number {
    const links = this.#links;
    const part = this.#addState(this.#matched[state]! + 1);
    for (let edge = this.#first[target]!; edge !== NONE; edge = this.#next[edge]!)
      this.#addEdge(part, this.#tokens[edge]!, this.#targets[edge]!, this.#seen[edge]!);
    links[part] = links[target]!;
    for (let above = state; above !== NONE; above = links[above]!) {
      const edge = this.edge(above, token);
      if (this.#targets[edge] !== target) break;
      this.#targets[edge] = part;
    }
    links[target] = part;
    return part;
  }
}
