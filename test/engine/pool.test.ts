/** One thread pool per process, shared by all engines. */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { expect, it } from 'vitest';
import { addonPath, createNativeKernels, nativeTables } from '../../src/kernels/native.ts';

const isa = nativeTables()[0];
const threadsOfProcess = (): number => readdirSync('/proc/self/task').length;

it.skipIf(isa === undefined || process.platform !== 'linux')(
  'the youngest living kernels decide how many threads there are, and the last to go ends the pool',
  async () => {
    // A thread that was joined may stand in the list for a moment longer.
    const expectThreads = (count: number) => expect.poll(threadsOfProcess).toBe(count);
    const none = threadsOfProcess();
    const create = (threads: number) => createNativeKernels({ isa: isa!, threads });
    const first = create(3);
    await expectThreads(none + 2); // the caller is one of the three
    const second = create(2);
    await expectThreads(none + 1);
    second.dispose();
    second.dispose();
    await expectThreads(none + 2);
    const third = create(4);
    first.dispose();
    await expectThreads(none + 3);
    third.dispose();
    await expectThreads(none);
  },
);

/** Of a thread, in the process below: so large that what is too little for one more is plenty for everything else. */
const STACK = 2 ** 26;

/**
 * Leaves a process room for two stacks and a half, asks for many threads, and computes with what there is. Of the add-on alone: what reads
 * modules wants gigabytes of addresses for itself, from Node 24 on.
 */
const CROWDED = `
  const { spawnSync } = require('node:child_process');
  const { readFileSync } = require('node:fs');
  const table = require(process.env.ADDON).tables['${isa}'];
  const x = Float32Array.from({ length: 6400 }, (_, i) => i % 7);
  const outs = [new Float32Array(6400), new Float32Array(6400)];
  table.softmax(outs[0], x, 100, 64, 1);
  const bytes = 1024 * Number(/VmSize:\\s+(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
  const { status } = spawnSync('prlimit', ['--pid', String(process.pid), '--as=' + (bytes + 2.5 * ${STACK})]);
  const threads = table.setThreads(256);
  table.softmax(outs[1], x, 100, 64, 1);
  console.log(JSON.stringify({ limited: status === 0, threads, same: outs[0].join() === outs[1].join() }));
`;

it.skipIf(
  isa === undefined || process.platform !== 'linux' || spawnSync('prlimit', [`--stack=${STACK}`, 'true']).status !== 0,
)('threads that the system refuses are done without, and not counted', () => {
  const env = { ...process.env, ADDON: addonPath };
  const args = [`--stack=${STACK}`, process.execPath, '-e', CROWDED];
  const { stdout, status, signal, stderr } = spawnSync('prlimit', args, { env, encoding: 'utf8' });
  expect(signal ?? status, stderr).toBe(0);
  const { threads, ...others } = JSON.parse(stdout) as { threads: number };
  expect(others).toEqual({ limited: true, same: true });
  expect(threads).toBeGreaterThanOrEqual(1);
  expect(threads).toBeLessThanOrEqual(3);
});
