/**
 * All drafters, by name: a new one is a file of its own and a line here, and has to keep the contract that test/draft/contract.test.ts
 * holds every line against.
 */
import type { TargetModel } from '../model/target.ts';
import { MOST_GUESSES } from './budget-grower.ts';
import { measureCosts, type TreeCosts } from './costs.ts';
import type { Drafter } from './drafter.ts';
import { EagleDrafter } from './eagle.ts';
import type { EagleHead } from './eagle-head.ts';
import { MedusaDrafter } from './medusa.ts';
import type { MedusaHeads } from './medusa-heads.ts';
import { NoDrafter } from './none.ts';
import { staticShape } from './tree.ts';
import type { TreePolicy } from './tree-policy.ts';

/** What there is to make drafters from. */
export interface DrafterParts {
  readonly target: TargetModel;
  /** Tokens of prompt and answer together. */
  readonly contextSize: number;
  /** Absent where the model has no head. What it opens belongs to the drafter. */
  readonly openHead?: (() => EagleHead) | undefined;
  /** Absent where the model has no Medusa heads. What it opens belongs to the drafter. */
  readonly openMedusa?: (() => MedusaHeads) | undefined;
  /** The tree that was asked for; absent leaves it to the budget. */
  readonly tree?: TreePolicy | undefined;
  /** Costs that are known already, or else those that `measure` finds; absent, they are measured. */
  readonly costs?: ((measure: () => TreeCosts) => TreeCosts) | undefined;
}

/** Undefined where a part is missing. */
type Make = (parts: DrafterParts) => Drafter | undefined;

const REGISTRY = {
  none: () => new NoDrafter(),
  eagle: makeEagle,
  medusa: makeMedusa,
} satisfies Readonly<Record<string, Make>>;

export type DrafterName = keyof typeof REGISTRY;
export const DRAFTERS = Object.keys(REGISTRY) as readonly DrafterName[];

/** The named drafter, which the caller owns; undefined where `parts` lacks what it is made of. */
export function createDrafter(name: DrafterName, parts: DrafterParts): Drafter | undefined {
  return REGISTRY[name](parts);
}

function makeEagle({ target, contextSize, openHead, tree, costs }: DrafterParts): Drafter | undefined {
  if (openHead === undefined) return undefined;
  const head = openHead();
  try {
    const measure = (): TreeCosts => measureCosts(target, head, Math.min(MOST_GUESSES, head.config.draftVocabSize));
    const policy = tree ?? { kind: 'auto', costs: costs === undefined ? measure() : costs(measure) };
    return new EagleDrafter(target, head, policy, contextSize);
  } catch (error) {
    head[Symbol.dispose]();
    throw error;
  }
}

/** TODO(auto): without a tree it is to be the budget, as EAGLE's, once costs are measured for drafters other than EAGLE. */
const MEDUSA_DEFAULT_TREE = staticShape(16);

function makeMedusa({ target, openMedusa, tree = MEDUSA_DEFAULT_TREE }: DrafterParts): Drafter | undefined {
  if (openMedusa === undefined) return undefined;
  const heads = openMedusa();
  try {
    return new MedusaDrafter(target, heads, tree);
  } catch (error) {
    heads[Symbol.dispose]();
    throw error;
  }
}
