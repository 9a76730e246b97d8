import { expect, it } from 'vitest';
import { RequestError } from '../../src/errors.ts';
import { createKernels } from '../../src/kernels/choose.ts';

it.each([0, -1, Number.NaN, 1.5, 257, 100_000])('%d threads are refused before there are any', (threads) => {
  expect(() => createKernels({ threads })).toThrow(RequestError);
  expect(() => createKernels({ threads })).toThrow(`threads: must be a whole number in 1..256, got ${threads}`);
});
