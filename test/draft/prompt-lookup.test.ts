import { describe, expect, it } from 'vitest';
import { PromptLookupDrafter } from '../../src/draft/prompt-lookup.ts';
import { chainShape, type DraftTree, shapeFromPaths } from '../../src/draft/tree.ts';
import type { TreePolicy } from '../../src/draft/tree-policy.ts';
import { ScratchTensor } from '../../src/tensor/tensor.ts';
import { costsFrom } from '../support/costs.ts';

const VOCABULARY = 50;
const noFeatures = new ScratchTensor();

function lookup(policy: TreePolicy): PromptLookupDrafter {
  return new PromptLookupDrafter(VOCABULARY, policy, 200);
}

/** Lets the drafter see all but the last token, and propose after that. */
function guessAfter(drafter: PromptLookupDrafter, text: readonly number[], maxDepth = 100): DraftTree {
  const held = drafter.resume(text, 0);
  const tokens = Int32Array.from(text.slice(held, -1));
  drafter.observe(tokens, noFeatures, Int32Array.from(tokens.keys()), tokens.length);
  return drafter.propose(text.at(-1)!, maxDepth);
}

const drafted = ({ size, tokens }: DraftTree): number[] => [...tokens.subarray(1, size)];

describe('a chain', () => {
  it('copies what came after the longest repeated suffix', () => {
    // 1 2 3 was followed by 4 5 6, and 9 3 by 7 8.
    const text = [1, 2, 3, 4, 5, 6, 9, 3, 7, 8, 1, 2, 3];
    expect(drafted(guessAfter(lookup(chainShape(4)), text))).toEqual([4, 5, 6, 9]);
    expect(drafted(guessAfter(lookup(chainShape(4)), [...text.slice(0, -3), 9, 3]))).toEqual([7, 8, 9, 3]);
  });

  it('takes what came last where the suffix came several times', () => {
    expect(drafted(guessAfter(lookup(chainShape(1)), [1, 2, 3, 1, 2, 4, 1, 2]))).toEqual([4]);
    expect(drafted(guessAfter(lookup(chainShape(1)), [1, 2, 4, 1, 2, 3, 1, 2]))).toEqual([3]);
  });

  it('goes on through a period', () => {
    expect(drafted(guessAfter(lookup(chainShape(8)), [5, 6, 7, 5, 6, 7, 5]))).toEqual([6, 7, 5, 6, 7, 5, 6, 7]);
  });

  it('guesses nothing where nothing is repeated, or no token may follow', () => {
    expect(guessAfter(lookup(chainShape(4)), [1, 2, 3, 4]).size).toBe(1);
    expect(guessAfter(lookup(chainShape(4)), [1, 1], 0).size).toBe(1);
    expect(guessAfter(lookup(chainShape(4)), [1, 2, 3, 1, 2, 3], 2).size).toBe(3);
  });
});

describe('a tree', () => {
  it("has the longest suffix's guesses first, then those of shorter ones, each once", () => {
    const tree = guessAfter(lookup(shapeFromPaths([[0], [1], [2]])), [1, 2, 3, 9, 2, 4, 2, 3, 8, 2, 5, 1, 2]);
    // After 1 2 came 3; after 2 alone 5 last, before that 3 and 4.
    expect(drafted(tree)).toEqual([3, 5, 4]);
    const beliefs = [...tree.logProbabilities!.subarray(1, 4)];
    expect(beliefs[0]).toBeCloseTo(Math.log(2 / 3));
    expect(beliefs[1]).toBeCloseTo(Math.log(1 / 2));
    expect(beliefs[2]).toBeCloseTo(Math.log(1 / 8));
  });

  it('has more places than there are guesses: tokens that are not believed in', () => {
    const tree = guessAfter(lookup(shapeFromPaths([[0], [1], [2]])), [0, 3, 0]);
    expect(drafted(tree)).toEqual([3, 0, 1]);
    expect([...tree.logProbabilities!.subarray(2, 4)]).toEqual([Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY]);
  });

  it('cannot have more children than there are tokens', () => {
    const wide = shapeFromPaths(Array.from({ length: VOCABULARY + 1 }, (_, i) => [i]));
    expect(() => lookup(wide)).toThrow('tree: 50 tokens can be guessed after a node, got 51');
  });

  it('grows along a copied passage as far as it pays', () => {
    const costs = costsFrom({
      target: [
        { rows: 1, ms: 10 },
        { rows: 32, ms: 11 },
      ],
      draft: [{ rows: 1, ms: 0 }],
    });
    const passage = Array.from({ length: 30 }, (_, i) => 10 + i);
    const tree = guessAfter(lookup({ kind: 'auto', costs }), [...passage, 1, ...passage.slice(0, 6)]);
    const depth = (node: number): number => (node === 0 ? 0 : 1 + depth(tree.parents[node]!));
    const deepest = Math.max(...Array.from({ length: tree.size }, (_, node) => depth(node)));
    expect(deepest).toBeGreaterThan(9); // deeper than a head is asked to look
    expect(drafted(tree).slice(0, 5)).toEqual(passage.slice(6, 11));
  });
});

describe('a budget', () => {
  it('learns nothing from rounds in which nothing was found', () => {
    const costs = costsFrom({ target: [{ rows: 1, ms: 10 }], draft: [{ rows: 1, ms: 0 }] });
    const drafter = lookup({ kind: 'auto', costs });
    const tests = (): number => drafter.budget!.calibration.report(1).reduce((sum, row) => sum + row.tests, 0);
    guessAfter(drafter, [1, 2, 3, 1, 2]);
    drafter.settle(Int32Array.of(0), 1, 40, 10);
    const learned = tests();
    expect(learned).toBeGreaterThan(0);
    for (const root of [40, 41, 42]) {
      drafter.observe(Int32Array.of(2), noFeatures, Int32Array.of(0), 1);
      expect(drafter.propose(root, 9).size).toBe(1);
      drafter.settle(Int32Array.of(0), 1, root + 1, 10);
    }
    expect(tests()).toBe(learned);
  });
});

describe('another text', () => {
  const first = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2];

  it('that parts from the one before is as new', () => {
    const drafter = lookup(chainShape(5));
    guessAfter(drafter, first);
    const second = [1, 2, 3, 4, 9, 9, 2, 1, 2];
    expect(drafter.resume(second, 4)).toBe(4);
    const rest = Int32Array.from(second.slice(4, -1));
    drafter.observe(rest, noFeatures, Int32Array.from(rest.keys()), rest.length);
    expect(drafted(drafter.propose(second.at(-1)!, 9))).toEqual(drafted(guessAfter(lookup(chainShape(5)), second)));
  });

  it('that the target holds, but this drafter never saw, is read', () => {
    const drafter = lookup(chainShape(3));
    expect(drafter.resume(first, first.length - 1)).toBe(first.length - 1);
    expect(drafted(drafter.propose(first.at(-1)!, 9))).toEqual(drafted(guessAfter(lookup(chainShape(3)), first)));
  });

  it('with another root than was proposed for is as new', () => {
    const drafter = lookup(chainShape(3));
    guessAfter(drafter, first);
    expect(drafted(drafter.propose(4, 9))).toEqual(
      drafted(guessAfter(lookup(chainShape(3)), [...first.slice(0, -1), 4])),
    );
  });
});
