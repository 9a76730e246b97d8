/** The tree viewer: rounds of a trace file, one tree after the other, or stepped through on a terminal. */
import { type Command, Option } from 'commander';
import { openCheckpoint } from '../checkpoint/checkpoint.ts';
import { resolveModel } from '../checkpoint/hub.ts';
import { buildTokenizer, DEFAULT_MODEL } from '../engine.ts';
import { ModelNotFoundError, RequestError } from '../errors.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { positiveNumber } from './common.ts';
import { FetchReporter } from './progress.ts';
import { escapeControls } from './terminal-text.ts';
import { readTrace } from './trace-file.ts';
import { drawRound, type NameToken, type Progress, withProgress } from './trace-rounds.ts';
import { Viewer } from './trace-viewer.ts';

interface Flags {
  readonly model?: string;
  readonly ids?: boolean;
  readonly round?: number;
}

export function register(program: Command): void {
  program
    .command('trace')
    .description('draw the trees of `generate --trace`: ● accepted, ○ rejected, ★ the model’s own token')
    .argument('<file>', 'JSON lines, one per round')
    .option('-m, --model <reference>', `whose tokenizer names the tokens (default: ${DEFAULT_MODEL}, if it is here)`)
    .addOption(new Option('--ids', 'token ids rather than text').conflicts('model'))
    .option('--round <n>', 'this round only', positiveNumber)
    .action(trace);
}

async function trace(file: string, flags: Flags): Promise<void> {
  const rounds = withProgress(readTrace(file));
  const { name, source } = await nameTokens(flags);
  const shown = flags.round === undefined ? rounds : rounds.filter(({ round }) => round.round === flags.round);
  if (shown.length === 0)
    throw new RequestError('--round', `${file} has rounds 1..${highest(rounds)}, got ${flags.round}`);
  if (flags.round === undefined && process.stdin.isTTY && process.stdout.isTTY)
    return await new Viewer(shown, name, source).run();
  process.stdout.write(`${source}\n`);
  const columns = process.stdout.columns ?? 80;
  for (const round of shown) process.stdout.write(`\n${drawRound(round, columns, name).join('\n')}\n`);
}

const highest = (rounds: readonly Progress[]): number =>
  rounds.reduce((most, { round }) => Math.max(most, round.round), 0);

/** What tokens are called, and a line that says whose names these are. */
async function nameTokens({ model, ids }: Flags): Promise<{ readonly name: NameToken; readonly source: string }> {
  const tokenizer = ids ? undefined : await openTokenizer(model);
  if (tokenizer === undefined) return { name: String, source: 'tokens by their ids; -m MODEL shows their text' };
  return {
    name: (token) => textOf(tokenizer, token),
    source: `text by the tokenizer of ${model ?? `${DEFAULT_MODEL} (-m MODEL for another's)`}`,
  };
}

/** Header and tokenizer only: no weights are read. The default model is not fetched for this. */
async function openTokenizer(model: string | undefined): Promise<Tokenizer | undefined> {
  using reporter = new FetchReporter();
  let path: string;
  try {
    path = await resolveModel(model ?? DEFAULT_MODEL, {
      offline: model === undefined,
      onProgress: reporter.onProgress,
    });
  } catch (error) {
    if (model === undefined && error instanceof ModelNotFoundError) return undefined;
    throw error;
  }
  using checkpoint = await openCheckpoint(path);
  const { tokenizer } = checkpoint;
  if (tokenizer !== undefined) return buildTokenizer(tokenizer, path);
  throw new RequestError('--model', `${model} has no tokenizer: --ids shows token ids`);
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function textOf(tokenizer: Tokenizer, token: number): string {
  const text = tokenizer.textOf(token);
  if (text === undefined) return `no token ${token}`;
  if (tokenizer.isControl(token)) return escapeControls(text);
  const bytes = tokenizer.tokenBytes(token);
  try {
    return `"${escapeControls(utf8.decode(bytes))}"`;
  } catch {
    return `"${Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')}"`; // part of a character
  }
}
