/**
 * Kernels that only count the memory they are asked for: loading a model over them makes all of loading's checks and takes none of its
 * memory, which is how `eaglet inspect` tells what a model will need. They compute nothing, and refuse to.
 */
import type { Kernels } from './kernels.ts';

export interface SizingKernels extends Kernels {
  /** Asked for so far, and not given back. */
  readonly allocatedBytes: number;
}

export function createSizingKernels(): SizingKernels {
  const sizes = new Map<ArrayBuffer, number>();
  const refuse = (): never => {
    throw new TypeError('sizing kernels count memory and compute nothing');
  };
  const nothing = (): void => {};
  return {
    isa: 'sizing',
    threads: 1,
    get allocatedBytes() {
      return [...sizes.values()].reduce((sum, bytes) => sum + bytes, 0);
    },
    allocate(bytes) {
      const buffer = new ArrayBuffer(0);
      sizes.set(buffer, bytes);
      return buffer;
    },
    release: (buffer) => void sizes.delete(buffer),
    // What loading does with the memory it was given.
    pack: nothing,
    gatherRows: nothing,
    matmul: refuse,
    rmsNorm: refuse,
    rope: refuse,
    storeKv: refuse,
    attention: refuse,
    moveKv: refuse,
    swiglu: refuse,
    softmax: refuse,
    argmax: refuse,
    topK: refuse,
    race: refuse,
    transpose: refuse,
    accumulateOuter: refuse,
    scatterAddRows: refuse,
    rmsNormBackward: refuse,
    swigluBackward: refuse,
    attentionBackward: refuse,
    softCrossEntropy: refuse,
    bandwidth: refuse,
    fmaLimit: refuse,
    dispose: nothing,
  };
}
