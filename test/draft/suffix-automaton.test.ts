/** Held against search: of random texts over few tokens, every repetition and every token that came next. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { EMPTY, SuffixAutomaton } from '../../src/draft/suffix-automaton.ts';

const VOCABULARY = 4;
const textOf = fc.array(fc.nat(VOCABULARY - 1), { minLength: 1, maxLength: 60 });

function read(text: readonly number[], capacity = text.length): SuffixAutomaton {
  const automaton = new SuffixAutomaton(capacity, VOCABULARY);
  for (const token of text) automaton.append(token);
  return automaton;
}

/** Ends (exclusive) of the places where `part` stands in `text`. */
function endsOf(text: readonly number[], part: readonly number[]): number[] {
  const ends: number[] = [];
  for (let end = part.length; end <= text.length; end++)
    if (part.every((token, i) => text[end - part.length + i] === token)) ends.push(end);
  return ends;
}

function longestRepeated(text: readonly number[]): number {
  let length = text.length - 1;
  while (length > 0 && endsOf(text, text.slice(-length)).length < 2) length--;
  return length;
}

const edgesOf = (automaton: SuffixAutomaton, state: number): number[] => {
  const edges: number[] = [];
  for (let edge = automaton.firstEdge(state); edge >= 0; edge = automaton.nextEdge(edge)) edges.push(edge);
  return edges;
};

describe('the longest suffix that occurred before', () => {
  it('is found after every token', () => {
    fc.assert(
      fc.property(textOf, (text) => {
        const automaton = new SuffixAutomaton(text.length, VOCABULARY);
        for (const [i, token] of text.entries()) {
          automaton.append(token);
          const wanted = longestRepeated(text.slice(0, i + 1));
          expect(automaton.matched(automaton.repeated)).toBe(wanted);
          expect(automaton.repeated === EMPTY).toBe(wanted === 0);
        }
      }),
    );
  });

  it('and all shorter ones that occur elsewhere have every token that came next for edges', () => {
    fc.assert(
      fc.property(textOf, (text) => {
        const automaton = read(text);
        for (let state = automaton.repeated; state !== EMPTY; state = automaton.link(state)) {
          const ends = endsOf(text, text.slice(text.length - automaton.matched(state)));
          const next = new Set(ends.filter((end) => end < text.length).map((end) => text[end]!));
          const edges = edgesOf(automaton, state);
          expect(edges.map((edge) => automaton.token(edge)).sort()).toEqual([...next].sort());
          for (const edge of edges) {
            expect(automaton.edge(state, automaton.token(edge))).toBe(edge);
            // Its own state has all that came after the longer string.
            const longer = [...text.slice(text.length - automaton.matched(state)), automaton.token(edge)];
            const after = new Set(
              endsOf(text, longer)
                .filter((end) => end < text.length)
                .map((end) => text[end]!),
            );
            const target = edgesOf(automaton, automaton.target(edge)).map((further) => automaton.token(further));
            expect(target.sort()).toEqual([...after].sort());
          }
        }
      }),
    );
  });
});

it('remembers where a token came last after what is repeated', () => {
  // 0 1 was followed by 2, by 3, and by 2 again: all of this is known when 0 1 comes once more.
  const automaton = read([0, 1, 2, 0, 1, 3, 0, 1, 2, 0, 1]);
  const state = automaton.repeated;
  expect(automaton.matched(state)).toBe(5); // 0 1 2 0 1
  const shorter = automaton.link(state);
  expect(automaton.matched(shorter)).toBe(2); // 0 1
  const seen = new Map(edgesOf(automaton, shorter).map((edge) => [automaton.token(edge), automaton.seen(edge)]));
  expect(seen).toEqual(
    new Map([
      [2, 8],
      [3, 5],
    ]),
  );
});

it('begins anew when cleared, and holds what it was made for', () => {
  const text = [0, 1, 0, 1, 1, 0, 1];
  const automaton = read([3, 3, 3, 2, 1, 0, 2], 7);
  automaton.clear();
  expect(automaton.length).toBe(0);
  expect(automaton.repeated).toBe(EMPTY);
  for (const token of text) automaton.append(token);
  expect(automaton.matched(automaton.repeated)).toBe(longestRepeated(text));
  expect(automaton.edge(EMPTY, 3)).toBe(-1);
  expect(() => automaton.append(1)).toThrow('suffix automaton: its 7 tokens are full');
});

it.each([
  ['one token over and over', () => 1],
  ['a period', (i: number) => i % 3],
  ['no order', (i: number) => Math.imul(i + 7, 0x9e3779b1) >>> 30],
])('a long text fits in what is allocated: %s', (_, tokenAt) => {
  const text = Array.from({ length: 20_000 }, (_, i) => tokenAt(i));
  expect(read(text).length).toBe(text.length);
});
