/**
 * Lookahead allocates nothing either. A process of its own: code that has seen one drafter more is compiled otherwise, which moves what the
 * others are measured at.
 */
import { afterAll, beforeAll, it } from 'vitest';
import { LookaheadDrafter } from '../../src/draft/lookahead.ts';
import { createKernels } from '../../src/kernels/choose.ts';
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

const make = (): LookaheadDrafter =>
  new LookaheadDrafter(target, { window: 4, ngram: 3, guesses: 2, fromText: true }, CONTEXT);

beforeAll(() => {
  using drafter = make();
  warmUp(target, drafter);
});

it.each(Object.entries(LAWS))('%s', (_, options) => {
  using drafter = make();
  expectLean(target, drafter, options);
});
