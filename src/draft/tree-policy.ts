/** The two kinds of tree: a shape fixed once, filled every round; or one that follows the head's confidence. */
import { FixedGrower } from './fixed-grower.ts';
import { DynamicGrower, type DynamicTree } from './grow.ts';
import type { TreeShape } from './tree.ts';
import type { TreeGrower } from './tree-grower.ts';

export type TreePolicy = TreeShape | DynamicTree;

export function createGrower(policy: TreePolicy): TreeGrower {
  switch (policy.kind) {
    case 'fixed':
      return new FixedGrower(policy);
    case 'dynamic':
      return new DynamicGrower(policy);
    default:
      return policy satisfies never;
  }
}
