/** Conversations from files, in the forms people have them; what is wrong is said with file and line. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { readConversation, readConversations } from '../../src/train/conversations.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';

const directory = temporaryDirectory();
const user = { role: 'user', content: 'Hi' };
const assistant = { role: 'assistant', content: 'Hello.' };
const chat = (messages: readonly object[], finished = true) => ({ kind: 'chat', messages, finished });

function file(name: string, text: string): string {
  const path = join(directory, name);
  writeFileSync(path, text);
  return path;
}

describe('a line', () => {
  it.each([
    [
      'ShareGPT’s form',
      { id: 'x', conversations: ['system:Be brief.', 'human:Hi', 'gpt:Hello.'].map(split) },
      chat([{ role: 'system', content: 'Be brief.' }, user, assistant]),
    ],
    ['OpenAI’s form', { messages: [user, assistant], model: 'any' }, chat([user, assistant])],
    [
      'our own',
      { id: 'a', messages: [user, assistant], temperature: 0.7, finished: false },
      chat([user, assistant], false),
    ],
    ['a prompt', { id: 1, prompt: 'Hi' }, chat([user])],
    ['turns of the user', { turns: ['Hi', 'Why?'] }, chat([user, { role: 'user', content: 'Why?' }])],
    ['text', { text: 'Once upon a time' }, { kind: 'text', text: 'Once upon a time' }],
    [
      'messages beside the prompt they begin with',
      { prompt: 'Hi', messages: [user, assistant] },
      chat([user, assistant]),
    ],
  ])('of %s is read', (_, line, expected) => {
    expect(readConversation(JSON.stringify(line), 'f:1')).toEqual(expected);
  });

  it.each([
    ['{"messages": [', 'must be JSON, got {"messages": ['],
    ['[]', 'must be an object'],
    ['{"question": "Hi", "id": 3}', 'must have one of conversations, messages, turns, prompt, text, got question, id'],
    ['{"messages": []}', 'messages'],
    ['{"messages": "Hi"}', 'messages'],
    [
      line({ messages: [user, { role: 'bot', content: 'x' }] }),
      'must be one of system, developer, user, assistant, tool, function, got "bot"',
    ],
    [line({ messages: [user, { role: 'bot', content: 'x' }] }), 'at messages[1].role'],
    [
      line({ conversations: [{ from: 'alien', value: 'x' }] }),
      'must be one of system, human, user, gpt, chatgpt, assistant, got "alien"',
    ],
    [line({ messages: [user, { role: 'assistant', content: ' \n' }] }), 'must hold text, got an empty one'],
    [line({ messages: [user, { role: 'assistant', content: ' \n' }] }), 'at messages[1].content'],
    [line({ messages: [{ role: 'user' }] }), 'at messages[0].content'],
    [line({ prompt: '' }), 'must hold text, got an empty one'],
    [line({ text: 7 }), 'expected string, received number'],
  ])('%s is refused: %s', (text, rule) => {
    expect(() => readConversation(text, 'talk.jsonl:12')).toThrow(rule);
    expect(() => readConversation(text, 'talk.jsonl:12')).toThrow(/^talk\.jsonl:12: /);
  });
});

describe('a file', () => {
  it('is read line by line, empty lines and a missing last line break aside', () => {
    const path = file('good.jsonl', `${line({ prompt: 'Hi' })}\n\n  \r\n${line({ text: 'é'.repeat(5) })}`);
    expect([...readConversations(path)]).toEqual([chat([user]), { kind: 'text', text: 'ééééé' }]);
  });

  it('may be larger than what is read at once, lines too', () => {
    const texts = ['a'.repeat(3_000_000), 'é'.repeat(700_000), 'short', 'b'.repeat(1_048_576 - 12)];
    const path = file('large.jsonl', texts.map((text) => `${line({ text })}\n`).join(''));
    expect([...readConversations(path)]).toEqual(texts.map((text) => ({ kind: 'text', text })));
  });

  it('with a bad line gives those before it, then says which it is', () => {
    const path = file('bad.jsonl', `${line({ prompt: 'Hi' })}\n\n{"prompt": "cut of\n${line({ prompt: 'Hi' })}\n`);
    const lines = readConversations(path);
    expect(lines.next().value).toEqual(chat([user]));
    expect(() => lines.next()).toThrow(`${path}:3: must be JSON, got {"prompt": "cut of`);
  });

  it('without conversations, or that is none, is refused', () => {
    const empty = file('empty.jsonl', '\n\n');
    expect(() => [...readConversations(empty)]).toThrow(`${empty}: has no conversations`);
    expect(() => [...readConversations(directory)]).toThrow(`${directory}: cannot be read`);
    expect(() => [...readConversations(`${directory}/none`)]).toThrow('cannot be read: ENOENT');
  });
});

function split(turn: string): { from: string; value: string } {
  const [from, value] = turn.split(':');
  return { from: from!, value: value! };
}

function line(value: object): string {
  return JSON.stringify(value);
}
