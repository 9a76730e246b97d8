/** The chi-square test itself, and that it finds wrong verifiers out: what `npm run test:chi-square` does at length, on tiny models. */
import { afterAll, describe, expect, it } from 'vitest';
import { CumulativeDraw } from '../../src/decode/law.ts';
import { chanceFrom, MultiRoundVerifier } from '../../src/decode/multi-round.ts';
import { createVerdict } from '../../src/decode/verify.ts';
import { EagleDrafter } from '../../src/draft/eagle.ts';
import { shapeFromPaths } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { type ChiSquare, chiSquareTest, chiSquareTests, upperGamma } from '../support/chi-square.ts';
import { type Fault, faulty, type Verify } from '../support/faulty-verifier.ts';
import { xorshift } from '../support/random.ts';
import { proposalsAfter } from '../support/repeated-proposal.ts';
import { lawsAfter, sequencesOf } from '../support/sequences.ts';
import { TINY_CONFIG, tinyHead, tinyTarget } from '../support/tiny.ts';

describe('Pearson’s test', () => {
  it.each([
    [1, 3.841459, 0.05],
    [1, 0.015791, 0.9],
    [10, 18.307038, 0.05],
    [100, 124.342113, 0.05],
    [1000, 1143.917, 0.001],
    [30, 0, 1],
  ])('with %i degrees of freedom %d is passed with probability %d', (degrees, statistic, p) => {
    expect(upperGamma(degrees / 2, statistic / 2)).toBeCloseTo(p, 5);
  });

  it('tells a law from one that is nearly it, and merges bins that expect little', () => {
    const law = Float64Array.from({ length: 40 }, (_, i) => 0.8 ** i);
    const other = law.map((weight, i) => (i === 2 ? weight * 1.2 : weight));
    const cumulative = new CumulativeDraw(law.length);
    const random = xorshift(11);
    const counts = new Float64Array(law.length);
    for (let i = 0; i < 20_000; i++) counts[cumulative.draw(law, random())]!++;
    const right = chiSquareTest(counts, law);
    expect(right.degrees).toBeGreaterThan(20);
    expect(right.degrees).toBeLessThan(39);
    expect(right.p).toBeGreaterThan(0.01);
    expect(chiSquareTest(counts, other).p).toBeLessThan(1e-6);
    counts[3] = 1;
    expect(
      chiSquareTest(
        counts,
        law.map((weight, i) => (i === 3 ? 0 : weight)),
      ).p,
    ).toBe(0);
  });
});

const V = 6;
const TEMPERATURE = 6;
const ROUNDS = 6000;
const PREFIX = [1, 3, 0, 2, 2, 4];
const kernels = createKernels();
const target = tinyTarget(kernels, { config: { ...TINY_CONFIG, vocabSize: V } });
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

/** First tokens of many rounds, and second ones where the first was an accepted guess. */
function count(verify: Verify): { readonly first: ChiSquare; readonly second: ChiSquare } {
  const { extended } = sequencesOf(V, 3);
  const p = lawsAfter(target, PREFIX, 2, { temperature: TEMPERATURE });
  using drafter = new EagleDrafter(target, tinyHead(target), shapeFromPaths([[0], [1], [2], [0, 0], [0, 1]]), 64);
  using cache = target.createCache(1, 64);
  const propose = proposalsAfter(target, cache, drafter, PREFIX);
  const cumulative = new CumulativeDraw(V);
  const drafting = xorshift(5);
  const chance = chanceFrom(xorshift(6), V);
  const verdict = createVerdict(drafter.maxNodes);
  const first = new Float64Array(V);
  const second = Array.from({ length: V }, () => new Float64Array(V));
  for (let round = 0; round < ROUNDS; round++) {
    const tree = propose(
      { kind: 'urn', inverseTemperature: 1 / TEMPERATURE, draw: (law) => cumulative.draw(law, drafting()) },
      2,
    );
    const codeAt = [0];
    for (let node = 1; node < tree.size; node++)
      codeAt.push(extended(codeAt[tree.parents[node]!]!, tree.tokens[node]!));
    const laws = {
      target: (node: number) => p[codeAt[node]!]!,
      draft: (node: number) => tree.laws!.draft(node),
      drawing: (child: number) => tree.laws!.drawing(child),
    };
    verify(tree, laws, chance, verdict);
    const at = (i: number): number => (i < verdict.pathLength ? tree.tokens[verdict.path[i]!]! : verdict.bonus);
    first[at(1)]!++;
    if (verdict.pathLength > 1) second[at(1)]![at(2)]!++;
  }
  return {
    first: chiSquareTest(first, p[0]!),
    second: chiSquareTests(second.map((counts, token) => ({ counts, probabilities: p[extended(0, token)]! }))),
  };
}

describe('rounds of drawn guesses', () => {
  it.each([
    ['the verifier', () => new MultiRoundVerifier(V)],
    ['the one that faults are put into, without them', () => ({ verify: faulty('none', TEMPERATURE) })],
  ])('have the target’s law: %s', (_, make) => {
    const verifier = make();
    const { first, second } = count((...args) => verifier.verify(...args));
    expect(first.degrees).toBe(V - 1);
    expect(second.degrees).toBeGreaterThan(V);
    expect(Math.min(first.p, second.p)).toBeGreaterThan(1e-3);
  });

  it.each([
    'q is not renormalised',
    'the residual is not applied',
    'the bonus is drawn from raw logits',
    'the bonus is drawn from the fresh law',
  ] satisfies Fault[])('have not where %s', (fault) => {
    const { first, second } = count(faulty(fault, TEMPERATURE));
    expect(Math.min(first.p, second.p)).toBeLessThan(1e-6);
  });
});
