import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { chainShape, EAGLE_STATIC_PATHS, RANK_ACCEPTANCE, shapeFromPaths, staticShape } from '../../src/draft/tree.ts';
import { chooseTreeSize, costAt, expectedTokens, measureTreeCosts, type TreeCosts } from '../../src/draft/tree-size.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { tinyHead, tinyTarget } from '../support/tiny.ts';

const sizes = Array.from({ length: EAGLE_STATIC_PATHS.length + 1 }, (_, i) => i + 1);

describe('shapes', () => {
  it('nodes are ordered by depth, then by path, whatever order the paths come in', () => {
    const shape = shapeFromPaths([[1, 0], [0], [0, 1], [1], [0, 0], [1, 0, 2]]);
    expect(shape).toEqual({
      kind: 'fixed',
      size: 7,
      parents: Int32Array.of(-1, 0, 0, 1, 1, 2, 5),
      ranks: Int32Array.of(0, 0, 1, 0, 1, 0, 2),
      depths: Int32Array.of(0, 1, 1, 2, 2, 2, 3),
      maxDepth: 3,
      maxChildren: 3,
    });
  });

  it.each([
    ['a path of nothing', [[]], 'a path is a list of child ranks, got []'],
    ['a negative rank', [[-1]], 'a path is a list of child ranks, got [-1]'],
    ['half a rank', [[0.5]], 'a path is a list of child ranks, got [0.5]'],
    ['a missing parent', [[0], [1, 0]], 'the parent of [1,0] is missing'],
    ['a path given twice', [[0], [1], [0]], '[0] is given twice'],
  ])('%s is refused', (_, paths, message) => {
    expect(() => shapeFromPaths(paths)).toThrow(new RangeError(`tree: ${message}`));
  });

  it.each([0, 1, 2, 5])('a chain of %i', (depth) => {
    const shape = chainShape(depth);
    expect(shape.size).toBe(depth + 1);
    expect([...shape.parents]).toEqual(Array.from({ length: depth + 1 }, (_, i) => i - 1));
    expect([...shape.depths]).toEqual(Array.from({ length: depth + 1 }, (_, i) => i));
    expect([...shape.ranks].every((rank) => rank === 0)).toBe(true);
    expect(shape.maxDepth).toBe(depth);
    expect(shape.maxChildren).toBe(1);
  });

  it.each(sizes)('the static tree of %i nodes is closed under parents and part of the next', (size) => {
    const shape = staticShape(size);
    const pathOf = (node: number): string => (node === 0 ? '' : `${pathOf(shape.parents[node]!)}/${shape.ranks[node]}`);
    expect(shape.size).toBe(size);
    for (let node = 1; node < size; node++) {
      expect(shape.parents[node]).toBeLessThan(node);
      expect(shape.depths[node]).toBe(shape.depths[shape.parents[node]!]! + 1);
      // A node's better siblings are there too.
      if (shape.ranks[node]! > 0) {
        const better = [...shape.parents.keys()].filter(
          (other) => shape.parents[other] === shape.parents[node] && shape.ranks[other]! < shape.ranks[node]!,
        );
        expect(better).toHaveLength(shape.ranks[node]!);
      }
    }
    if (size === sizes.at(-1)) return;
    const larger = staticShape(size + 1);
    const largerPathOf = (node: number): string =>
      node === 0 ? '' : `${largerPathOf(larger.parents[node]!)}/${larger.ranks[node]}`;
    const all = new Set(Array.from({ length: size + 1 }, (_, node) => largerPathOf(node)));
    for (let node = 0; node < size; node++) expect(all).toContain(pathOf(node));
  });

  it.each([0, 27, 2.5, Number.NaN])('there is no static tree of %d nodes', (size) => {
    expect(() => staticShape(size)).toThrow(`tree: the static tree has 1..26 nodes, got ${size}`);
  });
});

describe('tree size', () => {
  const line = (first: number, perRow: number): TreeCosts['target'] =>
    [1, 4, 8, 12, 16, 26].map((rows) => ({ rows, ms: first + perRow * (rows - 1) }));

  it('expects the product of the ranks along each path', () => {
    expect(expectedTokens(staticShape(1), RANK_ACCEPTANCE)).toBe(1);
    expect(expectedTokens(chainShape(3), [0.5])).toBe(1 + 0.5 + 0.25 + 0.125);
    expect(expectedTokens(shapeFromPaths([[0], [1], [1, 0]]), [0.5, 0.25])).toBe(1 + 0.5 + 0.25 + 0.125);
    // What was measured with the starter head: its README.
    expect(Math.abs(expectedTokens(staticShape(8), RANK_ACCEPTANCE) - 1.8)).toBeLessThan(0.1);
    expect(Math.abs(expectedTokens(staticShape(26), RANK_ACCEPTANCE) - 2.1)).toBeLessThan(0.1);
  });

  it.each([
    ['rows cost nothing: all nodes', line(10, 0), line(0, 0), RANK_ACCEPTANCE, 26],
    ['each row costs as much as the first: plain decoding', line(10, 10), line(0.1, 0), RANK_ACCEPTANCE, 1],
    ['the head costs as much as the target: plain decoding', line(10, 0), line(10, 0), RANK_ACCEPTANCE, 1],
    ['guesses are never right: plain decoding', line(10, 0), line(0.1, 0), [0, 0, 0, 0], 1],
    ['nothing was measured past one row: plain decoding', [{ rows: 1, ms: 10 }], line(0, 0), RANK_ACCEPTANCE, 1],
    ['only eight rows were measured in time', line(10, 0).slice(0, 3), line(0, 0), RANK_ACCEPTANCE, 8],
    ['only the first guess is any good, depth costs nothing', line(10, 1), line(0, 0), [0.99, 0, 0, 0], 6],
  ])('%s', (_, target, head, acceptance, size) => {
    expect(chooseTreeSize({ target, head }, acceptance)).toBe(size);
  });

  it('chooses the best of all sizes, and never a worse one than plain decoding', () => {
    void fc.assert(
      fc.property(
        fc.double({ min: 0.1, max: 100, noNaN: true }),
        fc.double({ min: 0, max: 10, noNaN: true }),
        fc.double({ min: 0, max: 5, noNaN: true }),
        (first, perRow, headMs) => {
          const target = line(first, perRow);
          const size = chooseTreeSize({ target, head: [{ rows: 1, ms: headMs }] }, RANK_ACCEPTANCE);
          if (size === 1) return;
          const shape = staticShape(size);
          const levels = new Set(Array.from(shape.parents.subarray(1), (parent) => shape.depths[parent])).size;
          const ms = costAt(target, size) + headMs * levels;
          expect(expectedTokens(shape, RANK_ACCEPTANCE) / ms).toBeGreaterThan(1 / first);
        },
      ),
      { seed: 1 },
    );
  });

  it('costs lie on lines between what was measured, and go on beyond', () => {
    const curve = [
      { rows: 1, ms: 10 },
      { rows: 5, ms: 12 },
      { rows: 9, ms: 20 },
    ];
    expect([1, 3, 5, 6, 9, 11].map((rows) => costAt(curve, rows))).toEqual([10, 11, 12, 14, 20, 24]);
    expect(costAt([{ rows: 4, ms: 7 }], 9)).toBe(7);
  });

  it('measures the target and the head within a fraction of a second', () => {
    const kernels = createKernels({ threads: 1 });
    using target = tinyTarget(kernels);
    using head = tinyHead(target);
    const began = performance.now();
    const costs = measureTreeCosts(target, head);
    expect(performance.now() - began).toBeLessThan(300);
    expect(costs.target.map(({ rows }) => rows)).toEqual([1, 4, 8, 12, 16, 26]);
    expect(costs.head.map(({ rows }) => rows)).toEqual([1, 2, 4]);
    expect([...costs.target, ...costs.head].every(({ ms }) => ms > 0)).toBe(true);
    kernels.dispose();
  });
});
