/** Conversations as people have them, one a line: ShareGPT's and OpenAI's form, what `eaglet synthesize` writes, prompts alone, plain text. */
import { z } from 'zod';
import { RequestError } from '../errors.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import { parseLine, readLines } from './json-lines.ts';

export type Conversation =
  | {
      readonly kind: 'chat';
      readonly messages: readonly ChatMessage[];
      /** False where the last answer was cut: its author did not end the turn. */
      readonly finished: boolean;
    }
  | { readonly kind: 'text'; readonly text: string };

/** What somebody says. */
export const content = z.string().refine((text) => text.trim() !== '', 'must hold text, got an empty one');

const SHARE_GPT_ROLES = {
  system: 'system',
  human: 'user',
  user: 'user',
  gpt: 'assistant',
  chatgpt: 'assistant',
  assistant: 'assistant',
} as const;
const shareGptRoles = Object.keys(SHARE_GPT_ROLES) as (keyof typeof SHARE_GPT_ROLES)[];
const OPENAI_ROLES = ['system', 'developer', 'user', 'assistant', 'tool', 'function'] as const;

const role = <T extends string>(roles: readonly T[]) =>
  z.enum(roles, { error: ({ input }) => `must be one of ${roles.join(', ')}, got ${JSON.stringify(input)}` });

const turn = z
  .object({ from: role(shareGptRoles), value: content })
  .transform(({ from, value }): ChatMessage => ({ role: SHARE_GPT_ROLES[from], content: value }));
/** What is refused here is refused wherever it would end here. */
export const message = z
  .object({ role: role(OPENAI_ROLES), content })
  .transform(({ role, content }): ChatMessage => ({ role, content }));
const finished = z.boolean().default(true);
const said = (content: string): ChatMessage => ({ role: 'user', content });
const chat = (messages: readonly ChatMessage[], finished = true): Conversation => ({
  kind: 'chat',
  messages,
  finished,
});

/** By the key that tells the form; a line with several is read as the first of them. */
const FORMS = {
  conversations: z.object({ conversations: z.array(turn).min(1) }).transform((line) => chat(line.conversations)),
  messages: z
    .object({ messages: z.array(message).min(1), finished })
    .transform((line) => chat(line.messages, line.finished)),
  turns: z.object({ turns: z.array(content).min(1) }).transform((line) => chat(line.turns.map(said))),
  prompt: z.object({ prompt: content }).transform((line) => chat([said(line.prompt)])),
  text: z.object({ text: content }).transform(({ text }): Conversation => ({ kind: 'text', text })),
} as const;
const keys = Object.keys(FORMS) as (keyof typeof FORMS)[];
const anyObject = z.record(z.string(), z.unknown(), { error: 'must be an object' });

/** @throws RequestError with file and line number where a line is none of the forms; lines before it have been given. */
export function* readConversations(path: string): Generator<Conversation, void, void> {
  let any = false;
  for (const { text, number } of readLines(path)) {
    any = true;
    yield readConversation(text, `${path}:${number}`);
  }
  if (!any) throw new RequestError(path, 'has no conversations');
}

/** @param where file and line, for messages. */
export function readConversation(text: string, where: string): Conversation {
  const object = parseLine(text, where, anyObject);
  const key = keys.find((key) => key in object);
  if (key === undefined)
    throw new RequestError(where, `must have one of ${keys.join(', ')}, got ${Object.keys(object).join(', ') || '{}'}`);
  const parsed = FORMS[key].safeParse(object);
  if (!parsed.success) throw new RequestError(where, z.prettifyError(parsed.error));
  return parsed.data;
}
