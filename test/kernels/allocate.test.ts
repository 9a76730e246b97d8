/** Dense memory shares its pages with its neighbours: each piece must still be its own, zeroed, and go away alone. */
import { describe, expect, it } from 'vitest';
import { availableTables } from '../support/kernels.ts';

/** Beyond what one region holds, and one piece larger than a region. */
const SIZES = [1, 4096, 10_003, 40_000_000, 40_000_000, 70_000_000];
/** The bytes that a neighbour would reach first: 10,003 at either end. */
const ends = (view: Uint8Array): readonly Uint8Array[] => [view.subarray(0, 10_003), view.subarray(-10_003)];
const hold = (view: Uint8Array, byte: number): boolean => ends(view).every((end) => end.every((b) => b === byte));

describe.each(availableTables())('$isa', ({ create }) => {
  it.each([false, true])('gives zeroed pieces that are released one by one (dense: %s)', (dense) => {
    const kernels = create(1);
    try {
      const buffers = SIZES.map((bytes) => kernels.allocate(bytes, dense));
      const views = buffers.map((buffer) => new Uint8Array(buffer));
      for (const [i, view] of views.entries()) {
        expect(view.length).toBe(SIZES[i]);
        expect(hold(view, 0)).toBe(true);
        for (const end of ends(view)) end.fill(i + 1);
      }
      kernels.release(buffers[1]!);
      expect(views[1]!.length).toBe(0);
      const again = kernels.allocate(4096, dense);
      expect(hold(new Uint8Array(again), 0)).toBe(true);
      for (const i of [0, 2, 3, 4, 5]) expect(hold(views[i]!, i + 1)).toBe(true);
      for (const buffer of [...buffers.toSpliced(1, 1), again]) kernels.release(buffer);
      expect(views.every((view) => view.length === 0)).toBe(true);
    } finally {
      kernels.dispose();
    }
  });
});
