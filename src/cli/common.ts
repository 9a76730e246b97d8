/** Options and helpers that several commands share. */

import { SingleBar } from 'cli-progress';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { DEFAULT_MODEL, DRAFTERS, type DrafterName, type Engine, loadEngine } from '../engine.ts';
import { MODEL_DTYPES, type ModelDtype } from '../model/weights.ts';

export interface ModelOptions {
  readonly model: string;
  readonly dtype: ModelDtype;
  readonly head?: string;
  readonly threads?: number;
  readonly contextSize?: number;
  readonly treeSize?: number;
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
}

export function wholeNumber(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0) throw new InvalidArgumentError(`expected a whole number, got "${text}"`);
  return value;
}

export function realNumber(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError(`expected a number, got "${text}"`);
  return value;
}

export function withModelOptions(command: Command): Command {
  return command
    .option('-m, --model <reference>', 'path or built-in alias', DEFAULT_MODEL)
    .addOption(
      new Option('-d, --dtype <dtype>', 'weights in memory; auto keeps the file’s precision')
        .choices(MODEL_DTYPES)
        .default('auto'),
    )
    .option('--head <directory>', 'EAGLE head (default: the one shipped for the model)')
    .option('--threads <n>', 'working threads (default: physical cores)', wholeNumber)
    .option('-c, --context-size <n>', 'tokens of prompt and answer together', wholeNumber)
    .option('--tree-size <n>', 'nodes of the draft tree, root included (1..26)', wholeNumber);
}

export function withSamplingOptions(command: Command): Command {
  return command
    .option('-t, --temperature <x>', '0 takes the likeliest token', realNumber, 0)
    .option('-k, --top-k <n>', 'keep the k likeliest, 0 all', wholeNumber, 0)
    .option('-p, --top-p <x>', 'keep the likeliest up to this probability', realNumber, 1)
    .option('--min-p <x>', 'drop below this share of the likeliest', realNumber, 0)
    .option('--repeat-penalty <x>', 'divides logits of tokens already there', realNumber, 1)
    .option('--seed <n>', 'same seed, same text', wholeNumber, 0)
    .option('-n, --max-tokens <n>', 'new tokens at most', wholeNumber)
    .option('--stop <text...>', 'strings that end the text')
    .addOption(new Option('--drafter <name>', 'who guesses ahead').choices(DRAFTERS));
}

/** Loads with a progress bar on the terminal, silent elsewhere. */
export async function openEngine(options: ModelOptions): Promise<Engine> {
  let bar: SingleBar | undefined;
  let source = '';
  try {
    return await loadEngine({
      ...options,
      onProgress: (progress) => {
        if (!process.stderr.isTTY) return;
        if (bar === undefined || source !== `${progress.source} ${progress.phase}`) {
          bar?.stop();
          source = `${progress.source} ${progress.phase}`;
          bar = new SingleBar({
            format: `${source} {bar} {percentage}% {value}/{total} bytes`,
            stream: process.stderr,
            clearOnComplete: true,
          });
          bar.start(progress.totalBytes ?? 0, 0);
        }
        bar.update(progress.loadedBytes);
      },
    });
  } finally {
    bar?.stop();
  }
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
