/** The file that synthesis writes: gone on with, never spoilt. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ConversationFile, type SynthesisSettings, settingsPath } from '../../src/train/conversation-file.ts';
import { readConversations } from '../../src/train/conversations.ts';
import type { SynthesizedConversation } from '../../src/train/synthesize.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';

const directory = temporaryDirectory();
let files = 0;
const newPath = (): string => join(directory, `${++files}.jsonl`);

const settings: SynthesisSettings = { model: 'abc', seed: 0, temperatures: [0, 0.7, 1], maxTokens: 256 };
const conversation = (id: string): SynthesizedConversation => ({
  id,
  messages: [
    { role: 'user', content: `é ${id}?` },
    { role: 'assistant', content: 'Yes.\n' },
  ],
  temperature: 0.7,
  finished: true,
  promptTokens: 9,
  newTokens: 3,
});

function write(path: string, ids: readonly string[], these = settings): { cutBytes: number; held: string[] } {
  const held: string[] = [];
  using file = new ConversationFile(path, these, ({ id }) => held.push(id));
  for (const id of ids) file.append(conversation(id));
  return { cutBytes: file.cutBytes, held };
}

describe('a file of conversations', () => {
  it('holds one a line, in the form that training reads, each there once it is appended', () => {
    const path = newPath();
    using file = new ConversationFile(path, settings);
    file.append(conversation('a'));
    expect(readFileSync(path, 'utf8')).toBe(`${JSON.stringify(conversation('a'))}\n`);
    file.append(conversation('b'));
    expect([...readConversations(path)]).toEqual([
      { kind: 'chat', messages: conversation('a').messages, finished: true },
      { kind: 'chat', messages: conversation('b').messages, finished: true },
    ]);
    expect(JSON.parse(readFileSync(settingsPath(path), 'utf8'))).toEqual(settings);
  });

  it('knows what it holds when it is opened again, and goes on behind it', () => {
    const path = newPath();
    write(path, ['a', 'b']);
    expect(write(path, ['c'])).toEqual({ cutBytes: 0, held: ['a', 'b'] });
    expect(write(path, [])).toEqual({ cutBytes: 0, held: ['a', 'b', 'c'] });
  });

  it('a last line that was written by half is cut off', () => {
    const path = newPath();
    write(path, ['a', 'b']);
    const whole = readFileSync(path);
    const half = Buffer.from(JSON.stringify(conversation('c'))).subarray(0, 31);
    writeFileSync(path, Buffer.concat([whole, half]));
    expect(write(path, [])).toEqual({ cutBytes: 31, held: ['a', 'b'] });
    expect(readFileSync(path)).toEqual(whole);
    writeFileSync(path, half); // the very first line
    expect(write(path, ['a'])).toEqual({ cutBytes: 31, held: [] });
    expect(write(path, [])).toEqual({ cutBytes: 0, held: ['a'] });
  });

  it.each([
    [{ ...settings, seed: 1 }, 'was begun with seed 0, got 1'],
    [{ ...settings, temperatures: [0] }, 'was begun with temperatures [0,0.7,1], got [0]'],
    [{ ...settings, dtype: 'q8' }, 'was begun with dtype undefined, got "q8"'],
  ])('is not gone on with under other settings: %j', (others, rule) => {
    const path = newPath();
    write(path, ['a']);
    writeFileSync(path, `${readFileSync(path, 'utf8')}half a line`);
    const before = [path, settingsPath(path)].map((name) => readFileSync(name, 'utf8'));
    expect(() => write(path, ['b'], others)).toThrow(`${path}: ${rule}: give the same, or another file`);
    expect([path, settingsPath(path)].map((name) => readFileSync(name, 'utf8'))).toEqual(before);
  });

  it('another’s file is left alone', () => {
    const path = newPath();
    writeFileSync(path, '{"prompt": "Hi"}\n');
    expect(() => write(path, ['a'])).toThrow(`${path}: exists and has no settings beside it`);
    writeFileSync(settingsPath(path), JSON.stringify(settings));
    expect(() => write(path, ['a'])).toThrow(`${path}:1: `);
    writeFileSync(settingsPath(path), 'not JSON');
    expect(() => write(path, ['a'])).toThrow(`${settingsPath(path)}: must be JSON`);
    expect(readFileSync(path, 'utf8')).toBe('{"prompt": "Hi"}\n');
  });

  it('says where it cannot be written', () => {
    const path = join(directory, 'none', 'x.jsonl');
    expect(() => write(path, [])).toThrow(`${path}: cannot be written: ENOENT`);
    expect(existsSync(path)).toBe(false);
  });
});
