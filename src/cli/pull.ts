import type { Command } from 'commander';
import { DEFAULT_MODEL } from '../engine.ts';
import { fetchModel, printJson } from './common.ts';

export function register(program: Command): void {
  program
    .command('pull')
    .description('fetch a model into the cache and print its path')
    .argument('[reference]', 'path or built-in alias', DEFAULT_MODEL)
    .option('--json', 'one JSON line')
    .action(async (reference: string, flags: { readonly json?: boolean }) => {
      const path = await fetchModel(reference);
      if (flags.json) printJson({ reference, path });
      else process.stdout.write(`${path}\n`);
    });
}
