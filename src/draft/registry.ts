/**
 * All drafters, by name: a new one is a file of its own and a line here, and has to keep the contract that test/draft/contract.test.ts
 * holds every line against.
 */
import type { TargetModel } from '../model/target.ts';
import { type Grafter, MOST_GUESSES } from './budget-grower.ts';
import type { TreeCosts } from './costs.ts';
import { DraftModelDrafter, draftModelForwards } from './draft-model.ts';
import type { Drafter } from './drafter.ts';
import { EagleDrafter, eagleForwards } from './eagle.ts';
import type { EagleHead } from './eagle-head.ts';
import { HybridDrafter } from './hybrid.ts';
import { LookaheadDrafter } from './lookahead.ts';
import { checkLookahead, DEFAULT_LOOKAHEAD, type LookaheadOptions } from './lookahead-options.ts';
import { type DraftForwards, measureCosts } from './measure-costs.ts';
import { MedusaDrafter, MedusaForwards } from './medusa.ts';
import type { MedusaHeads } from './medusa-heads.ts';
import { NoDrafter } from './none.ts';
import { PromptLookupDrafter } from './prompt-lookup.ts';
import type { TreePolicy } from './tree-policy.ts';

/** What there is to make drafters from. */
export interface DrafterParts {
  readonly target: TargetModel;
  /** Tokens of prompt and answer together. */
  readonly contextSize: number;
  /** Absent where the model has no head. What it opens goes with the first of its drafters: disposing it twice is harmless. */
  readonly openHead?: (() => EagleHead) | undefined;
  /** Absent where there is no draft model. What it opens belongs to the drafter. */
  readonly openDraftModel?: (() => TargetModel) | undefined;
  /** Absent where the model has no Medusa heads. What it opens belongs to the drafter. */
  readonly openMedusa?: (() => MedusaHeads) | undefined;
  /** The tree that was asked for; absent leaves it to the budget. */
  readonly tree?: TreePolicy | undefined;
  /** The lookahead that was asked for. */
  readonly lookahead?: LookaheadOptions | undefined;
  /** Costs that are known already, or else measured, for a drafter with these forwards of its own; absent, they are measured. */
  readonly costs?: ((name: DrafterName, forwards: (() => DraftForwards) | undefined) => TreeCosts) | undefined;
}

/** Undefined where a part is missing. */
type Make = (parts: DrafterParts) => Drafter | undefined;

const REGISTRY = {
  none: () => new NoDrafter(),
  eagle: makeEagle,
  draft: makeDraftModel,
  'prompt-lookup': makePromptLookup,
  hybrid: makeHybrid,
  lookahead: makeLookahead,
  medusa: makeMedusa,
} satisfies Readonly<Record<string, Make>>;

export type DrafterName = keyof typeof REGISTRY;
export const DRAFTERS = Object.keys(REGISTRY) as readonly DrafterName[];

/** The named drafter, which the caller owns; undefined where `parts` lacks what it is made of. */
export function createDrafter(name: DrafterName, parts: DrafterParts): Drafter | undefined {
  return REGISTRY[name](parts);
}

/** A shape of tree that was asked for is not lookahead's to fill: it drafts its own, all of it. */
function makeLookahead(parts: DrafterParts): Drafter {
  const { target, contextSize, lookahead } = parts;
  // The one by default was not made for this context: where it does not fit, only guesses would be drafted.
  if (lookahead !== undefined) checkLookahead(lookahead, contextSize);
  const policy = policyOf('lookahead', parts);
  const budgeted = policy.kind === 'auto' ? { costs: policy.costs } : {};
  return new LookaheadDrafter(target, lookahead ?? DEFAULT_LOOKAHEAD, contextSize, budgeted);
}

/** The tree that was asked for, or else what pays; `forwards` are the drafter's own, to be timed. */
function policyOf(
  name: DrafterName,
  { target, tree, costs }: DrafterParts,
  forwards?: () => DraftForwards,
): TreePolicy {
  if (tree !== undefined) return tree;
  return { kind: 'auto', costs: costs === undefined ? measureCosts(target, forwards) : costs(name, forwards) };
}

function makeEagle(parts: DrafterParts): EagleDrafter | undefined {
  return createEagle('eagle', parts);
}

function createEagle(name: DrafterName, parts: DrafterParts, grafter?: Grafter): EagleDrafter | undefined {
  const { target, contextSize, openHead } = parts;
  if (openHead === undefined) return undefined;
  const head = openHead();
  try {
    const policy = policyOf(name, parts, () => eagleForwards(target, head, MOST_GUESSES));
    const grafted = policy.kind === 'auto' && grafter !== undefined ? { ...policy, grafter } : policy;
    return new EagleDrafter(target, head, grafted, contextSize);
  } catch (error) {
    head[Symbol.dispose]();
    throw error;
  }
}

function makeDraftModel(parts: DrafterParts): Drafter | undefined {
  const { target, contextSize, openDraftModel } = parts;
  if (openDraftModel === undefined) return undefined;
  const model = openDraftModel();
  try {
    const policy = policyOf('draft', parts, () => draftModelForwards(model, MOST_GUESSES));
    return new DraftModelDrafter(target, model, policy, contextSize);
  } catch (error) {
    model[Symbol.dispose]();
    throw error;
  }
}

function makePromptLookup(parts: DrafterParts): Drafter {
  const { target, contextSize } = parts;
  return new PromptLookupDrafter(target.config.vocabSize, policyOf('prompt-lookup', parts), contextSize);
}

/** Only where a budget weighs the two sources: an asked-for tree has no places for a second one. */
function makeHybrid(parts: DrafterParts): Drafter | undefined {
  const { target, contextSize, tree, openHead } = parts;
  if (openHead === undefined || (tree !== undefined && tree.kind !== 'auto')) return undefined;
  return new HybridDrafter(target.config.vocabSize, contextSize, (grafter) => createEagle('hybrid', parts, grafter)!);
}

function makeMedusa(parts: DrafterParts): Drafter | undefined {
  const { target, contextSize, openMedusa } = parts;
  if (openMedusa === undefined) return undefined;
  const heads = openMedusa();
  try {
    const policy = policyOf('medusa', parts, () => new MedusaForwards(target, heads, MOST_GUESSES));
    return new MedusaDrafter(target, heads, policy, contextSize);
  } catch (error) {
    heads[Symbol.dispose]();
    throw error;
  }
}
