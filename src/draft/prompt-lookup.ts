/**
 * Prompt lookup (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): what came after the same words earlier in prompt and answer is
 * guessed to come again. No model is asked, so a guess costs nothing but its row of the target's forward.
 *
 * The longest suffix that occurred before is what is looked up, not an n-gram of settled length, and a node's children are found the same
 * way as the root's: by the text with the node's path behind it. What came last after it is guessed first; then what came after shorter
 * suffixes.
 */
import { sharedPrefix } from '../model/kv-cache.ts';
import type { Tensor } from '../tensor/tensor.ts';
import type { TreeBudget } from './budget.ts';
import type { Drafter } from './drafter.ts';
import { EMPTY, SuffixAutomaton } from './suffix-automaton.ts';
import type { DraftTree } from './tree.ts';
import type { Guesses, TreeGrower } from './tree-grower.ts';
import { createGrower, type TreePolicy } from './tree-policy.ts';

/** A guess after the second-last time is believed so much less than that after the last, and so on. */
const AGAIN = Math.log(1 / 4);

export class PromptLookupDrafter implements Drafter {
  readonly name = 'prompt-lookup';
  readonly maxNodes: number;
  readonly #grower: TreeGrower;
  readonly #automaton: SuffixAutomaton;
  readonly #text: Int32Array; // [contextSize + 1] as in the automaton
  #committed = 0; // tokens observed; the automaton may hold the root besides
  readonly #guesses: Guesses;

  // Of each row of a level: the state of the longest suffix of its path that occurs in the text, and that suffix's tokens.
  #states: Int32Array; // [maxRows]
  #lengths: Int32Array;
  #parentStates: Int32Array; // of the level before
  #parentLengths: Int32Array;

  constructor(vocabSize: number, policy: TreePolicy, contextSize: number) {
    const grower = createGrower(policy, vocabSize);
    const { maxRows, branching } = grower;
    this.#grower = grower;
    this.maxNodes = grower.maxNodes;
    this.#automaton = new SuffixAutomaton(contextSize + 1, vocabSize);
    this.#text = new Int32Array(contextSize + 1);
    const guesses = maxRows * branching;
    this.#guesses = { tokens: new Int32Array(guesses), logProbabilities: new Float64Array(guesses) };
    this.#states = new Int32Array(maxRows);
    this.#lengths = new Int32Array(maxRows);
    this.#parentStates = new Int32Array(maxRows);
    this.#parentLengths = new Int32Array(maxRows);
  }

  resume(text: readonly number[], held: number): number {
    this.#keep(sharedPrefix(this.#text, text, Math.min(held, this.#automaton.length)));
    while (this.#automaton.length < held) this.#append(text[this.#automaton.length]!);
    this.#committed = held;
    return held;
  }

  observe(tokens: Int32Array, _features: Tensor, rows: Int32Array, count: number): void {
    for (let i = 0; i < count; i++) {
      this.#expect(tokens[rows[i]!]!);
      this.#committed++;
    }
  }

  propose(root: number, maxDepth: number): DraftTree {
    const grower = this.#grower;
    const automaton = this.#automaton;
    this.#expect(root);
    this.#states[0] = automaton.repeated;
    this.#lengths[0] = automaton.matched(automaton.repeated);
    if (!grower.start(root, maxDepth, 1) || maxDepth < 1 || this.#states[0] === EMPTY) return grower.finish();
    for (let rows = 1; rows > 0; ) {
      for (let row = 0; row < rows; row++) this.#guessAfter(row);
      rows = grower.grow(this.#guesses);
      this.#step(rows);
    }
    return grower.finish();
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

  /** The level's rows from the rows before: each is a guess of its parent's. */
  #step(rows: number): void {
    const { levelTokens, levelParents } = this.#grower;
    [this.#states, this.#parentStates] = [this.#parentStates, this.#states];
    [this.#lengths, this.#parentLengths] = [this.#parentLengths, this.#lengths];
    for (let row = 0; row < rows; row++) {
      const parent = levelParents[row]!;
      this.#follow(row, this.#parentStates[parent]!, this.#parentLengths[parent]!, levelTokens[row]!);
    }
  }

  #follow(row: number, state: number, length: number, token: number): void {
    const automaton = this.#automaton;
    let edge = automaton.edge(state, token);
    while (edge < 0 && state !== EMPTY) {
      state = automaton.link(state);
      length = automaton.matched(state);
      edge = automaton.edge(state, token);
    }
    this.#states[row] = edge < 0 ? EMPTY : automaton.target(edge);
    this.#lengths[row] = edge < 0 ? 0 : length + 1;
  }

  /** What came after the row's suffix, last first, then after shorter ones; where nothing is left, tokens that are not believed in. */
  #guessAfter(row: number): void {
    const automaton = this.#automaton;
    const { branching } = this.#grower;
    const { tokens, logProbabilities } = this.#guesses;
    const first = row * branching;
    let found = first;
    let length = this.#lengths[row]!;
    for (let state = this.#states[row]!; state !== EMPTY && found < first + branching; ) {
      let belief = Math.log(length / (length + 1));
      for (; found < first + branching; found++, belief += AGAIN) {
        const edge = this.#latest(state, first, found);
        if (edge < 0) break;
        tokens[found] = automaton.token(edge);
        logProbabilities[found] = belief;
      }
      state = automaton.link(state);
      length = automaton.matched(state);
    }
    for (let token = 0; found < first + branching; token++) {
      if (isAmong(tokens, first, found, token)) continue;
      tokens[found] = token;
      logProbabilities[found++] = Number.NEGATIVE_INFINITY;
    }
  }

  /** Of the state's edges the one seen last whose token is not among the guesses [first, end); -1 where there is none. */
  #latest(state: number, first: number, end: number): number {
    const automaton = this.#automaton;
    let latest = -1;
    for (let edge = automaton.firstEdge(state); edge >= 0; edge = automaton.nextEdge(edge)) {
      if (latest >= 0 && automaton.seen(edge) < automaton.seen(latest)) continue;
      if (!isAmong(this.#guesses.tokens, first, end, automaton.token(edge))) latest = edge;
    }
    return latest;
  }

  get budget(): TreeBudget | undefined {
    return this.#grower.budget;
  }

  settle(path: Int32Array, pathLength: number, bonus: number, forwardMs: number): void {
    this.#grower.settle?.(path, pathLength, bonus, forwardMs);
  }

  [Symbol.dispose](): void {}
}

function isAmong(tokens: Int32Array, first: number, end: number, token: number): boolean {
  for (let i = first; i < end; i++) if (tokens[i] === token) return true;
  return false;
}
