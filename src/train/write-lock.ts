/**
 * One writer at a time: two runs that append to the same files, or save over the same checkpoint, would spoil both. A file beside them names
 * the process that writes; one that a killed process left is taken over.
 */
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { resolve } from 'node:path';
import { z } from 'zod';
import { describe } from '../checkpoint/file.ts';
import { isAlive } from '../checkpoint/process-alive.ts';
import { RequestError } from '../errors.ts';

const holder = z.object({ pid: z.int().positive(), host: z.string() });
type Holder = z.infer<typeof holder>;

/** Of this process: a lock with its number that is none of these is a process's of before, whose number was given again. */
const held = new Set<string>();
/** A lock without a name that is older was left by a process that died, or had no room, before it could sign. */
const UNSIGNED_MS = 10_000;

export class WriteLock implements Disposable {
  readonly #path: string;
  readonly #what: string;

  /**
   * @param what is written, a file or a directory. @param path the lock's own.
   * @throws RequestError where another process writes, or may: one of another machine, or one that is just taking the lock.
   */
  constructor(what: string, path: string) {
    this.#what = what;
    this.#path = resolve(path);
    if (this.#take()) return;
    const before = holderOf(path);
    // Of processes on other machines nothing is known. Two starts that find the same dead writer could both get here; what they race for is
    // microseconds.
    if (before === undefined ? isLeftUnsigned(path) : before.host === hostname() && !this.#isHeld(before.pid)) {
      rmSync(path, { force: true });
      if (this.#take()) return;
    }
    const who = before === undefined ? 'another process' : `process ${before.pid} on ${before.host}`;
    throw new RequestError(what, `${who} is writing it: wait for it, or remove ${path} if it is no more`);
  }

  #isHeld(pid: number): boolean {
    return pid === process.pid ? held.has(this.#path) : isAlive(pid);
  }

  #take(): boolean {
    const own: Holder = { pid: process.pid, host: hostname() };
    try {
      writeFileSync(this.#path, JSON.stringify(own), { flag: 'wx' });
      held.add(this.#path);
      return true;
    } catch (cause) {
      if (cause instanceof Error && 'code' in cause && cause.code === 'EEXIST') return false;
      rmSync(this.#path, { force: true }); // of a full disk
      throw new RequestError(this.#what, `cannot be written: ${describe(cause)}`, { cause });
    }
  }

  [Symbol.dispose](): void {
    held.delete(this.#path);
    rmSync(this.#path, { force: true });
  }
}

/** Nobody's: an empty file. What holds anything else is not ours to take. */
function isLeftUnsigned(path: string): boolean {
  const stats = statSync(path, { throwIfNoEntry: false });
  return stats === undefined || (stats.size === 0 && Date.now() - stats.mtimeMs > UNSIGNED_MS);
}

/** Undefined where the file is none of ours, or not written yet. */
function holderOf(path: string): Holder | undefined {
  try {
    return holder.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch {
    return undefined;
  }
}
