/** The pool under stress: a job that loses or repeats a chunk gives wrong rows or never ends. */
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { describe, expect, test } from 'vitest';
import { assertSameBits, nativeTableList, packed } from '../support/kernels.ts';
import { randomFloats, randomInteger, xorshift } from '../support/random.ts';

const COLS = 64;
const MOST_ROWS = 20;
const ROUNDS = 60_000;

describe.each(nativeTableList().slice(0, 1))('$isa', ({ create }) => {
  test.each([1, 2, 6])('many small products of changing size on %d threads are all right', (threads) => {
    const kernels = create(threads);
    try {
      const random = xorshift(threads);
      // From one chunk to many, so that a late worker meets a job with more chunks than the one it comes from.
      const subjects = [16, 80, 400, 1600].map((outputs) => {
        const weight = packed(kernels, 'q8', outputs, COLS, randomFloats(random, outputs * COLS));
        const x = randomFloats(random, MOST_ROWS * COLS);
        const want = new Float32Array(MOST_ROWS * outputs);
        kernels.matmul(want, x, weight, MOST_ROWS, null);
        return { weight, x, want, out: new Float32Array(MOST_ROWS * outputs) };
      });
      for (let round = 0; round < ROUNDS; round++) {
        const { weight, x, want, out } = subjects[randomInteger(random, 0, subjects.length)]!;
        const n = randomInteger(random, 1, round % 16 === 0 ? MOST_ROWS + 1 : 3);
        out.fill(NaN, 0, n * weight.rows);
        kernels.matmul(out, x, weight, n, null);
        const end = n * weight.rows;
        if (round % 8 === 0) assertSameBits(out.subarray(0, end), want.subarray(0, end), `round ${round}, ${n} rows`);
        else if (out[end - 1] !== want[end - 1])
          throw new Error(`round ${round}: ${out[end - 1]}, not ${want[end - 1]}`);
      }
    } finally {
      kernels.dispose();
    }
  });

  test('two JavaScript threads compute at the same time', async () => {
    const script = fileURLToPath(new URL('./threads.worker.mjs', import.meta.url));
    const addon =
      process.env.EAGLET_ADDON ?? fileURLToPath(new URL('../../build/Release/eaglet.node', import.meta.url));
    const kernels = create(2);
    const worker = new Worker(script, { workerData: { addon, isa: kernels.isa, rounds: ROUNDS } });
    const answer = new Promise<number>((resolve, reject) => worker.once('message', resolve).once('error', reject));
    try {
      const x = randomFloats(xorshift(1), 100 * COLS);
      const want = new Float32Array(100 * COLS);
      kernels.softmax(want, x, 100, COLS, 1);
      const out = new Float32Array(100 * COLS);
      for (let round = 0; round < ROUNDS; round++) {
        kernels.softmax(out, x, 100, COLS, 1);
        if (out[99 * COLS] !== want[99 * COLS]) throw new Error(`round ${round}`);
        // Lets the worker's start-up have its turn.
        if (round % 1000 === 0) await new Promise(setImmediate);
      }
      expect(await answer).toBe(0); // wrong rounds over there
    } finally {
      await worker.terminate();
      kernels.dispose();
    }
  });
});
