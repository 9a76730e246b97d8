/** Multi-round verification replays the golden traces: which nodes stand, the bonus, every acceptance test, every uniform number. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { sumOf } from '../../src/decode/law.ts';
import { type Chance, chanceFrom, MultiRoundVerifier, type TreeLaws } from '../../src/decode/multi-round.ts';
import { createVerdict, verifyMatch } from '../../src/decode/verify.ts';
import type { Drawing } from '../../src/draft/draft-laws.ts';

type Scheme = 'greedy' | 'chain' | 'without_replacement' | 'point_mass';

interface Trace {
  readonly name?: string;
  readonly scheme: Scheme;
  readonly vocab: number;
  readonly nodes: readonly { readonly parent: number; readonly token: number }[];
  readonly p: readonly (readonly number[])[];
  readonly q: readonly (readonly number[] | null)[];
  readonly uniforms: readonly number[];
  readonly accept_tests: readonly (readonly [node: number, a: number, accepted: boolean])[];
  readonly accepted_nodes: readonly number[];
  readonly accepted_tokens: readonly number[];
  readonly bonus_token: number;
  readonly uniforms_used: number;
}

const golden = JSON.parse(readFileSync(new URL('../golden/speculative-tiny/traces.json', import.meta.url), 'utf8')) as {
  readonly traces: readonly Trace[];
  readonly boundary_traces: readonly Trace[];
};

const DRAWINGS: Readonly<Record<Scheme, Drawing>> = {
  greedy: 'point-mass',
  chain: 'independent',
  without_replacement: 'without-replacement',
  point_mass: 'point-mass',
};

const treeOf = ({ nodes }: Pick<Trace, 'nodes'>) => ({
  size: nodes.length,
  tokens: Int32Array.from(nodes, (node) => node.token),
  parents: Int32Array.from(nodes, (node) => node.parent),
});

const argmax = (law: readonly number[]): number => law.indexOf(Math.max(...law));

function replay(trace: Trace) {
  const tree = treeOf(trace);
  const verdict = createVerdict(tree.size);
  const tests: [number, number, boolean][] = [];
  let used = 0;
  if (trace.scheme === 'greedy') {
    verifyMatch(tree, (node) => argmax(trace.p[node]!), verdict);
  } else {
    const chance = chanceFrom(() => trace.uniforms[used++]!, trace.vocab);
    const laws: TreeLaws = {
      target: (node) => Float64Array.from(trace.p[node]!),
      draft: (node) => (trace.q[node] ? Float64Array.from(trace.q[node]) : undefined),
      drawing: () => DRAWINGS[trace.scheme],
    };
    const recorded: Chance = {
      accepts(a, child) {
        const accepted = chance.accepts(a, child);
        tests.push([child, a, accepted]);
        return accepted;
      },
      draw: (law) => chance.draw(law),
    };
    new MultiRoundVerifier(trace.vocab).verify(tree, laws, recorded, verdict);
  }
  const path = [...verdict.path.subarray(0, verdict.pathLength)];
  return { path, tokens: path.slice(1).map((node) => tree.tokens[node]!), bonus: verdict.bonus, used, tests };
}

function expectReplayed(trace: Trace): void {
  const { path, tokens, bonus, used, tests } = replay(trace);
  expect({ path, tokens, bonus, used }).toEqual({
    path: trace.accepted_nodes,
    tokens: trace.accepted_tokens,
    bonus: trace.bonus_token,
    used: trace.uniforms_used,
  });
  expect(tests.map(([node, , accepted]) => [node, accepted])).toEqual(
    trace.accept_tests.map(([node, , accepted]) => [node, accepted]),
  );
  // Sums are taken in another order; no decision of the traces is nearer than 1e-6 to its bound.
  for (const [i, [, a]] of tests.entries()) expect(Math.abs(a - trace.accept_tests[i]![1])).toBeLessThan(1e-12);
}

describe('golden traces', () => {
  it.each([
    ['greedy', 50],
    ['chain', 200],
    ['without_replacement', 200],
    ['point_mass', 200],
  ] as const)('%s: all %i', (scheme, count) => {
    const traces = golden.traces.filter((trace) => trace.scheme === scheme);
    expect(traces).toHaveLength(count);
    for (const trace of traces) expectReplayed(trace);
  });

  it('there are 12 on boundaries', () => expect(golden.boundary_traces).toHaveLength(12));

  // Dyadic numbers: nothing is rounded, and equality is exact.
  it.each(golden.boundary_traces.map((trace) => [trace.name!, trace] as const))('%s', (_, trace) => {
    expectReplayed(trace);
    expect(replay(trace).tests).toEqual(trace.accept_tests);
  });

  it('a greedy law, tried as point masses, takes the greedy path', () => {
    for (const trace of golden.traces.filter(({ scheme }) => scheme === 'greedy')) {
      const p = trace.p.map((law) => law.map((_, token) => (token === argmax(law) ? 1 : 0)));
      const { path, bonus } = replay({ ...trace, scheme: 'point_mass', p, uniforms: new Array(100).fill(0.5) });
      expect([path, bonus]).toEqual([trace.accepted_nodes, trace.bonus_token]);
    }
  });
});

/** The root's trials, every one of them rejected: the a's asked for, and the law of the bonus. */
function rejectAll(
  p: Float32Array | Float64Array,
  q: Float32Array | Float64Array | undefined,
  children: readonly (readonly [token: number, drawing: Drawing])[],
) {
  const asked: number[] = [];
  let bonus: number[] = [];
  new MultiRoundVerifier(4).verify(
    treeOf({ nodes: [{ parent: -1, token: -1 }, ...children.map(([token]) => ({ parent: 0, token }))] }),
    { target: () => p, draft: () => q, drawing: (child) => children[child - 1]![1] },
    {
      accepts(a) {
        asked.push(a);
        return false;
      },
      draw(law) {
        const mass = sumOf(law, 0, law.length);
        bonus = Array.from(law, (weight) => weight / mass);
        return 0;
      },
    },
    createVerdict(children.length + 1),
  );
  return { asked, bonus };
}

describe('one node', () => {
  const p = Float64Array.of(0.25, 0.25, 0.5, 0);

  it.each([
    ['drawn', p, p, 'independent'],
    ['chosen', Float64Array.of(0, 0, 1, 0), undefined, 'point-mass'],
  ] as const)('a rejection that leaves no mass keeps the law: %s', (_, law, q, drawing) => {
    expect(rejectAll(law, q, [[2, drawing]])).toEqual({ asked: [1], bonus: [...law] });
  });

  it.each([
    ['absent from the draft law', Float64Array.of(0.5, 0.5, 0, 0)],
    ['of a draft law without mass', new Float64Array(4)],
    ['of a draft law that is not a number', new Float64Array(4).fill(Number.NaN)],
    ['without a draft law', undefined],
  ])('a child %s counts as chosen', (_, q) => {
    for (const drawing of ['independent', 'without-replacement'] as const)
      expect(rejectAll(p, q, [[2, drawing]])).toEqual({ asked: [0.5], bonus: [0.5, 0.5, 0, 0] });
  });

  it('any multiple of a law is the law, in either precision', () => {
    const children = [
      [2, 'without-replacement'],
      [0, 'without-replacement'],
    ] as const;
    const one = rejectAll(p, Float64Array.of(0.125, 0.125, 0.75, 0), children);
    expect(rejectAll(Float32Array.of(2, 2, 4, 0), Float32Array.of(1, 1, 6, 0), children)).toEqual(one);
    expect(one.asked).toEqual([0.5 / 0.75, 1]); // then P and q_2 are [1, 1, 0, 0] / 2
  });

  it('the laws that are handed in stay as they are', () => {
    const q = Float64Array.of(0.125, 0.125, 0.75, 0);
    rejectAll(p, q, [
      [2, 'without-replacement'],
      [0, 'point-mass'],
    ]);
    expect([...p]).toEqual([0.25, 0.25, 0.5, 0]);
    expect([...q]).toEqual([0.125, 0.125, 0.75, 0]);
  });

  it.each([
    [new Float64Array(4), undefined, 'multi-round: the target law after node 0 has no mass'],
    [new Float64Array(4).fill(Number.NaN), undefined, 'multi-round: the target law after node 0 has no mass'],
    [new Float64Array(3), undefined, 'multi-round: the target law after node 0 must have 4 tokens, got 3'],
    [p, new Float32Array(5), 'multi-round: the draft law after node 0 must have 4 tokens, got 5'],
  ])('refuses %s, %s', (target, draft, message) => {
    expect(() => rejectAll(target, draft, [[1, 'independent']])).toThrow(new RangeError(message));
  });
});

it('nodes past the size of a tree are not there, and a verdict serves many rounds', () => {
  const p = Float64Array.of(0, 1, 0, 0);
  const laws: TreeLaws = { target: () => p, draft: () => undefined, drawing: () => 'point-mass' };
  const verdict = createVerdict(4);
  const verifier = new MultiRoundVerifier(4);
  const tree = { size: 3, tokens: Int32Array.of(9, 1, 1), parents: Int32Array.of(-1, 0, 1) };
  const chance = chanceFrom(() => 0.5, 4);
  verifier.verify(tree, laws, chance, verdict);
  expect([verdict.pathLength, verdict.bonus]).toEqual([3, 1]);
  verifier.verify({ ...tree, size: 1 }, laws, chance, verdict);
  expect([verdict.pathLength, verdict.bonus]).toEqual([1, 1]);
});

it('a round makes no buffers', () => {
  const vocabSize = 4096;
  const p = new Float64Array(vocabSize).fill(1);
  const q = Float64Array.from(p, (_, token) => 1 + (token % 7));
  const laws: TreeLaws = { target: () => p, draft: () => q, drawing: () => 'without-replacement' };
  const tree = { size: 4, tokens: Int32Array.of(0, 6, 13, 20), parents: Int32Array.of(-1, 0, 0, 0) };
  const verdict = createVerdict(4);
  const verifier = new MultiRoundVerifier(vocabSize);
  const chance = chanceFrom(() => 0.999, vocabSize);
  const { arrayBuffers } = process.memoryUsage();
  let most = 0;
  for (let round = 0; round < 20; round++) {
    verifier.verify(tree, laws, chance, verdict);
    most = Math.max(most, process.memoryUsage().arrayBuffers);
  }
  expect(verdict.pathLength).toBe(1);
  expect(most).toBeLessThanOrEqual(arrayBuffers);
});
