/** Rotary tables are made as far as positions get, and are then what making all of them at once gives. */
import { expect, it } from 'vitest';
import { rotaryTables } from '../../src/model/rope.ts';

const HEAD_DIM = 16;
const THETA = 10_000;
const MOST = 20_000;

it.each([0, 8191, 8192, 10_000, 19_999])('reach position %i, whatever was asked for before', (position) => {
  const whole = rotaryTables(MOST, HEAD_DIM, THETA)(Int32Array.of(MOST - 1), 1);
  expect(whole.cos).toHaveLength((MOST * HEAD_DIM) / 2);
  const grown = rotaryTables(MOST, HEAD_DIM, THETA);
  for (const before of [0, 700, 8500]) grown(Int32Array.of(before), 1);
  const { cos, sin } = grown(Int32Array.of(3, position, MOST - 1), 2);
  expect(cos.length).toBeGreaterThanOrEqual(((position + 1) * HEAD_DIM) / 2);
  expect(Buffer.from(cos.buffer).equals(Buffer.from(whole.cos.buffer, 0, cos.byteLength))).toBe(true);
  expect(Buffer.from(sin.buffer).equals(Buffer.from(whole.sin.buffer, 0, sin.byteLength))).toBe(true);
});

it('are the same tables as long as they reach, and end where the model does', () => {
  const rotary = rotaryTables(MOST, HEAD_DIM, THETA);
  const first = rotary(Int32Array.of(0), 1);
  expect(rotary(Int32Array.of(4000, 9), 2)).toBe(first);
  expect(rotary(Int32Array.of(MOST), 1)).toBe(first); // the kernels refuse such a row
});

it('take no time for positions that are only claimed', () => {
  const began = performance.now();
  expect(rotaryTables(2 ** 23, HEAD_DIM, THETA)(Int32Array.of(5), 1).cos.length).toBeLessThan(2 ** 20);
  expect(performance.now() - began).toBeLessThan(1000);
});
