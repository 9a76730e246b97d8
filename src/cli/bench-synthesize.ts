/** What writing many conversations in one batch brings over writing them one after another. */
import type { Command } from 'commander';
import { Known, Synthesis, type SynthesisPrompt } from '../train/synthesize.ts';
import { openEngine, positiveNumber, printJson } from './common.ts';
import { ProgressBar } from './progress.ts';
import { answerable, DEFAULT_PROMPTS, obstacle, type PromptEntry, readOpenPrompts } from './prompts.ts';
import { median } from './statistics.ts';
import {
  LaneRates,
  type LaneStep,
  SynthesisCaches,
  type SynthesisFlags,
  synthesisModel,
  withSynthesisOptions,
} from './synthesis.ts';

interface Flags extends SynthesisFlags {
  readonly repeats: number;
  readonly seconds: number;
  readonly json?: boolean;
}

export function register(bench: Command): void {
  withSynthesisOptions(bench.command('synthesize').description('conversations in one batch against one at a time'))
    .option('--prompts <files...>', 'JSONL of {id, prompt | turns | messages} (default: those that come with eaglet)')
    .option('--repeats <n>', 'stretches of time; the median counts', positiveNumber, 5)
    .option(
      '--seconds <n>',
      'of a stretch, half of it for the batch and half for single conversations',
      positiveNumber,
      4,
    )
    .option('--json', 'one JSON line')
    .action(benchSynthesize);
}

async function benchSynthesize(flags: Flags): Promise<void> {
  const prompts = readOpenPrompts(flags.prompts ?? [DEFAULT_PROMPTS]);
  using engine = await openEngine(flags);
  // One that can be answered will do, the others are passed over as they come; without any there would be no end to that.
  const longest = Math.min(flags.maxPromptTokens, engine.contextSize - flags.maxTokens);
  if (prompts.every(({ messages }) => obstacle(engine, messages, longest))) answerable(engine, prompts, longest); // throws
  const model = synthesisModel(engine);
  using caches = new SynthesisCaches(model, flags);
  const synthesis = new Synthesis(model, { kind: 'answer', prompts: endless(prompts) }, flags, new Known());
  const measured: LaneRates[] = [];
  // The batch begins with prompts alone, then short answers end first: it is as it will stay when all that began together has ended.
  const warmUp = flags.maxTokens;
  using bar = new ProgressBar('measuring', flags.repeats);
  for (const stretch of stretches(synthesis.run(caches, 0.5), { warmUp, ms: flags.seconds * 1000 })) {
    measured.push(stretch);
    bar.update(measured.length);
    if (measured.length === flags.repeats) break;
  }
  const ratios = measured.map(({ ratio }) => ratio);
  const { dtype, batch, prefillRows, maxTokens } = flags;
  const { isa, threads } = engine.kernels;
  const tokensPerSecond = {
    batch: median(measured.map((rates) => rates.tokensPerSecond('batch'))),
    alone: median(measured.map((rates) => rates.tokensPerSecond('alone'))),
  };
  const ratio = { median: median(ratios), least: Math.min(...ratios), most: Math.max(...ratios) };
  if (flags.json) return printJson({ dtype, isa, threads, batch, prefillRows, maxTokens, tokensPerSecond, ratio });
  process.stdout.write(
    `${dtype} · ${isa} · ${threads} threads · answers of at most ${maxTokens} tokens, reading of prompts included\n` +
      `one conversation at a time  ${tokensPerSecond.alone.toFixed(0)} tokens/s\n` +
      `${batch} in one batch${' '.repeat(14 - String(batch).length)}  ${tokensPerSecond.batch.toFixed(0)} tokens/s, ` +
      `${ratio.median.toFixed(2)}x (${ratio.least.toFixed(2)} to ${ratio.most.toFixed(2)} in ${measured.length} stretches)\n`,
  );
}

/**
 * One stretch of time after another. On a busy machine one forward may take all of it: a stretch goes on until both lanes have drawn.
 * @param warmUp steps of the batch that are not measured. @param ms of a stretch at least.
 */
export function* stretches(
  steps: Iterable<LaneStep>,
  { warmUp, ms }: { readonly warmUp: number; readonly ms: number },
): Generator<LaneRates, void, void> {
  let stretch = new LaneRates();
  let spent = 0;
  let left = warmUp;
  for (const step of steps) {
    if (step.lane === 'batch') left--;
    if (left > 0) continue;
    stretch.add(step);
    spent += step.ms;
    if (spent < ms || !stretch.comparable) continue;
    yield stretch;
    stretch = new LaneRates();
    spent = 0;
  }
}

/** The same prompts again and again, each time another conversation. */
function* endless(prompts: readonly PromptEntry[]): Generator<SynthesisPrompt, void, void> {
  for (let round = 1; ; round++) for (const prompt of prompts) yield { ...prompt, id: `${prompt.id}/${round}` };
}
