/** The authors' trees and their builder (goldens' README: `medusa-buffers.json`, `tree-construction.json`). */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { growMedusaTree, MEDUSA_TREES, type MedusaTreeName, medusaShape } from '../../src/draft/medusa-tree.ts';
import { depthOf, shapeFromPaths } from '../../src/draft/tree.ts';

const golden = new URL('../golden/medusa-tiny/', import.meta.url);
const read = (file: string): unknown => JSON.parse(readFileSync(new URL(file, golden), 'utf8'));

interface Buffers {
  readonly choices: readonly (readonly number[])[];
  readonly sorted_choices: readonly (readonly number[])[];
  readonly nodes: number;
  readonly tree_indices: readonly number[];
  readonly position_ids: readonly number[];
  readonly visible: readonly (readonly number[])[];
}
const buffers = read('medusa-buffers.json') as { readonly topk: number; readonly trees: Record<string, Buffers> };

describe.each(Object.entries(buffers.trees))("the authors' buffers of %s", (name, wanted) => {
  const shape = shapeFromPaths(wanted.choices);
  const nodes = Array.from({ length: shape.size }, (_, node) => node);

  it('has their nodes in their order, at their depths', () => {
    const pathOf = (node: number): number[] =>
      node === 0 ? [] : [...pathOf(shape.parents[node]!), shape.ranks[node]!];
    expect(shape.size).toBe(wanted.nodes);
    expect(nodes.slice(1).map(pathOf)).toEqual(wanted.sorted_choices);
    expect([...shape.depths]).toEqual(wanted.position_ids);
    expect(nodes.map((node) => depthOf(shape.parents, node))).toEqual(wanted.position_ids);
  });

  it('takes the guess of the same head and rank', () => {
    const index = (node: number): number =>
      node === 0 ? 0 : 1 + buffers.topk * (shape.depths[node]! - 1) + shape.ranks[node]!;
    expect(nodes.map(index)).toEqual(wanted.tree_indices);
  });

  it('lets a node see what it follows', () => {
    const seen = (node: number): number[] => (node === 0 ? [0] : [...seen(shape.parents[node]!), node]);
    expect(nodes.map(seen)).toEqual(wanted.visible);
  });

  it('is known by its name, if it was published', () => {
    if (!(name in MEDUSA_TREES)) expect(['chain_4', 'two_by_two']).toContain(name);
    else expect(medusaShape(name as MedusaTreeName)).toEqual(shape);
  });
});

describe('a tree grown from accuracies', () => {
  interface Case {
    readonly name: string;
    readonly table: readonly (readonly number[])[];
    readonly max_depth: number;
    readonly max_child: readonly number[];
    readonly num_iterations: number;
    readonly nodes_in_order: readonly (readonly number[])[];
  }
  const { cases } = read('tree-construction.json') as { readonly cases: readonly Case[] };

  it.each(cases.map((entry) => [entry.name, entry] as const))("is the authors', node by node: %s", (_, entry) => {
    const { table, max_depth: maxDepth, max_child: maxChildren, num_iterations: added } = entry;
    expect(growMedusaTree(table, { nodes: added + 1, maxDepth, maxChildren })).toEqual(entry.nodes_in_order);
  });

  it('is closed under parents and better siblings, and so a shape', () => {
    const paths = growMedusaTree(cases[0]!.table, { nodes: 40 });
    expect(shapeFromPaths(paths).size).toBe(41);
  });

  it('ends where nothing that is left is ever right', () => {
    expect(growMedusaTree([[0.5, 0], [0.5, 0.25]], { nodes: 60 })).toEqual([[0], [0, 0], [0, 1]]); // biome-ignore format: a table
  });

  it.each([
    ['no nodes', { nodes: 0 }, 'at least 1 node, got 0'],
    [
      'more levels than heads',
      { nodes: 5, maxDepth: 3 },
      'the depth is a whole number of 1..2, for which there are heads, got 3',
    ],
    [
      'more children than ranks',
      { nodes: 5, maxChildren: [2, 3] },
      'a node at depth 1 has 1..2 children, for which there are accuracies, got 3',
    ],
    [
      'children of one level only',
      { nodes: 5, maxChildren: [2] },
      'a node at depth 1 has 1..2 children, for which there are accuracies, got undefined',
    ],
  ])('%s is refused', (_, limits, message) => {
    const table = [
      [0.5, 0.1],
      [0.4, 0.1],
    ];
    expect(() => growMedusaTree(table, limits)).toThrow(new RangeError(`medusa tree: ${message}`));
  });
});
