import { describe, expect, it } from 'vitest';
import { createKernels } from '../../src/kernels/choose.ts';
import { clockCost, type KernelClock } from '../../src/kernels/clocked.ts';

describe('kernels with a clock', () => {
  it('add up calls and the time inside them, up to what the clock takes itself', () => {
    const clock: KernelClock = { ms: 0, calls: 0 };
    const kernels = createKernels({ clock });
    const cols = 4096;
    const rows = 64;
    const x = new Float32Array(rows * cols).fill(1);
    const out = new Float32Array(rows * cols);
    const began = performance.now();
    for (let i = 0; i < 50; i++) kernels.softmax(out, x, rows, cols, 1);
    const took = performance.now() - began;
    expect(clock.calls).toBe(50);
    expect(clock.ms).toBeGreaterThan(0);
    expect(clock.ms).toBeLessThan(took);
  });

  it('tell what a call costs beside that, in milliseconds: more than nothing, far less than a kernel', () => {
    const cost = clockCost();
    expect(cost).toBeGreaterThan(0);
    expect(cost).toBeLessThan(0.1);
  });
});
