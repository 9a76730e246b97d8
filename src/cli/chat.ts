/**
 * A chat in the terminal. With a pipe for stdin every line is a message, only answers are printed, and the end of the input ends the chat.
 */
import { createInterface } from 'node:readline';
import { styleText } from 'node:util';
import type { Command } from 'commander';
import { speedupOver } from '../decode/stats.ts';
import type { DrafterName } from '../draft/registry.ts';
import type { Engine, TextChunk, TextResult } from '../engine.ts';
import { RequestError } from '../errors.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import {
  describeLoading,
  type ModelOptions,
  openEngine,
  type SamplingFlags,
  withDrafter,
  withModelOptions,
  withSamplingOptions,
} from './common.ts';
import { escapeLines } from './terminal-text.ts';

interface Flags extends ModelOptions, SamplingFlags {
  readonly system?: string;
  readonly showDrafts?: boolean;
}

interface Session {
  readonly engine: Engine;
  readonly flags: Flags;
  /** Somebody reads and types, rather than pipes. */
  readonly interactive: boolean;
  system: string | undefined;
  messages: ChatMessage[];
  drafter: DrafterName;
  showDrafts: boolean;
  /** What plain decoding takes for a token, once it was measured. */
  plainRoundMs: number | undefined;
  quit: boolean;
}

/** Steps of plain decoding that the speedup is measured against: enough for a steady rate, a fifth of a second of work. */
const PLAIN_STEPS = 16;

const LEGEND = 'green: guessed by the drafter and confirmed; plain: written by the model itself';

export function register(program: Command): void {
  withSamplingOptions(withModelOptions(program.command('chat').description('talk with a model in the terminal')))
    .option('-s, --system <text>', 'system message')
    .option('--show-drafts', 'colour tokens by who guessed them')
    .action(chat);
}

async function chat(flags: Flags): Promise<void> {
  using engine = await openEngine(withDrafter(flags));
  const session: Session = {
    engine,
    flags,
    interactive: process.stdin.isTTY === true && process.stdout.isTTY === true,
    system: flags.system,
    messages: [],
    drafter: flags.drafter ?? engine.defaultDrafter,
    showDrafts: flags.showDrafts ?? false,
    plainRoundMs: undefined,
    quit: false,
  };
  forget(session);
  if (flags.drafter !== undefined) useDrafter(session, flags.drafter);
  await converse(session);
}

async function converse(session: Session): Promise<void> {
  const { interactive } = session;
  const terminal = createInterface({
    input: process.stdin,
    ...(interactive && { output: process.stdout }),
    terminal: interactive,
    prompt: '> ',
  });
  let running: AbortController | undefined;
  let warned = false;
  let closed = false;
  // Ctrl-C cancels the answer first and quits second.
  const interrupt = (): void => {
    if (running !== undefined && !running.signal.aborted) {
      running.abort();
      warned = true;
    } else if (running === undefined && !warned && interactive) {
      warned = true;
      note(session, '\nCtrl-C once more quits');
      terminal.prompt();
    } else {
      session.quit = true;
      terminal.close();
    }
  };
  terminal.on('SIGINT', interrupt); // a terminal in raw mode sends the key
  process.on('SIGINT', interrupt);
  terminal.on('close', () => {
    closed = true;
    if (interactive) running?.abort();
  });

  greet(session);
  if (interactive) terminal.prompt();
  for await (const line of terminal) {
    warned = false;
    const text = line.trim();
    if (text.startsWith('/')) {
      runCommand(session, text);
    } else if (text !== '') {
      running = new AbortController();
      await reply(session, text, running.signal);
      running = undefined;
    }
    if (session.quit) break;
    if (interactive && !closed) terminal.prompt();
  }
  terminal.close();
  process.off('SIGINT', interrupt);
  if (interactive) process.stdout.write('\n');
}

function greet(session: Session): void {
  const { engine, flags, drafter, showDrafts } = session;
  const { isa, threads } = engine.kernels;
  note(session, `${flags.model} · ${flags.dtype} on ${isa}, ${threads} threads · ${describeLoading(engine)}`);
  note(session, `drafter ${drafter} · /help lists commands · Ctrl-C cancels an answer, then quits`);
  if (showDrafts) note(session, LEGEND);
}

/** One message and its answer. What cannot be served is said, and leaves the conversation as it was. */
async function reply(session: Session, text: string, signal: AbortSignal): Promise<void> {
  const { messages } = session;
  messages.push({ role: 'user', content: text });
  try {
    const ids = session.engine.encode(messages);
    const result = await answer(session, ids, signal);
    process.stdout.write('\n');
    if (result.newIds.length === 0) messages.pop();
    else messages.push({ role: 'assistant', content: result.text });
    if (session.interactive) await close(session, ids, result);
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    messages.pop();
    if (!session.interactive) process.exitCode = 1; // nobody sees it go wrong
    process.stderr.write(
      `eaglet: ${escapeLines(error.message)}${error.param === 'prompt' ? ' (/reset starts anew)' : ''}\n`,
    );
  }
}

async function answer(session: Session, ids: readonly number[], signal: AbortSignal): Promise<TextResult> {
  const { engine, flags, drafter } = session;
  const stream = engine.stream(ids, { ...flags, drafter, signal });
  for (;;) {
    const next = await stream.next();
    if (next.done) return next.value;
    process.stdout.write(session.showDrafts ? colourDrafts(next.value) : next.value.text);
  }
}

function colourDrafts({ text, tokens }: TextChunk): string {
  if (tokens.length === 0) return text; // what was held back when it was cancelled
  return tokens.map(({ text, drafted }) => (drafted && text !== '' ? styleText('green', text) : text)).join('');
}

/** The line below an answer. */
async function close(session: Session, ids: readonly number[], result: TextResult): Promise<void> {
  const { stats, stopReason } = result;
  const { tokensPerSecond, acceptanceLength, treeSize, rounds } = stats;
  const parts = rounds === 0 ? [] : [`${tokensPerSecond.toFixed(0)} tokens/s`];
  if (rounds > 0 && session.drafter !== 'none') {
    parts.push(`acceptance length ${acceptanceLength.toFixed(2)}`, `trees of ${treeSize.toFixed(1)}`);
    if (stopReason !== 'abort') session.plainRoundMs ??= await measurePlainRound(session, ids, result);
    const plainRoundMs = session.plainRoundMs ?? stats.plainRoundMs;
    if (plainRoundMs !== undefined)
      parts.push(
        `${speedupOver(plainRoundMs, stats).toFixed(2)}x plain decoding's ${(1000 / plainRoundMs).toFixed(0)}`,
      );
  } else if (rounds > 0) session.plainRoundMs = stats.plainRoundMs ?? session.plainRoundMs;
  note(session, [...parts, STOP_WORDS[stopReason]].filter((part) => part !== '').join(' · '));
}

const STOP_WORDS: { readonly [R in TextResult['stopReason']]: string } = {
  endToken: '',
  stopString: 'stop string',
  maxTokens: 'stopped at --max-tokens',
  contextLimit: 'the context is full: /reset starts anew',
  abort: 'cancelled; Ctrl-C once more quits',
};

/**
 * The end of the same answer, decoded plainly: what comes before is in the cache, and so is the whole answer for the next message. Once a
 * session; a plain answer replaces it.
 */
async function measurePlainRound(
  { engine, flags }: Session,
  ids: readonly number[],
  { newIds }: TextResult,
): Promise<number | undefined> {
  const steps = Math.min(PLAIN_STEPS, newIds.length - 1);
  const beginning = [...ids, ...newIds.slice(0, newIds.length - 1 - steps)];
  const stream = engine.stream(beginning, { ...flags, drafter: 'none', maxTokens: 1 + steps });
  for (;;) {
    const next = await stream.next();
    if (next.done) return next.value.stats.plainRoundMs;
  }
}

interface ChatCommand {
  /** After the name, for /help. */
  readonly argument?: string;
  readonly help: string;
  readonly run: (session: Session, argument: string) => void;
}

const COMMANDS: Readonly<Record<string, ChatCommand>> = {
  '/help': { help: 'this list', run: (session) => note(session, commandList()) },
  '/reset': { help: 'forget the conversation', run: forget },
  '/system': {
    argument: 'TEXT',
    help: 'set the system message (none: the template’s own) and forget the conversation',
    run: (session, text) => {
      session.system = text === '' ? undefined : text;
      forget(session);
    },
  },
  '/drafts': {
    help: 'colour tokens by who guessed them, or stop it',
    run: (session) => {
      session.showDrafts = !session.showDrafts;
      note(session, session.showDrafts ? LEGEND : 'drafts are not shown');
    },
  },
  '/drafter': {
    argument: 'NAME',
    help: 'who guesses ahead; none decodes plainly',
    run: (session, name) => {
      if (name !== '') useDrafter(session, name);
      note(session, `drafter ${session.drafter}, of ${session.engine.drafters.join(', ')}`);
    },
  },
  '/quit': {
    help: 'end the chat',
    run: (session) => {
      session.quit = true;
    },
  },
};

function runCommand(session: Session, line: string): void {
  const [name = '', ...rest] = line.split(' ');
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (command === undefined) {
    process.stderr.write(`eaglet: no command ${name}; there are ${Object.keys(COMMANDS).join(', ')}\n`);
    return;
  }
  try {
    command.run(session, rest.join(' ').trim());
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    process.stderr.write(`eaglet: ${error.message}\n`);
  }
}

function commandList(): string {
  const names = Object.entries(COMMANDS).map(([name, { argument }]) => (argument ? `${name} ${argument}` : name));
  const width = Math.max(...names.map((name) => name.length));
  return Object.values(COMMANDS)
    .map(({ help }, i) => `${names[i]!.padEnd(width)}  ${help}`)
    .join('\n');
}

function forget(session: Session): void {
  const { system } = session;
  session.messages = system === undefined ? [] : [{ role: 'system', content: system }];
}

function useDrafter(session: Session, name: string): void {
  const { drafters } = session.engine;
  const known = drafters.find((drafter) => drafter === name);
  if (known === undefined)
    throw new RequestError('drafter', `"${name}" is not loaded, available: ${drafters.join(', ')}`);
  session.drafter = known;
}

/** A line about the chat rather than of it: for people only. */
function note({ interactive }: Session, text: string): void {
  if (interactive) process.stdout.write(`${styleText('dim', text)}\n`);
}
