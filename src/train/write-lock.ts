/**
 * One writer at a time: two runs that append to the same files, or save over the same checkpoint, would spoil both. A file beside them names
 * the process that writes; one that a killed process left is taken over.
 */
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { z } from 'zod';
import { describe } from '../checkpoint/file.ts';
import { isAlive } from '../checkpoint/process-alive.ts';
import { RequestError } from '../errors.ts';

const holder = z.object({ pid: z.int().positive(), host: z.string() });
type Holder = z.infer<typeof holder>;

export class WriteLock implements Disposable {
  readonly #path: string;
  readonly #what: string;

  /**
   * @param what is written, a file or a directory. @param path the lock's own.
   * @throws RequestError where another process writes, or may: one of another machine, or one that is just taking the lock.
   */
  constructor(what: string, path: string) {
    this.#what = what;
    this.#path = path;
    if (this.#take()) return;
    const before = holderOf(path);
    // Of processes on other machines nothing is known. Two starts that find the same dead writer could both get here; what they race for is
    // microseconds.
    if (before?.host === hostname() && !isAlive(before.pid)) {
      rmSync(path, { force: true });
      if (this.#take()) return;
    }
    const who = before === undefined ? 'another process' : `process ${before.pid} on ${before.host}`;
    throw new RequestError(what, `${who} is writing it: wait for it, or remove ${path} if it is no more`);
  }

  #take(): boolean {
    const own: Holder = { pid: process.pid, host: hostname() };
    try {
      writeFileSync(this.#path, JSON.stringify(own), { flag: 'wx' });
      return true;
    } catch (cause) {
      if (cause instanceof Error && 'code' in cause && cause.code === 'EEXIST') return false;
      throw new RequestError(this.#what, `cannot be written: ${describe(cause)}`, { cause });
    }
  }

  [Symbol.dispose](): void {
    rmSync(this.#path, { force: true });
  }
}

/** Undefined where the file is none of ours, or not written yet. */
function holderOf(path: string): Holder | undefined {
  try {
    return holder.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch {
    return undefined;
  }
}
