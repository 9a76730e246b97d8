/** Medusa allocates nothing either; in a process of its own, for lookahead's reason. */
import { afterAll, beforeAll, it } from 'vitest';
import { MedusaDrafter } from '../../src/draft/medusa.ts';
import { staticShape } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { expectLean, LAWS, warmUp } from '../support/garbage.ts';
import { TINY_CONFIG, tinyMedusa, tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
const target = tinyTarget(kernels, { config: { ...TINY_CONFIG, contextLength: 3072 } });
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

const make = (): MedusaDrafter => new MedusaDrafter(target, tinyMedusa(target), staticShape(12), 2048);

beforeAll(() => {
  using drafter = make();
  warmUp(target, drafter);
});

it.each(Object.entries(LAWS))('%s', (_, options) => {
  using drafter = make();
  expectLean(target, drafter, options);
});
