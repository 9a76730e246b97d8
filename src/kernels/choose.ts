/** Which table this process runs: chosen once, from what the machine has; `EAGLET_ISA` overrides. */
import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { clocked, type KernelClock } from './clocked.ts';
import type { Kernels } from './kernels.ts';
import { checkThreads, createNativeKernels, MOST_THREADS, nativeTables } from './native.ts';
import { createReferenceKernels } from './reference.ts';

/** Physical cores this process may use: two threads of one core share the units that the kernels fill. */
export function physicalCores(): number {
  const available = availableParallelism();
  try {
    const cpus = readdirSync('/sys/devices/system/cpu').filter((name) => /^cpu\d+$/.test(name));
    const siblings = new Set(
      cpus.map((cpu) => readFileSync(`/sys/devices/system/cpu/${cpu}/topology/thread_siblings_list`, 'utf8').trim()),
    );
    return Math.max(1, Math.min(siblings.size, available));
  } catch {
    return available; // not Linux, or no topology shown
  }
}

export interface KernelOptions {
  readonly isa?: string;
  /** Working threads, by default one per physical core. */
  readonly threads?: number;
  /** Counts the time inside kernels. */
  readonly clock?: KernelClock;
}

let warned = false; // that the kernels are not compiled: once a process

/** @throws RequestError where that many threads cannot be. */
export function createKernels(options: KernelOptions = {}): Kernels {
  const { threads = Math.min(physicalCores(), MOST_THREADS), clock } = options;
  checkThreads(threads);
  const isa = options.isa ?? (process.env.EAGLET_ISA || nativeTables()[0]);
  if (isa === undefined && !warned) {
    warned = true;
    process.emitWarning(
      'the native kernels are not compiled: plain TypeScript does the work, very slowly (npm run build:native)',
      'eaglet',
    );
  }
  if (isa === undefined || isa === 'reference') return clocked(createReferenceKernels(), clock);
  return createNativeKernels({ isa, threads, ...(clock && { clock }) });
}
