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

it('learns of every text apart what is not as usual', () => {
  const trust = new Trust();
  for (let i = 0; i < 500; i++) trust.learn(0.5, i % 2);
  trust.beginText();
  const usual = trust.share;
  expect(usual).toBeCloseTo(1, 1);
  for (let i = 0; i < 24; i++) trust.learn(0.5, 0); // as many promises as the usual counts for
  const hard = trust.share;
  expect(hard).toBeLessThan(0.55);
  trust.beginText();
  expect(trust.share).toBeGreaterThan(hard + 0.2); // a text among many
});
