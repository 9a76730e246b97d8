/**
 * Exactness of the whole round without sampling: the real head's trees, every way that the drafter can draw them, times every way their
 * verification can fall, with exact probabilities, sum to the law of the real target.
 */
import { afterAll, describe, expect, it } from 'vitest';
import { CumulativeDraw } from '../../src/decode/law.ts';
import { type Chance, MultiRoundVerifier, type TreeLaws } from '../../src/decode/multi-round.ts';
import type { SamplingOptions } from '../../src/decode/sampler.ts';
import { createVerdict, verifyMatch } from '../../src/decode/verify.ts';
import type { DraftSampling } from '../../src/draft/draft-laws.ts';
import { EagleDrafter } from '../../src/draft/eagle.ts';
import { chainShape, type DraftTree, shapeFromPaths } from '../../src/draft/tree.ts';
import type { TreePolicy } from '../../src/draft/tree-policy.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { type Choose, enumerate, normalised } from '../support/enumerate.ts';
import { faulty, type Verify } from '../support/faulty-verifier.ts';
import { xorshift } from '../support/random.ts';
import { proposalsAfter } from '../support/repeated-proposal.ts';
import { lawsAfter, sequencesOf } from '../support/sequences.ts';
import { TINY_CONFIG, tinyHead, tinyTarget } from '../support/tiny.ts';

const V = 5;
/** Draft depth; a round emits up to one token more. */
const DEPTH = 2;
const TOLERANCE = 1e-12;
/** What the enumeration must see of something wrong. */
const VISIBLE = 1e-3;
const PREFIX = [1, 3, 0, 2, 2, 4];

const kernels = createKernels();
const target = tinyTarget(kernels, { config: { ...TINY_CONFIG, vocabSize: V } });
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

const { codes, extended, distanceToTarget } = sequencesOf(V, DEPTH + 1);

const targetLaws = (options: SamplingOptions): Float32Array[] => lawsAfter(target, PREFIX, DEPTH, options);

interface Round {
  readonly tree: TreePolicy;
  readonly draftVocabSize?: number;
  readonly options: SamplingOptions;
  /** What verification is told of the tree, where that shall be wrong. */
  readonly distort?: (tree: DraftTree) => DraftTree;
  readonly verify?: Verify;
}

/** The probability of every sequence that one round after the prefix can emit, by its code. */
function emittedLaw({ tree: policy, draftVocabSize = V, options, distort, verify }: Round): Float64Array {
  using drafter = new EagleDrafter(target, tinyHead(target, { draftVocabSize }), policy, 64);
  using cache = target.createCache(1, 64);
  const propose = proposalsAfter(target, cache, drafter, PREFIX);
  const p = targetLaws(options);
  const verifier = new MultiRoundVerifier(V);
  const verdict = createVerdict(drafter.maxNodes);
  const emitted = new Float64Array(codes);
  enumerate(
    (choose) => copyOf(propose(samplingBy(choose, options), DEPTH)),
    (drawn, treeProbability) => {
      const tree = distort?.(drawn) ?? drawn;
      const codeAt = codesOf(tree);
      enumerate(
        (choose) => {
          const chance: Chance = { accepts: (a) => choose([a, 1 - a]) === 0, draw: choose };
          const laws: TreeLaws = {
            target: (node) => p[codeAt[node]!]!,
            draft: (node) => tree.laws?.draft(node),
            drawing: (child) => tree.laws?.drawing(child) ?? 'point-mass',
          };
          if (verify !== undefined) verify(tree, laws, chance, verdict);
          else if (tree.laws !== undefined) verifier.verify(tree, laws, chance, verdict);
          else verifyMatch(tree, (node) => choose(p[codeAt[node]!]!), verdict);
          return extended(codeAt[verdict.path[verdict.pathLength - 1]!]!, verdict.bonus);
        },
        (code, probability) => {
          emitted[code]! += treeProbability * probability;
        },
      );
    },
  );
  return emitted;
}

function samplingBy(choose: Choose, { temperature = 1 }: SamplingOptions): DraftSampling {
  // From an urn without mass the first token comes, as from `CumulativeDraw`.
  return {
    kind: 'urn',
    inverseTemperature: 1 / temperature,
    draw: (law) => (law.some((weight) => weight > 0) ? choose(law) : 0),
  };
}

/** A tree that outlives the next one, its laws too. */
function copyOf({ size, tokens, parents, laws }: DraftTree): DraftTree {
  const inner = [...new Set(parents.subarray(1, size))];
  const laid = new Map(inner.map((node) => [node, laws?.draft(node)?.slice()]));
  return {
    size,
    tokens: tokens.slice(0, size),
    parents: parents.slice(0, size),
    ...(laws && { laws: { draft: (node) => laid.get(node), drawing: (child) => laws.drawing(child) } }),
  };
}

/** Of the tokens from below the root down to each node. */
function codesOf({ size, tokens, parents }: DraftTree): number[] {
  const codeAt = [0];
  for (let node = 1; node < size; node++) codeAt.push(extended(codeAt[parents[node]!]!, tokens[node]!));
  return codeAt;
}

const distance = (round: Round) => distanceToTarget(targetLaws(round.options).map(normalised), emittedLaw(round));

/** Three children of the root, and three of one of them. */
const threeBelow = (child: number): TreePolicy => shapeFromPaths([[0], [1], [2], [child, 0], [child, 1], [child, 2]]);

const TREES: Readonly<Record<string, TreePolicy>> = {
  'a chain': chainShape(2),
  'three children, three below the first': threeBelow(0),
  'three children, three below the second': threeBelow(1),
  'three children, three below the third': threeBelow(2),
  'two children, two below each': shapeFromPaths([[0], [1], [0, 0], [0, 1], [1, 0], [1, 1]]),
  'ranks with gaps': shapeFromPaths([[1], [3], [1, 0], [1, 2]]),
  'a dynamic tree': { kind: 'dynamic', depth: 1, topK: 3, total: 9 },
};
/** The random models are sure of themselves: hot, every token has a part; cool, urns run empty. */
const LAWS: readonly SamplingOptions[] = [
  { temperature: 8 },
  { temperature: 4, topP: 0.9, repeatPenalty: 1.3 },
  { temperature: 1 },
];
const HOT = 6;

describe.each(Object.entries(TREES))('%s', (_, tree) => {
  it.each(LAWS)('a round emits the target law: %o', (options) => {
    for (const draftVocabSize of [V, V - 1]) {
      const emitted = emittedLaw({ tree, draftVocabSize, options });
      expect(Math.abs(emitted.reduce((sum, share) => sum + share, 0) - 1)).toBeLessThan(TOLERANCE);
      const { largest } = distance({ tree, draftVocabSize, options });
      expect(largest).toBeLessThan(TOLERANCE);
    }
  });
});

it('siblings differ, and their laws are on record as they were before the draws', () => {
  using drafter = new EagleDrafter(target, tinyHead(target), threeBelow(1), 64);
  using cache = target.createCache(1, 64);
  const propose = proposalsAfter(target, cache, drafter, PREFIX);
  const random = xorshift(3);
  const cumulative = new CumulativeDraw(V);
  const firstLaws = new Set<string>();
  for (let i = 0; i < 100; i++) {
    const { tokens, laws } = propose(
      { kind: 'urn', inverseTemperature: 1 / HOT, draw: (law) => cumulative.draw(law, random()) },
      DEPTH,
    );
    expect(new Set(tokens.subarray(1, 4)).size).toBe(3);
    expect(new Set(tokens.subarray(4, 7)).size).toBe(3);
    firstLaws.add(laws!.draft(0)!.join());
    expect(laws!.draft(2)!.every((weight) => weight > 0)).toBe(true);
  }
  expect(firstLaws.size).toBe(1);
});

it('a dynamic tree, tried as point masses, is accepted as often as matched', () => {
  const round: Round = { tree: TREES['a dynamic tree']!, options: LAWS[0]! };
  const verifier = new MultiRoundVerifier(V);
  const tried = emittedLaw({ ...round, verify: (...args) => verifier.verify(...args) });
  const matched = emittedLaw(round);
  for (const [code, share] of matched.entries()) expect(Math.abs(tried[code]! - share)).toBeLessThan(TOLERANCE);
});

describe('the enumeration finds what is wrong', () => {
  const round: Round = { tree: threeBelow(0), options: { temperature: HOT } };

  it.each(['q is not renormalised', 'the residual is not applied', 'the bonus is drawn from raw logits'] as const)(
    '%s',
    (fault) => {
      expect(distance({ ...round, verify: faulty(fault, HOT) }).totalVariation).toBeGreaterThan(VISIBLE);
    },
  );

  it('nothing, where the faults are put into, without them', () => {
    expect(distance({ ...round, verify: faulty('none', HOT) }).largest).toBeLessThan(TOLERANCE);
  });

  it.each<readonly [string, (tree: DraftTree) => DraftTree]>([
    [
      'siblings in another order than that of their draws',
      (tree) => {
        const tokens = tree.tokens.slice();
        [tokens[1], tokens[3]] = [tokens[3]!, tokens[1]!];
        return { ...tree, tokens };
      },
    ],
    [
      'a law that the guesses were not drawn from',
      (tree) => ({
        ...tree,
        laws: {
          draft: (node) => tree.laws!.draft(node)!.map((weight) => weight ** 2),
          drawing: (child) => tree.laws!.drawing(child),
        },
      }),
    ],
    [
      'draws without replacement, called independent',
      (tree) => ({ ...tree, laws: { draft: (node) => tree.laws!.draft(node), drawing: () => 'independent' } }),
    ],
  ])('%s', (_, distort) => {
    expect(distance({ ...round, distort }).totalVariation).toBeGreaterThan(VISIBLE);
  });
});
