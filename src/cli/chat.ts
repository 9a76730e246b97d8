import { createInterface } from 'node:readline/promises';
import { styleText } from 'node:util';
import type { Command } from 'commander';
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import { type ModelOptions, openEngine, type SamplingFlags, withModelOptions, withSamplingOptions } from './common.ts';

interface Flags extends ModelOptions, SamplingFlags {
  readonly system?: string;
  readonly showDrafts?: boolean;
}

const HELP =
  '/reset forgets the conversation · /drafts shows who guessed what · /plain and /eagle switch the drafter · /quit';

export function register(program: Command): void {
  withSamplingOptions(withModelOptions(program.command('chat').description('talk with a model in the terminal')))
    .option('-s, --system <text>', 'system message')
    .option('--show-drafts', 'colour tokens that the head guessed')
    .action(chat);
}

async function chat(flags: Flags): Promise<void> {
  using engine = await openEngine(flags);
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  const start: ChatMessage[] = flags.system === undefined ? [] : [{ role: 'system', content: flags.system }];
  let messages = [...start];
  let drafter = flags.drafter ?? engine.drafters.at(-1)!;
  let showDrafts = flags.showDrafts ?? false;
  let plainRate: number | undefined;
  let running: AbortController | undefined;
  // Ctrl-C cancels the answer first and quits second.
  terminal.on('SIGINT', () => (running === undefined ? terminal.close() : running.abort()));
  let open = true;
  terminal.on('close', () => {
    open = false;
    running?.abort();
  });
  process.stdout.write(styleText('dim', `${flags.model} · ${drafter} · ${HELP}\n`));

  while (open) {
    const line = await terminal.question('> ').catch(() => '/quit');
    const text = line.trim();
    if (text === '') continue;
    if (text === '/quit' || text === '/exit') break;
    if (text.startsWith('/')) {
      if (text === '/reset') messages = [...start];
      else if (text === '/drafts') showDrafts = !showDrafts;
      else if (text === '/plain') drafter = 'none';
      else if (text === '/eagle' && engine.drafters.includes('eagle')) drafter = 'eagle';
      else process.stdout.write(`${HELP}\n`);
      continue;
    }
    messages.push({ role: 'user', content: text });
    running = new AbortController();
    const stream = engine.stream(engine.encode(messages), { ...flags, drafter, signal: running.signal });
    for (;;) {
      const next = await stream.next();
      if (next.done) {
        const { stats, text: answer, stopReason } = next.value;
        messages.push({ role: 'assistant', content: answer });
        if (drafter === 'none') plainRate = stats.tokensPerSecond;
        const speedup =
          plainRate !== undefined && drafter !== 'none'
            ? ` · ${(stats.tokensPerSecond / plainRate).toFixed(2)}x plain`
            : '';
        const summary = `${stats.tokensPerSecond.toFixed(0)} tokens/s · acceptance length ${stats.acceptanceLength.toFixed(2)} · tree of ${stats.treeSize.toFixed(0)}${speedup} · ${stopReason}`;
        process.stdout.write(`\n${styleText('dim', summary)}\n`);
        break;
      }
      const guessed = next.value.tokens.some((token) => token.drafted);
      process.stdout.write(showDrafts && guessed ? styleText('green', next.value.text) : next.value.text);
    }
    running = undefined;
  }
  terminal.close();
}
