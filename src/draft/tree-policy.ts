/** The kinds of tree: a shape fixed once, filled every round; one that follows the head's confidence; one that follows what pays. */
import { TreeBudget } from './budget.ts';
import { BudgetGrower, type BudgetGrowerOptions } from './budget-grower.ts';
import type { TreeCosts } from './costs.ts';
import { FixedGrower } from './fixed-grower.ts';
import { DynamicGrower, type DynamicTree } from './grow.ts';
import type { TreeShape } from './tree.ts';
import type { TreeGrower } from './tree-grower.ts';

export interface BudgetTree extends BudgetGrowerOptions {
  readonly kind: 'auto';
  /** What the budget goes by, and refines. */
  readonly costs: TreeCosts;
}

export type TreePolicy = TreeShape | DynamicTree | BudgetTree;

/**
 * @param vocabSize tokens that the drafter knows.
 * @throws RangeError where a node would have more children.
 */
export function createGrower(policy: TreePolicy, vocabSize: number): TreeGrower {
  const grower = makeGrower(policy, vocabSize);
  if (grower.branching > vocabSize)
    throw new RangeError(`tree: ${vocabSize} tokens can be guessed after a node, got ${grower.branching}`);
  return grower;
}

function makeGrower(policy: TreePolicy, vocabSize: number): TreeGrower {
  switch (policy.kind) {
    case 'fixed':
      return new FixedGrower(policy);
    case 'dynamic':
      return new DynamicGrower(policy);
    case 'auto':
      return new BudgetGrower(new TreeBudget(policy.costs), vocabSize, policy);
    default:
      return policy satisfies never;
  }
}
