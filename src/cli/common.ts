/** Options and helpers that several commands share. */

import { accessSync, constants, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { resolveModel } from '../checkpoint/hub.ts';
import { parseTypical, type TypicalOptions } from '../decode/typical.ts';
import { VERIFIERS, type VerifierName } from '../decode/verifier.ts';
import { type LookaheadOptions, parseLookahead } from '../draft/lookahead-options.ts';
import { DRAFTERS, type DrafterName } from '../draft/registry.ts';
import { parseTreeOption, type TreeOption } from '../draft/tree-option.ts';
import { DEFAULT_MODEL, type Engine, type EngineOptions, loadEngine } from '../engine.ts';
import { RequestError } from '../errors.ts';
import { MODEL_DTYPES, type ModelDtype } from '../model/weights.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { formatBytes } from './format.ts';
import { FetchReporter } from './progress.ts';

export interface ModelOptions {
  readonly model: string;
  readonly dtype: ModelDtype;
  readonly head?: string;
  readonly draftModel?: string;
  readonly medusa?: string;
  readonly threads?: number;
  readonly contextSize?: number;
  readonly treeSize?: number;
  readonly tree?: TreeOption;
  readonly lookahead?: LookaheadOptions;
}

export interface SamplingFlags {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repeatPenalty: number;
  readonly seed: number;
  readonly maxTokens?: number;
  readonly stop?: string[];
  readonly drafter?: DrafterName;
  readonly verify: VerifierName;
  readonly typical?: TypicalOptions;
}

export function wholeNumber(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isSafeInteger(value) || value < 0)
    throw new InvalidArgumentError(`expected a whole number, got "${text}"`);
  return value;
}

const wholeFrom =
  (least: number) =>
  (text: string): number => {
    const value = wholeNumber(text);
    if (value < least) throw new InvalidArgumentError(`expected at least ${least}, got ${value}`);
    return value;
  };

export const positiveNumber = wholeFrom(1);
export const severalNumber = wholeFrom(2);

export function positiveNumbers(text: string): number[] {
  return text.split(',').map(positiveNumber);
}

export function realNumber(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError(`expected a number, got "${text}"`);
  return value;
}

export function positiveReal(text: string): number {
  const value = realNumber(text);
  if (value <= 0) throw new InvalidArgumentError(`expected more than 0, got ${text}`);
  return value;
}

export function realFromZero(text: string): number {
  const value = realNumber(text);
  if (value < 0) throw new InvalidArgumentError(`expected at least 0, got ${text}`);
  return value;
}

/** Where a result will be written: looked at before the work that leads to it. */
export function outputFile(path: string): string {
  try {
    if (statSync(path, { throwIfNoEntry: false })?.isDirectory()) throw new Error('it is a directory');
    accessSync(dirname(path), constants.W_OK);
  } catch (cause) {
    throw new InvalidArgumentError(`"${path}" cannot be written: ${cause instanceof Error ? cause.message : cause}`);
  }
  return path;
}

/** What `parse` makes of an argument; what it refuses is a wrong argument. */
const parsedBy =
  <T>(parse: (text: string) => T): ((text: string) => T) =>
  (text) => {
    try {
      return parse(text);
    } catch (error) {
      throw error instanceof RangeError ? new InvalidArgumentError(error.message) : error;
    }
  };

/** The target alone, for commands that draft nothing. */
export function withTargetOptions(command: Command): Command {
  return command
    .option('-m, --model <reference>', 'path or built-in alias', DEFAULT_MODEL)
    .addOption(
      new Option('-d, --dtype <dtype>', 'weights in memory; auto keeps the file’s precision')
        .choices(MODEL_DTYPES)
        .default('auto'),
    )
    .option('--threads <n>', 'working threads (default: physical cores)', positiveNumber);
}

export function withModelOptions(command: Command): Command {
  return withTargetOptions(command)
    .option('--head <directory>', 'EAGLE head (default: the one shipped for the model)')
    .option(
      '--draft-model <reference>',
      'a small model with the same vocabulary, for --drafter draft (default: the one shipped for the model)',
    )
    .option('--medusa <directory>', 'Medusa heads, in either published layout (default: those shipped for the model)')
    .option('-c, --context-size <n>', 'tokens of prompt and answer together', positiveNumber)
    .option('--tree-size <n>', 'nodes of the draft tree, root included (1..26): --tree static:n', positiveNumber)
    .option(
      '--tree <tree>',
      'auto (default), chain:depth, static, static:nodes, medusa:name, dynamic:depth,topk,total, or a JSON file of child ranks',
      parsedBy(parseTreeOption),
    )
    .option(
      '--lookahead <w,n,g>',
      'lookahead: columns of the window, tokens of an n-gram, guesses; the most of each with --tree auto',
      parsedBy(parseLookahead),
    );
}

export function withSamplingOptions(command: Command): Command {
  return withVerifyOptions(command)
    .option('-t, --temperature <x>', '0 takes the likeliest token', realNumber, 0)
    .option('-k, --top-k <n>', 'keep the k likeliest, 0 all', wholeNumber, 0)
    .option('-p, --top-p <x>', 'keep the likeliest up to this probability', realNumber, 1)
    .option('--min-p <x>', 'drop below this share of the likeliest', realNumber, 0)
    .option('--repeat-penalty <x>', 'divides logits of tokens already there', realNumber, 1)
    .option('--seed <n>', 'same seed, same text', wholeNumber, 0)
    .option('-n, --max-tokens <n>', 'new tokens at most', positiveNumber)
    .option('--stop <text...>', 'strings that end the text')
    .addOption(new Option('--drafter <name>', 'who guesses ahead').choices(DRAFTERS));
}

export function withVerifyOptions(command: Command): Command {
  const how = new Option(
    '--verify <how>',
    'match: the text of plain decoding; multi-round: of its law only, drafts drawn; typical: lossy, as Medusa’s',
  );
  return command
    .addOption(how.choices(VERIFIERS).default('match'))
    .option(
      '--typical <epsilon,delta>',
      'for --verify typical, lossy: what is at least this likely stands, and what is this share of e^-entropy (default: 0.09,0.3)',
      parsedBy(parseTypical),
    )
    .hook('preAction', () => {
      const { verify, typical } = command.opts<Pick<SamplingFlags, 'verify' | 'typical'>>();
      if (typical !== undefined && verify !== 'typical')
        command.error(`error: --typical is for --verify typical, which is lossy, and --verify is ${verify}`);
    });
}

/** Fetches the model if need be, with progress; returns its path. */
export async function fetchModel(reference: string): Promise<string> {
  using reporter = new FetchReporter();
  return await resolveModel(reference, { onProgress: reporter.onProgress });
}

/** Options with which the drafter that is asked for is loaded too. */
export const withDrafter = <Flags extends { readonly drafter?: DrafterName }>(flags: Flags) => ({
  ...flags,
  drafters: flags.drafter === undefined ? [] : [flags.drafter],
});

/** Fetches the model if need be, with progress, and loads it. */
export async function openEngine(options: EngineOptions): Promise<Engine> {
  using reporter = new FetchReporter();
  return await loadEngine({ ...options, onProgress: reporter.onProgress });
}

/** `loaded in 0.4 s, 96.6 MB of weights, peak 251.0 MB`: the peak is the whole process's, Node and tokenizer included. */
export function describeLoading({ loadMs, weightBytes, peakResidentBytes }: Engine): string {
  const weights = `loaded in ${(loadMs / 1000).toFixed(1)} s, ${formatBytes(weightBytes)} of weights`;
  return peakResidentBytes === 0 ? weights : `${weights}, peak ${formatBytes(peakResidentBytes)}`;
}

/** The tokenizer of a model that shall read texts of up to `maxLength` tokens. @throws RequestError where it cannot. */
export function requireReader({ tokenizer, target }: Engine, maxLength: number): Tokenizer {
  if (tokenizer === undefined) throw new RequestError('model', 'has no tokenizer: it cannot read text');
  const { contextLength } = target.config;
  if (maxLength > contextLength)
    throw new RequestError('--max-length', `must be at most the model's context of ${contextLength}, got ${maxLength}`);
  return tokenizer;
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
