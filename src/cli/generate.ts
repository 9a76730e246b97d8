import type { Command } from 'commander';
import {
  type ModelOptions,
  openEngine,
  printJson,
  type SamplingFlags,
  wholeNumber,
  withModelOptions,
  withSamplingOptions,
} from './common.ts';
import { readPrompts } from './prompts.ts';

interface Flags extends ModelOptions, SamplingFlags {
  readonly prompt?: string;
  readonly prompts?: string;
  readonly limit?: number;
  readonly json?: boolean;
}

export function register(program: Command): void {
  const command = program.command('generate').description('answer a prompt, or a file of prompts');
  withSamplingOptions(withModelOptions(command))
    .option('--prompt <text>', 'one user message')
    .option('--prompts <file>', 'JSONL of {id, turns | prompt | messages}')
    .option('--limit <n>', 'prompts at most', wholeNumber)
    .option('--json', 'one JSON line per prompt')
    .action(async (flags: Flags) => {
      if ((flags.prompt === undefined) === (flags.prompts === undefined))
        command.error('error: give either --prompt or --prompts');
      const entries =
        flags.prompts === undefined
          ? [{ id: 'prompt', messages: [{ role: 'user', content: flags.prompt! }] }]
          : readPrompts(flags.prompts, flags.limit);
      using engine = await openEngine(flags);
      for (const { id, messages } of entries) {
        const result = await engine.complete(messages, {
          ...flags,
          ...(!flags.json && { onTextChunk: (text) => process.stdout.write(text) }),
        });
        if (flags.json) printJson({ id, ...result });
        else process.stdout.write('\n');
      }
    });
}
