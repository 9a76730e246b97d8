/**
 * A conversation as tokens to train on, by the model's own chat template, and which of them count: the assistant's, the token that ends
 * its turn included. The mask is not shifted (EAGLE's training, `ge_data`): position i counts if token i was the assistant's.
 */
import { RequestError } from '../errors.ts';
import type { ChatMessage, ChatTemplate } from '../tokenizer/chat-template.ts';
import { TemplateTimeoutError } from '../tokenizer/template-interpreter.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import type { Conversation } from './conversations.ts';
import type { EncodedText } from './unroll.ts';

/** Why a conversation is not trained on. */
export const SKIPPED = ['tooLong', 'unanswered', 'misaligned', 'refused'] as const;
/**
 * `tooLong`: more tokens than asked for, or none that count among the first of them. `unanswered`: no assistant's turn but an
 * opening, to which nothing was said, or no token at all. `misaligned`: up to an answer it does not read as it did when the answer was
 * given, because the template changes earlier turns, or because a token spans the seam; for about one answer in a thousand, which begins
 * with line breaks, where the template is SmolLM's. `refused`: the template or the tokenizer does not take it.
 */
export type Skipped = (typeof SKIPPED)[number];

export interface EncodeConversationOptions {
  /** Tokens at most. */
  readonly maxTokens: number;
  /** What becomes of longer ones: cut (default), or left out. */
  readonly longer?: 'truncate' | 'skip';
  /** What becomes of text without an answer: left out (default), or read as it is, every token counting. */
  readonly unanswered?: 'skip' | 'read';
}

/** @param template undefined for a model without one, which can read plain text only. */
export function encodeConversation(
  tokenizer: Tokenizer,
  template: ChatTemplate | undefined,
  conversation: Conversation,
  { maxTokens, longer = 'truncate', unanswered = 'skip' }: EncodeConversationOptions,
): EncodedText | Skipped {
  // No single conversation's fault.
  if (conversation.kind === 'chat' && template === undefined)
    throw new RequestError('model', 'has no chat template: it can be trained on plain text only');
  const encoded = unlessRefused(() =>
    conversation.kind === 'text'
      ? plainText(tokenizer, conversation.text)
      : chat(tokenizer, template!, conversation.messages, conversation.finished),
  );
  if (typeof encoded === 'string') return encoded;
  if (encoded.ids.length === 0) return 'unanswered';
  if (!encoded.mask.includes(1)) {
    if (unanswered === 'skip') return 'unanswered';
    encoded.mask.fill(1);
  }
  if (encoded.ids.length <= maxTokens) return encoded;
  if (longer === 'skip') return 'tooLong';
  const ids = encoded.ids.slice(0, maxTokens);
  const mask = encoded.mask.slice(0, maxTokens);
  return mask.includes(1) ? { ids, mask } : 'tooLong';
}

/**
 * What the template and the tokenizer make of a conversation. One that cannot be read is no reason to read none.
 * @throws RequestError where the template ran out of time: which texts are left out must not depend on how busy the machine is.
 */
export function unlessRefused<T>(encode: () => T): T | 'refused' {
  try {
    return encode();
  } catch (error) {
    if (!(error instanceof RequestError) || error.cause instanceof TemplateTimeoutError) throw error;
    return 'refused';
  }
}

function plainText(tokenizer: Tokenizer, text: string): EncodedText {
  const ids = [...tokenizer.encode(text)];
  if (tokenizer.addBos && tokenizer.bosId !== undefined) ids.unshift(tokenizer.bosId);
  return { ids: Int32Array.from(ids), mask: new Uint8Array(ids.length) };
}

function chat(
  tokenizer: Tokenizer,
  template: ChatTemplate,
  messages: readonly ChatMessage[],
  finished: boolean,
): EncodedText | 'misaligned' {
  const encode = (count: number, addGenerationPrompt: boolean): Int32Array =>
    template.encode(tokenizer, messages.slice(0, count), { addGenerationPrompt });
  const last = messages.findLastIndex(({ role }) => role === 'assistant');
  // Nothing that comes after the last answer is of any use to it.
  const all = encode(last < 0 ? messages.length : last + 1, false);
  const mask = new Uint8Array(all.length);
  let length = all.length;
  for (const [i, { role }] of messages.entries()) {
    if (role !== 'assistant' || i === 0) continue; // an opening that answers nothing is read, and does not count
    const before = encode(i, true);
    const begins = mask.lastIndexOf(1) < before.length && before.every((id, at) => id === all[at]);
    if (!begins) return 'misaligned'; // or the turn before has no end of its own
    const end = all.findIndex((id, at) => at >= before.length && tokenizer.endTokens.has(id));
    const cut = !finished && i === last;
    length = end < 0 ? all.length : cut ? end : end + 1;
    mask.fill(1, before.length, length);
  }
  return { ids: all.slice(0, length), mask: mask.slice(0, length) };
}
