import type { Command } from 'commander';
import { resolveModel } from '../checkpoint/hub.ts';
import { DEFAULT_MODEL } from '../engine.ts';
import { printJson } from './common.ts';
import { FetchReporter } from './progress.ts';

export function register(program: Command): void {
  program
    .command('pull')
    .description('fetch a model into the cache and print its path')
    .argument('[reference]', 'path or built-in alias', DEFAULT_MODEL)
    .option('--json', 'one JSON line')
    .action(async (reference: string, flags: { readonly json?: boolean }) => {
      const path = await fetchWithProgress(reference);
      if (flags.json) printJson({ reference, path });
      else process.stdout.write(`${path}\n`);
    });
}

async function fetchWithProgress(reference: string): Promise<string> {
  using reporter = new FetchReporter();
  return await resolveModel(reference, { onProgress: reporter.onProgress });
}
