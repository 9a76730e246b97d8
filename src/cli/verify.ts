import type { Command } from 'commander';
import { type ModelOptions, openEngine, printJson, wholeNumber, withModelOptions } from './common.ts';
import { readPrompts } from './prompts.ts';

interface Flags extends ModelOptions {
  readonly prompts: string;
  readonly limit?: number;
  readonly maxTokens: number;
  readonly json?: boolean;
}

/** Greedy, and drawn with a seed. */
const SETTINGS = [{ temperature: 0 }, { temperature: 0.8, topP: 0.95, seed: 7 }] as const;

export function register(program: Command): void {
  withModelOptions(program.command('verify').description('check that drafting leaves the text unchanged'))
    .requiredOption('--prompts <file>', 'JSONL of {id, turns | prompt | messages}')
    .option('--limit <n>', 'prompts at most', wholeNumber)
    .option('-n, --max-tokens <n>', 'new tokens per prompt', wholeNumber, 64)
    .option('--json', 'one JSON line')
    .action(async (flags: Flags) => {
      using engine = await openEngine(flags);
      const differing: string[] = [];
      let compared = 0;
      for (const { id, messages } of readPrompts(flags.prompts, flags.limit)) {
        for (const setting of SETTINGS) {
          const plain = await engine.complete(messages, { ...setting, maxTokens: flags.maxTokens, drafter: 'none' });
          for (const drafter of engine.drafters.filter((name) => name !== 'none')) {
            const drafted = await engine.complete(messages, { ...setting, maxTokens: flags.maxTokens, drafter });
            compared += drafted.newIds.length;
            if (drafted.newIds.join() !== plain.newIds.join())
              differing.push(`${id} (${drafter}, temperature ${setting.temperature})`);
          }
        }
      }
      if (flags.json) printJson({ comparedTokens: compared, differing });
      else
        process.stdout.write(
          differing.length === 0
            ? `identical: ${compared} tokens compared\n`
            : `different:\n  ${differing.join('\n  ')}\n`,
        );
      if (differing.length > 0) process.exitCode = 1;
    });
}
