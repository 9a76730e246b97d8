import { expect, it } from 'vitest';
import { Trust } from '../../src/draft/trust.ts';

it('counts on all that is promised, until less comes', () => {
  const trust = new Trust();
  expect(trust.share).toBe(1);
  for (let i = 0; i < 500; i++) trust.learn(2, 3);
  expect(trust.share).toBe(1);
  for (let i = 0; i < 500; i++) trust.learn(2, i % 2);
  expect(trust.share).toBeCloseTo(0.25, 1);
  for (let i = 0; i < 500; i++) trust.learn(2, 2);
  expect(trust.share).toBeGreaterThan(0.95);
});
