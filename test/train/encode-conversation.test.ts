/** Conversations as tokens, and which of them are the assistant's. */
import { beforeAll, describe, expect, it } from 'vitest';
import { type ChatMessage, ChatTemplate } from '../../src/tokenizer/chat-template.ts';
import type { Tokenizer } from '../../src/tokenizer/tokenizer.ts';
import type { Conversation } from '../../src/train/conversations.ts';
import { encodeConversation, type Skipped } from '../../src/train/encode-conversation.ts';
import type { EncodedText } from '../../src/train/unroll.ts';
import { openSmol, tiny } from '../tokenizer/support.ts';

let tokenizer: Tokenizer;
let template: ChatTemplate;
beforeAll(async () => {
  const smol = await openSmol();
  tokenizer = smol.tokenizer;
  template = new ChatTemplate(smol.data.chatTemplate!);
});

const turns = (...contents: string[]): ChatMessage[] =>
  contents.map((content, i) => ({ role: i % 2 === 0 ? 'user' : 'assistant', content }));
const chat = (messages: readonly ChatMessage[], finished = true): Conversation => ({
  kind: 'chat',
  messages,
  finished,
});
const roomy = { maxTokens: 4096 };

/** What is masked 1, stretch by stretch. */
function trained(encoded: EncodedText | Skipped, by = tokenizer): string[] {
  if (typeof encoded === 'string') throw new Error(encoded);
  expect(encoded.mask).toHaveLength(encoded.ids.length);
  const stretches: number[][] = [];
  encoded.ids.forEach((id, at) => {
    if (encoded.mask[at] === 0) return;
    if (at === 0 || encoded.mask[at - 1] === 0) stretches.push([]);
    stretches.at(-1)!.push(id);
  });
  return stretches.map((ids) => by.decode(ids, { includeSpecial: true }));
}

const allText = (encoded: EncodedText | Skipped): string =>
  typeof encoded === 'string' ? encoded : tokenizer.decode(encoded.ids, { includeSpecial: true });

describe('with SmolLM2’s tokenizer and template', () => {
  it('the assistant’s words and the end of its turn count, nothing else', () => {
    const messages = turns('Hi <|im_end|>', 'Hello.', 'Why is the sky blue?', 'Scattering.\n\nOf light, that is.  ');
    const encoded = encodeConversation(tokenizer, template, chat(messages), roomy);
    expect(trained(encoded)).toEqual(['Hello.<|im_end|>', 'Scattering.\n\nOf light, that is.  <|im_end|>']);
    expect(allText(encoded)).toBe(template.render(messages, { addGenerationPrompt: false }).trimEnd());
  });

  it('an answer that was cut has no end of its turn to learn', () => {
    const encoded = encodeConversation(
      tokenizer,
      template,
      chat(turns('Hi', 'Hello.', 'More', 'Hello aga'), false),
      roomy,
    );
    expect(trained(encoded)).toEqual(['Hello.<|im_end|>', 'Hello aga']);
    expect(allText(encoded)).toMatch(/Hello aga$/);
  });

  it('what comes after the last answer is left away', () => {
    const encoded = encodeConversation(tokenizer, template, chat(turns('Hi', 'Hello.', 'Are you there?')), roomy);
    expect(allText(encoded)).toMatch(/Hello\.<\|im_end\|>$/);
  });

  it('an opening of the assistant’s answers nothing: it is read, and does not count', () => {
    const messages: ChatMessage[] = [{ role: 'assistant', content: 'Welcome.' }, ...turns('Hi', 'Hello.')];
    const encoded = encodeConversation(tokenizer, template, chat(messages), roomy);
    expect(trained(encoded)).toEqual(['Hello.<|im_end|>']);
    expect(allText(encoded)).toContain('Welcome.');
    expect(encodeConversation(tokenizer, template, chat(messages.slice(0, 1)), roomy)).toBe('unanswered');
  });

  it('what the template does not take is left out', () => {
    const strict = new ChatTemplate(
      "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}",
    );
    const messages: ChatMessage[] = [{ role: 'system', content: 'Be brief.' }, ...turns('Hi', 'Hello.')];
    expect(encodeConversation(tokenizer, strict, chat(messages), roomy)).toBe('refused');
  });

  it('a text without a token is left out', () => {
    const empty: Conversation = { kind: 'text', text: '\u0004\u0006' }; // bytes that the model has no tokens for
    expect(encodeConversation(tokenizer, template, empty, { ...roomy, unanswered: 'read' })).toBe('unanswered');
  });

  it('the tokens before an answer are those that the model is given to answer', () => {
    const messages = turns('Hi', 'Hello.', 'Count.', 'One, two.');
    const encoded = encodeConversation(tokenizer, template, chat(messages), roomy) as EncodedText;
    for (const count of [1, 3]) {
      const given = template.encode(tokenizer, messages.slice(0, count), { addGenerationPrompt: true });
      expect(encoded.ids.slice(0, given.length)).toEqual(given);
      expect([encoded.mask[given.length - 1], encoded.mask[given.length]]).toEqual([0, 1]);
    }
  });

  it('an answer whose first token would join the template’s line break is told apart', () => {
    expect(encodeConversation(tokenizer, template, chat(turns('Hi', '\n\n\nHello.')), roomy)).toBe('misaligned');
  });

  it('longer ones are cut, or left out; so are those of which no answer is left', () => {
    const conversation = chat(turns('Hi', 'One, two, three, four, five.'));
    const whole = encodeConversation(tokenizer, template, conversation, roomy) as EncodedText;
    const n = whole.ids.length;
    const cut = encodeConversation(tokenizer, template, conversation, { maxTokens: n - 2 }) as EncodedText;
    expect(cut).toEqual({ ids: whole.ids.slice(0, n - 2), mask: whole.mask.slice(0, n - 2) });
    const before = whole.mask.indexOf(1);
    expect(encodeConversation(tokenizer, template, conversation, { maxTokens: before })).toBe('tooLong');
    expect(encodeConversation(tokenizer, template, conversation, { maxTokens: n - 1, longer: 'skip' })).toBe('tooLong');
    expect(encodeConversation(tokenizer, template, conversation, { maxTokens: n, longer: 'skip' })).toEqual(whole);
  });

  it('prompts and text are left out, or read as they are', () => {
    const prompt = chat(turns('Why?'));
    const text: Conversation = { kind: 'text', text: 'Once <|im_end|> upon' };
    for (const conversation of [prompt, text])
      expect(encodeConversation(tokenizer, template, conversation, roomy)).toBe('unanswered');
    const read = { ...roomy, unanswered: 'read' } as const;
    expect(trained(encodeConversation(tokenizer, template, prompt, read))).toEqual([
      template.render(turns('Why?'), { addGenerationPrompt: false }),
    ]);
    const encoded = encodeConversation(tokenizer, undefined, text, read);
    expect(trained(encoded)).toEqual(['Once <|im_end|> upon']);
    expect((encoded as EncodedText).ids).toEqual(tokenizer.encode('Once <|im_end|> upon'));
    expect(() => encodeConversation(tokenizer, undefined, prompt, read)).toThrow('model: has no chat template');
  });
});

describe('with other templates', () => {
  const open = '{% for m in messages %}<|a|>{{ m.role }}:{{ m.content }}';
  const small = tiny({ eosId: 259 }); // `<|a|>b` ends a turn

  it('the end of the turn is whatever ends a text', () => {
    const of = new ChatTemplate(
      `${open}{% if m.role == 'assistant' %}<|a|>b{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|a|>assistant:{% endif %}`,
    );
    const encoded = encodeConversation(small, of, chat(turns('x', 'yes', 'z', 'no')), roomy);
    expect(trained(encoded, small)).toEqual(['yes<|a|>b', 'no<|a|>b']);
  });

  it('without any end the last answer lasts until the end; one before it has none that could be told', () => {
    const of = new ChatTemplate(`${open}{% endfor %}{% if add_generation_prompt %}<|a|>assistant:{% endif %}`);
    expect(trained(encodeConversation(small, of, chat(turns('x', 'yes')), roomy), small)).toEqual(['yes']);
    expect(encodeConversation(small, of, chat(turns('x', 'yes', 'z', 'no')), roomy)).toBe('misaligned');
  });

  it('one that rewrites earlier turns is told', () => {
    const of = new ChatTemplate(
      `{% for m in messages %}<|a|>{{ m.role }}:{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}<|a|>b{% endfor %}{% if add_generation_prompt %}<|a|>assistant:{% endif %}`,
    );
    expect(trained(encodeConversation(small, of, chat(turns('x', 'yes')), roomy), small)).toEqual(['yes<|a|>b']);
    const forgets = new ChatTemplate(
      `{% for m in messages %}<|a|>{{ m.role }}:{% if loop.last %}{{ m.content }}{% endif %}<|a|>b{% endfor %}{% if add_generation_prompt %}<|a|>assistant:{% endif %}`,
    );
    expect(encodeConversation(small, forgets, chat(turns('x', 'yes')), roomy)).toBe('misaligned');
  });

  it('a text begins with BOS where the model wants one', () => {
    const of = tiny({ bosId: 258, eosId: 259, addBos: true });
    const encoded = encodeConversation(of, undefined, { kind: 'text', text: 'ab' }, { ...roomy, unanswered: 'read' });
    expect(encoded).toEqual({ ids: Int32Array.of(258, 256), mask: Uint8Array.of(1, 1) });
  });
});
