import { createHash } from 'node:crypto';
import type { Command } from 'commander';
import { DRAFTERS, type DrafterName } from '../draft/registry.ts';
import type { Engine, TextOptions } from '../engine.ts';
import {
  type ModelOptions,
  openEngine,
  positiveNumber,
  printJson,
  realNumber,
  wholeNumber,
  withModelOptions,
} from './common.ts';
import { formatCount } from './format.ts';
import { ProgressBar } from './progress.ts';
import { answerable, DEFAULT_PROMPTS, type PromptEntry, readPrompts } from './prompts.ts';

interface Flags extends ModelOptions {
  readonly prompts?: string;
  readonly limit?: number;
  readonly maxTokens: number;
  readonly temperature?: number;
  readonly seed: number;
  readonly bits?: boolean;
  readonly json?: boolean;
}

export function register(program: Command): void {
  withModelOptions(program.command('verify').description('check that drafting leaves the text unchanged'))
    .option('--prompts <file>', 'JSONL of {id, turns | prompt | messages} (default: 28 that come with eaglet)')
    .option('--limit <n>', 'prompts at most, taken from the tasks in turn', positiveNumber)
    .option('-n, --max-tokens <n>', 'new tokens per prompt', positiveNumber, 64)
    .option('-t, --temperature <x>', 'this one only (default: 0, then 0.8)', realNumber)
    .option('--seed <n>', 'of drawn text', wholeNumber, 7)
    .option('--bits', 'compare the logits of every position too, bit for bit')
    .option('--json', 'one JSON line')
    .action(verify);
}

interface Difference {
  readonly id: string;
  readonly drafter: DrafterName;
  readonly temperature: number;
  readonly seed: number;
  /** Index among the new tokens. */
  readonly token: number;
  readonly what: 'tokens' | 'logits';
}

async function verify(flags: Flags): Promise<void> {
  const read = readPrompts(flags.prompts ?? DEFAULT_PROMPTS, flags.limit);
  using engine = await openEngine({ ...flags, drafters: DRAFTERS });
  const drafters = engine.drafters.filter((name) => name !== 'none');
  const prompts = answerable(engine, read);
  // Greedy, and drawn with a seed.
  const temperatures = flags.temperature === undefined ? [0, 0.8] : [flags.temperature];
  const { seed, maxTokens } = flags;
  const differing: Difference[] = [];
  let comparedTokens = 0;
  using progress = new ProgressBar('prompts', prompts.length);
  for (const [index, { id, messages }] of prompts.entries()) {
    for (const temperature of temperatures) {
      const options = { temperature, seed, maxTokens, ...(temperature > 0 && { topP: 0.95 }) };
      engine.forget(); // what the others are held against owes nothing to earlier texts
      const plain = await record(engine, messages, { ...options, drafter: 'none' }, flags);
      for (const drafter of drafters) {
        const drafted = await record(engine, messages, { ...options, drafter }, flags);
        comparedTokens += drafted.newIds.length;
        const difference = firstDifference(plain, drafted);
        if (difference !== undefined) differing.push({ id, drafter, temperature, seed, ...difference });
      }
    }
    progress.update(index + 1);
  }
  progress[Symbol.dispose]();
  report(
    { prompts: prompts.length, temperatures, drafters, comparedTokens, bits: flags.bits === true, differing },
    flags,
  );
}

interface Recording {
  readonly newIds: readonly number[];
  /** With --bits, of the logits that each new token was drawn from: a row of a big vocabulary takes a megabyte. */
  readonly digests: readonly string[];
}

async function record(
  engine: Engine,
  messages: PromptEntry['messages'],
  options: TextOptions,
  { bits }: Flags,
): Promise<Recording> {
  const digests: string[] = [];
  const onLogits = (_position: number, { buffer, byteOffset, byteLength }: Float32Array): void => {
    digests.push(
      createHash('sha256')
        .update(new Uint8Array(buffer, byteOffset, byteLength))
        .digest('base64'),
    );
  };
  const { newIds } = await engine.complete(messages, { ...options, ...(bits && { onLogits }) });
  return { newIds, digests };
}

function firstDifference(plain: Recording, drafted: Recording): Pick<Difference, 'token' | 'what'> | undefined {
  const length = Math.max(plain.newIds.length, drafted.newIds.length);
  for (let token = 0; token < length; token++) {
    if (plain.digests[token] !== drafted.digests[token]) return { token, what: 'logits' };
    if (plain.newIds[token] !== drafted.newIds[token]) return { token, what: 'tokens' };
  }
  return undefined;
}

interface Report {
  readonly prompts: number;
  readonly temperatures: readonly number[];
  readonly drafters: readonly DrafterName[];
  readonly comparedTokens: number;
  readonly bits: boolean;
  readonly differing: readonly Difference[];
}

function report(result: Report, { json }: Flags): void {
  const { comparedTokens, differing, bits, prompts, drafters } = result;
  if (differing.length > 0) process.exitCode = 1;
  if (json) {
    printJson(result);
  } else if (differing.length === 0) {
    const compared = `${formatCount(comparedTokens)} tokens${bits ? ', each with all its logits,' : ''} compared`;
    process.stdout.write(`identical: ${compared} over ${prompts} prompts (${drafters.join(', ')} against plain)\n`);
  } else {
    const lines = differing.map(
      ({ id, drafter, temperature, seed, token, what }) =>
        `  ${id}: ${what} of new token ${token} (${drafter}, temperature ${temperature}, seed ${seed})\n`,
    );
    process.stdout.write(`different, first at\n${lines.join('')}`);
  }
}
