import type { Command } from 'commander';
import { resolveModel } from '../checkpoint/hub.ts';
import { DEFAULT_MODEL } from '../engine.ts';
import { printJson } from './common.ts';

export function register(program: Command): void {
  program
    .command('pull')
    .description('fetch a model into the cache')
    .argument('[reference]', 'path or built-in alias', DEFAULT_MODEL)
    .option('--json', 'one JSON line')
    .action(async (reference: string, flags: { json?: boolean }) => {
      const path = await resolveModel(reference, {});
      if (flags.json) printJson({ reference, path });
      else process.stdout.write(`${path}\n`);
    });
}
