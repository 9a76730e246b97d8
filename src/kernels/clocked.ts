/**
 * Kernels that add up the time spent inside them: `eaglet bench run` shows with it what a round spends outside native calls. Nothing is
 * wrapped unless a clock is given; with one, a call costs about 0.2 µs more. Most of that falls outside the time that is added up, and is no
 * part of decoding without a clock: `clockCost` says how much.
 */
import type { Kernels } from './kernels.ts';

export interface KernelClock {
  /** Milliseconds inside kernels so far. */
  ms: number;
  calls: number;
}

export function clocked(kernels: Kernels, clock: KernelClock | undefined): Kernels {
  if (clock === undefined) return kernels;
  const around = <Arguments extends unknown[], Result>(call: (...args: Arguments) => Result) => timed(clock, call);
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

function timed<Arguments extends unknown[], Result>(
  clock: KernelClock,
  call: (...args: Arguments) => Result,
): (...args: Arguments) => Result {
  return (...args) => {
    const began = performance.now();
    const result = call(...args);
    clock.ms += performance.now() - began;
    clock.calls++;
    return result;
  };
}

/** Calls of one measurement: a few milliseconds, long enough for the compiler to have seen them as often as a round's. */
const COST_CALLS = 20_000;
const COST_REPEATS = 5;

/**
 * Milliseconds that a clock adds to a call and does not count: the least of a few measurements, so never more than it costs in a round, where
 * caches are colder.
 */
export function clockCost(): number {
  const clock: KernelClock = { ms: 0, calls: 0 };
  const bare = (n: number, _cols: number, _eps: number): number => n;
  const call = timed(clock, bare);
  let least = Number.POSITIVE_INFINITY;
  for (let repeat = 0; repeat < COST_REPEATS; repeat++) {
    clock.ms = 0;
    const began = performance.now();
    for (let i = 0; i < COST_CALLS; i++) call(i, i, i);
    least = Math.min(least, performance.now() - began - clock.ms);
  }
  return least / COST_CALLS;
}
