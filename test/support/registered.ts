/**
 * What the contract is kept by: every line of the registry, each drafter that has use for a tree with every kind of it, one that has use for a
 * budget only with that and without, and the example.
 */
import { BigramDrafter } from '../../examples/custom-drafter.ts';
import type { Drafter } from '../../src/draft/drafter.ts';
import { createDrafter, DRAFTERS } from '../../src/draft/registry.ts';
import { chainShape, shapeFromPaths, staticShape } from '../../src/draft/tree.ts';
import type { TreePolicy } from '../../src/draft/tree-policy.ts';
import type { TargetModel } from '../../src/model/target.ts';
import { costsFrom } from './costs.ts';
import { tinyHead, tinyMedusa, tinyTarget } from './tiny.ts';

export const TREES: Readonly<Record<string, TreePolicy>> = {
  'one node': staticShape(1),
  chain: chainShape(4),
  static: staticShape(12),
  'whole static': staticShape(),
  'paths with gaps': shapeFromPaths([[0], [3], [0, 1], [0, 1, 0], [0, 1, 2], [3, 0]]),
  dynamic: { kind: 'dynamic', depth: 4, topK: 4, total: 20 },
  // What forwards really take is learnt on the way: both get to smaller and larger trees. Costs of their own each time they are asked for.
  get 'auto, rows cost little'(): TreePolicy {
    const target = [
      { rows: 1, ms: 10 },
      { rows: 32, ms: 10.1 },
    ];
    return { kind: 'auto', costs: costsFrom({ target, draft: [{ rows: 1, ms: 0.001 }] }) };
  },
  get 'auto, rows cost much'(): TreePolicy {
    const target = [
      { rows: 1, ms: 1 },
      { rows: 2, ms: 2 },
    ];
    return { kind: 'auto', costs: costsFrom({ target, draft: [{ rows: 1, ms: 0.5 }] }) };
  },
};

export interface Registered {
  readonly label: string;
  readonly make: (target: TargetModel, contextSize: number) => Drafter;
}

/** @param sample any target: a drafter's number of nodes tells whether it has use for a tree. */
export function registered(sample: TargetModel): readonly Registered[] {
  const example: Registered = { label: 'example', make: () => new BigramDrafter() };
  const lines = DRAFTERS.flatMap((name): readonly Registered[] => {
    const create = (target: TargetModel, contextSize: number, tree: TreePolicy): Drafter | undefined =>
      createDrafter(name, {
        target,
        contextSize,
        tree,
        openHead: () => tinyHead(target),
        openMedusa: () => tinyMedusa(target),
        openDraftModel: () => tinyTarget(target.kernels, { config: { ...target.config, layers: 1 }, seed: 9 }),
      });
    const make = (target: TargetModel, contextSize: number, tree: TreePolicy): Drafter =>
      create(target, contextSize, tree)!;
    const nodesWith = (tree: TreePolicy): number | undefined => {
      using drafter = create(sample, 64, tree);
      return drafter?.maxNodes;
    };
    const hasBudget = (tree: TreePolicy): boolean => {
      using drafter = create(sample, 64, tree);
      return drafter?.budget !== undefined;
    };
    const created = Object.keys(TREES).filter((kind) => nodesWith(TREES[kind]!) !== undefined);
    if (created.length === 0) throw new Error(`the test has not all that "${name}" is made of`);
    const ignoresShapes =
      created.length === Object.keys(TREES).length && nodesWith(staticShape(3)) === nodesWith(staticShape(5));
    const trees = created.filter((kind) => !ignoresShapes || hasBudget(TREES[kind]!));
    const asEver: Registered = {
      label: name,
      make: (target, contextSize) => make(target, contextSize, staticShape(1)),
    };
    const filled = trees.map((kind) => ({
      label: `${name}, ${kind}`,
      make: (target: TargetModel, contextSize: number) => make(target, contextSize, TREES[kind]!),
    }));
    return ignoresShapes ? [asEver, ...filled] : filled;
  });
  return [...lines, example];
}
