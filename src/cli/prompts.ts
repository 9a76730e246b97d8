/** Prompts from a JSONL file: one `{id, task, turns | prompt | messages}` a line. */
import { createHash } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import type { Engine } from '../engine.ts';
import { RequestError } from '../errors.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import { content, message } from '../train/conversations.ts';
import { unlessRefused } from '../train/encode-conversation.ts';
import { parseLine, readLines } from '../train/json-lines.ts';
import { formatCount } from './format.ts';

/** Of our own writing, four for each of seven tasks. Found from src/cli/ and from dist/cli/ alike. */
export const DEFAULT_PROMPTS = fileURLToPath(new URL('../../bench/prompts.jsonl', import.meta.url));

const line = z.object({
  id: z.union([z.string(), z.number()]).optional(),
  task: z.string().optional(),
  turns: z.array(content).min(1).optional(),
  prompt: content.optional(),
  messages: z.array(message).min(1).optional(),
});

export interface PromptEntry {
  readonly id: string;
  readonly task: string;
  /** Up to the first answer. */
  readonly messages: readonly ChatMessage[];
  /** What the user says after each answer. */
  readonly followUps: readonly string[];
}

/** Lines without an id get their number. */
export function readPrompts(path: string, limit = Number.POSITIVE_INFINITY): PromptEntry[] {
  const entries = Array.from(readEntries(path), ({ entry, number }) => ({ ...entry, id: entry.id ?? String(number) }));
  return entries.length <= limit ? entries : takeFromEachTask(entries, limit);
}

/**
 * Prompts of several files, to be answered in a conversation that is kept. Lines without an id get one that follows from what they say: the
 * same in any file, at any place in it.
 */
export function readOpenPrompts(paths: readonly string[]): PromptEntry[] {
  return paths.flatMap((path) =>
    Array.from(readEntries(path), ({ entry, number }) => {
      if (entry.messages.at(-1)!.role === 'assistant')
        throw new RequestError(`${path}:${number}`, 'must end with what is to be answered, got an answer');
      return { ...entry, id: entry.id ?? digestOf(entry) };
    }),
  );
}

type Entry = Omit<PromptEntry, 'id'> & { readonly id: string | undefined };

function* readEntries(path: string): Generator<{ readonly entry: Entry; readonly number: number }, void, void> {
  let any = false;
  for (const { text, number } of readLines(path)) {
    any = true;
    yield { entry: readEntry(text, `${path}:${number}`), number };
  }
  if (!any) throw new RequestError(path, 'has no prompts');
}

/** 64 bits: of a million prompts no two are likely to have the same. */
function digestOf({ messages, followUps }: Entry): string {
  return createHash('sha256').update(JSON.stringify({ messages, followUps })).digest('hex').slice(0, 16);
}

function readEntry(text: string, where: string): Entry {
  const { id, task, turns, prompt, messages } = parseLine(text, where, line);
  const given = [turns, prompt, messages].filter((value) => value !== undefined).length;
  if (given !== 1) throw new RequestError(where, `needs one of turns, prompt and messages, got ${given} of them`);
  const [first, ...followUps] = turns ?? (prompt === undefined ? [] : [prompt]);
  return {
    id: id === undefined ? undefined : String(id),
    task: task ?? 'all',
    messages: messages ?? [{ role: 'user', content: first! }],
    followUps,
  };
}

/** What keeps the model from answering messages: the chat template does not take them, or they have more than `longest` tokens. */
export function obstacle(
  engine: Engine,
  messages: readonly ChatMessage[],
  longest = engine.contextSize - 1,
): 'refused' | 'tooLong' | undefined {
  const ids = unlessRefused(() => engine.encode(messages));
  if (ids === 'refused') return ids;
  return ids.length > longest ? 'tooLong' : undefined;
}

/**
 * The prompts without an obstacle. One that cannot be answered is no reason to answer none: standard error says which are left out.
 * @throws RequestError where none is left.
 */
export function answerable(
  engine: Engine,
  prompts: readonly PromptEntry[],
  longest = engine.contextSize - 1,
): PromptEntry[] {
  const refused: string[] = [];
  const tooLong: string[] = [];
  const taken = prompts.filter(({ id, messages }) => {
    const why = obstacle(engine, messages, longest);
    if (why === undefined) return true;
    (why === 'refused' ? refused : tooLong).push(id);
    return false;
  });
  const why = [
    [refused, 'the chat template does not take them'],
    [tooLong, `longer than ${formatCount(longest)} tokens`],
  ] as const;
  const leftOut = why
    .filter(([ids]) => ids.length > 0)
    .map(([ids, reason]) => `${ids.length} of ${prompts.length} prompts left out, ${reason}: ${listed(ids)}`);
  if (refused.length === prompts.length) engine.encode(prompts[0]!.messages); // throws, in its own words
  if (taken.length === 0) throw new RequestError('prompts', leftOut.join('; '));
  for (const line of leftOut) process.stderr.write(`${line}\n`);
  return taken;
}

const MOST_LISTED = 5;

function listed(ids: readonly string[]): string {
  return ids.slice(0, MOST_LISTED).join(', ') + (ids.length > MOST_LISTED ? ', …' : '');
}

/** A limited run still sees every task: entries are taken from the tasks in turn. */
function takeFromEachTask(entries: readonly PromptEntry[], limit: number): PromptEntry[] {
  const byTask = new Map<string, PromptEntry[]>();
  for (const entry of entries) {
    const group = byTask.get(entry.task);
    if (group === undefined) byTask.set(entry.task, [entry]);
    else group.push(entry);
  }
  const taken: PromptEntry[] = [];
  for (let round = 0; taken.length < limit; round++) {
    for (const group of byTask.values()) {
      const entry = group[round];
      if (entry !== undefined && taken.length < limit) taken.push(entry);
    }
  }
  return taken;
}
