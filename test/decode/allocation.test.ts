/** The hot loop allocates nothing that grows, and little that does not. */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type GenerateOptions, generate } from '../../src/decode/generate.ts';
import { StatsCollector } from '../../src/decode/stats.ts';
import type { Drafter } from '../../src/draft/drafter.ts';
import { EagleDrafter } from '../../src/draft/eagle.ts';
import { MedusaDrafter } from '../../src/draft/medusa.ts';
import { NoDrafter } from '../../src/draft/none.ts';
import { staticShape } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { TINY_CONFIG, tinyHead, tinyMedusa, tinyTarget } from '../support/tiny.ts';

setFlagsFromString('--expose-gc');
setFlagsFromString('--no-concurrent-recompilation'); // or a busy machine measures code that waits for its compiler
const collect = runInNewContext('gc') as () => void;

const kernels = createKernels();
/** More than all windows' rounds fill, at the acceptance of random heads. */
const CONTEXT = 3072;
const target = tinyTarget(kernels, { config: { ...TINY_CONFIG, contextLength: CONTEXT } });
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

/** Rounds until every buffer has its size, and of one measurement. */
const WARM_UP = 100;
const ROUNDS = 100;
const WINDOWS = 16;
/** A round's event with the generator's wrapper is 150 bytes, each number boxed for a native call 16; measured: 280 to 365. */
const GARBAGE_BYTES = 420;
/** A few boxed numbers more for each guess drawn, 24 of them in a tree of 12; measured: 845. */
const GARBAGE_BYTES_DRAWN = 1000;
/** One leaked object would be 16 or more; measured: 0.4, the measuring itself. */
const GROWTH_BYTES = 4;

/** Of sixteen the fourth smallest: what grows grows in every window, but some pay for the compiler, and some get back what it drops. */
const typical = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[3]!;

const DRAFTERS: Readonly<Record<string, () => Drafter>> = {
  none: () => new NoDrafter(),
  eagle: () => new EagleDrafter(target, tinyHead(target), staticShape(12), CONTEXT),
  'eagle, dynamic tree': () =>
    new EagleDrafter(target, tinyHead(target), { kind: 'dynamic', depth: 3, topK: 4, total: 12 }, CONTEXT),
  medusa: () => new MedusaDrafter(target, tinyMedusa(target), staticShape(12)),
};
const LAWS: Readonly<Record<string, GenerateOptions>> = {
  greedy: {},
  sampled: { temperature: 1, seed: 3 },
  'sampled, multi-round': { temperature: 1, verify: 'multi-round' },
  'sampled from a nucleus, with penalties': { temperature: 1, topP: 0.9, repeatPenalty: 1.1, presencePenalty: 0.1 },
};

// The compiler allocates on the same heap: it has seen everything, and often, before anything is measured.
beforeAll(() => {
  for (const make of Object.values(DRAFTERS)) {
    using drafter = make();
    using cache = target.createCache(1, CONTEXT + 16);
    for (const options of Object.values(LAWS)) {
      const collector = new StatsCollector(3);
      for (const event of generate(target, drafter, cache, [1, 2, 3], { ...options, maxTokens: 2000 }))
        if (event.type === 'round') collector.round(event, event.tokens.length, 1.5);
    }
  }
});

describe.each(Object.entries(DRAFTERS))('%s', (_, make) => {
  it.each(Object.entries(LAWS))('%s', (_, options) => {
    using drafter = make();
    using cache = target.createCache(1, CONTEXT + 16);
    const rounds = generate(target, drafter, cache, [1, 2, 3], options);
    const collector = new StatsCollector(3); // counting costs nothing either
    const step = (): void => {
      const { value } = rounds.next();
      if (value?.type === 'round') collector.round(value, value.tokens.length, 1.5);
    };
    for (let i = 0; i < WARM_UP; i++) step();
    const garbage: number[] = [];
    const growth: number[] = [];
    const { arrayBuffers } = process.memoryUsage();
    for (let window = 0; window < WINDOWS; window++) {
      collect();
      const before = process.memoryUsage().heapUsed;
      for (let i = 0; i < ROUNDS; i++) step();
      const churned = process.memoryUsage().heapUsed;
      collect();
      garbage.push((churned - before) / ROUNDS);
      growth.push((process.memoryUsage().heapUsed - before) / ROUNDS);
    }
    expect(rounds.next().done).toBe(false); // it was running all the time
    expect(Math.min(...garbage)).toBeLessThan(options.verify ? GARBAGE_BYTES_DRAWN : GARBAGE_BYTES);
    expect(typical(growth)).toBeLessThan(GROWTH_BYTES);
    expect(process.memoryUsage().arrayBuffers).toBeLessThanOrEqual(arrayBuffers);
  });
});
