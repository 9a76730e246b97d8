import { describe, expect, it } from 'vitest';
import { chainShape, EAGLE_STATIC_PATHS, shapeFromPaths, staticShape } from '../../src/draft/tree.ts';

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
