import { expect, it } from 'vitest';
import type { Round } from '../../src/decode/generate.ts';
import { traceRound } from '../../src/decode/trace.ts';

const round: Round = {
  type: 'round',
  tokens: [8, 9],
  drafted: 1,
  treeSize: 4,
  // Buffers of the drafter and the verifier, longer than what is in them.
  tree: {
    size: 4,
    tokens: Int32Array.of(7, 8, 5, 6, 99),
    parents: Int32Array.of(-1, 0, 0, 1, 99),
    logProbabilities: Float64Array.of(0, -0.5, Number.NEGATIVE_INFINITY, Number.NaN, 99),
  },
  verdict: { path: Int32Array.of(0, 1, 99), pathLength: 2, bonus: 9 },
  committed: 20,
  stopReason: undefined,
  times: { draft: 1, verify: 2, sample: 4, commit: 8 },
};

it('is plain data, with null for what JSON has no number for', () => {
  const trace = traceRound(round, 3, 2);
  expect(trace).toEqual({
    round: 3,
    committed: 20,
    tokens: [7, 8, 5, 6],
    parents: [-1, 0, 0, 1],
    positions: [20, 21, 21, 22],
    logProbs: [0, -0.5, null, null],
    acceptedPath: [0, 1],
    bonus: 9,
    ms: 15,
  });
  expect(JSON.parse(JSON.stringify(trace))).toEqual(trace);
});

it('says how much of the path was text where the text ended within', () => {
  expect(traceRound(round, 1, 1)).toMatchObject({ emitted: 1, acceptedPath: [0, 1], bonus: 9 });
});

it('has no log-probabilities where the drafter has none', () => {
  const { logProbabilities: _, ...tree } = round.tree!;
  expect(traceRound({ ...round, tree }, 1, 2).logProbs).toEqual([0, null, null, null]);
});

it('refuses the token of prefill', () => {
  expect(() => traceRound({ ...round, tree: undefined, verdict: undefined }, 1, 1)).toThrow('has no tree');
});
