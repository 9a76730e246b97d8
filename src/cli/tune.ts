/** What the tree budget found on this machine: the cost of forwards, the tree that pays, and what is to be won, in plain words. */
import { writeFileSync } from 'node:fs';
import { type Command, Option } from 'commander';
import { MOST_NODES, type TreeBudget } from '../draft/budget.ts';
import { DRAFTERS, type DrafterName } from '../draft/registry.ts';
import type { Engine, TextOptions } from '../engine.ts';
import { RequestError } from '../errors.ts';
import {
  type ModelOptions,
  openEngine,
  outputFile,
  positiveNumber,
  printJson,
  realNumber,
  severalNumber,
  withDrafter,
  withModelOptions,
} from './common.ts';
import { formatTable } from './format.ts';
import { linePlot } from './line-plot.ts';
import { ProgressBar } from './progress.ts';
import { answerable, DEFAULT_PROMPTS, readPrompts } from './prompts.ts';

interface Flags extends ModelOptions {
  readonly prompts?: string;
  readonly limit: number;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly drafter?: DrafterName;
  readonly svg?: string;
  readonly json?: boolean;
}

export function register(program: Command): void {
  withModelOptions(program.command('tune').description('measure this machine and say which trees pay on it'))
    .option('--prompts <file>', 'JSONL of {id, task, turns | prompt | messages} (default: those that come with eaglet)')
    .option('--limit <n>', 'questions at most, taken from the tasks in turn', positiveNumber, 7)
    .option('-n, --max-tokens <n>', 'new tokens per question, the first of which is not timed', severalNumber, 64)
    .option('-t, --temperature <x>', '0 takes the likeliest token', realNumber, 0)
    .addOption(new Option('--drafter <name>', 'whose trees (default: who drafts by default)').choices(DRAFTERS))
    .option('--svg <file>', 'draw the curves', outputFile)
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
  const read = readPrompts(flags.prompts ?? DEFAULT_PROMPTS, flags.limit);
  using engine = await openEngine({ ...withDrafter(flags), remeasure: true });
  const tuned = findTuned(engine, flags.drafter ?? engine.defaultDrafter);
  const { drafter, budget } = tuned;
  const questions = answerable(engine, read);
  const measured = { target: budget.target.curve(), draft: budget.draft.curve() };
  const ran = await decode(engine, tuned, questions, flags);
  const sizes = speedupsBySize(budget, ran.context);
  const expected = budget.expectedSpeedup;
  const best = sizes.reduce((a, b) => (b.speedup > a.speedup ? b : a));
  if (flags.svg !== undefined) writeFileSync(flags.svg, draw(sizes, best, tuned));
  const { isa, threads } = engine.kernels;
  if (flags.json) printJson({ isa, threads, drafter, measured, sizes, best, draftMs: budget.draftMs, expected, ran });
  else process.stdout.write(describe(engine, tuned, sizes, best, ran));
}

interface Tuned {
  readonly drafter: DrafterName;
  readonly budget: TreeBudget;
}

function findTuned(engine: Engine, drafter: DrafterName): Tuned {
  const budget = engine.budgetOf(drafter);
  if (budget !== undefined) return { drafter, budget };
  const others = engine.drafters.filter((name) => engine.budgetOf(name) !== undefined);
  if (!engine.drafters.includes(drafter))
    throw new RequestError('--drafter', `"${drafter}" is not loaded, available: ${others.join(', ')}`);
  throw new RequestError('--drafter', `"${drafter}" has no budget to tune, one have ${others.join(', ')}`);
}

interface Ran {
  readonly tokensPerSecond: { readonly plain: number; readonly drafted: number };
  readonly speedup: number;
  readonly acceptanceLength: number;
  readonly treeSize: number;
  /** Of all rounds, those with drafts. */
  readonly draftedShare: number;
  /** Tokens before a round's root, mean. */
  readonly context: number;
  /** Of the time of a round that drafting takes, the tree's growth included. */
  readonly draftShare: number;
}

/**
 * Plainly and with drafts, in turn: the budget learns from it, and what it expects can be held against what came. Plain rounds teach it
 * what a forward over one row takes, which trees of other sizes say little about.
 */
async function decode(
  engine: Engine,
  { drafter, budget }: Tuned,
  questions: ReturnType<typeof readPrompts>,
  { maxTokens, temperature }: Flags,
): Promise<Ran> {
  const plain = { tokens: 0, rounds: 0, drafted: 0, nodes: 0, ms: 0, draftMs: 0 };
  let context = 0;
  const drafted = { ...plain };
  const plainly: TextOptions = {
    drafter: 'none',
    onRound: ({ times, committed }) => void budget.target.learn(1, times.verify, committed),
  };
  const withDrafts: TextOptions = {
    drafter,
    onRound: ({ committed }) => {
      context += committed;
    },
  };
  const turns = [
    { sum: plain, options: plainly },
    { sum: drafted, options: withDrafts },
  ];
  using progress = new ProgressBar('questions', questions.length);
  for (const [i, { messages }] of questions.entries()) {
    for (const { sum, options } of i % 2 === 0 ? turns : turns.toReversed()) {
      const { stats } = await engine.complete(messages, { maxTokens, temperature, ...options });
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
  return {
    tokensPerSecond: { plain: rate(plain), drafted: rate(drafted) },
    speedup: rate(drafted) / rate(plain),
    acceptanceLength: drafted.tokens / drafted.rounds,
    treeSize: drafted.nodes / drafted.rounds,
    draftedShare: drafted.drafted / drafted.rounds,
    context: context / drafted.rounds,
    draftShare: drafted.draftMs / drafted.ms,
  };
}

/** @param context of the forwards. */
function speedupsBySize(budget: TreeBudget, context: number): readonly Size[] {
  const { target, draftMs } = budget;
  const plainMs = target.plain(context);
  return Array.from({ length: MOST_NODES }, (_, i) => {
    const nodes = i + 1;
    const tokens = budget.tokensOf(nodes);
    const targetMs = nodes === 1 ? plainMs : target.at(nodes, context);
    const ms = targetMs + (nodes === 1 ? 0 : draftMs);
    return { nodes, targetMs, tokens, speedup: (tokens * plainMs) / ms };
  });
}

function describe(engine: Engine, { drafter, budget }: Tuned, sizes: readonly Size[], best: Size, ran: Ran): string {
  const { isa, threads } = engine.kernels;
  const plainMs = budget.target.plain(ran.context);
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
  return `${isa} · ${threads} threads · drafter ${drafter}

A forward of the target over one row takes ${plainMs.toFixed(2)} ms behind ${ran.context.toFixed(0)} tokens, over eight rows ${(sizes[7]!.targetMs / plainMs).toFixed(2)} times that.
${budget.isFree ? 'Guesses take no forward of their own, only rows of the target.' : `Forwards of the drafter take ${budget.draftMs.toFixed(2)} ms a round.`} Of rounds with drafts:

${table}
${verdictOn(best, budget)}
Choosing anew every round, ${budget.expectedSpeedup.toFixed(2)} times plain decoding is expected over all rounds, with drafts (${(ran.draftedShare * 100).toFixed(0)} % of them) or without.
Decoded just now: ${ran.tokensPerSecond.plain.toFixed(1)} tokens/s plainly, ${ran.tokensPerSecond.drafted.toFixed(1)} with drafts, ${ran.speedup.toFixed(2)}x; acceptance length ${ran.acceptanceLength.toFixed(2)}, trees of ${ran.treeSize.toFixed(1)} nodes,
drafting took ${(ran.draftShare * 100).toFixed(1)} % of a round.
`;
}

function verdictOn({ nodes }: Size, { isFree }: TreeBudget): string {
  if (nodes > 1) return `Where drafting pays, trees of about ${nodes} nodes pay most.`;
  return isFree
    ? 'Drafting does not pay here: hardly a guess is worth its row, and decoding stays plain but for those.'
    : 'Drafting does not pay here: decoding stays plain, and drafts are tried now and then.';
}

function draw(sizes: readonly Size[], best: Size, { drafter, budget }: Tuned): string {
  const mark = best.nodes - 1;
  const { draft, isFree } = budget;
  return linePlot([
    {
      title: 'What a forward costs',
      xLabel: 'rows',
      yLabel: 'milliseconds',
      series: [
        { name: 'target', points: sizes.map(({ nodes, targetMs }) => [nodes, targetMs]), mark },
        ...(isFree ? [] : [{ name: drafter, points: draft.curve().map(({ rows, ms }) => [rows, ms] as const) }]),
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
