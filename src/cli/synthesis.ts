/** What `eaglet synthesize` and its benchmark have in common: options, and the parts of a model that write text. */
import { type Command, InvalidArgumentError } from 'commander';
import type { Engine } from '../engine.ts';
import { RequestError } from '../errors.ts';
import type { KvCache } from '../model/kv-cache.ts';
import type { Lane, SynthesisModel, SynthesisOptions } from '../train/synthesize.ts';
import { type ModelOptions, positiveNumber, realNumber, wholeNumber, withTargetOptions } from './common.ts';

export interface SynthesisFlags extends ModelOptions, SynthesisOptions {
  readonly prompts?: readonly string[];
  readonly batch: number;
}

export const SYNTHESIS_DEFAULTS = {
  batch: 32,
  prefillRows: 32,
  maxTokens: 256,
  maxPromptTokens: 768,
  temperatures: [0, 0.7, 1],
} as const;

export function withSynthesisOptions(command: Command): Command {
  const { batch, prefillRows, maxTokens, maxPromptTokens, temperatures } = SYNTHESIS_DEFAULTS;
  return withTargetOptions(command)
    .option('--batch <n>', 'conversations at a time', positiveNumber, batch)
    .option(
      '--prefill-rows <n>',
      'tokens of prompts that a forward takes beside those it draws',
      positiveNumber,
      prefillRows,
    )
    .option('-n, --max-tokens <n>', 'new tokens of an answer at most', positiveNumber, maxTokens)
    .option('--max-prompt-tokens <n>', 'longer prompts are left out', positiveNumber, maxPromptTokens)
    .option('--temperatures <list>', 'each conversation has one of them', temperatureList, [...temperatures])
    .option('--seed <n>', 'same seed, same text', wholeNumber, 0);
}

function temperatureList(text: string): number[] {
  const temperatures = text.split(',').map(realNumber);
  const wrong = temperatures.find((temperature) => temperature < 0 || temperature > 100);
  if (wrong !== undefined) throw new InvalidArgumentError(`temperatures are 0..100, got ${wrong}`);
  return temperatures;
}

/** @throws RequestError where the model cannot hold conversations. */
export function synthesisModel({ target, tokenizer, chatTemplate: template }: Engine): SynthesisModel {
  if (tokenizer === undefined) throw new RequestError('model', 'has no tokenizer: it cannot write text');
  if (template === undefined) throw new RequestError('model', 'has no chat template: it cannot hold conversations');
  return { target, tokenizer, template };
}

/** Room for a batch of conversations, and for one alone. */
export class SynthesisCaches implements Disposable {
  readonly batch: KvCache;
  readonly alone: KvCache;

  constructor({ target }: SynthesisModel, { batch, maxTokens, maxPromptTokens }: SynthesisFlags) {
    const { contextLength } = target.config;
    if (maxTokens >= contextLength)
      throw new RequestError(
        '--max-tokens',
        `must leave room for a prompt in ${contextLength} tokens, got ${maxTokens}`,
      );
    const capacity = Math.min(maxPromptTokens + maxTokens, contextLength);
    this.batch = target.createCache(batch, capacity);
    this.alone = target.createCache(1, capacity);
  }

  [Symbol.dispose](): void {
    this.batch[Symbol.dispose]();
    this.alone[Symbol.dispose]();
  }
}

export interface LaneStep {
  readonly lane: Lane;
  /** Tokens. */
  readonly drawn: number;
  readonly ms: number;
}

/** Tokens drawn and milliseconds, by lane. */
export class LaneRates {
  readonly #sums = { batch: { drawn: 0, ms: 0 }, alone: { drawn: 0, ms: 0 } };

  add({ lane, drawn, ms }: LaneStep): void {
    this.#sums[lane].drawn += drawn;
    this.#sums[lane].ms += ms;
  }

  tokensPerSecond(lane: Lane): number {
    const { drawn, ms } = this.#sums[lane];
    return (drawn / ms) * 1000;
  }

  /** Whether both have drawn. */
  get comparable(): boolean {
    return Object.values(this.#sums).every(({ drawn }) => drawn > 0);
  }

  /** The batch's tokens a second over those of one conversation alone; a number where both are comparable. */
  get ratio(): number {
    return this.tokensPerSecond('batch') / this.tokensPerSecond('alone');
  }
}
