import type { Command } from 'commander';
import { register as registerDraft } from './train-draft.ts';
import { register as registerEagle } from './train-eagle.ts';
import { register as registerMedusa } from './train-medusa.ts';

export function register(program: Command): void {
  const train = program.command('train').description('make a drafter for a model');
  registerEagle(train);
  registerDraft(train);
  registerMedusa(train);
}
