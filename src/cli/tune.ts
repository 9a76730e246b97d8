/** What the tree budget found on this machine: the cost of forwards, the tree that pays, and what is to be won, in plain words. */
import { writeFileSync } from 'node:fs';
import type { Command } from 'commander';
import { MOST_NODES, type TreeBudget } from '../draft/budget.ts';
import type { Engine } from '../engine.ts';
import { RequestError } from '../errors.ts';
import { type ModelOptions, openEngine, positiveNumber, printJson, realNumber, withModelOptions } from './common.ts';
import { formatTable } from './format.ts';
import { linePlot } from './line-plot.ts';
import { ProgressBar } from './progress.ts';
import { DEFAULT_PROMPTS, readPrompts } from './prompts.ts';

interface Flags extends ModelOptions {
  readonly prompts?: string;
  readonly limit: number;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly svg?: string;
  readonly json?: boolean;
}

export function register(program: Command): void {
  withModelOptions(program.command('tune').description('measure this machine and say which trees pay on it'))
    .option('--prompts <file>', 'JSONL of {id, task, turns | prompt | messages} (default: those that come with eaglet)')
    .option('--limit <n>', 'questions at most, taken from the tasks in turn', positiveNumber, 7)
    .option('-n, --max-tokens <n>', 'new tokens per question', positiveNumber, 64)
    .option('-t, --temperature <x>', '0 takes the likeliest token', realNumber, 0)
    .option('--svg <file>', 'draw the curves')
    .option('--json', 'one JSON object instead of text')
    .action(tune);
}

/** Of rounds with drafts: where the budget decoded plainly, no tree was looked at. */
interface Size {
  readonly nodes: number;
  readonly targetMs: number;
  /** Tokens a round, bonus included. */
  readonly tokens: number;
  /** Over plain decoding. */
  readonly speedup: number;
}

async function tune(flags: Flags): Promise<void> {
  if (flags.tree !== undefined || flags.treeSize !== undefined)
    throw new RequestError('tree', 'tune finds it: give no --tree or --tree-size');
  const questions = readPrompts(flags.prompts ?? DEFAULT_PROMPTS, flags.limit);
  using engine = await openEngine({ ...flags, remeasure: true });
  const { budget } = engine;
  if (budget === undefined) throw new RequestError('head', 'there is nothing to tune: the model has no head');
  const measured = { target: budget.target.curve(), draft: budget.draft.curve() };
  const ran = await decode(engine, budget, questions, flags);
  const sizes = speedupsBySize(budget);
  const expected = budget.expectedSpeedup;
  const best = sizes.reduce((a, b) => (b.speedup > a.speedup ? b : a));
  if (flags.svg !== undefined) writeFileSync(flags.svg, draw(sizes, best, budget));
  const { isa, threads } = engine.kernels;
  if (flags.json) printJson({ isa, threads, measured, sizes, best, draftMs: budget.draftMs, expected, ran });
  else process.stdout.write(describe(engine, budget, sizes, best, ran));
}

interface Ran {
  readonly tokensPerSecond: Readonly<Record<'none' | 'eagle', number>>;
  readonly speedup: number;
  readonly acceptanceLength: number;
  readonly treeSize: number;
  /** Of all rounds, those with drafts. */
  readonly draftedShare: number;
  /** Of the time of a round that the head takes. */
  readonly draftShare: number;
}

/**
 * Plainly and with drafts, in turn: the budget learns from it, and what it expects can be held against what came. Plain rounds teach it
 * what a forward over one row takes, which trees of other sizes say little about.
 */
async function decode(
  engine: Engine,
  budget: TreeBudget,
  questions: ReturnType<typeof readPrompts>,
  flags: Flags,
): Promise<Ran> {
  const sums = {
    none: { tokens: 0, rounds: 0, drafted: 0, nodes: 0, ms: 0, draftMs: 0 },
    eagle: { tokens: 0, rounds: 0, drafted: 0, nodes: 0, ms: 0, draftMs: 0 },
  };
  using progress = new ProgressBar('questions', questions.length);
  for (const [i, { messages }] of questions.entries()) {
    const order = i % 2 === 0 ? (['none', 'eagle'] as const) : (['eagle', 'none'] as const);
    for (const drafter of order) {
      const { maxTokens, temperature } = flags;
      const { stats } = await engine.complete(messages, {
        maxTokens,
        temperature,
        drafter,
        ...(drafter === 'none' && { onRound: ({ times }) => void budget.target.learn(1, times.verify) }),
      });
      const sum = sums[drafter];
      sum.tokens += stats.newTokens - 1;
      sum.rounds += stats.rounds;
      sum.drafted += stats.counters.num_drafts;
      sum.nodes += stats.treeSize * stats.rounds;
      sum.ms += stats.decodeMs;
      sum.draftMs += stats.draftMs;
    }
    progress.update(i + 1);
  }
  const rate = ({ tokens, ms }: { tokens: number; ms: number }): number => (tokens / ms) * 1000;
  const { none, eagle } = sums;
  return {
    tokensPerSecond: { none: rate(none), eagle: rate(eagle) },
    speedup: rate(eagle) / rate(none),
    acceptanceLength: eagle.tokens / eagle.rounds,
    treeSize: eagle.nodes / eagle.rounds,
    draftedShare: eagle.drafted / eagle.rounds,
    draftShare: eagle.draftMs / eagle.ms,
  };
}

function speedupsBySize(budget: TreeBudget): readonly Size[] {
  const { target, draftMs } = budget;
  const plainMs = target.at(1);
  return Array.from({ length: MOST_NODES }, (_, i) => {
    const nodes = i + 1;
    const tokens = budget.tokensOf(nodes);
    const ms = target.at(nodes) + (nodes === 1 ? 0 : draftMs);
    return { nodes, targetMs: target.at(nodes), tokens, speedup: (tokens * plainMs) / ms };
  });
}

function describe(engine: Engine, budget: TreeBudget, sizes: readonly Size[], best: Size, ran: Ran): string {
  const { isa, threads } = engine.kernels;
  const plainMs = sizes[0]!.targetMs;
  const shown = sizes.filter(({ nodes }) => [1, 2, 3, 4, 6, 8, 12, 16, 24, 32].includes(nodes) || nodes === best.nodes);
  const table = formatTable(
    ['nodes', 'ms a forward', 'of one row', 'tokens a round', 'speedup'],
    shown.map(({ nodes, targetMs, tokens, speedup }) => [
      `${nodes}${nodes === best.nodes ? ' *' : ''}`,
      targetMs.toFixed(2),
      `${(targetMs / plainMs).toFixed(2)}x`,
      tokens.toFixed(2),
      `${speedup.toFixed(2)}x`,
    ]),
  );
  const verdict =
    best.nodes === 1
      ? 'Drafting does not pay here: decoding stays plain, and drafts are tried now and then.'
      : `Where drafting pays, trees of about ${best.nodes} nodes pay most.`;
  return `${isa} · ${threads} threads

A forward of the target over one row takes ${plainMs.toFixed(2)} ms, over eight rows ${(sizes[7]!.targetMs / plainMs).toFixed(2)} times that.
The head takes ${budget.draftMs.toFixed(2)} ms a round. Of rounds with drafts:

${table}
${verdict}
Choosing anew every round, ${budget.expectedSpeedup.toFixed(2)} times plain decoding is expected over all rounds, with drafts (${(ran.draftedShare * 100).toFixed(0)} % of them) or without.
Decoded just now: ${ran.tokensPerSecond.none.toFixed(1)} tokens/s plainly, ${ran.tokensPerSecond.eagle.toFixed(1)} with drafts, ${ran.speedup.toFixed(2)}x; acceptance length ${ran.acceptanceLength.toFixed(2)}, trees of ${ran.treeSize.toFixed(1)} nodes,
the head took ${(ran.draftShare * 100).toFixed(1)} % of a round.
`;
}

function draw(sizes: readonly Size[], best: Size, { draft }: TreeBudget): string {
  const mark = best.nodes - 1;
  return linePlot([
    {
      title: 'What a forward costs',
      xLabel: 'rows',
      yLabel: 'milliseconds',
      series: [
        { name: 'target', points: sizes.map(({ nodes, targetMs }) => [nodes, targetMs]), mark },
        { name: 'head', points: sizes.map(({ nodes }) => [nodes, draft.at(nodes)]) },
      ],
    },
    {
      title: 'What a tree brings',
      xLabel: 'nodes, root included',
      yLabel: 'tokens a round; times plain decoding',
      series: [
        { name: 'tokens a round', points: sizes.map(({ nodes, tokens }) => [nodes, tokens]) },
        { name: 'speedup', points: sizes.map(({ nodes, speedup }) => [nodes, speedup]), mark },
      ],
    },
  ]);
}
