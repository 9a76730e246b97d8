/** Prompts from a JSONL file: one `{id, task, turns | prompt | messages}` a line. */
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { RequestError } from '../errors.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';

/** Of our own writing, four for each of seven tasks. Found from src/cli/ and from dist/cli/ alike. */
export const DEFAULT_PROMPTS = fileURLToPath(new URL('../../bench/prompts.jsonl', import.meta.url));

const message = z.object({ role: z.string(), content: z.string() });
const line = z.object({
  id: z.union([z.string(), z.number()]).optional(),
  task: z.string().optional(),
  turns: z.array(z.string()).min(1).optional(),
  prompt: z.string().optional(),
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

/** @param idPrefix of ids that are made of line numbers, where a line has none. */
export function readPrompts(path: string, limit = Number.POSITIVE_INFINITY, idPrefix = ''): PromptEntry[] {
  const entries = readText(path)
    .split('\n')
    .flatMap((text, index) =>
      text.trim() === '' ? [] : [readEntry(text, `${path}:${index + 1}`, `${idPrefix}${index + 1}`)],
    );
  if (entries.length === 0) throw new RequestError(path, 'has no prompts');
  return entries.length <= limit ? entries : takeFromEachTask(entries, limit);
}

/** Of several files; lines without an id get one that names their file. */
export function readPromptFiles(paths: readonly string[]): PromptEntry[] {
  if (paths.length === 1) return readPrompts(paths[0]!);
  return paths.flatMap((path) => readPrompts(path, Number.POSITIVE_INFINITY, `${basename(path)}:`));
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8').replace(/^\uFEFF/, '');
  } catch (cause) {
    throw new RequestError(path, 'cannot be read: expected a file of JSON lines', { cause });
  }
}

function readEntry(text: string, where: string, defaultId: string): PromptEntry {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new RequestError(where, 'is not JSON', { cause });
  }
  const parsed = line.safeParse(json);
  if (!parsed.success) throw new RequestError(where, z.prettifyError(parsed.error));
  const { id, task, turns, prompt, messages } = parsed.data;
  const given = [turns, prompt, messages].filter((value) => value !== undefined).length;
  if (given !== 1) throw new RequestError(where, `needs one of turns, prompt and messages, got ${given} of them`);
  const [first, ...followUps] = turns ?? (prompt === undefined ? [] : [prompt]);
  return {
    id: String(id ?? defaultId),
    task: task ?? 'all',
    messages: messages ?? [{ role: 'user', content: first! }],
    followUps,
  };
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
