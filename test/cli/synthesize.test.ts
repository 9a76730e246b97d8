/** `eaglet synthesize` as a user meets it: writing, going on, stopping, and what is refused. */
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { smolPath } from '../support/model.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { conversationsAbout, eaglet, ensureBuilt, lines, ROOT, TINY } from './support.ts';

const scratch = temporaryDirectory();
const topics = ['cats', 'rain', 'bread', 'Rome', 'chess', 'tea', 'the moon', 'prime numbers'];
const prompts = join(scratch, 'prompts.jsonl');

beforeAll(async () => {
  await smolPath();
  ensureBuilt();
  writeFileSync(prompts, topics.map((topic) => `${JSON.stringify({ prompt: `Tell me about ${topic}.` })}\n`).join(''));
});

interface Written {
  readonly id: string;
  readonly messages: readonly { readonly role: string; readonly content: string }[];
  readonly newTokens: number;
}

const read = (path: string): Written[] => lines(readFileSync(path, 'utf8')).map((text) => JSON.parse(text) as Written);
const byId = (written: readonly Written[]): Written[] => [...written].sort((a, b) => a.id.localeCompare(b.id));
const settings = ['--prompts', prompts, '-n', '24', '--batch', '3', '--seed', '4'];
const summary = (stdout: string): Record<string, unknown> => JSON.parse(stdout) as Record<string, unknown>;

describe('synthesize', () => {
  const whole = join(scratch, 'whole.jsonl');

  test('answers prompts, a few at a time; the same command goes on where it was', async () => {
    const first = await eaglet(['synthesize', '-o', whole, ...settings, '--count', '5', '--json']);
    expect(first).toMatchObject({ code: 0, stderr: '' });
    expect(summary(first.stdout)).toMatchObject({ conversations: 5, inFile: 5, complete: true });
    const five = read(whole);
    expect(five.reduce((sum, { newTokens }) => sum + newTokens, 0)).toBe(summary(first.stdout).newTokens);
    const second = await eaglet(['synthesize', '-o', whole, ...settings]);
    expect(second).toMatchObject({ code: 0, stderr: '' });
    expect(second.stdout).toMatch(/^written +3 conversations, \d+ tokens of answers$/m);
    expect(second.stdout).toMatch(/^in all +8 in /m);
    const eight = read(whole);
    expect(eight.slice(0, 5)).toEqual(five);
    expect(new Set(eight.map(({ messages }) => messages[0]!.content)).size).toBe(8);
    const third = await eaglet(['synthesize', '-o', whole, ...settings, '--json']);
    expect(summary(third.stdout)).toMatchObject({ conversations: 0, inFile: 8 });
    expect(read(whole)).toEqual(eight);
  });

  test('stopped by Ctrl-C and gone on with it writes what it would have written', async () => {
    const out = join(scratch, 'stopped.jsonl');
    const args = [join(ROOT, 'bin/eaglet.js'), 'synthesize', '-o', out, ...settings, '--json'];
    const child = spawn(process.execPath, args, { cwd: ROOT });
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    const watch = setInterval(() => {
      if (!readIfThere(out).includes('\n')) return;
      child.kill('SIGINT'); // once: a second one would end it at once
      clearInterval(watch);
    }, 5);
    const code = await new Promise((resolve) => child.on('close', resolve));
    expect({ code, stderr }).toEqual({ code: 130, stderr: 'eaglet: stopped: the same command goes on from here\n' });
    const before = read(out).length;
    expect(before).toBeGreaterThan(0);
    expect(before).toBeLessThan(8);
    writeFileSync(out, `${readFileSync(out, 'utf8')}{"id": "half`);
    const rest = await eaglet(['synthesize', '-o', out, ...settings, '--batch', '2']);
    expect(rest.stderr).toBe(`eaglet: ${out}: its last line was half written, 12 bytes: cut off\n`);
    expect(byId(read(out))).toEqual(byId(read(whole)));
  });

  test('a crash between a conversation’s features and its line leaves neither out, and none there twice', async () => {
    const out = join(scratch, 'crashed.jsonl');
    const features = join(scratch, 'crashed-features');
    const args = ['synthesize', '-o', out, ...settings, '--count', '3', '--features', features];
    expect((await eaglet(args)).code).toBe(0);
    const texts = (): string[] => lines(readFileSync(join(features, 'texts.jsonl'), 'utf8')).slice(1);
    const before = { file: byId(read(out)), texts: texts() };
    expect(before.texts).toHaveLength(3);
    const kept = lines(readFileSync(out, 'utf8')).slice(0, -1);
    writeFileSync(out, kept.map((line) => `${line}\n`).join(''));
    expect((await eaglet(args)).code).toBe(0);
    expect({ file: byId(read(out)), texts: texts() }).toEqual(before);
  });

  test('features that the file’s conversations lack are not left out without a word, nor begun without room', async () => {
    const [out, features] = [join(scratch, 'later.jsonl'), join(scratch, 'later-features')];
    const args = ['synthesize', '-o', out, ...settings, '--count', '2'];
    expect((await eaglet(args)).code).toBe(0);
    const later = await eaglet([...args, '--count', '3', '--features', features]);
    expect(later.code).toBe(1);
    expect(later.stderr).toContain(
      `${features}: has features of 0 conversations, ${out} holds 2: write it without features`,
    );
    expect(read(out)).toHaveLength(2);
    const endless = ['synthesize', '-o', join(scratch, 'endless.jsonl'), '--features', features];
    const full = await eaglet([...endless, '--count', '1000000000000']);
    expect(full.code).toBe(1);
    expect(full.stderr).toMatch(/features of about 256,000,000,000,000 tokens, [\d.]+ GB$/m);
    expect(full.stderr).toMatch(/must have room for [\d.]+ GB of features and a tenth more/);
  });

  test.runIf(process.platform !== 'win32')('a full disk loses nothing', async () => {
    const out = join(scratch, 'full.jsonl');
    const command = [process.execPath, join(ROOT, 'bin/eaglet.js'), 'synthesize', '-o', out, ...settings];
    // One block for any file, and the signal that says so ignored: writing fails as on a full disk.
    const { status, stderr } = spawnSync('sh', ['-c', `trap '' XFSZ; ulimit -f 1; exec "$@"`, 'sh', ...command], {
      cwd: ROOT,
      encoding: 'utf8',
    });
    expect(status).toBe(1);
    expect(stderr).toContain(`${out}: cannot be written: EFBIG`);
    expect(stderr).toContain('conversations written so far stay, the same command goes on from them');
    expect((await eaglet(['synthesize', '-o', out, ...settings])).code).toBe(0);
    expect(byId(read(out))).toEqual(byId(read(whole)));
  });

  test('without prompts the model writes them, too', async () => {
    const out = join(scratch, 'invented.jsonl');
    const { stdout } = await eaglet(['synthesize', '-o', out, '--count', '2', '-n', '48', '--batch', '4', '--json']);
    expect(summary(stdout)).toMatchObject({ conversations: 2, complete: true });
    for (const { id, messages } of read(out)) {
      expect(id).toMatch(/^invented\//);
      expect(messages.map(({ role, content }) => [role, content.trim() !== ''])).toEqual([
        ['user', true],
        ['assistant', true],
      ]);
    }
  });

  test('what is excluded is not asked', async () => {
    const out = join(scratch, 'excluded.jsonl');
    const exclude = join(scratch, 'exclude.jsonl');
    const asked = topics
      .slice(0, 6)
      .map((topic) => ({ conversations: [{ from: 'human', value: `tell ME about ${topic}.` }] }));
    writeFileSync(exclude, asked.map((line) => `${JSON.stringify(line)}\n`).join(''));
    const { stdout } = await eaglet(['synthesize', '-o', out, ...settings, '--exclude', exclude, '--json']);
    expect(summary(stdout)).toMatchObject({ conversations: 2, duplicates: 6 });
    expect(byId(read(out))).toEqual(
      byId(read(whole)).filter(({ messages }) => /the moon|prime numbers/.test(messages[0]!.content)),
    );
  });

  test('prompts without ids are told apart by what they say, not by where they stand', async () => {
    const out = join(scratch, 'two.jsonl');
    const asked = (directory: string, ...topics: readonly string[]): string => {
      const path = join(mkdtempSync(join(scratch, directory)), 'prompts.jsonl');
      writeFileSync(path, topics.map((topic) => `${JSON.stringify({ prompt: topic })}\n`).join(''));
      return path;
    };
    const [one, two] = [asked('one-', 'Say one.', 'Say one.'), asked('two-', 'Say two.')];
    const write = async (...files: readonly string[]): Promise<unknown> =>
      summary((await eaglet(['synthesize', '-o', out, '--prompts', ...files, '-n', '4', '--json'])).stdout);
    expect(await write(one)).toMatchObject({ conversations: 1, duplicates: 1, inFile: 1 });
    expect(await write(two)).toMatchObject({ conversations: 1, duplicates: 0, inFile: 2 });
    expect(await write(two, one)).toMatchObject({ conversations: 0, duplicates: 1 });
    expect(read(out).map(({ id }) => id)).toEqual(read(out).map(() => expect.stringMatching(/^[0-9a-f]{16}$/)));
  });

  test('the benchmark tells what batching brings', async () => {
    const args = ['bench', 'synthesize', '--batch', '4', '-n', '16', '--repeats', '2', '--seconds', '1', '--json'];
    const { code, stdout } = await eaglet(args);
    expect(code).toBe(0);
    const result = summary(stdout) as { tokensPerSecond: Record<string, number>; ratio: Record<string, number> };
    expect(result).toMatchObject({ dtype: 'auto', batch: 4, maxTokens: 16 });
    expect(result.tokensPerSecond.alone).toBeGreaterThan(0);
    expect(result.ratio.least).toBeLessThanOrEqual(result.ratio.median!);
    expect(result.ratio.median).toBeLessThanOrEqual(result.ratio.most!);
  });

  test.each([
    [['--prompts', 'PROMPTS'], "required option '-o, --out <file>' not specified"],
    [['-o', 'OUT', '--prompts', 'no-such-file'], 'no-such-file: cannot be read'],
    [['-o', 'OUT', '--prompts', 'BAD'], 'bad.jsonl:2: must be JSON'],
    [['-o', 'OUT', '--prompts', 'EMPTY'], 'empty.jsonl:1: ✖ must hold text, got an empty one'],
    [['-o', 'OUT', '--prompts', 'BOT'], 'bot.jsonl:1: ✖ must be one of system, developer, user, assistant, tool,'],
    [['-o', 'OUT', '--prompts', 'ANSWERED'], 'answered.jsonl:2: must end with what is to be answered, got an answer'],
    [['-o', 'OUT', '--exclude', 'BAD'], 'bad.jsonl:2: must be JSON, got {"prompt":'],
    [['-o', 'OUT', '--temperatures', '0,-1'], 'temperatures are 0..100, got -1'],
    [['-o', 'OUT', '-n', '9000'], '--max-tokens: must leave room for a prompt in 8192 tokens, got 9000'],
    [['-o', 'OUT', '-m', TINY], 'model: has no tokenizer: it cannot write text'],
    [
      ['-o', 'WHOLE', '--prompts', 'PROMPTS', '--seed', '5'],
      'was begun with seed 4, got 5; maxTokens 24, got 256: give the same, or another file',
    ],
    [['-o', 'WHOLE', '--seed', '4', '-n', '24'], 'was begun with prompts "given", got "invented"'],
    [['-o', 'PROMPTS', '--prompts', 'PROMPTS'], 'exists and has no settings beside it'],
  ])('%j is refused: %s', async (args, message) => {
    const file = (name: string, text: string): string => {
      writeFileSync(join(scratch, name), text);
      return join(scratch, name);
    };
    const paths: Record<string, string> = {
      PROMPTS: prompts,
      BAD: file('bad.jsonl', '{"prompt": "Hi"}\n{"prompt":\n'),
      EMPTY: file('empty.jsonl', '{"turns": ["Hi", " "]}\n'),
      BOT: file('bot.jsonl', '{"messages": [{"role": "bot", "content": "Hi"}]}\n'),
      ANSWERED: file('answered.jsonl', `{"prompt": "Hi"}\n${conversationsAbout(['tea'])}`),
      WHOLE: whole,
      OUT: join(scratch, 'refused.jsonl'),
    };
    const before = readIfThere(whole);
    const { code, stderr } = await eaglet(['synthesize', ...args.map((arg) => paths[arg] ?? arg)]);
    expect(code).toBe(1);
    expect(stderr).toContain(message);
    expect(stderr).not.toContain('    at ');
    expect(readIfThere(whole)).toBe(before);
    expect(readIfThere(paths.OUT!)).toBe('');
  });
});

function readIfThere(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
