import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { medusaShape } from '../../src/draft/medusa-tree.ts';
import { chainShape, EAGLE_STATIC_PATHS, shapeFromPaths, staticShape } from '../../src/draft/tree.ts';
import { parseTreeOption, type TreeOption, treePolicy } from '../../src/draft/tree-option.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';

const scratch = temporaryDirectory();
const FORMS =
  'auto, chain:DEPTH, static, static:NODES, medusa:mc_sim_7b_63, medusa:vicuna_7b_stage2, dynamic:DEPTH,TOPK,TOTAL or a JSON file of paths';

function fileOf(name: string, content: unknown): string {
  const file = join(scratch, `${name}.json`);
  writeFileSync(file, typeof content === 'string' ? content : JSON.stringify(content));
  return file;
}

function refuses(text: string): void {
  expect(() => parseTreeOption(text)).toThrow(new RangeError(`tree: expected ${FORMS}, got "${text}"`));
}

describe('as text', () => {
  it.each([
    ['chain:5', { kind: 'chain', depth: 5 }, chainShape(5)],
    ['chain:1023', { kind: 'chain', depth: 1023 }, chainShape(1023)],
    ['static', { kind: 'static' }, staticShape()],
    ['static:1', { kind: 'static', nodes: 1 }, staticShape(1)],
    ['static:8', { kind: 'static', nodes: 8 }, staticShape(8)],
    ['medusa:mc_sim_7b_63', { kind: 'medusa', name: 'mc_sim_7b_63' }, medusaShape('mc_sim_7b_63')],
    ['dynamic:5,10,60', { kind: 'dynamic', depth: 5, topK: 10, total: 60 }, undefined],
    ['dynamic:0,4,5', { kind: 'dynamic', depth: 0, topK: 4, total: 5 }, undefined],
  ] as const)('%s', (text, option, policy) => {
    expect(parseTreeOption(text)).toEqual(option);
    expect(treePolicy(option)).toEqual(policy ?? option);
  });

  it('auto leaves the tree to the budget', () => {
    expect(parseTreeOption('auto')).toEqual({ kind: 'auto' });
    expect(treePolicy({ kind: 'auto' })).toBeUndefined();
  });

  it.each([
    ['chain:0', 'a chain has a depth of 1..1023, got 0'],
    ['chain:10000', 'a chain has a depth of 1..1023, got 10000'],
    ['static:0', 'the static tree has 1..26 nodes, got 0'],
    ['static:10000', 'the static tree has 1..26 nodes, got 10000'],
    ['dynamic:5,10,0', "a dynamic tree's total is a whole number of 1..1024, got 0"],
    ['dynamic:5,10,10000', "a dynamic tree's total is a whole number of 1..1024, got 10000"],
    ['dynamic:0,4,6', 'depth 0 and topk 4 find 4 nodes below the root, got total 6'],
  ])('%s is refused', (text, message) => {
    expect(() => parseTreeOption(text)).toThrow(new RangeError(`tree: ${message}`));
  });

  it.each('auto: auto:4 chain chain: chain:5,5 chain:-1 chain:2.5 chain:1e2 chain:99999999999999999999'.split(' '))(
    '%s is not understood',
    refuses,
  );
  it.each('medusa medusa: medusa:63 medusa:mc_sim_7b_63,1 medusa:toString'.split(' '))('%s is not understood', refuses);
  it.each('static: static:x static:4,4 dynamic dynamic:5,10 dynamic:5,10,60,1 dynamic:5,,60'.split(' '))(
    '%s is not understood',
    refuses,
  );
});

describe('as a file', () => {
  it('lists paths of child ranks', () => {
    const paths = [[0], [2], [0, 1], [0, 1, 0]];
    const option = parseTreeOption(fileOf('paths', paths));
    expect(option).toEqual({ kind: 'paths', paths });
    expect(treePolicy(option)).toEqual(shapeFromPaths(paths));
    expect(treePolicy(parseTreeOption(fileOf('static', EAGLE_STATIC_PATHS)))).toEqual(staticShape());
  });

  it.each([
    ['no nodes', [], '1..1023 nodes below the root, got 0'],
    ['ten thousand', Array.from({ length: 10_000 }, (_, i) => [i]), '1..1023 nodes below the root, got 10000'],
    ['a child before its parent', [[1], [0, 0], [0]], '[0,0] comes before its parent [0]'],
    ['a missing parent', [[0], [1, 0]], 'the parent of [1,0] is missing'],
    ['a path twice', [[0], [1], [0]], '[0] is given twice'],
    ['the root', [[]], 'a path is a list of child ranks of 0..127, got []'],
    ['a negative rank', [[-1]], 'a path is a list of child ranks of 0..127, got [-1]'],
    ['a large rank', [[128]], 'a path is a list of child ranks of 0..127, got [128]'],
    ['half a rank', [[0.5]], 'a path is a list of child ranks of 0..127, got [0.5]'],
    ['a word', [['0']], 'a path is a list of child ranks of 0..127, got ["0"]'],
    ['no path', [0], 'a path is a list of child ranks of 0..127, got 0'],
    ['no list', { paths: [[0]] }, 'expected a list of paths, such as [[0], [1], [0, 0]]'],
    ['nothing', null, 'expected a list of paths, such as [[0], [1], [0, 0]]'],
  ])('%s is refused', (name, content, message) => {
    const file = fileOf(name, content);
    expect(() => parseTreeOption(file)).toThrow(new RangeError(`${file}: tree: ${message}`));
  });

  it('that is no JSON, too large or not there is refused by name', () => {
    const broken = fileOf('broken', '[[0], [');
    expect(() => parseTreeOption(broken)).toThrow(`${broken}: Unexpected end of JSON input`);
    const large = fileOf('large', '[]');
    truncateSync(large, 2 ** 20 + 1);
    expect(() => parseTreeOption(large)).toThrow('cannot be read (at most 1048576 bytes, got 1048577)');
    expect(() => parseTreeOption(scratch)).toThrow(`expected ${FORMS}, got "${scratch}", which cannot be read`);
    expect(() => parseTreeOption('dynamc:1,2,3')).toThrow(
      `expected ${FORMS}, got "dynamc:1,2,3", which cannot be read`,
    );
  });
});

describe('in a context', () => {
  const deep: readonly (readonly [TreeOption, number])[] = [
    [{ kind: 'chain', depth: 8 }, 8],
    [{ kind: 'dynamic', depth: 7, topK: 2, total: 10 }, 8],
    [{ kind: 'paths', paths: [[0], [0, 0], [0, 0, 0]] }, 3],
  ];

  it.each(deep)('%o of depth %i must fit', (option, depth) => {
    expect(treePolicy(option, depth + 1)).toEqual(treePolicy(option));
    expect(() => treePolicy(option, depth)).toThrow(
      new RangeError(`tree: a path of ${depth} drafted tokens does not fit in a context of ${depth}`),
    );
  });

  it('the static tree may be cut by any', () => {
    expect(treePolicy({ kind: 'static' }, 2)).toEqual(staticShape());
  });

  it('values of the API are held to the same rules', () => {
    expect(() => treePolicy({ kind: 'chain', depth: 2.5 })).toThrow('tree: a chain has a depth of 1..1023, got 2.5');
    expect(() => treePolicy({ kind: 'paths', paths: [[0, 0], [0]] })).toThrow(
      'tree: [0,0] comes before its parent [0]',
    );
  });
});
