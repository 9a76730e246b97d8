import type { Command } from 'commander';
import { RequestError } from '../errors.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import {
  describeLoading,
  type ModelOptions,
  openEngine,
  positiveNumber,
  printJson,
  type SamplingFlags,
  withModelOptions,
  withSamplingOptions,
} from './common.ts';
import { type PromptEntry, readPrompts } from './prompts.ts';

interface Flags extends ModelOptions, SamplingFlags {
  readonly prompt?: string;
  readonly prompts?: string;
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
    .option('-s, --system <text>', 'system message, where the prompt has none of its own')
    .option('--limit <n>', 'prompts at most', positiveNumber)
    .option('--json', 'one JSON line per answer; with several turns, `turn` counts them from 1')
    .option('--verbose', 'loading time and memory, on stderr')
    .action(async (flags: Flags) => {
      const { prompt, prompts } = flags;
      if ((prompt === undefined) === (prompts === undefined)) command.error('error: give either --prompt or --prompts');
      const entries =
        prompts === undefined
          ? [{ id: 'prompt', task: 'all', messages: [{ role: 'user', content: prompt! }], followUps: [] }]
          : readPrompts(prompts, flags.limit);
      await generate(entries, flags);
    });
}

async function generate(entries: readonly PromptEntry[], flags: Flags): Promise<void> {
  using engine = await openEngine(flags);
  if (flags.verbose) process.stderr.write(`${describeLoading(engine)}\n`);
  for (const { id, messages, followUps } of entries) {
    const several = followUps.length > 0;
    const history = withSystem(messages, flags.system);
    for (let turn = 1; turn <= followUps.length + 1; turn++) {
      if (turn > 1) history.push({ role: 'user', content: followUps[turn - 2]! });
      if (!flags.json && (several || entries.length > 1))
        process.stdout.write(`## ${id}${several ? ` (turn ${turn})` : ''}\n`);
      try {
        const answer = await engine.complete(history, {
          ...flags,
          ...(!flags.json && { onTextChunk: (text) => process.stdout.write(text) }),
        });
        const { promptIds, newIds, text, stopReason, stats } = answer;
        if (flags.json) printJson({ id, ...(several && { turn }), promptIds, newIds, text, stopReason, stats });
        else process.stdout.write('\n');
        history.push({ role: 'assistant', content: text });
      } catch (error) {
        // One prompt that cannot be served, for its length say, does not end a long run.
        if (!(error instanceof RequestError) || entries.length === 1) throw error;
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
