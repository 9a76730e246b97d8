import { expect, it } from 'vitest';
import { ScratchTensor } from '../../src/tensor/tensor.ts';

it('a buffer makes the view of a row once, and keeps no more than those of a few shapes', () => {
  const tensor = new ScratchTensor().reshape(4, 1000);
  const first = tensor.row(2);
  expect(tensor.row(2)).toBe(first);
  for (let cols = 1; cols <= 63; cols++) tensor.reshape(4, cols).row(1);
  expect(tensor.reshape(4, 1000).row(2)).toBe(first);
  tensor.reshape(4, 64).row(1);
  const again = tensor.reshape(4, 1000).row(2);
  expect(again).not.toBe(first);
  expect([again.byteOffset, again.length]).toEqual([2 * 1000 * 4, 1000]);
});
