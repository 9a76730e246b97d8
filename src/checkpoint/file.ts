/**
 * Reading files that may be hostile, and writing files that must be whole. Knows nothing of what is in them.
 * Every failure of the file system turns into a `CheckpointError` that names the file.
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  fsyncSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { CheckpointError } from '../errors.ts';

/** One read call: Linux moves at most 2 GiB - 4 KiB at a time, and Node refuses lengths above 2^31 - 1. */
const READ_CHUNK_BYTES = 2 ** 30;

export interface OpenFile {
  readonly fd: number;
  readonly bytes: number;
}

/** Opens a regular file. O_NONBLOCK, because opening a named pipe nobody writes to would otherwise wait for ever. */
export function openRegularFile(path: string): OpenFile {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
  } catch (cause) {
    throw new CheckpointError(path, 'file', `must be readable, got ${describe(cause)}`, { cause });
  }
  const stat = fstatSync(fd);
  if (!stat.isFile()) {
    closeSync(fd);
    throw new CheckpointError(path, 'file', 'must be a regular file');
  }
  return { fd, bytes: stat.size };
}

/** Fills `into` from `offset`; `field` is what the bytes are, for the message when the file ends too early. */
export function readExactly(path: string, fd: number, offset: number, into: Uint8Array, field: string): void {
  let done = 0;
  while (done < into.length) {
    let got: number;
    try {
      got = readSync(fd, into, done, Math.min(into.length - done, READ_CHUNK_BYTES), offset + done);
    } catch (cause) {
      throw new CheckpointError(path, field, `must be readable, got ${describe(cause)}`, { cause });
    }
    if (got === 0) {
      throw new CheckpointError(
        path,
        field,
        `needs ${into.length} bytes at offset ${offset}, but the file ends after ${done} of them`,
      );
    }
    done += got;
  }
}

/** A whole text file of at most `maxBytes`; undefined when it does not exist. */
export function readTextIfPresent(path: string, maxBytes: number): string | undefined {
  if (!existsSync(path)) return undefined;
  const { fd, bytes } = openRegularFile(path);
  try {
    if (bytes > maxBytes) throw new CheckpointError(path, 'file', `must be at most ${maxBytes} bytes, got ${bytes}`);
    return readFileSync(fd, 'utf8');
  } finally {
    closeSync(fd);
  }
}

/** A whole JSON file of at most `maxBytes`; undefined when it does not exist. */
export function readJsonIfPresent(path: string, maxBytes: number): unknown {
  const text = readTextIfPresent(path, maxBytes);
  return text === undefined ? undefined : parseJson(path, 'file', text);
}

export function parseJson(path: string, field: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new CheckpointError(path, field, `must be JSON, got ${describe(cause)}`, { cause });
  }
}

/**
 * Writes `chunks` under a name of its own, then renames: a reader sees the old file or the new one, never a part,
 * and after a power cut the new name holds the new bytes.
 */
export function writeAtomically(path: string, chunks: Iterable<Uint8Array>): void {
  const temporary = `${path}.${process.pid}-${randomBytes(6).toString('hex')}.tmp`;
  const fd = openSync(temporary, 'wx');
  try {
    try {
      for (const chunk of chunks) {
        for (let done = 0; done < chunk.length; ) {
          done += writeSync(fd, chunk, done, Math.min(chunk.length - done, READ_CHUNK_BYTES));
        }
      }
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
  syncDirectory(dirname(path));
}

/** What killed processes began to write in place of `path` and did not finish. For the only one who writes there. */
export function removeTemporaries(path: string): void {
  const [directory, beginning] = [dirname(path), `${basename(path)}.`];
  for (const name of readdirSync(directory)) {
    const unfinished = name.startsWith(beginning) && /^\d+-[0-9a-f]+\.tmp$/.test(name.slice(beginning.length));
    if (unfinished) rmSync(join(directory, name));
  }
}

/** Makes a rename survive a power cut. Windows cannot open directories; there the rename alone has to do. */
export function syncDirectory(path: string): void {
  if (process.platform === 'win32') return;
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

export function describe(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
