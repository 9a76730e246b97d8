import { expect, it } from 'vitest';
import { EagleDrafter } from '../../src/draft/eagle.ts';
import { chainShape } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import type { Kernels } from '../../src/kernels/kernels.ts';
import { tinyHead, tinyTarget } from '../support/tiny.ts';

/** Kernels whose memory ends with the allocation after `left` more. */
function scarce(kernels: Kernels): { readonly kernels: Kernels; readonly held: Set<ArrayBuffer>; left: number } {
  const held = new Set<ArrayBuffer>();
  const memory = {
    held,
    left: Number.POSITIVE_INFINITY,
    kernels: {
      ...kernels,
      allocate(bytes: number, dense?: boolean): ArrayBuffer {
        if (memory.left-- <= 0) throw new RangeError('allocate: no memory');
        const buffer = kernels.allocate(bytes, dense);
        held.add(buffer);
        return buffer;
      },
      release(buffer: ArrayBuffer): void {
        held.delete(buffer);
        kernels.release(buffer);
      },
    },
  };
  return memory;
}

it('whose memory ends in the middle gives back what it has', () => {
  const kernels = createKernels({ threads: 1 });
  const memory = scarce(kernels);
  using target = tinyTarget(memory.kernels);
  using head = tinyHead(target, { draftVocabSize: 24 });
  const before = memory.held.size;
  const makers = [() => target.createCache(1, 64), () => new EagleDrafter(target, head, chainShape(3), 64)];
  for (const make of makers) {
    let failures = 0;
    for (let left = 0; ; left++) {
      memory.left = left;
      try {
        make();
        break;
      } catch (error) {
        expect(error).toEqual(new RangeError('allocate: no memory'));
        expect(memory.held.size).toBe(before);
        failures++;
      }
    }
    expect(failures).toBeGreaterThan(1);
    memory.left = Number.POSITIVE_INFINITY;
    for (const buffer of [...memory.held].slice(before)) memory.kernels.release(buffer);
  }
});

it('names for every layer the one that is attended to next', () => {
  using target = tinyTarget(createKernels({ threads: 1 }));
  using cache = target.createCache(2, 64);
  expect(cache.layers.length).toBeGreaterThan(1);
  cache.layers.forEach((layer, i) => {
    expect(layer.next).toBe(cache.layers[i + 1]);
  });
});
