/** What a round of decoding allocates: garbage, and what stays. */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { expect } from 'vitest';
import { type GenerateOptions, generate } from '../../src/decode/generate.ts';
import { StatsCollector } from '../../src/decode/stats.ts';
import type { Drafter } from '../../src/draft/drafter.ts';
import type { TargetModel } from '../../src/model/target.ts';

setFlagsFromString('--expose-gc');
setFlagsFromString('--no-concurrent-recompilation'); // or a busy machine measures code that waits for its compiler
const collect = runInNewContext('gc') as () => void;

/** Rounds until every buffer has its size, and of one measurement. */
const WARM_UP = 100;
const ROUNDS = 100;
const WINDOWS = 16;
const NODE = Number.parseInt(process.versions.node, 10);

/**
 * What a round may leave, in bytes. Its event with the generator's wrapper is 150 and each number boxed for a native call 16: 280 to 365 measured.
 * A race boxes a number or two for every token and every level of a tree (435 to 451), a nucleus a few more, sampled drafts some for each
 * guess, 24 of them in a tree of 12 (845), a budget for some of its beliefs and costs, as the compiler has it: 373 to 483 where others leave
 * 307 to 325, and 1,275 in one run of many on a busy machine, whose times it learned from. So it is on Node 20; from Node 22 on the same code
 * leaves 80 to 600 more (none 387 instead of 267, lookahead under a budget 900 instead of 483).
 */
const garbageLimit = ({ verify, topP, temperature }: GenerateOptions, { budget }: Drafter): number =>
  (verify ? 1000 : topP ? 560 : temperature ? 500 : 420) + (budget === undefined ? 0 : 1000) + (NODE < 22 ? 0 : 600);
/** One leaked object would be 16 or more; measured: 0.4, the measuring itself. */
const GROWTH_BYTES = 4;

export const LAWS: Readonly<Record<string, GenerateOptions>> = {
  greedy: {},
  sampled: { temperature: 1, seed: 3 },
  'sampled, multi-round': { temperature: 1, verify: 'multi-round' },
  'sampled from a nucleus, with penalties': { temperature: 1, topP: 0.9, repeatPenalty: 1.1, presencePenalty: 0.1 },
};

/** Of sixteen the fourth smallest: what grows grows in every window, but some pay for the compiler, and some get back what it drops. */
const typical = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[3]!;

/** The compiler allocates on the same heap: it should have seen everything, and often, before anything is measured. */
export function warmUp(target: TargetModel, drafter: Drafter): void {
  using cache = target.createCache(1, target.config.contextLength + drafter.maxNodes);
  for (const options of Object.values(LAWS)) {
    const collector = new StatsCollector(3);
    for (const event of generate(target, drafter, cache, [1, 2, 3], options))
      if (event.type === 'round') collector.round(event, event.tokens.length, 1.5);
  }
}

/** A round leaves little garbage, and nothing that stays. */
export function expectLean(target: TargetModel, drafter: Drafter, options: GenerateOptions): void {
  const { garbage, growth, arrayBuffers } = allocationOf(target, drafter, options);
  expect(garbage).toBeLessThan(garbageLimit(options, drafter));
  expect(growth).toBeLessThan(GROWTH_BYTES);
  expect(arrayBuffers).toBeLessThanOrEqual(0);
}

/** @returns bytes a round, in the best of several windows and in a typical one. The text must last for 1,700 rounds. */
function allocationOf(
  target: TargetModel,
  drafter: Drafter,
  options: GenerateOptions,
): { readonly garbage: number; readonly growth: number; readonly arrayBuffers: number } {
  using cache = target.createCache(1, target.config.contextLength + drafter.maxNodes);
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
  if (rounds.next().done) throw new Error('the text ended while it was measured');
  return {
    garbage: Math.min(...garbage),
    growth: typical(growth),
    arrayBuffers: process.memoryUsage().arrayBuffers - arrayBuffers,
  };
}
