/** The tree viewer: rounds of a trace file, one tree after the other, or stepped through on a terminal. */
import { emitKeypressEvents } from 'node:readline';
import { styleText } from 'node:util';
import { type Command, Option } from 'commander';
import { openCheckpoint } from '../checkpoint/checkpoint.ts';
import { resolveModel } from '../checkpoint/hub.ts';
import { buildTokenizer, DEFAULT_MODEL } from '../engine.ts';
import { ModelNotFoundError, RequestError } from '../errors.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { positiveNumber } from './common.ts';
import { FetchReporter } from './progress.ts';
import { escapeControls, truncate } from './terminal-text.ts';
import { readTrace, type TracedRound } from './trace-file.ts';
import { describeRound, drawTree, emittedTokens, type LineKind } from './trace-tree.ts';

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

interface Progress {
  readonly round: TracedRound;
  /** Of its answer, up to this round. */
  readonly acceptanceLength: number;
}

/** An answer's first round follows another answer's, or starts the count again. */
function withProgress(rounds: readonly TracedRound[]): Progress[] {
  let tokens = 0;
  let count = 0;
  return rounds.map((round, i) => {
    const before = rounds[i - 1];
    const { id, turn } = round;
    const goesOn = before !== undefined && before.id === id && before.turn === turn && before.round < round.round;
    if (!goesOn) tokens = count = 0;
    tokens += emittedTokens(round);
    return { round, acceptanceLength: tokens / ++count };
  });
}

type NameToken = (token: number) => string;

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

const STYLES: { readonly [K in LineKind]: Parameters<typeof styleText>[0] } = {
  heading: 'dim',
  accepted: ['bold', 'green'],
  rejected: 'dim',
  bonus: ['bold', 'yellow'],
  unemitted: ['dim', 'strikethrough'],
};

function drawRound({ round, acceptanceLength }: Progress, columns: number, name: NameToken): string[] {
  const title = `${describeRound(round)} · acceptance length so far ${acceptanceLength.toFixed(2)}`;
  return [
    ...wrap(title, columns).map((line) => paint('bold', line)),
    ...drawTree(round, columns, name).map(({ kind, text }) => paint(STYLES[kind], text)),
  ];
}

function wrap(text: string, columns: number): string[] {
  const lines: string[] = [];
  for (const part of text.split(' · ')) {
    const longer = lines.length === 0 ? part : `${lines.at(-1)} · ${part}`;
    if (lines.length > 0 && longer.length <= columns) lines[lines.length - 1] = longer;
    else lines.push(truncate(part, columns));
  }
  return lines;
}

function paint(style: Parameters<typeof styleText>[0], text: string): string {
  const { NO_COLOR, FORCE_COLOR } = process.env;
  if (NO_COLOR || !(process.stdout.isTTY || (FORCE_COLOR && FORCE_COLOR !== '0'))) return text;
  return styleText(style, text);
}

/** A screen of its own, left as it was found. */
class Viewer {
  readonly #rounds: readonly Progress[];
  readonly #name: NameToken;
  readonly #source: string;
  #at = 0;
  /** Lines scrolled down. */
  #top = 0;
  /** A round's number while it is being typed. */
  #typed = '';

  constructor(rounds: readonly Progress[], name: NameToken, source: string) {
    this.#rounds = rounds;
    this.#name = name;
    this.#source = source;
  }

  async run(): Promise<void> {
    const { stdin, stdout } = process;
    const draw = (): void => this.#draw();
    const leave = (): void => {
      stdin.setRawMode(false);
      stdin.pause();
      stdout.off('resize', draw);
      stdout.write('\u001b[?25h\u001b[?1049l');
    };
    stdout.write('\u001b[?1049h\u001b[?25l'); // the other screen, no cursor
    emitKeypressEvents(stdin);
    stdin.setRawMode(true);
    stdin.resume();
    stdout.on('resize', draw);
    process.once('exit', leave);
    try {
      this.#draw();
      await new Promise<void>((resolve, reject) => {
        stdin.once('end', resolve);
        stdin.on('keypress', (_: string | undefined, key: Key) => {
          try {
            if (this.#press(key)) resolve();
            else this.#draw();
          } catch (error) {
            reject(error);
          }
        });
      });
    } finally {
      stdin.removeAllListeners('keypress');
      process.off('exit', leave);
      leave();
    }
  }

  /** True to quit. */
  #press({ name, sequence = '', ctrl }: Key): boolean {
    const page = Math.max(1, (process.stdout.rows ?? 24) - 4);
    if (ctrl ? name === 'c' || name === 'd' : name === 'q' || name === 'escape') return true;
    if (/^\d$/.test(sequence)) {
      this.#typed = `${this.#typed}${sequence}`.slice(-9);
      return false;
    }
    const typed = this.#typed;
    this.#typed = '';
    switch (name) {
      case 'return':
      case 'enter':
        if (typed !== '') this.#show(Number(typed) - 1);
        break;
      case 'right':
      case 'space':
      case 'n':
        this.#show(this.#at + 1);
        break;
      case 'left':
      case 'backspace':
      case 'p':
        this.#show(this.#at - 1);
        break;
      case 'home':
        this.#show(0);
        break;
      case 'end':
        this.#show(this.#rounds.length - 1);
        break;
      case 'up':
        this.#top--;
        break;
      case 'down':
        this.#top++;
        break;
      case 'pageup':
        this.#top -= page;
        break;
      case 'pagedown':
        this.#top += page;
        break;
    }
    return false;
  }

  #show(index: number): void {
    this.#at = Math.min(Math.max(index, 0), this.#rounds.length - 1);
    this.#top = 0;
  }

  #draw(): void {
    const { columns = 80, rows = 24 } = process.stdout;
    const lines = drawRound(this.#rounds[this.#at]!, columns, this.#name);
    const room = Math.max(1, rows - 2);
    this.#top = Math.max(0, Math.min(this.#top, lines.length - room));
    const hidden = lines.length - this.#top - room;
    const more = [this.#top > 0 ? `↑ ${this.#top}` : '', hidden > 0 ? `↓ ${hidden} more lines` : ''];
    const where = `${this.#at + 1}/${this.#rounds.length}`;
    const jump = this.#typed === '' ? '' : `to ${this.#typed}: Enter`;
    const help = [where, jump, ...more, '← → rounds', '↑ ↓ lines', '12 Enter jumps', 'q quits', this.#source];
    const status = truncate(help.filter((part) => part !== '').join(' · '), columns);
    const screen = lines.slice(this.#top, this.#top + room).map((line) => `${line}\u001b[K\r\n`);
    process.stdout.write(`\u001b[H${screen.join('')}\u001b[J\u001b[${rows};1H${paint('inverse', status)}`);
  }
}

interface Key {
  readonly name?: string;
  readonly sequence?: string;
  readonly ctrl?: boolean;
}
