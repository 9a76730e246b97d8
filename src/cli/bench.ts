import { writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import type { Command } from 'commander';
import type { DrafterName, TextResult } from '../engine.ts';
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import { type ModelOptions, openEngine, printJson, wholeNumber, withModelOptions } from './common.ts';
import { readPrompts } from './prompts.ts';

interface CostFlags extends ModelOptions {
  readonly rows: string;
  readonly repeats: number;
  readonly json?: boolean;
}

interface RunFlags extends ModelOptions {
  readonly prompts: string;
  readonly drafters: string;
  readonly limit?: number;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly seed: number;
  readonly json?: string;
}

/** Far beyond any cache, so that memory is what is measured. */
const BANDWIDTH_BYTES = 512e6;

export function register(program: Command): void {
  const bench = program.command('bench').description('measure this machine');
  withModelOptions(bench.command('cost').description('one forward of the target by number of rows'))
    .option('--rows <list>', 'numbers of rows', '1,2,4,6,8,12,16,32,64')
    .option('--repeats <n>', 'interleaved repeats; the median counts', wholeNumber, 15)
    .option('--json', 'one JSON line')
    .action(cost);
  withModelOptions(bench.command('run').description('drafters against plain decoding, interleaved per question'))
    .requiredOption('--prompts <file>', 'JSONL of {id, task, turns | prompt | messages}')
    .option('--drafters <list>', 'the first is the baseline', 'none,eagle')
    .option('--limit <n>', 'questions at most', wholeNumber)
    .option('-n, --max-tokens <n>', 'new tokens per question', wholeNumber, 128)
    .option('-t, --temperature <x>', '0 takes the likeliest token', Number, 0)
    .option('--seed <n>', 'same seed, same text', wholeNumber, 0)
    .option('--json <file>', 'write all rows and the summary')
    .action(run);
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]!;
const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;

async function cost(flags: CostFlags): Promise<void> {
  using engine = await openEngine(flags);
  const { target, kernels } = engine;
  const sizes = flags.rows.split(',').map(wholeNumber);
  using cache = target.createCache(1, Math.max(...sizes) + 1);
  const batch = new ForwardBatch(Math.max(...sizes));
  const sequence = cache.sequences[0]!;
  const times = sizes.map((): number[] => []);
  const bandwidth: number[] = [];
  for (let repeat = -1; repeat < flags.repeats; repeat++) {
    if (repeat >= 0 && repeat % 5 === 0) bandwidth.push(kernels.bandwidth(BANDWIDTH_BYTES, 2));
    for (const [i, rows] of sizes.entries()) {
      batch.clear();
      for (let row = 0, parent = COMMITTED; row < rows; row++) parent = batch.append(sequence, row + 1, parent, true);
      const began = performance.now();
      target.forward(batch, cache);
      const ms = performance.now() - began;
      if (repeat >= 0) times[i]!.push(ms); // the first round warms up
      sequence.rollback();
    }
  }
  const { config } = target;
  const attention = (2 * config.heads + 2 * config.kvHeads) * config.headDim * config.hiddenSize;
  const perRow =
    config.layers * (attention + 3 * config.hiddenSize * config.intermediateSize) +
    config.vocabSize * config.hiddenSize;
  const result = {
    dtype: flags.dtype,
    isa: kernels.isa,
    threads: kernels.threads,
    bandwidthGBs: Math.max(...bandwidth),
    rows: sizes.map((rows, i) => {
      const ms = median(times[i]!);
      return { rows, ms, gmacs: (perRow * rows) / ms / 1e6, gbs: target.weightBytes / ms / 1e6 };
    }),
  };
  if (flags.json) return printJson(result);
  process.stdout.write(
    `${flags.dtype} · ${kernels.isa} · ${kernels.threads} threads · reads ${result.bandwidthGBs.toFixed(1)} GB/s\n`,
  );
  process.stdout.write('rows       ms   x of 1   GMAC/s     GB/s\n');
  for (const row of result.rows) {
    const cells = [
      row.ms.toFixed(2).padStart(9),
      (row.ms / result.rows[0]!.ms).toFixed(2).padStart(9),
      row.gmacs.toFixed(0).padStart(9),
      row.gbs.toFixed(1).padStart(9),
    ];
    process.stdout.write(`${String(row.rows).padStart(4)}${cells.join('')}\n`);
  }
}

async function run(flags: RunFlags): Promise<void> {
  using engine = await openEngine(flags);
  const names = flags.drafters.split(',').map((name) => {
    const known = engine.drafters.find((drafter) => drafter === name);
    if (known === undefined)
      throw new RangeError(`--drafters: "${name}" is not loaded, available: ${engine.drafters.join(', ')}`);
    return known;
  });
  const questions = readPrompts(flags.prompts, flags.limit);
  const results: { task: string; id: string; drafter: DrafterName; identical: boolean; result: TextResult }[] = [];
  const { maxTokens, temperature, seed } = flags;
  await engine.complete(questions[0]!.messages, { maxTokens: 16, drafter: names.at(-1)! }); // warms up
  for (const [index, { id, task, messages }] of questions.entries()) {
    let baseline: string | undefined;
    // The order turns with every question, so that neither side always finds the machine warm.
    const order = index % 2 === 0 ? names : [...names].reverse();
    const answers = new Map<DrafterName, TextResult>();
    for (const drafter of order)
      answers.set(drafter, await engine.complete(messages, { maxTokens, temperature, seed, drafter }));
    baseline = answers.get(names[0]!)!.newIds.join();
    for (const drafter of names) {
      const result = answers.get(drafter)!;
      results.push({ id, task, drafter, result, identical: result.newIds.join() === baseline });
    }
    if (process.stderr.isTTY) process.stderr.write(`\r${index + 1}/${questions.length} questions`);
  }
  if (process.stderr.isTTY) process.stderr.write('\n');

  const tasks = [...new Set(questions.map((question) => question.task))];
  const summarise = (drafter: DrafterName, task?: string) => {
    const of = (name: DrafterName) =>
      results.filter(
        (row) => row.drafter === name && (task === undefined || row.task === task) && row.result.stats.rounds > 0,
      );
    const rate = (rows: typeof results) => mean(rows.map((row) => row.result.stats.tokensPerSecond));
    const rows = of(drafter);
    const sum = (pick: (row: (typeof results)[number]) => number) => rows.reduce((total, row) => total + pick(row), 0);
    return {
      speedup: rate(rows) / rate(of(names[0]!)),
      acceptanceLength: sum((row) => row.result.stats.newTokens - 1) / sum((row) => row.result.stats.rounds),
      treeSize: mean(rows.map((row) => row.result.stats.treeSize)),
      tokensPerSecond: rate(rows),
      identical: rows.every((row) => row.identical),
      phases: Object.fromEntries(
        (['draftMs', 'verifyMs', 'sampleMs', 'commitMs', 'decodeMs'] as const).map((phase) => [
          phase,
          sum((row) => row.result.stats[phase]) / sum((row) => row.result.stats.rounds),
        ]),
      ),
    };
  };
  const summary = Object.fromEntries(
    names.map((drafter) => [
      drafter,
      {
        ...summarise(drafter),
        byTask: Object.fromEntries(
          tasks.map((task) => [
            task,
            (({ speedup, acceptanceLength }) => ({ speedup, acceptanceLength }))(summarise(drafter, task)),
          ]),
        ),
      },
    ]),
  );
  const report = {
    machine: { cpu: cpus()[0]?.model, threads: engine.kernels.threads, isa: engine.kernels.isa, node: process.version },
    settings: flags,
    rows: results.map(({ id, task, drafter, identical, result: { stats } }) => ({
      id,
      task,
      drafter,
      newTokens: stats.newTokens,
      rounds: stats.rounds,
      ms: stats.decodeMs,
      acceptanceLength: stats.acceptanceLength,
      treeSize: stats.treeSize,
      identical,
    })),
    summary,
  };
  if (flags.json !== undefined) writeFileSync(flags.json, JSON.stringify(report));
  for (const name of names) {
    const s = summarise(name);
    process.stdout.write(
      `${name}: ${s.speedup.toFixed(2)}x · ${s.tokensPerSecond.toFixed(1)} tokens/s · acceptance length ${s.acceptanceLength.toFixed(2)} · tree ${s.treeSize.toFixed(1)} · identical ${s.identical}\n`,
    );
    process.stdout.write(
      `  ms a round: ${Object.entries(s.phases)
        .map(([phase, ms]) => `${phase.replace('Ms', '')} ${ms.toFixed(2)}`)
        .join(' · ')}\n`,
    );
    for (const task of tasks) {
      const t = summarise(name, task);
      process.stdout.write(`  ${task.padEnd(16)} ${t.speedup.toFixed(2)}x  ${t.acceptanceLength.toFixed(2)}\n`);
    }
  }
}
