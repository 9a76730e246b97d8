import { closeSync, openSync, writeFileSync } from 'node:fs';
import { type Command, InvalidArgumentError } from 'commander';
import type { Round } from '../decode/generate.ts';
import { traceRound } from '../decode/trace.ts';
import type { Engine, TextResult } from '../engine.ts';
import { RequestError } from '../errors.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import {
  describeLoading,
  type ModelOptions,
  openEngine,
  outputFile,
  positiveNumber,
  printJson,
  type SamplingFlags,
  wholeNumber,
  withDrafter,
  withModelOptions,
  withSamplingOptions,
} from './common.ts';
import { type PromptEntry, readPrompts } from './prompts.ts';

interface Flags extends ModelOptions, SamplingFlags {
  readonly prompt?: string;
  readonly prompts?: string;
  readonly promptIds?: readonly number[];
  readonly trace?: string;
  readonly system?: string;
  readonly limit?: number;
  readonly json?: boolean;
  readonly verbose?: boolean;
}

export function register(program: Command): void {
  const command = program.command('generate').description('answer a prompt, or a file of prompts');
  withSamplingOptions(withModelOptions(command))
    .option('--prompt <text>', 'one user message')
    .option('--prompts <file>', 'JSONL of {id, turns | prompt | messages}; several turns are a conversation')
    .option('--prompt-ids <ids>', 'token ids, such as 5,17; a model without a tokenizer answers in ids', tokenIds)
    .option('-s, --system <text>', 'system message, where the prompt has none of its own')
    .option('--limit <n>', 'prompts at most, taken from the tasks in turn', positiveNumber)
    .option('--json', 'one JSON line per answer; with several turns, `turn` counts them from 1')
    .option('--trace <file>', 'write every round as a JSON line, for `eaglet trace`', outputFile)
    .option('--verbose', 'loading time and memory, on stderr')
    .action(async (flags: Flags) => {
      const { prompt, prompts, promptIds } = flags;
      if ([prompt, prompts, promptIds].filter((given) => given !== undefined).length !== 1)
        command.error('error: give one of --prompt, --prompts and --prompt-ids');
      if (promptIds !== undefined && flags.system !== undefined)
        command.error('error: --system is text, and --prompt-ids is the whole of the prompt');
      const entries =
        prompts === undefined
          ? [{ id: 'prompt', task: 'all', messages: [{ role: 'user', content: prompt ?? '' }], followUps: [] }]
          : readPrompts(prompts, flags.limit);
      using engine = await openEngine(withDrafter(flags));
      if (flags.verbose) process.stderr.write(`${describeLoading(engine)}\n`);
      // Last: whatever it holds is lost.
      using trace = flags.trace === undefined ? undefined : new TraceWriter(flags.trace);
      if (promptIds !== undefined) return await continueIds(engine, promptIds, flags, trace);
      await generate(engine, entries, flags, trace);
    });
}

function tokenIds(text: string): number[] {
  try {
    return text.split(',').map(wholeNumber);
  } catch (cause) {
    throw cause instanceof InvalidArgumentError
      ? new InvalidArgumentError(`expected token ids, such as 5,17: ${cause.message}`)
      : cause;
  }
}

/** The rounds of all answers, line after line as they come: what was written stays, however the run ends. */
class TraceWriter implements Disposable {
  readonly #path: string;
  readonly #file: number;

  constructor(path: string) {
    this.#path = path;
    this.#file = this.#try('opened', () => openSync(path, 'w'));
  }

  /** The hearer of one answer's rounds. @param names which answer it is, where the file has several. */
  rounds(names: { readonly id?: string; readonly turn?: number }): (round: Round, kept: number) => void {
    let count = 0;
    return (round, kept) => {
      const line = `${JSON.stringify({ ...names, ...traceRound(round, ++count, kept) })}\n`;
      this.#try('written', () => writeFileSync(this.#file, line));
    };
  }

  #try<T>(what: string, action: () => T): T {
    try {
      return action();
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new RequestError('--trace', `${this.#path} cannot be ${what}: ${reason}`, { cause });
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.#file);
  }
}

/** Token ids in; text out where the model has a tokenizer, ids where not. */
async function continueIds(
  engine: Engine,
  ids: readonly number[],
  flags: Flags,
  trace: TraceWriter | undefined,
): Promise<void> {
  const stream = engine.stream(ids, { ...flags, ...(trace && { onRound: trace.rounds({}) }) });
  let separator = '';
  for (;;) {
    const next = await stream.next();
    if (next.done) {
      if (flags.json) printAnswer({ id: 'prompt' }, next.value);
      else process.stdout.write('\n');
      return;
    }
    if (flags.json) continue;
    const { text, tokens } = next.value;
    if (engine.tokenizer !== undefined) process.stdout.write(text);
    else process.stdout.write(`${separator}${tokens.map(({ id }) => id).join()}`);
    separator = ',';
  }
}

function printAnswer(
  names: { readonly id: string; readonly turn?: number },
  { promptIds, newIds, text, stopReason, stats }: TextResult,
): void {
  printJson({ ...names, promptIds, newIds, text, stopReason, stats });
}

async function generate(
  engine: Engine,
  entries: readonly PromptEntry[],
  flags: Flags,
  trace: TraceWriter | undefined,
): Promise<void> {
  for (const { id, messages, followUps } of entries) {
    const several = followUps.length > 0;
    const history = withSystem(messages, flags.system);
    for (let turn = 1; turn <= followUps.length + 1; turn++) {
      if (turn > 1) history.push({ role: 'user', content: followUps[turn - 2]! });
      if (!flags.json && (several || entries.length > 1))
        process.stdout.write(`## ${id}${several ? ` (turn ${turn})` : ''}\n`);
      try {
        const names = { id, ...(several && { turn }) };
        const answer = await engine.complete(history, {
          ...flags,
          ...(trace && { onRound: trace.rounds(several || entries.length > 1 ? names : {}) }),
          ...(!flags.json && { onTextChunk: (text) => process.stdout.write(text) }),
        });
        if (flags.json) printAnswer(names, answer);
        else process.stdout.write('\n');
        history.push({ role: 'assistant', content: answer.text });
      } catch (error) {
        // One prompt that cannot be served, for its length say, does not end a long run.
        if (!(error instanceof RequestError) || error.param === '--trace' || entries.length === 1) throw error;
        process.stderr.write(`eaglet: ${id}: ${error.message}\n`);
        process.exitCode = 1;
        break;
      }
    }
  }
}

function withSystem(messages: readonly ChatMessage[], system: string | undefined): ChatMessage[] {
  if (system === undefined || messages[0]?.role === 'system') return [...messages];
  return [{ role: 'system', content: system }, ...messages];
}
