import { describe, expect, it } from 'vitest';
import { createVerdict, verifyMatch } from '../../src/decode/verify.ts';

/** [parent, token] of the nodes below root 100. */
type Nodes = readonly (readonly [number, number])[];

function verify(nodes: Nodes, draws: readonly number[]) {
  const asked: [number, number][] = [];
  const verdict = createVerdict(nodes.length + 1);
  verifyMatch(
    {
      size: nodes.length + 1,
      tokens: Int32Array.from([100, ...nodes.map(([, token]) => token)]),
      parents: Int32Array.from([-1, ...nodes.map(([parent]) => parent)]),
    },
    (node, depth) => {
      asked.push([node, depth]);
      return draws[depth]!;
    },
    verdict,
  );
  return { path: [...verdict.path.subarray(0, verdict.pathLength)], bonus: verdict.bonus, asked };
}

describe('verifyMatch', () => {
  const chain: Nodes = [
    [0, 1],
    [1, 2],
    [2, 3],
  ];
  const tree: Nodes = [
    [0, 1],
    [0, 2],
    [1, 1],
    [1, 2],
    [2, 1],
    [2, 3],
    [5, 9],
  ];

  it.each([
    ['an empty tree gives the bonus', [], [7], [0], 7],
    ['a chain, all right', chain, [1, 2, 3, 4], [0, 1, 2, 3], 4],
    ['a chain, right for two', chain, [1, 2, 9], [0, 1, 2], 9],
    ['a chain, wrong at once', chain, [2], [0], 2],
    ['a later token of the chain is no child of the root', chain, [3], [0], 3],
    ['the second child', tree, [2, 3, 5], [0, 2, 6], 5],
    ['the same token below another parent', tree, [2, 1, 9, 4], [0, 2, 5, 7], 4],
    ['a leaf ends the path', tree, [1, 2, 0], [0, 1, 4], 0],
    [
      'of equal siblings the first',
      [
        [0, 5],
        [0, 5],
        [2, 6],
      ],
      [5, 6],
      [0, 1],
      6,
    ],
    [
      "the root's own token as a guess",
      [
        [0, 100],
        [1, 100],
      ],
      [100, 100, 1],
      [0, 1, 2],
      1,
    ],
  ] as const)('%s', (_, nodes, draws, path, bonus) => {
    const got = verify(nodes, draws);
    expect(got.path).toEqual(path);
    expect(got.bonus).toBe(bonus);
    // One draw per emitted position, at the nodes of the path only.
    expect(got.asked).toEqual(path.map((node, depth) => [node, depth]));
  });

  it('a verdict serves many rounds', () => {
    const verdict = createVerdict(4);
    const tree = { size: 3, tokens: Int32Array.of(9, 1, 2), parents: Int32Array.of(-1, 0, 1) };
    verifyMatch(tree, (_, depth) => depth + 1, verdict);
    expect([verdict.pathLength, verdict.bonus]).toEqual([3, 3]);
    verifyMatch(tree, () => 8, verdict);
    expect([verdict.pathLength, verdict.bonus]).toEqual([1, 8]);
  });

  it('nodes past the size of a tree are not there', () => {
    const verdict = createVerdict(4);
    verifyMatch({ size: 1, tokens: Int32Array.of(9, 1), parents: Int32Array.of(-1, 0) }, () => 1, verdict);
    expect([verdict.pathLength, verdict.bonus]).toEqual([1, 1]);
  });
});
