import type { Command } from 'commander';
import { register as registerCost } from './bench-cost.ts';
import { register as registerRun } from './bench-run.ts';
import { register as registerSynthesize } from './bench-synthesize.ts';
import { register as registerTrain } from './bench-train.ts';

export function register(program: Command): void {
  const bench = program.command('bench').description('measure this machine');
  registerCost(bench);
  registerRun(bench);
  registerSynthesize(bench);
  registerTrain(bench);
}
