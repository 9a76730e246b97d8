/**
 * Kernels that add up the time spent inside them: `eaglet bench run` shows with it what a round spends outside native calls. Nothing is
 * wrapped unless a clock is given; with one, a call costs about 0.2 µs more, most of it counted as outside: half a percent of a round of
 * 400 calls in 10 ms.
 */
import type { Kernels } from './kernels.ts';

export interface KernelClock {
  /** Milliseconds inside kernels so far. */
  ms: number;
  calls: number;
}

export function clocked(kernels: Kernels, clock: KernelClock | undefined): Kernels {
  if (clock === undefined) return kernels;
  const around =
    <Arguments extends unknown[], Result>(call: (...args: Arguments) => Result) =>
    (...args: Arguments): Result => {
      const began = performance.now();
      const result = call(...args);
      clock.ms += performance.now() - began;
      clock.calls++;
      return result;
    };
  return {
    isa: kernels.isa,
    threads: kernels.threads,
    allocate: kernels.allocate,
    release: kernels.release,
    dispose: kernels.dispose,
    bandwidth: kernels.bandwidth,
    fmaLimit: kernels.fmaLimit,
    pack: around(kernels.pack),
    gatherRows: around(kernels.gatherRows),
    matmul: around(kernels.matmul),
    rmsNorm: around(kernels.rmsNorm),
    rope: around(kernels.rope),
    storeKv: around(kernels.storeKv),
    attention: around(kernels.attention),
    moveKv: around(kernels.moveKv),
    swiglu: around(kernels.swiglu),
    softmax: around(kernels.softmax),
    argmax: around(kernels.argmax),
    topK: around(kernels.topK),
    race: around(kernels.race),
    transpose: around(kernels.transpose),
    accumulateOuter: around(kernels.accumulateOuter),
    scatterAddRows: around(kernels.scatterAddRows),
    rmsNormBackward: around(kernels.rmsNormBackward),
    swigluBackward: around(kernels.swigluBackward),
    attentionBackward: around(kernels.attentionBackward),
    softCrossEntropy: around(kernels.softCrossEntropy),
  };
}
