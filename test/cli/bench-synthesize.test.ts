/** Stretches of time in which a batch of conversations is held against one alone. */
import { expect, test } from 'vitest';
import { stretches } from '../../src/cli/bench-synthesize.ts';

const batch = { lane: 'batch', drawn: 8, ms: 20 } as const;
const alone = { lane: 'alone', drawn: 1, ms: 10 } as const;

test('a stretch ends with its time', () => {
  const measured = [...stretches([batch, alone, batch, batch, alone, alone, batch], { warmUp: 1, ms: 40 })];
  expect(measured.map((rates) => rates.tokensPerSecond('batch'))).toEqual([400, 400]);
  expect(measured.map(({ ratio }) => ratio)).toEqual([4, 4]);
});

test('a stretch goes on until both lanes have drawn', () => {
  const reading = { ...alone, drawn: 0, ms: 50 };
  const measured = [...stretches([batch, reading, reading, alone, batch, batch, alone], { warmUp: 0, ms: 40 })];
  expect(measured.map(({ ratio }) => Math.round(ratio))).toEqual([44, 4]);
});
