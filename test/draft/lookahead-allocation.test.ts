/**
 * Lookahead allocates nothing either. A process of its own: code that has seen one drafter more is compiled otherwise, which moves what the
 * others are measured at.
 */
import { afterAll, beforeAll, describe, it } from 'vitest';
import { FREE } from '../../src/draft/costs.ts';
import { LookaheadDrafter } from '../../src/draft/lookahead.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { costsFrom } from '../support/costs.ts';
import { expectLean, LAWS, warmUp } from '../support/garbage.ts';
import { TINY_CONFIG, tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
/** A tiny model's greedy text repeats itself, and is drafted three tokens a round. */
const CONTEXT = 6144;
const target = tinyTarget(kernels, { config: { ...TINY_CONFIG, contextLength: CONTEXT } });
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

const options = { window: 4, ngram: 3, guesses: 2, fromText: true };
const costs = costsFrom({ target: [1, 32].map((rows) => ({ rows, ms: 1 })), draft: FREE });
const DRAFTERS: Readonly<Record<string, () => LookaheadDrafter>> = {
  'as published': () => new LookaheadDrafter(target, options, CONTEXT),
  'under a budget': () => new LookaheadDrafter(target, options, CONTEXT, { costs }),
};

beforeAll(() => {
  for (const make of Object.values(DRAFTERS)) {
    using drafter = make();
    warmUp(target, drafter);
  }
});

describe.each(Object.entries(DRAFTERS))('%s', (_, make) => {
  it.each(Object.entries(LAWS))('%s', (_, options) => {
    using drafter = make();
    expectLean(target, drafter, options);
  });
});
