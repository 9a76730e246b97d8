/** One writer at a time, whoever died before. */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, utimesSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { RequestError } from '../../src/errors.ts';
import { ConversationFile } from '../../src/train/conversation-file.ts';
import { FeatureStore } from '../../src/train/feature-store.ts';
import { WriteLock } from '../../src/train/write-lock.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';

const scratch = temporaryDirectory();
const newDirectory = (): string => mkdtempSync(join(scratch, 'lock-'));
const newPath = (): string => join(newDirectory(), 'lock');

const left = (path: string, holder: object): void => writeFileSync(path, JSON.stringify(holder));

/** Of a process that has ended. */
function deadPid(): number {
  const { pid } = spawnSync(process.execPath, ['-e', '']);
  return pid;
}

describe('a lock', () => {
  it('is held until it is disposed of, and leaves nothing', () => {
    const path = newPath();
    {
      using _lock = new WriteLock('a store', path);
      expect(JSON.parse(readFileSync(path, 'utf8'))).toEqual({ pid: process.pid, host: hostname() });
      expect(() => new WriteLock('a store', path)).toThrow(
        `a store: process ${process.pid} on ${hostname()} is writing it: wait for it, or remove ${path} if it is no more`,
      );
      expect(existsSync(path)).toBe(true); // the refused one has not taken it away
    }
    expect(existsSync(path)).toBe(false);
    new WriteLock('a store', path)[Symbol.dispose]();
  });

  it('of a process that died is taken over', () => {
    const path = newPath();
    left(path, { pid: deadPid(), host: hostname() });
    using _lock = new WriteLock('a store', path);
    expect(JSON.parse(readFileSync(path, 'utf8'))).toMatchObject({ pid: process.pid });
  });

  it('of a process of before that had our number is taken over', () => {
    const path = newPath();
    left(path, { pid: process.pid, host: hostname() });
    using _lock = new WriteLock('a store', path);
    expect(() => new WriteLock('a store', path)).toThrow(RequestError);
  });

  it('that nobody signed is taken over after a while', () => {
    const path = newPath();
    writeFileSync(path, '');
    expect(() => new WriteLock('a store', path)).toThrow('another process');
    const before = Date.now() / 1000 - 60;
    utimesSync(path, before, before);
    using _lock = new WriteLock('a store', path);
    expect(JSON.parse(readFileSync(path, 'utf8'))).toMatchObject({ pid: process.pid });
  });

  it('of a process that lives is not', () => {
    const path = newPath();
    const child = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'], { stdio: 'ignore' });
    try {
      left(path, { pid: child.pid!, host: hostname() });
      expect(() => new WriteLock('a store', path)).toThrow(RequestError);
    } finally {
      child.kill('SIGKILL');
    }
  });

  it.each([
    ['another machine’s', JSON.stringify({ pid: 1, host: 'elsewhere.example' }), 'process 1 on elsewhere.example'],
    ['one that is not written yet', '', 'another process'],
    ['a file of other content', '{"pid": -1}', 'another process'],
  ])('%s is left alone', (_, content, who) => {
    const path = newPath();
    writeFileSync(path, content);
    expect(() => new WriteLock('a store', path)).toThrow(`a store: ${who} is writing it`);
    expect(readFileSync(path, 'utf8')).toBe(content);
  });

  it('cannot be taken where nothing can be written', () => {
    const path = join(newDirectory(), 'missing', 'lock');
    expect(() => new WriteLock('a store', path)).toThrow('a store: cannot be written: ENOENT');
  });
});

describe('what is locked', () => {
  const settings = { model: 'tiny', dtype: 'f32', hiddenSize: 2 };
  const text = { ids: Int32Array.of(1, 2), mask: Uint8Array.of(0, 1) };

  it('a feature store has one writer and any number of readers', () => {
    const directory = newDirectory();
    using writer = new FeatureStore(directory, settings);
    writer.append(text, Float32Array.of(1, 2, 3, 4));
    expect(() => new FeatureStore(directory, settings)).toThrow(/is writing it/);
    using one = new FeatureStore(directory, settings, 'read');
    using other = new FeatureStore(directory, settings, 'read');
    for (const reader of [one, other]) expect([...reader.read(0).features]).toEqual([1, 2, 3, 4]);
  });

  it('a store that cannot be opened is not locked', () => {
    const directory = newDirectory();
    new FeatureStore(directory, settings)[Symbol.dispose]();
    expect(() => new FeatureStore(directory, { ...settings, dtype: 'q8' })).toThrow(/another directory/);
    new FeatureStore(directory, settings)[Symbol.dispose]();
  });

  it('one directory may hold a store and a training', () => {
    const directory = newDirectory();
    using _store = new FeatureStore(directory, settings);
    using _lock = new WriteLock(directory, join(directory, 'training.lock'));
  });

  it('a file of conversations has one writer, and a refused one leaves it as it is', () => {
    const path = join(newDirectory(), 'answers.jsonl');
    {
      using _file = new ConversationFile(path, { seed: 0 });
      writeFileSync(path, '{"id": "half', { flag: 'a' }); // the writer is in the middle of a line
      expect(() => new ConversationFile(path, { seed: 0 })).toThrow(/is writing it/);
      expect(readFileSync(path, 'utf8')).toBe('{"id": "half');
    }
    using again = new ConversationFile(path, { seed: 0 });
    expect(again.cutBytes).toBe(12);
  });
});
