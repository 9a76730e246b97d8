/** What came next the last time: guesses from prompt and answer so far, which no model is asked for. */
import { sharedPrefix } from '../model/kv-cache.ts';
import { EMPTY, SuffixAutomaton } from './suffix-automaton.ts';

/** A place to look up: the longest suffix of a node's path that occurs in the text, and its tokens. */
export interface Cursor {
  state: number;
  length: number;
}

/** A guess after the second-last time is believed so much less than that after the last, and so on. */
const AGAIN = Math.log(1 / 4);

export class ContextLookup {
  readonly #automaton: SuffixAutomaton;
  readonly #text: Int32Array; // [contextSize + 1] as in the automaton
  #committed = 0; // tokens observed; the automaton may hold the root besides

  constructor(vocabSize: number, contextSize: number) {
    this.#automaton = new SuffixAutomaton(contextSize + 1, vocabSize);
    this.#text = new Int32Array(contextSize + 1);
  }

  /** Tokens observed. */
  get committed(): number {
    return this.#committed;
  }

  createCursor(): Cursor {
    return { state: EMPTY, length: 0 };
  }

  /** A text of which the first `held` tokens count as observed. */
  resume(text: readonly number[], held: number): void {
    this.#keep(sharedPrefix(this.#text, text, Math.min(held, this.#automaton.length)));
    while (this.#automaton.length < held) this.#append(text[this.#automaton.length]!);
    this.#committed = held;
  }

  observe(token: number): void {
    this.#expect(token);
    this.#committed++;
  }

  /** Puts the cursor behind the root, which comes after what was observed; false where nothing that ends there occurred before. */
  begin(root: number, cursor: Cursor): boolean {
    this.#expect(root);
    cursor.state = this.#automaton.repeated;
    cursor.length = this.#automaton.matched(cursor.state);
    return cursor.state !== EMPTY;
  }

  /** Puts the cursor behind the token that follows `from`. */
  follow(cursor: Cursor, from: Cursor, token: number): void {
    const automaton = this.#automaton;
    let { state, length } = from;
    let edge = automaton.edge(state, token);
    while (edge < 0 && state !== EMPTY) {
      state = automaton.link(state);
      length = automaton.matched(state);
      edge = automaton.edge(state, token);
    }
    cursor.state = edge < 0 ? EMPTY : automaton.target(edge);
    cursor.length = edge < 0 ? 0 : length + 1;
  }

  /**
   * What came after the longest suffix, last first, then after shorter ones: up to `count` different tokens and what is believed of them
   * (after n tokens that agree, n in n + 1), from `first` on. @returns how many there are.
   */
  guess(cursor: Cursor, tokens: Int32Array, logProbabilities: Float64Array, first: number, count: number): number {
    const automaton = this.#automaton;
    let { state, length } = cursor;
    let found = 0;
    while (state !== EMPTY && found < count) {
      for (let belief = Math.log(length / (length + 1)); found < count; found++, belief += AGAIN) {
        const edge = this.#latest(state, tokens, first, first + found);
        if (edge < 0) break;
        tokens[first + found] = automaton.token(edge);
        logProbabilities[first + found] = belief;
      }
      state = automaton.link(state);
      length = automaton.matched(state);
    }
    return found;
  }

  /** Of the state's edges the one seen last whose token is not among tokens[first..end); -1 where there is none. */
  #latest(state: number, tokens: Int32Array, first: number, end: number): number {
    const automaton = this.#automaton;
    let latest = -1;
    for (let edge = automaton.firstEdge(state); edge >= 0; edge = automaton.nextEdge(edge)) {
      if (latest >= 0 && automaton.seen(edge) < automaton.seen(latest)) continue;
      if (!isAmong(tokens, first, end, automaton.token(edge))) latest = edge;
    }
    return latest;
  }

  /** The token behind the committed ones, which the automaton may hold already. */
  #expect(token: number): void {
    const at = this.#committed;
    if (at < this.#automaton.length && this.#text[at] !== token) this.#keep(at);
    if (at === this.#automaton.length) this.#append(token);
  }

  #append(token: number): void {
    this.#text[this.#automaton.length] = token;
    this.#automaton.append(token);
  }

  /** An automaton cannot be cut: of a text that is left it is made anew. */
  #keep(length: number): void {
    const automaton = this.#automaton;
    if (automaton.length <= length) return;
    automaton.clear();
    while (automaton.length < length) automaton.append(this.#text[automaton.length]!);
  }
}

export function isAmong(tokens: Int32Array, first: number, end: number, token: number): boolean {
  for (let i = first; i < end; i++) if (tokens[i] === token) return true;
  return false;
}
