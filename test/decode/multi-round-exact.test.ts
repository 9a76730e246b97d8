/**
 * Exactness without sampling: every way a tree can be drawn times every way its verification can fall, with exact probabilities, sums to
 * the target's law. Verifiers that are wrong in the known ways are found wrong by the same sum.
 */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { type Chance, MultiRoundVerifier, type TreeLaws } from '../../src/decode/multi-round.ts';
import { createVerdict, verifyMatch } from '../../src/decode/verify.ts';
import type { Drawing } from '../../src/draft/draft-laws.ts';
import { type Choose, enumerate, sum } from '../support/enumerate.ts';
import { type Fault, faulty, type Verify, without } from '../support/faulty-verifier.ts';
import { sequencesOf } from '../support/sequences.ts';

interface Row {
  readonly prefix: readonly number[];
  readonly probs: readonly number[];
}

interface Case {
  readonly p_kind: string;
  readonly q_kind: string;
  readonly p: readonly Row[];
  readonly q: readonly Row[];
  readonly schemes: Readonly<
    Record<string, { readonly emitted_law: readonly { readonly tokens: readonly number[]; readonly prob: number }[] }>
  >;
}

const { vocab: V, cases } = JSON.parse(
  readFileSync(new URL('../golden/speculative-tiny/exact-laws.json', import.meta.url), 'utf8'),
) as { readonly vocab: number; readonly cases: readonly Case[] };

/** Draft depth; a round emits up to one token more. */
const DEPTH = 2;
const TOLERANCE = 1e-12;
/** That made the target's laws of its logits. */
const TEMPERATURE = 0.5;
/** What the enumeration must see of a wrong verifier. */
const VISIBLE = 1e-3;

const { codes: CODES, extended, codeOf, distanceToTarget: distance } = sequencesOf(V, DEPTH + 1);

/** By the code of the prefix. */
function byPrefix(rows: readonly Row[]): Float64Array[] {
  const laws: Float64Array[] = [];
  for (const { prefix, probs } of rows) laws[codeOf(prefix)] = Float64Array.from(probs);
  return laws;
}

// --- drafters: the children of one node ---

interface Scheme {
  readonly children: number;
  readonly draw: (q: Float64Array, children: number, choose: Choose) => number[];
  readonly drawing: Drawing | readonly Drawing[];
}

function sortBy(q: Float64Array, tokens: readonly number[]): number[] {
  return [...tokens].sort((a, b) => q[b]! - q[a]! || a - b);
}

const ALL = Array.from({ length: V }, (_, token) => token);

/** After `tokens`, draws until there are `children` or nothing is left. */
function drawMore(q: Float64Array, tokens: readonly number[], children: number, choose: Choose): number[] {
  const drawn = [...tokens];
  const left = without(q, drawn);
  while (drawn.length < children && left.some((share) => share > 0)) {
    const token = choose(left);
    drawn.push(token);
    left[token] = 0;
  }
  return drawn;
}

const drawWithoutReplacement: Scheme['draw'] = (q, children, choose) => drawMore(q, [], children, choose);
const drawSorted: Scheme['draw'] = (q, children, choose) => sortBy(q, drawWithoutReplacement(q, children, choose));
const takeBest: Scheme['draw'] = (q, children) => sortBy(q, ALL).slice(0, children);

const CHAIN: Scheme = { children: 1, draw: (q, _, choose) => [choose(q)], drawing: 'independent' };
const WITHOUT_REPLACEMENT: Scheme = { children: 3, draw: drawWithoutReplacement, drawing: 'without-replacement' };
const POINT_MASS: Scheme = { children: 3, draw: takeBest, drawing: 'point-mass' };
const INDEPENDENT: Scheme = {
  children: 2,
  draw: (q, children, choose) => Array.from({ length: children }, () => choose(q)),
  drawing: 'independent',
};

const SCHEMES: Readonly<Record<string, Scheme>> = {
  chain: CHAIN,
  'without replacement': WITHOUT_REPLACEMENT,
  'point mass': POINT_MASS,
  'independent, equal siblings included': INDEPENDENT,
};

/** Node by node what a drafter may say of its children. */
const MIXED: Readonly<Record<string, Scheme>> = {
  'without replacement, filled up with other tokens where q has too few': {
    children: 3,
    draw(q, children, choose) {
      const drawn = drawWithoutReplacement(q, children, choose);
      return [...drawn, ...ALL.filter((token) => !drawn.includes(token))].slice(0, children);
    },
    drawing: 'without-replacement',
  },
  'the best, then two more without replacement': {
    children: 3,
    draw: (q, children, choose) => drawMore(q, takeBest(q, 1, choose), children, choose),
    drawing: ['point-mass', 'without-replacement', 'without-replacement'],
  },
  'one without replacement, then an independent one': {
    children: 2,
    draw(q, _, choose) {
      const first = choose(q);
      const left = without(q, [first]);
      return sum(left) === 0 ? [first] : [first, choose(left)];
    },
    drawing: ['without-replacement', 'independent'],
  },
  'drawn, sorted by q, and taken as point masses': { children: 3, draw: drawSorted, drawing: 'point-mass' },
};

// --- one round, and the law of what it emits ---

const verifier = new MultiRoundVerifier(V);
const multiRound: Verify = (tree, laws, chance, verdict) => verifier.verify(tree, laws, chance, verdict);
const match: Verify = (tree, laws, chance, verdict) =>
  verifyMatch(tree, (node) => chance.draw(Float64Array.from(laws.target(node, 0))), verdict);

/**
 * The probability of every sequence a round can emit, by its code. A node's children are drawn when the verifier comes to it: the
 * subtrees it never sees change nothing, so their draws need not be told apart. `whole` tells them apart, all drawn beforehand.
 */
function emittedLaw(
  from: Case,
  scheme: Scheme,
  verify: Verify,
  grow: 'as-visited' | 'whole' = 'as-visited',
): Float64Array {
  const p = byPrefix(from.p);
  const q = byPrefix(from.q);
  const capacity = 1 + scheme.children + scheme.children ** 2;
  const tree = { size: 0, tokens: new Int32Array(capacity), parents: new Int32Array(capacity) };
  const codes = new Int32Array(capacity); // of the tokens down to a node
  const depths = new Int32Array(capacity);
  const ranks = new Int32Array(capacity);
  const grown: boolean[] = [];
  const verdict = createVerdict(capacity);
  let choose: Choose;
  const addChildren = (parent: number): void => {
    if (grown[parent]) return;
    grown[parent] = true;
    const tokens = scheme.draw(q[codes[parent]!]!, scheme.children, choose);
    for (let rank = 0; rank < tokens.length; rank++) {
      const node = tree.size++;
      tree.tokens[node] = tokens[rank]!;
      tree.parents[node] = parent;
      codes[node] = extended(codes[parent]!, tokens[rank]!);
      depths[node] = depths[parent]! + 1;
      ranks[node] = rank;
      grown[node] = depths[node] === DEPTH;
    }
  };
  const laws: TreeLaws = {
    target(node) {
      addChildren(node);
      return p[codes[node]!]!;
    },
    draft: (node) => (scheme.drawing === 'point-mass' ? undefined : q[codes[node]!]),
    drawing: (child) => (typeof scheme.drawing === 'string' ? scheme.drawing : scheme.drawing[ranks[child]!]!),
  };
  const chance: Chance = { accepts: (a) => choose([a, 1 - a]) === 0, draw: (law) => choose(law) };
  const emitted = new Float64Array(CODES);
  enumerate(
    (fall) => {
      choose = fall;
      tree.size = 1;
      tree.tokens[0] = -1;
      tree.parents[0] = -1;
      grown[0] = false;
      if (grow === 'whole') for (let node = 0; node < tree.size; node++) addChildren(node);
      verify(tree, laws, chance, verdict);
      return extended(codes[verdict.path[verdict.pathLength - 1]!]!, verdict.bonus);
    },
    (code, probability) => {
      emitted[code] = emitted[code]! + probability;
    },
  );
  return emitted;
}

const distanceToTarget = (from: Case, emitted: Float64Array) => distance(byPrefix(from.p), emitted);

function expectExact(from: Case, emitted: Float64Array): void {
  expect(Math.abs(sum(emitted) - 1)).toBeLessThan(TOLERANCE);
  expect(distanceToTarget(from, emitted).largest).toBeLessThan(TOLERANCE);
}

function expectSame(emitted: Float64Array, expected: Float64Array): void {
  expect(Math.max(...emitted.map((probability, code) => Math.abs(probability - expected[code]!)))).toBeLessThan(
    TOLERANCE,
  );
}

function goldenLaw(from: Case, name: string): Float64Array {
  const law = new Float64Array(CODES);
  for (const { tokens, prob } of from.schemes[name]!.emitted_law) law[codeOf(tokens)] = prob;
  return law;
}

const plain = cases[0]!;

it('there are 8 golden cases of 5 tokens', () => {
  expect([cases.length, V]).toEqual([8, 5]);
  expect([plain.p_kind, plain.q_kind]).toEqual(['plain', 'plain']);
});

describe.each(cases.map((from) => [`p ${from.p_kind}, q ${from.q_kind}`, from] as const))('%s', (_, from) => {
  it.each([
    ['chain', 'chain_gamma2'],
    ['without replacement', 'without_replacement_k3_depth2'],
    ['point mass', 'point_mass_k3_depth2'],
    ['independent, equal siblings included', undefined],
  ] as const)(
    'multi-round emits the target law, and what the golden law says in how many tokens: %s',
    (name, golden) => {
      const emitted = emittedLaw(from, SCHEMES[name]!, multiRound);
      expectExact(from, emitted);
      if (golden) expectSame(emitted, goldenLaw(from, golden));
    },
  );

  it.each(Object.entries(SCHEMES))('match emits the target law: %s', (_, scheme) => {
    expectExact(from, emittedLaw(from, scheme, match));
  });

  it('match accepts point masses as often as trials do', () => {
    expectSame(emittedLaw(from, POINT_MASS, match), goldenLaw(from, 'point_mass_k3_depth2'));
  });
});

describe.each(
  cases
    .filter(({ p_kind, q_kind }) => (p_kind === 'plain' && q_kind === 'plain') || q_kind === 'zeros')
    .map((from) => [`p ${from.p_kind}, q ${from.q_kind}`, from] as const),
)('%s, siblings of several kinds', (_, from) => {
  it.each(Object.entries(MIXED))('%s', (_, scheme) => expectExact(from, emittedLaw(from, scheme, multiRound)));
});

it('three independent siblings', () => {
  expectExact(plain, emittedLaw(plain, { ...INDEPENDENT, children: 3 }, multiRound));
});

it.each([
  ['without replacement', { ...WITHOUT_REPLACEMENT, children: 2 }],
  ['independent', INDEPENDENT],
] as const)('the whole tree drawn beforehand emits the same law: %s', (_, scheme) => {
  const whole = emittedLaw(plain, scheme, multiRound, 'whole');
  expectExact(plain, whole);
  expectSame(whole, emittedLaw(plain, scheme, multiRound));
});

// --- tests of the test ---

describe('the enumeration finds what is wrong', () => {
  it.each(Object.entries(SCHEMES))('nothing, where the faults are put into, without them: %s', (_, scheme) => {
    expectSame(emittedLaw(plain, scheme, faulty('none', TEMPERATURE)), emittedLaw(plain, scheme, multiRound));
  });

  it.each<readonly [Fault, string, Scheme]>([
    ['q is not renormalised', 'without replacement', WITHOUT_REPLACEMENT],
    ['equal siblings are skipped', 'independent', INDEPENDENT],
    ['the bonus is drawn from raw logits', 'chain', CHAIN],
    ['the bonus is drawn from raw logits', 'without replacement', WITHOUT_REPLACEMENT],
    ['the bonus is drawn from raw logits', 'point mass', POINT_MASS],
    ['the residual is not applied', 'chain', CHAIN],
    ['the residual is not applied', 'without replacement', WITHOUT_REPLACEMENT],
    ['the residual is not applied', 'point mass', POINT_MASS],
    ['the bonus is drawn from the fresh law', 'chain', CHAIN],
    ['the bonus is drawn from the fresh law', 'without replacement', WITHOUT_REPLACEMENT],
    ['the bonus is drawn from the fresh law', 'point mass', POINT_MASS],
  ])('%s: %s', (fault, _, scheme) => {
    const { totalVariation } = distanceToTarget(plain, emittedLaw(plain, scheme, faulty(fault, TEMPERATURE)));
    expect(totalVariation).toBeGreaterThan(VISIBLE);
  });

  it.each<readonly [string, Scheme]>([
    ['drawn without replacement, then sorted by q', { ...WITHOUT_REPLACEMENT, draw: drawSorted }],
    ['the best ones tried as if drawn', { ...POINT_MASS, drawing: 'without-replacement' }],
    ['drawn without replacement, tried as independent', { ...WITHOUT_REPLACEMENT, drawing: 'independent' }],
  ])('a drafter that says other than it did: %s', (_, scheme) => {
    const { totalVariation } = distanceToTarget(plain, emittedLaw(plain, scheme, multiRound));
    expect(totalVariation).toBeGreaterThan(VISIBLE);
  });
});
