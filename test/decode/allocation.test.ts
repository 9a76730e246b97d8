/** The hot loop allocates nothing that grows, and little that does not. (Lookahead and Medusa: test/draft/*-allocation.test.ts.) */
import { afterAll, beforeAll, describe, it } from 'vitest';
import type { Drafter } from '../../src/draft/drafter.ts';
import { EagleDrafter } from '../../src/draft/eagle.ts';
import { NoDrafter } from '../../src/draft/none.ts';
import { staticShape } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { expectLean, LAWS, warmUp } from '../support/garbage.ts';
import { TINY_CONFIG, tinyHead, tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
const CONTEXT = 2048;
const target = tinyTarget(kernels, { config: { ...TINY_CONFIG, contextLength: CONTEXT } });
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

const DRAFTERS: Readonly<Record<string, () => Drafter>> = {
  none: () => new NoDrafter(),
  eagle: () => new EagleDrafter(target, tinyHead(target), staticShape(12), CONTEXT),
  'eagle, draft vocabulary': () =>
    new EagleDrafter(target, tinyHead(target, { draftVocabSize: 24 }), staticShape(12), CONTEXT),
  'eagle, dynamic tree': () =>
    new EagleDrafter(target, tinyHead(target), { kind: 'dynamic', depth: 3, topK: 4, total: 12 }, CONTEXT),
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
