/** Which table this process runs: chosen once, from what the machine has; `EAGLET_ISA` overrides. */
import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import type { Kernels } from './kernels.ts';
import { createNativeKernels, nativeTables } from './native.ts';
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

/** @param options.threads working threads, by default one per physical core. */
export function createKernels(options: { readonly isa?: string; readonly threads?: number } = {}): Kernels {
  const isa = options.isa ?? process.env.EAGLET_ISA ?? nativeTables()[0];
  if (isa === undefined) {
    process.emitWarning(
      'the native kernels are not compiled: plain TypeScript does the work, very slowly (npm run build:native)',
      'eaglet',
    );
  }
  if (isa === undefined || isa === 'reference') return createReferenceKernels();
  return createNativeKernels({ isa, threads: options.threads ?? physicalCores() });
}
