import { expect, it } from 'vitest';
import { sparkline } from '../../src/cli/sparkline.ts';

it('draws the means of equal parts', () => {
  expect(sparkline([8, 8, 4, 4, 1, 1], 3)).toBe('█▄▁');
  expect(sparkline([1, 2, 3, 4, 5, 6, 7, 8], 16)).toBe('▁▂▃▄▅▆▇█');
  expect(sparkline([2, 2], 8)).toBe('▁▁');
  expect(sparkline([], 8)).toBe('');
});
