/** One file from the Hugging Face Hub over HTTP: resumed where an earlier try stopped, and verified. */
import { createHash, randomBytes } from 'node:crypto';
import { type FileHandle, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { ModelAlias } from './aliases.ts';
import { describe } from './file.ts';
import type { FetchJob } from './hub.ts';
import { isAlive } from './process-alive.ts';

/** Until the headers are there. Long for a slow line, short for a person who waits on a network that drops packets. */
const CONNECT_TIMEOUT_MS = 10_000;
/** Without a single byte. */
const STALL_TIMEOUT_MS = 30_000;
const PROBE_TIMEOUT_MS = 5_000;

export function hubUrl({ hub }: ModelAlias): string {
  const endpoint = (process.env.HF_ENDPOINT || 'https://huggingface.co').replace(/\/+$/, '');
  return `${endpoint}/${hub.repository}/resolve/${hub.revision}/${encodeURIComponent(hub.file)}`;
}

/** The bytes are there and are not the file. */
class CorruptError extends Error {}

/** Parts that this process is writing now; others with its number are left from tries that failed. */
const partsInUse = new Set<string>();

/** Downloads to a name of our own and returns it; on a broken connection the part stays for the next try. */
export async function downloadFromHub(job: FetchJob): Promise<string> {
  const { model, directory } = job;
  const part = join(directory, `${model.file}.${process.pid}-${randomBytes(6).toString('hex')}.incomplete`);
  partsInUse.add(part);
  try {
    const resumed = await adoptPart(directory, model.file, part);
    const file = await open(part, resumed ? 'r+' : 'wx+');
    try {
      const had = resumed ? (await file.stat()).size : 0;
      await downloadInto(job, file, had);
    } catch (error) {
      const { size } = await file.stat();
      // A part that is complete and wrong, or that holds nothing, helps nobody.
      if (error instanceof CorruptError || size === 0) await rm(part, { force: true });
      throw error;
    } finally {
      await file.close();
    }
    return part;
  } finally {
    partsInUse.delete(part);
  }
}

async function downloadInto(job: FetchJob, file: FileHandle, had: number): Promise<void> {
  const { bytes, sha256 } = job.model;
  let digest = had > bytes ? undefined : await fill(job, file, had);
  if (digest !== sha256 && had > 0) {
    // The part that was there may have been the broken one: once more, from the start.
    await file.truncate(0);
    digest = await fill(job, file, 0);
  }
  job.report('verify', bytes, bytes);
  if (digest !== sha256) throw new CorruptError(`sha256 must be ${sha256}, got ${digest}`);
  await file.sync();
}

/**
 * Takes over the largest part that a dead process left, by renaming it: of two processes that try, one gets it. If a part's
 * owner lives after all (its number means nothing on another machine), both write equal bytes to equal places, and the hash decides.
 */
async function adoptPart(directory: string, file: string, mine: string): Promise<boolean> {
  const parts: { path: string; size: number }[] = [];
  for (const name of await readdir(directory)) {
    const owner = name.startsWith(`${file}.`) && /^(\d+)-[0-9a-f]+\.incomplete$/.exec(name.slice(file.length + 1));
    if (!owner) continue;
    const path = join(directory, name);
    const pid = Number(owner[1]);
    if (pid === process.pid ? partsInUse.has(path) : isAlive(pid)) continue;
    const found = await stat(path).catch(() => undefined);
    if (found) parts.push({ path, size: found.size });
  }
  for (const { path } of parts.sort((a, b) => b.size - a.size)) {
    try {
      await rename(path, mine);
      return true;
    } catch {
      // Somebody else was quicker; there may be another part.
    }
  }
  return false;
}

/** Hashes the first `have` bytes of the file, asks for the rest, and returns the hash of all. */
async function fill(job: FetchJob, file: FileHandle, have: number): Promise<string> {
  const { model, report, signal } = job;
  let hash = createHash('sha256');
  let loaded = 0;
  if (have > 0) {
    for await (const chunk of file.createReadStream({ start: 0, end: have - 1, autoClose: false })) hash.update(chunk);
    loaded = have;
  }
  if (loaded === model.bytes) return hash.digest('hex');

  const watchdog = new Watchdog(signal);
  try {
    watchdog.expect('an answer', CONNECT_TIMEOUT_MS);
    const response = await fetch(hubUrl(model), {
      headers: loaded > 0 ? { range: `bytes=${loaded}-` } : {},
      signal: watchdog.signal,
    });
    if (!response.ok || response.body === null) {
      await response.body?.cancel();
      throw new Error(`the server answered ${response.status} ${response.statusText}`);
    }
    if (loaded > 0 && !continuesAt(response, loaded)) {
      // The server sends the whole file: start over in place.
      await file.truncate(0);
      hash = createHash('sha256');
      loaded = 0;
    }
    watchdog.expect('data', STALL_TIMEOUT_MS);
    for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
      // Checked before it is written: a server cannot fill the disk.
      if (loaded + chunk.length > model.bytes) throw new CorruptError(`sends more than ${model.bytes} bytes`);
      hash.update(chunk);
      await writeAll(file, chunk, loaded);
      loaded += chunk.length;
      report('download', loaded, model.bytes);
      watchdog.expect('data', STALL_TIMEOUT_MS);
    }
  } catch (error) {
    throw watchdog.explain(error);
  } finally {
    watchdog.stop();
  }
  if (loaded < model.bytes) throw new Error(`the connection closed after ${loaded} of ${model.bytes} bytes`);
  return hash.digest('hex');
}

function continuesAt(response: Response, offset: number): boolean {
  return response.status === 206 && response.headers.get('content-range')?.startsWith(`bytes ${offset}-`) === true;
}

async function writeAll(file: FileHandle, chunk: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < chunk.length; ) {
    done += (await file.write(chunk, done, chunk.length - done, position + done)).bytesWritten;
  }
}

/** Aborts a request that takes too long over its next step, or when the caller aborts. */
class Watchdog {
  readonly #timeout = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  readonly signal: AbortSignal;

  constructor(callers: AbortSignal | undefined) {
    this.signal = callers ? AbortSignal.any([callers, this.#timeout.signal]) : this.#timeout.signal;
  }

  expect(what: string, withinMs: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#timeout.abort(new Error(`no ${what} for ${withinMs / 1000} s`)), withinMs);
  }

  stop(): void {
    clearTimeout(this.#timer);
  }

  /** fetch says "fetch failed" and keeps the reason in `cause`. */
  explain(error: unknown): unknown {
    if (this.#timeout.signal.aborted) return this.#timeout.signal.reason;
    if (!(error instanceof TypeError) || error.cause === undefined) return error;
    const { cause } = error;
    // A host with several addresses fails with an AggregateError, whose own message is empty.
    const inner = cause instanceof AggregateError ? cause.errors[0] : cause;
    return new Error(`${error.message}: ${describe(inner)}`, { cause: error });
  }
}

/** Asks for the headers alone; the Hub answers a large file with a redirect. */
export async function probeHub(model: ModelAlias): Promise<string | undefined> {
  const watchdog = new Watchdog(undefined);
  watchdog.expect('an answer', PROBE_TIMEOUT_MS);
  try {
    const { status } = await fetch(hubUrl(model), { method: 'HEAD', redirect: 'manual', signal: watchdog.signal });
    return status < 400 ? undefined : `the server answered ${status}`;
  } catch (error) {
    return describe(watchdog.explain(error));
  } finally {
    watchdog.stop();
  }
}
