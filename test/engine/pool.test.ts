/** One thread pool per process, shared by all engines. */
import { readdirSync } from 'node:fs';
import { expect, it } from 'vitest';
import { createNativeKernels, nativeTables } from '../../src/kernels/native.ts';

const isa = nativeTables()[0];
const threadsOfProcess = (): number => readdirSync('/proc/self/task').length;

it.skipIf(isa === undefined || process.platform !== 'linux')(
  'the youngest living kernels decide how many threads there are, and the last to go ends the pool',
  () => {
    const none = threadsOfProcess();
    const create = (threads: number) => createNativeKernels({ isa: isa!, threads });
    const first = create(3);
    expect(threadsOfProcess()).toBe(none + 2); // the caller is one of the three
    const second = create(2);
    expect(threadsOfProcess()).toBe(none + 1);
    second.dispose();
    second.dispose();
    expect(threadsOfProcess()).toBe(none + 2);
    const third = create(4);
    first.dispose();
    expect(threadsOfProcess()).toBe(none + 3);
    third.dispose();
    expect(threadsOfProcess()).toBe(none);
  },
);
