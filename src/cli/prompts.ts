/** Prompts from a JSONL file: one `{id, turns | prompt | messages}` a line. */
import { readFileSync } from 'node:fs';
import { z } from 'zod';
import { RequestError } from '../errors.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';

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
  /** Messages up to the first answer: the first turn of several. */
  readonly messages: readonly ChatMessage[];
}

export function readPrompts(path: string, limit = Number.POSITIVE_INFINITY): PromptEntry[] {
  const entries: PromptEntry[] = [];
  for (const [index, text] of readFileSync(path, 'utf8').split('\n').entries()) {
    if (text.trim() === '') continue;
    const where = `${path}:${index + 1}`;
    let json: unknown;
    try {
      json = JSON.parse(text);
    } catch (cause) {
      throw new RequestError(where, 'is not JSON', { cause });
    }
    const parsed = line.safeParse(json);
    if (!parsed.success) throw new RequestError(where, z.prettifyError(parsed.error));
    const { id, task, turns, prompt, messages } = parsed.data;
    const first = prompt ?? turns?.[0];
    if (first === undefined && messages === undefined) throw new RequestError(where, 'needs turns, prompt or messages');
    entries.push({
      id: String(id ?? index + 1),
      task: task ?? 'all',
      messages: messages ?? [{ role: 'user', content: first! }],
    });
  }
  // A limited run still sees every task: questions are taken from the tasks in turn.
  if (entries.length <= limit) return entries;
  const byTask = groupByTask(entries);
  const taken: PromptEntry[] = [];
  for (let round = 0; taken.length < limit; round++) {
    for (const group of byTask.values()) {
      const entry = group[round];
      if (entry !== undefined && taken.length < limit) taken.push(entry);
    }
  }
  return taken;
}

function groupByTask(entries: readonly PromptEntry[]): Map<string, PromptEntry[]> {
  const groups = new Map<string, PromptEntry[]>();
  for (const entry of entries) {
    const group = groups.get(entry.task);
    if (group === undefined) groups.set(entry.task, [entry]);
    else group.push(entry);
  }
  return groups;
}
