/** Training text: the model answers prompts, or invents them too, many at a time. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Command } from 'commander';
import { hashModel } from '../checkpoint/hash.ts';
import type { Engine } from '../engine.ts';
import { RequestError } from '../errors.ts';
import { ConversationFile, type SynthesisSettings } from '../train/conversation-file.ts';
import { readConversations } from '../train/conversations.ts';
import { type FeatureStore, featureBytes, requireSpace } from '../train/feature-store.ts';
import {
  Known,
  type Lane,
  openPrompts,
  promptText,
  Synthesis,
  type SynthesisCounts,
  type SynthesisTask,
} from '../train/synthesize.ts';
import { fetchModel, openEngine, positiveNumber, printJson } from './common.ts';
import { openStore } from './feature-store.ts';
import { formatBytes, formatCount, formatDuration, formatFields } from './format.ts';
import { Interruption, tellStopped } from './interruption.ts';
import { RateBar } from './progress.ts';
import { readOpenPrompts } from './prompts.ts';
import { LaneRates, SynthesisCaches, type SynthesisFlags, synthesisModel, withSynthesisOptions } from './synthesis.ts';

interface Flags extends SynthesisFlags {
  readonly out: string;
  readonly exclude?: readonly string[];
  /** Where the conversations' features go. */
  readonly features?: string;
  readonly count?: number;
  readonly json?: boolean;
}

/** Where a head is to be trained without any prompts at hand. */
const INVENTED_COUNT = 2000;
/** Of the time: it tells what the batch brings, and costs a little less than that of its speed. */
const ALONE_SHARE = 0.02;

export function register(program: Command): void {
  withSynthesisOptions(
    program
      .command('synthesize')
      .description('let the model write the text that its head is trained on')
      .requiredOption('-o, --out <file>', 'JSONL of conversations; where it exists, the same command goes on with it')
      .option('--prompts <files...>', 'JSONL of {id, prompt | turns | messages} (default: the model invents them)')
      .option('--exclude <files...>', 'JSONL of prompts or conversations: what they ask is not asked')
      .option(
        '--count <n>',
        `conversations in all (default: all prompts, or ${INVENTED_COUNT} invented)`,
        positiveNumber,
      ),
  )
    .option('--features <directory>', 'keep the features too, which are computed anyway: for `train eagle --features`')
    .option('--json', 'the summary as one JSON line')
    .action(async (flags: Flags) => {
      const summary = await synthesize(flags);
      if (flags.json) printJson(summary);
      else process.stdout.write(describe(summary, flags));
    });
}

/** Writes what is not there yet; a part of it where it was interrupted. */
export async function synthesize(flags: Flags): Promise<Summary> {
  const prompts = flags.prompts && readOpenPrompts(flags.prompts);
  const known = new Known();
  for (const path of flags.exclude ?? []) excludeFrom(path, known);
  const modelSha256 = await hashModel(await fetchModel(flags.model));
  using engine = await openEngine(flags);
  const model = synthesisModel(engine);
  using caches = new SynthesisCaches(model, flags);
  using file = new ConversationFile(flags.out, settingsOf(flags, modelSha256), ({ id, messages }) =>
    known.add(id, promptText(messages)),
  );
  if (file.cutBytes > 0)
    process.stderr.write(`eaglet: ${file.path}: its last line was half written, ${file.cutBytes} bytes: cut off\n`);
  using store =
    flags.features === undefined ? undefined : openStore(flags.features, modelSha256, flags, engine, 'append');
  const already = known.size;
  const open = prompts && openPrompts(prompts, known, flags);
  const total = open === undefined ? (flags.count ?? INVENTED_COUNT) : already + open.prompts.length;
  const task: SynthesisTask =
    open === undefined ? { kind: 'invent', count: total } : { kind: 'answer', prompts: open.prompts };
  if (store !== undefined) {
    if (store.texts < already) {
      const rule = `has features of ${store.texts} conversations, ${file.path} holds ${already}: write it without features, \`train --conversations\` computes them`;
      throw new RequestError(store.directory, rule);
    }
    const answers = open?.prompts.reduce((sum, { followUps }) => sum + 1 + followUps.length, 0) ?? total - already;
    requireSpaceFor(answers * flags.maxTokens, store, engine);
  }
  const synthesis = new Synthesis(model, task, { ...flags, keepFeatures: store !== undefined }, known);
  const written = await write(synthesis, caches, file, store, new RateBar('conversations', total, already));
  const summary = {
    out: file.path,
    ...synthesis.counts,
    duplicates: synthesis.counts.duplicates + (open?.duplicates ?? 0),
    inFile: already + synthesis.counts.conversations,
    batch: flags.batch,
    ...written,
  };
  if (!written.complete) tellStopped('stopped');
  return summary;
}

/**
 * @param tokens that are expected: an answer as long as it may be stands for itself and its question. (The 24,639 conversations that the
 *   shipped head learned from have 293 tokens each, where an answer has 256 at most.)
 * @throws RequestError where the disk has no room for their features.
 */
function requireSpaceFor(tokens: number, { directory }: FeatureStore, { target }: Engine): void {
  if (tokens <= 0) return;
  const bytes = featureBytes(tokens, target.config.hiddenSize);
  process.stderr.write(`eaglet: features of about ${formatCount(tokens)} tokens, ${formatBytes(bytes)}\n`);
  requireSpace(directory, bytes);
}

interface Written {
  readonly promptTokens: number;
  readonly newTokens: number;
  /** Tokens of invented prompts and of conversations that were left out or broken off, too. */
  readonly drawnTokens: number;
  readonly forwards: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  readonly laneTokensPerSecond: { readonly [L in Lane]: number };
  /** The batch's over one conversation's alone; NaN where none was drawn. */
  readonly ratio: number;
  /** False where it was interrupted. */
  readonly complete: boolean;
}

async function write(
  synthesis: Synthesis,
  caches: SynthesisCaches,
  file: ConversationFile,
  store: FeatureStore | undefined,
  progress: RateBar,
): Promise<Written> {
  using bar = progress;
  using interruption = new Interruption();
  const rates = new LaneRates();
  const sums = { promptTokens: 0, newTokens: 0, drawnTokens: 0, forwards: 0 };
  const began = performance.now();
  for (const step of synthesis.run(caches, ALONE_SHARE)) {
    // First, so that no conversation lacks its features; one that a crash kept out of the file is written again, with the same tokens.
    for (const text of step.texts) if (!store?.has(text)) store?.append(text, text.features);
    for (const conversation of step.conversations) {
      file.append(conversation);
      sums.promptTokens += conversation.promptTokens;
      sums.newTokens += conversation.newTokens;
    }
    rates.add(step);
    sums.drawnTokens += step.drawn;
    sums.forwards++;
    bar.update(synthesis.counts.conversations, sums.drawnTokens);
    await nextTurn(); // a signal comes between two steps
    if (interruption.asked) break;
  }
  const seconds = (performance.now() - began) / 1000;
  return {
    ...sums,
    seconds,
    tokensPerSecond: sums.drawnTokens / seconds,
    laneTokensPerSecond: { batch: rates.tokensPerSecond('batch'), alone: rates.tokensPerSecond('alone') },
    ratio: rates.ratio,
    complete: !interruption.asked,
  };
}

interface Summary extends SynthesisCounts, Written {
  readonly out: string;
  readonly inFile: number;
}

function describe(summary: Summary, { batch, maxPromptTokens }: Flags): string {
  const { out, inFile, conversations, newTokens, seconds, tokensPerSecond, laneTokensPerSecond, ratio } = summary;
  const leftOut = reasons(summary, maxPromptTokens);
  return formatFields([
    ['written', `${formatCount(conversations)} conversations, ${formatCount(newTokens)} tokens of answers`],
    ['in all', `${formatCount(inFile)} in ${out}`],
    ['left out', leftOut.length === 0 ? 'nothing' : leftOut.join(', ')],
    ['time', `${formatDuration(seconds)}, ${tokensPerSecond.toFixed(0)} tokens/s`],
    ...(Number.isFinite(ratio)
      ? [
          [
            'batching',
            `${batch} at a time: ${ratio.toFixed(2)}x the ${laneTokensPerSecond.alone.toFixed(0)} tokens/s of one alone`,
          ] as const,
        ]
      : []),
  ]);
}

/** What was left out and why, as people read it. */
export function reasons(counts: SynthesisCounts, maxPromptTokens: number): string[] {
  const leftOut = [
    [counts.duplicates, 'asked before'],
    [counts.tooLong, `longer than ${maxPromptTokens} tokens`],
    [counts.refused, 'not taken by the chat template'],
    [counts.empty, 'without an answer'],
    [counts.unfinishedPrompts, 'invented without an end'],
  ] as const;
  return leftOut.filter(([count]) => count > 0).map(([count, why]) => `${formatCount(count)} ${why}`);
}

function excludeFrom(path: string, known: Known): void {
  for (const conversation of readConversations(path))
    if (conversation.kind === 'text') known.exclude([{ role: 'user', content: conversation.text }]);
    else known.exclude(conversation.messages);
}

/** What the text depends on; not the batch, nor the machine's threads. */
function settingsOf(flags: Flags, modelSha256: string): SynthesisSettings {
  const { dtype, seed, temperatures, maxTokens, maxPromptTokens } = flags;
  const prompts = flags.prompts === undefined ? 'invented' : 'given';
  return { modelSha256, dtype, prompts, seed, temperatures, maxTokens, maxPromptTokens };
}
