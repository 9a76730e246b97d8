/**
 * What the `eaglet train` commands have in common: the text, from a model alone if need be, its features, the updates with their
 * checkpoints, interruption and curves, and the report. What learns, and how it is saved, is a course's.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { basename, join, resolve, sep } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Command } from 'commander';
import { hashModel } from '../checkpoint/hash.ts';
import type { Engine } from '../engine.ts';
import { RequestError } from '../errors.ts';
import { packageInfo } from '../package-info.ts';
import { computeFeatures } from '../train/compute-features.ts';
import { readConversations } from '../train/conversations.ts';
import { encodeConversation, SKIPPED, type Skipped } from '../train/encode-conversation.ts';
import { type FeatureStore, featureBytes, type TextFeatures } from '../train/feature-store.ts';
import { writing } from '../train/json-lines.ts';
import { LiveFeatures } from '../train/live-features.ts';
import { orderedTexts } from '../train/ordered-texts.ts';
import type { RunOptions, TrainingRun } from '../train/run.ts';
import { requireAbsent, type SavedTexts } from '../train/save.ts';
import type { LogEntry } from '../train/training-log.ts';
import { countTokens, type EncodedText } from '../train/unroll.ts';
import {
  fetchModel,
  type ModelOptions,
  openEngine,
  positiveNumber,
  positiveReal,
  printJson,
  requireReader,
  wholeNumber,
  withTargetOptions,
} from './common.ts';
import { openStore } from './feature-store.ts';
import { formatBytes, formatCount, formatDuration, formatFields } from './format.ts';
import { Interruption, tellStopped } from './interruption.ts';
import { RateBar } from './progress.ts';
import { sparkline } from './sparkline.ts';
import { SYNTHESIS_DEFAULTS } from './synthesis.ts';
import { reasons, synthesize } from './synthesize.ts';
import { drawTraining } from './training-plot.ts';

export interface TrainingFlags extends ModelOptions {
  readonly out: string;
  readonly work?: string;
  readonly conversations?: readonly string[];
  readonly features?: string;
  readonly liveFeatures?: boolean;
  readonly prompts?: readonly string[];
  readonly count?: number;
  readonly maxLength: number;
  readonly epochs: number;
  readonly promptEpochs: number;
  readonly batchTokens: number;
  readonly learningRate: number;
  readonly warmup: number;
  readonly clipNorm: number;
  readonly seed: number;
  readonly checkpointSeconds: number;
  readonly evaluateEvery: number;
  readonly json?: boolean;
}

export interface Course<Run extends TrainingRun> {
  /** The command behind `eaglet train`. */
  readonly command: string;
  /** What comes of it, in a word or two. */
  readonly product: string;
  /** The first line of its card. */
  readonly title: string;
  /** @param work the run's directory. */
  begin(work: string, engine: Engine, features: TextFeatures, options: RunOptions): Run;
  /** What its provenance says beside what every run's says. */
  facts(run: Run): Readonly<Record<string, unknown>>;
  /** The last lines of its card. @param agreement with the target's best token on held-back text, by step. */
  card(agreement: readonly number[]): string;
  /** @param directory does not exist yet. */
  save(directory: string, run: Run, texts: SavedTexts, engine: Engine): void;
}

/** Characters of the loss's curve in the terminal. */
const CURVE_WIDTH = 16;
/** One text of so many is held back to judge by; of fewer, one. */
const HELD_BACK_EVERY = 50;

export interface TrainingDefaults {
  /** What comes of it, in a word or two. */
  readonly product: string;
  readonly learningRate: number;
}

export function withTrainingOptions(command: Command, { product, learningRate }: TrainingDefaults): Command {
  return withTargetOptions(
    command
      .requiredOption('-o, --out <directory>', `the ${product}; must not exist yet`)
      .option('--work <directory>', 'text, features, checkpoint and curves (default: OUT with .training behind)')
      .option('--conversations <files...>', 'JSONL of conversations that exist (default: the model writes its own)')
      .option('--features <directory>', 'features that exist, of a run before or of `synthesize --features`')
      .option('--live-features', 'compute the features of the conversations in every pass instead of keeping them')
      .option('--prompts <files...>', 'JSONL of prompts for the model to answer (default: it invents them)')
      .option('--count <n>', 'conversations that it writes', positiveNumber),
  )
    .option('--max-length <n>', 'tokens of one of --conversations; longer ones are cut', positiveNumber, 1024)
    .option('--epochs <n>', 'times that all text is seen', positiveNumber, 4)
    .option('--prompt-epochs <n>', 'the first so many learn from prompts too, the others from answers', wholeNumber, 2)
    .option('--batch-tokens <n>', 'of one update', positiveNumber, 4096)
    .option('--learning-rate <x>', 'at its peak', positiveReal, learningRate)
    .option('--warmup <n>', 'updates until the peak', wholeNumber, 50)
    .option('--clip-norm <x>', 'bound of the gradients’ norm', positiveReal, 0.5)
    .option('--seed <n>', `same seed, same ${product}`, wholeNumber, 0)
    .option('--checkpoint-seconds <n>', 'between two checkpoints', positiveNumber, 120)
    .option('--evaluate-every <n>', 'updates between two looks at held-back text', positiveNumber, 100)
    .option('--json', 'the summary as one JSON line');
}

/** From text to what was trained, or as far as it came until it was interrupted. */
export async function train<Run extends TrainingRun>(flags: TrainingFlags, course: Course<Run>): Promise<void> {
  const out = resolve(flags.out); // `head/` is `head`
  requireAbsent(out);
  const work = resolve(flags.work ?? `${out}.training`);
  if (`${work}${sep}`.startsWith(`${out}${sep}`))
    throw new RequestError('--work', `must not lie in ${flags.out}, which is made at the end`);
  requireOneText(flags);
  if (flags.liveFeatures && (flags.conversations === undefined || flags.features !== undefined))
    throw new RequestError('--live-features', 'needs --conversations, and no --features');
  mkdirSync(work, { recursive: true });
  const directory = flags.features ?? join(work, 'features');
  const { conversations: files } = flags;
  // Its own text brings its features with it.
  if (files === undefined && flags.features === undefined && !(await writeConversations(flags, work, directory)))
    return;
  const sha256 = await hashModel(await fetchModel(flags.model));
  using interruption = new Interruption();
  using engine = await openEngine(flags);
  const texts = readTexts(engine, files ?? [], flags);
  if (files !== undefined && !flags.liveFeatures) {
    using store = openStore(directory, sha256, flags, engine, 'append');
    if (!(await fillStore(engine, store, texts.encoded, interruption))) return;
  }
  using features = flags.liveFeatures
    ? new LiveFeatures(engine.target, texts.encoded)
    : openStore(directory, sha256, flags, engine, 'read');
  using run = course.begin(work, engine, orderedTexts(features), runOptions(features, sha256, flags));
  const trained = await trainOn(run, flags, interruption);
  const curves = join(work, 'curves.svg');
  writing(curves, () => writeFileSync(curves, drawTraining(run.log.entries)));
  if (!trained) return;
  const heldBack = run.log.entries.findLast(({ update }) => update === undefined)!.losses;
  const provenance = {
    target: flags.model,
    targetSha256: sha256,
    trainer: `eaglet ${packageInfo().version}`,
    machine: `${engine.kernels.isa}, ${engine.kernels.threads} threads`,
    data: dataOf(flags),
    texts: features.texts,
    tokens: features.tokens,
    skipped: texts.skipped,
    updates: run.trainer.step,
    tokensTrained: run.log.entries.at(-1)!.tokens,
    seconds: Math.round(run.log.entries.reduce((sum, { update }) => sum + (update?.ms ?? 0), 0) / 1000),
    ...course.facts(run),
    agreementByStep: heldBack.map(({ agreement }) => agreement),
    settings: run.options,
  };
  course.save(out, run, { provenance, card: modelCard(course, provenance) }, engine);
  if (flags.json) printJson({ out: flags.out, ...provenance });
  else
    process.stdout.write(
      formatFields([
        [course.product, flags.out],
        ['text', `${formatCount(features.texts)} conversations, ${formatCount(features.tokens)} tokens`],
        ['trained', `${formatCount(provenance.updates)} updates, ${formatDuration(provenance.seconds)}`],
        ['held back', provenance.agreementByStep.map((share) => `${(100 * share).toFixed(1)} %`).join(', ')],
      ]),
    );
}

/** @throws RequestError for options of text that the model would write, beside text that exists. */
function requireOneText({ conversations, features, prompts, count }: TrainingFlags): void {
  if (conversations === undefined && features === undefined) return;
  for (const [option, value] of [['--prompts', prompts] as const, ['--count', count] as const])
    if (value !== undefined)
      throw new RequestError(option, 'is for text that the model writes: leave out --conversations and --features');
}

/** Names of what the text came from; none where the model wrote all of it. Where they lie is nobody's business. */
function dataOf({ conversations, features, prompts }: TrainingFlags): Readonly<Record<string, string[] | undefined>> {
  const names = (paths?: readonly string[]) => paths?.map((path) => basename(path));
  return {
    conversations: names(conversations),
    // Beside conversations they are these conversations' own.
    features: names(conversations === undefined && features !== undefined ? [features] : undefined),
    prompts: names(prompts),
  };
}

function runOptions({ texts }: TextFeatures, sha256: string, flags: TrainingFlags): RunOptions {
  const { epochs, batchTokens: tokensPerBatch, learningRate, warmup, clipNorm, seed } = flags;
  return {
    settings: { epochs, tokensPerBatch, learningRate, warmup, clipNorm, seed },
    promptEpochs: flags.promptEpochs,
    heldBackEvery: Math.min(HELD_BACK_EVERY, texts),
    evaluateEvery: flags.evaluateEvery,
    target: { sha256, dtype: flags.dtype },
  };
}

/** The model's own text with its features, in the work directory; false where it was interrupted. */
async function writeConversations(flags: TrainingFlags, work: string, features: string): Promise<boolean> {
  const summary = await synthesize({
    ...flags,
    ...SYNTHESIS_DEFAULTS,
    out: join(work, 'conversations.jsonl'),
    features,
  });
  if (summary.complete) requireTexts(summary.inFile, reasons(summary, SYNTHESIS_DEFAULTS.maxPromptTokens));
  return summary.complete;
}

/** @param leftOut and why. @throws RequestError where too few texts are left. */
function requireTexts(count: number, leftOut: readonly string[]): void {
  if (count >= 2) return;
  const rule = `must be two at least, one to learn from and one to judge by, got ${count}`;
  throw new RequestError('texts', leftOut.length === 0 ? rule : `${rule}; left out: ${leftOut.join(', ')}`);
}

interface Texts {
  readonly encoded: readonly EncodedText[];
  readonly skipped: Readonly<Partial<Record<Skipped, number>>>;
}

const WHY_SKIPPED: { readonly [S in Skipped]: string } = {
  tooLong: 'cut before an answer',
  unanswered: 'without text',
  misaligned: 'read otherwise than they were asked',
  refused: 'not taken by the chat template',
};

function readTexts(engine: Engine, files: readonly string[], { maxLength: maxTokens }: TrainingFlags): Texts {
  const tokenizer = requireReader(engine, maxTokens);
  const encoded: EncodedText[] = [];
  const skipped: Partial<Record<Skipped, number>> = {};
  for (const file of files)
    for (const conversation of readConversations(file)) {
      const text = encodeConversation(tokenizer, engine.chatTemplate, conversation, { maxTokens, unanswered: 'read' });
      if (typeof text === 'string') skipped[text] = (skipped[text] ?? 0) + 1;
      else encoded.push(text);
    }
  if (files.length > 0)
    requireTexts(
      encoded.length,
      SKIPPED.filter((why) => skipped[why] !== undefined).map((why) => `${skipped[why]} ${WHY_SKIPPED[why]}`),
    );
  return { encoded, skipped };
}

async function fillStore(
  { target }: Engine,
  store: FeatureStore,
  texts: readonly EncodedText[],
  interruption: Interruption,
): Promise<boolean> {
  const before = store.tokens;
  const total = countTokens(texts);
  const bytes = formatBytes(featureBytes(total, target.config.hiddenSize));
  process.stderr.write(
    `eaglet: features of ${formatCount(total)} tokens, ${bytes}; of ${formatCount(before)} tokens they are there\n`,
  );
  using bar = new RateBar('tokens of features', total, before);
  for (const tokens of computeFeatures(target, store, texts)) {
    bar.update(tokens - before, tokens - before);
    await nextTurn();
    if (interruption.asked) {
      tellStopped('stopped');
      return false;
    }
  }
  return true;
}

/** All updates, with checkpoints; false where it was interrupted. */
async function trainOn(
  run: TrainingRun,
  { checkpointSeconds }: TrainingFlags,
  interruption: Interruption,
): Promise<boolean> {
  const { trainer } = run;
  if (run.resumed) process.stderr.write(`eaglet: goes on after ${formatCount(trainer.step)} updates\n`);
  let savedAt = performance.now();
  const firstStep = trainer.step;
  const firstTokens = run.log.entries.at(-1)?.tokens ?? 0;
  using bar = new RateBar('updates', trainer.totalSteps, firstStep);
  while (trainer.step < trainer.totalSteps && !interruption.asked) {
    const entries = run.advance();
    bar.update(trainer.step - firstStep, entries.at(-1)!.tokens - firstTokens, describe(run.log.entries));
    await nextTurn();
    if (performance.now() - savedAt > checkpointSeconds * 1000) {
      run.save();
      savedAt = performance.now();
    }
  }
  run.save();
  if (interruption.asked) tellStopped('stopped and saved');
  return !interruption.asked;
}

/** The loss's curve and its last value; what held-back text said last. */
function describe(entries: readonly LogEntry[]): string {
  const losses = entries.filter(({ update }) => update !== undefined).map(({ losses }) => losses[0]!.classification);
  const heldBack = entries.findLast(({ update }) => update === undefined);
  const agreement = heldBack?.losses.map(({ agreement }) => `${(100 * agreement).toFixed(1)} %`).join(', ');
  const curve = `loss ${sparkline(losses, CURVE_WIDTH)} ${losses.at(-1)!.toFixed(3)}`;
  return agreement === undefined ? curve : `${curve} · agreement ${agreement}`;
}

function modelCard(
  { command, title, card }: Pick<Course<TrainingRun>, 'command' | 'title' | 'card'>,
  provenance: {
    readonly texts: number;
    readonly tokens: number;
    readonly updates: number;
    readonly agreementByStep: readonly number[];
  },
): string {
  const { texts, tokens, updates, agreementByStep } = provenance;
  return `# ${title}

Made by \`eaglet train ${command}\` from ${formatCount(texts)} conversations (${formatCount(tokens)} tokens) in ${formatCount(updates)} updates; \`provenance.json\` has the settings.
${card(agreementByStep)}
`;
}
