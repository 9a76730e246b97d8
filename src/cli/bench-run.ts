/**
 * Drafters against plain decoding on the same questions. Every question is answered by all of them in turn before the next one, so that a
 * slow stretch of the machine falls on all alike, and whose turn comes first alternates. The same run checks that all wrote the same text.
 */
import { writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import type { Command } from 'commander';
import type { DepthAcceptance, GenerationStats } from '../decode/stats.ts';
import type { TypicalOptions } from '../decode/typical.ts';
import { KEEPS, type VerifierName } from '../decode/verifier.ts';
import { DRAFTERS, type DrafterName } from '../draft/registry.ts';
import { parseTreeOption } from '../draft/tree-option.ts';
import type { Engine, TextOptions, TextResult } from '../engine.ts';
import { RequestError } from '../errors.ts';
import { clockCost, type KernelClock } from '../kernels/clocked.ts';
import { barPlot } from './bar-plot.ts';
import {
  type ModelOptions,
  openEngine,
  outputFile,
  positiveNumber,
  realNumber,
  severalNumber,
  wholeNumber,
  withModelOptions,
  withVerifyOptions,
} from './common.ts';
import { formatCount, formatTable } from './format.ts';
import { ProgressBar } from './progress.ts';
import { answerable, DEFAULT_PROMPTS, type PromptEntry, readPrompts } from './prompts.ts';
import { mean, median, sum } from './statistics.ts';

interface Flags extends ModelOptions {
  readonly prompts?: string;
  readonly drafters?: string;
  readonly svg?: string;
  readonly limit?: number;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly seed: number;
  readonly verify: VerifierName;
  readonly typical?: TypicalOptions;
  readonly compareTrees?: readonly string[];
  readonly json?: string;
}

export function register(bench: Command): void {
  const command = bench.command('run').description('drafters against plain decoding, interleaved per question');
  withVerifyOptions(withModelOptions(command))
    .option('--prompts <file>', 'JSONL of {id, task, turns | prompt | messages} (default: 28 that come with eaglet)')
    .option('--drafters <list>', 'the first is the baseline (default: none and whoever drafts by default)')
    .option('--svg <file>', 'draws speedup and acceptance length by task', outputFile)
    .option('--limit <n>', 'questions at most, taken from the tasks in turn', positiveNumber)
    .option('-n, --max-tokens <n>', 'new tokens per question, the first of which is not timed', severalNumber, 128)
    .option('-t, --temperature <x>', '0 takes the likeliest token', realNumber, 0)
    .option('--seed <n>', 'same seed, same text', wholeNumber, 0)
    .option('--compare-trees <tree...>', 'the eagle drafter once with each of these trees, instead of --tree')
    .option('--json <file>', 'write all rows and the summary', outputFile)
    .action(run);
}

/** One question, one drafter. */
interface Row {
  readonly id: string;
  readonly task: string;
  /** The contestant's name. */
  readonly drafter: string;
  readonly newTokens: number;
  readonly rounds: number;
  /** Of decoding, prefill not counted. */
  readonly ms: number;
  readonly acceptanceLength: number;
  readonly treeSize: number;
  /** To the baseline's text, token for token. */
  readonly identical: boolean;
  /** The whole of it; what is above, for tables made elsewhere, is part of it. */
  readonly stats: GenerationStats;
  /** Milliseconds of decoding, prefill not counted, without what the clock of the kernels takes. */
  readonly outsideNativeMs: number;
}

const PHASES = ['draft', 'verify', 'sample', 'commit', 'outsideNative'] as const;
/** Milliseconds. The first four make up a round; what is spent outside native calls runs through all of them. */
type Phases = { readonly [P in (typeof PHASES)[number]]: number };

/** A drafter of an engine; the first one is the baseline. */
interface Contestant {
  readonly name: string;
  readonly engine: Engine;
  readonly drafter: DrafterName;
}

async function run(flags: Flags): Promise<void> {
  const clock: KernelClock = { ms: 0, calls: 0 };
  const read = readPrompts(flags.prompts ?? DEFAULT_PROMPTS, flags.limit);
  const named = flags.drafters?.split(',') ?? [];
  const drafters = DRAFTERS.filter((name) => named.includes(name));
  using engine = await openEngine({ ...flags, drafters, clock });
  const contestants = readDrafters(flags.drafters === undefined ? byDefault(engine) : named, engine);
  const trees = (flags.compareTrees ?? []).map((text) => ({ text, tree: parseTreeOption(text) }));
  const engines: Engine[] = []; // each tree has caches of its own
  try {
    for (const { text, tree } of trees) {
      const other = await openEngine({ ...flags, drafters: [], tree, clock });
      engines.push(other);
      contestants.push({ name: `eagle ${text}`, engine: other, drafter: 'eagle' });
    }
    const questions = answerable(engine, read);
    const rows = await askAll(contestants, clock, questions, flags);
    if (!rows.some(({ rounds }) => rounds > 0))
      throw new RequestError('--prompts', 'must have an answer of two tokens or more: no round was there to time');
    report(rows, contestants, flags);
  } finally {
    for (const other of engines) other[Symbol.dispose]();
  }
}

function report(rows: readonly Row[], contestants: readonly Contestant[], flags: Flags): void {
  const drafters = contestants.map(({ name }) => name);
  const { engine } = contestants[0]!;
  const { maxTokens, temperature, seed, verify, typical, dtype, model, limit, treeSize, tree, head, medusa } = flags;
  const whole = {
    machine: { cpu: cpus()[0]?.model, isa: engine.kernels.isa, threads: engine.kernels.threads, node: process.version },
    settings: {
      model,
      dtype,
      head,
      medusa,
      drafters,
      treeSize,
      tree,
      prompts: flags.prompts,
      limit,
      maxTokens,
      temperature,
      seed,
      verify,
      typical,
    },
    rows,
    summary: summarise(rows, drafters),
  };
  if (flags.json !== undefined) writeFileSync(flags.json, `${JSON.stringify(whole)}\n`);
  if (flags.svg !== undefined) writeFileSync(flags.svg, draw(whole.summary));
  print(whole.summary, engine, flags);
}

function byDefault({ defaultDrafter }: Engine): readonly DrafterName[] {
  return defaultDrafter === 'none' ? ['none'] : ['none', defaultDrafter];
}

function readDrafters(names: readonly string[], engine: Engine): Contestant[] {
  return names.map((name) => {
    const known = engine.drafters.find((drafter) => drafter === name);
    if (known === undefined)
      throw new RequestError('--drafters', `"${name}" is not loaded, available: ${engine.drafters.join(', ')}`);
    return { name, engine, drafter: known };
  });
}

async function askAll(
  contestants: readonly Contestant[],
  clock: KernelClock,
  questions: readonly PromptEntry[],
  { maxTokens, temperature, seed, verify, typical }: Flags,
): Promise<readonly Row[]> {
  const rows: Row[] = [];
  const msPerCall = clockCost();
  using progress = new ProgressBar('questions', questions.length);
  const options = { temperature, seed, verify, ...(typical && { typical }) };
  for (const { engine, drafter } of contestants)
    await engine.complete(questions[0]!.messages, { ...options, maxTokens: 16, drafter }); // warms up
  for (const [index, { id, task, messages }] of questions.entries()) {
    const answers = new Map<string, { result: TextResult; outsideNativeMs: number }>();
    for (const { name, engine, drafter } of index % 2 === 0 ? contestants : [...contestants].reverse())
      answers.set(name, await ask(engine, clock, msPerCall, messages, { ...options, maxTokens, drafter }));
    const baseline = answers.get(contestants[0]!.name)!.result.newIds.join();
    for (const [drafter, { result, outsideNativeMs }] of answers) {
      const { newIds, stats } = result;
      rows.push({
        id,
        task,
        drafter,
        newTokens: stats.newTokens,
        rounds: stats.rounds,
        ms: stats.decodeMs,
        acceptanceLength: stats.acceptanceLength,
        treeSize: stats.treeSize,
        identical: newIds.join() === baseline,
        stats,
        outsideNativeMs,
      });
    }
    progress.update(index + 1);
  }
  return rows;
}

/** An answer, and the milliseconds that its decoding spent outside native calls. @param msPerCall what the clock adds to a call. */
async function ask(
  engine: Engine,
  clock: KernelClock,
  msPerCall: number,
  messages: PromptEntry['messages'],
  options: TextOptions,
): Promise<{ result: TextResult; outsideNativeMs: number }> {
  const stream = engine.stream(engine.encode(messages), options);
  let beforeDecoding: KernelClock | undefined;
  for (;;) {
    const next = await stream.next();
    if (next.done) {
      const { ms, calls } = beforeDecoding ?? clock;
      const insideMs = clock.ms - ms + (clock.calls - calls) * msPerCall;
      return { result: next.value, outsideNativeMs: next.value.stats.decodeMs - insideMs };
    }
    beforeDecoding ??= { ...clock }; // the first token comes out of prefill
  }
}

interface TaskSummary {
  /** Ratio of the mean tokens/s, as Spec-Bench (arXiv:2401.07851) counts it. */
  readonly speedup: number;
  /** Emitted tokens per round, over all rounds. */
  readonly acceptanceLength: number;
  /** Nodes of a tree, root included: the mean over the questions of each one's mean. */
  readonly treeSize: number;
}

interface DrafterSummary extends TaskSummary {
  /** Median over the questions of plain time / own time: what one disturbed question cannot move. */
  readonly medianSpeedup: number;
  readonly tokensPerSecond: number;
  readonly identical: boolean;
  /** Milliseconds per round. */
  readonly roundMs: number;
  readonly phases: Phases;
  /** Of a round: what drafting takes, its tree's growth included. */
  readonly draftShare: number;
  readonly acceptanceByDepth: readonly DepthAcceptance[];
  readonly byTask: Readonly<Record<string, TaskSummary>>;
}

type Summary = Readonly<Record<string, DrafterSummary>>;

function summarise(all: readonly Row[], drafters: readonly string[]): Summary {
  const decoded = all.filter((row) => row.stats.rounds > 0); // an answer of one token has no decoding to time
  const of = (drafter: string, task?: string): Row[] =>
    decoded.filter((row) => row.drafter === drafter && (task === undefined || row.task === task));
  const rate = (rows: readonly Row[]): number => mean(rows.map(({ stats }) => stats.tokensPerSecond));
  const perRound = (rows: readonly Row[], pick: (row: Row) => number): number =>
    sum(rows.map(pick)) / sum(rows.map((row) => row.stats.rounds));
  const gain = (drafter: string, task?: string): TaskSummary => {
    const rows = of(drafter, task);
    return {
      speedup: rate(rows) / rate(of(drafters[0]!, task)),
      acceptanceLength: perRound(rows, ({ stats }) => stats.newTokens - 1),
      treeSize: mean(rows.map((row) => row.stats.treeSize)),
    };
  };
  const plainMs = new Map(of(drafters[0]!).map((row) => [row.id, row.stats.decodeMs]));
  return Object.fromEntries(
    drafters.map((drafter): [string, DrafterSummary] => {
      const rows = of(drafter);
      const roundMs = perRound(rows, ({ stats }) => stats.decodeMs);
      const draft = perRound(rows, ({ stats }) => stats.draftMs);
      const tasks = [...new Set(rows.map((row) => row.task))];
      return [
        drafter,
        {
          ...gain(drafter),
          medianSpeedup: median(rows.map((row) => (plainMs.get(row.id) ?? Number.NaN) / row.stats.decodeMs)),
          tokensPerSecond: rate(rows),
          identical: all.every((row) => row.drafter !== drafter || row.identical),
          roundMs,
          draftShare: draft / roundMs,
          phases: {
            draft,
            verify: perRound(rows, ({ stats }) => stats.verifyMs),
            sample: perRound(rows, ({ stats }) => stats.sampleMs),
            commit: perRound(rows, ({ stats }) => stats.commitMs),
            outsideNative: perRound(rows, (row) => row.outsideNativeMs),
          },
          acceptanceByDepth: sumByDepth(rows.map(({ stats }) => stats.acceptanceByDepth)),
          byTask: Object.fromEntries(tasks.map((task) => [task, gain(drafter, task)])),
        },
      ];
    }),
  );
}

/** Over all rounds of all answers: from depth 1 on, as deep as any went. */
function sumByDepth(answers: readonly (readonly DepthAcceptance[])[]): DepthAcceptance[] {
  const deepest = Math.max(0, ...answers.map((depths) => depths.length));
  return Array.from({ length: deepest }, (_, i) => {
    const verified = sum(answers.map((depths) => depths[i]?.verified ?? 0));
    const accepted = sum(answers.map((depths) => depths[i]?.accepted ?? 0));
    return { verified, accepted, rate: accepted / verified };
  });
}

function print(summary: Summary, { kernels }: Engine, { verify, temperature }: Flags): void {
  const drafters = Object.entries(summary);
  const write = (text: string) => process.stdout.write(text);
  const different = { text: 'NO', law: 'same law', nothing: 'lossy' }[temperature === 0 ? 'text' : KEEPS[verify]];
  const identicalText = ({ identical }: DrafterSummary): string => (identical ? 'yes' : different);
  write(`${kernels.isa} · ${kernels.threads} threads\n\n`);
  write(
    formatTable(
      ['drafter', 'speedup', 'median', 'acceptance length', 'tree', 'tokens/s', 'identical'],
      drafters.map(([name, s]) => [
        name,
        `${s.speedup.toFixed(2)}x`,
        `${s.medianSpeedup.toFixed(2)}x`,
        s.acceptanceLength.toFixed(2),
        s.treeSize.toFixed(1),
        s.tokensPerSecond.toFixed(1),
        identicalText(s),
      ]),
    ),
  );
  write('\n');
  const share = (part: number, whole: number): string => `${part.toFixed(2)} (${((part / whole) * 100).toFixed(1)} %)`;
  write(
    formatTable(
      ['ms a round', 'all', ...PHASES.map((phase) => (phase === 'outsideNative' ? 'outside native calls' : phase))],
      drafters.map(([name, { roundMs, phases }]) => [
        name,
        roundMs.toFixed(2),
        ...PHASES.map((phase) => share(phases[phase], roundMs)),
      ]),
    ),
  );
  write('\n');
  for (const [name, { acceptanceByDepth, draftShare }] of drafters) {
    if (acceptanceByDepth.length === 0) continue;
    write(`${name}: drafting takes ${(draftShare * 100).toFixed(1)} % of a round\n`);
    write(
      formatTable(
        ['depth', ...acceptanceByDepth.map((_, i) => `${i + 1}`)],
        [
          ['acceptance rate', ...acceptanceByDepth.map(({ rate }) => rate.toFixed(2))],
          ['accepted', ...acceptanceByDepth.map(({ accepted }) => formatCount(accepted))],
          ['of rounds that got there', ...acceptanceByDepth.map(({ verified }) => formatCount(verified))],
        ],
      ),
    );
    write('\n');
  }
  const tasks = Object.keys(drafters[0]![1].byTask);
  write('speedup · acceptance length · nodes\n');
  write(
    formatTable(
      ['task', ...drafters.map(([name]) => name)],
      tasks.map((task) => [
        task,
        ...drafters.map(([, { byTask }]) => {
          const gain = byTask[task];
          if (gain === undefined) return '-';
          return `${gain.speedup.toFixed(2)}x · ${gain.acceptanceLength.toFixed(2)} · ${gain.treeSize.toFixed(1)}`;
        }),
      ]),
    ),
  );
}

/** By task, and over all. */
function draw(summary: Summary): string {
  const drafters = Object.entries(summary);
  const tasks = Object.keys(drafters[0]![1].byTask);
  const series = (pick: (gain: TaskSummary) => number) =>
    drafters.map(([name, whole]) => ({
      name,
      values: [...tasks.map((task) => whole.byTask[task]), whole].map((gain) => gain && pick(gain)),
    }));
  const groups = [...tasks, 'all'];
  return barPlot([
    {
      title: 'Speed',
      yLabel: `times ${drafters[0]![0]}`,
      groups,
      series: series(({ speedup }) => speedup),
      level: 1,
    },
    {
      title: 'Acceptance length',
      yLabel: 'tokens a round',
      groups,
      series: series(({ acceptanceLength }) => acceptanceLength),
    },
  ]);
}
