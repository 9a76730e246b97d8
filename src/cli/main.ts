/** The command line: one file and one line per command. */
import { Command } from 'commander';
import { packageInfo } from '../package-info.ts';
import { register as bench } from './bench.ts';
import { register as chat } from './chat.ts';
import { register as cutVocabulary } from './cut-vocabulary.ts';
import { register as doctor } from './doctor.ts';
import { register as evaluate } from './eval.ts';
import { register as generate } from './generate.ts';
import { register as inspect } from './inspect.ts';
import { register as pull } from './pull.ts';
import { register as synthesize } from './synthesize.ts';
import { escapeLines } from './terminal-text.ts';
import { register as trace } from './trace.ts';
import { register as train } from './train.ts';
import { register as tune } from './tune.ts';
import { register as verify } from './verify.ts';

const COMMANDS = [
  chat,
  generate,
  trace,
  verify,
  pull,
  inspect,
  doctor,
  tune,
  synthesize,
  train,
  cutVocabulary,
  evaluate,
  bench,
] as const;

export async function main(argv: readonly string[]): Promise<void> {
  const program = new Command('eaglet')
    .description('EAGLE speculative decoding: the same text, sooner')
    .version(packageInfo().version)
    .showSuggestionAfterError();
  for (const register of COMMANDS) register(program);
  // Whoever reads stdout may stop early, as `head` does.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit();
    process.stderr.write(`eaglet: stdout: ${error.message}\n`);
    process.exit(1);
  });
  process.stderr.on('error', () => {}); // nobody listens: the work goes on
  try {
    await program.parseAsync(argv);
  } catch (error) {
    process.stderr.write(`eaglet: ${escapeLines(error instanceof Error ? error.message : String(error))}\n`);
    process.exitCode = 1;
  }
}
