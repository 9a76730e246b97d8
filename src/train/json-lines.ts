/** Files of JSON lines, read a piece at a time: they may be larger than a string can be. */
import { closeSync, openSync, readSync } from 'node:fs';
import { z } from 'zod';
import { describe } from '../checkpoint/file.ts';
import { RequestError } from '../errors.ts';

export interface Line {
  readonly text: string;
  /** From 1. */
  readonly number: number;
  /** Byte where the line begins. */
  readonly start: number;
  /** With a line break; the last line of a file may lack it. */
  readonly ended: boolean;
}

/** A conversation takes some kilobytes; whole books stay below. */
const MAX_LINE_BYTES = 64 * 2 ** 20;
const PIECE_BYTES = 2 ** 20;
const LINE_BREAK = 10;

/** The lines that hold anything but white space. @throws RequestError where the file cannot be read. */
export function* readLines(path: string): Generator<Line, void, void> {
  const file = reading(path, () => openSync(path, 'r'));
  try {
    const piece = Buffer.alloc(PIECE_BYTES);
    let rest: Buffer = Buffer.alloc(0); // of a line that the piece before began
    let start = 0;
    let number = 1;
    const line = (bytes: Buffer, ended: boolean): Line | undefined => {
      const decoded = bytes.toString('utf8');
      const text = start === 0 && decoded.startsWith('\uFEFF') ? decoded.slice(1) : decoded;
      return text.trim() === '' ? undefined : { text, number, start, ended };
    };
    for (;;) {
      const count = reading(path, () => readSync(file, piece));
      if (count === 0) break;
      let bytes = Buffer.concat([rest, piece.subarray(0, count)]);
      for (let end = bytes.indexOf(LINE_BREAK); end >= 0; end = bytes.indexOf(LINE_BREAK)) {
        const read = line(bytes.subarray(0, end), true);
        if (read !== undefined) yield read;
        number++;
        start += end + 1;
        bytes = bytes.subarray(end + 1);
      }
      if (bytes.length > MAX_LINE_BYTES)
        throw new RequestError(`${path}:${number}`, `must have at most ${MAX_LINE_BYTES} bytes in a line`);
      rest = bytes;
    }
    const last = line(rest, false);
    if (last !== undefined) yield last;
  } finally {
    closeSync(file);
  }
}

/** What a line says, if it says what `schema` asks for. @param where file and line, for messages. */
export function parseLine<T>(text: string, where: string, schema: z.ZodType<T>): T {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new RequestError(where, `must be JSON, got ${excerpt(text)}`, { cause });
  }
  const parsed = schema.safeParse(json);
  if (!parsed.success) throw new RequestError(where, `${z.prettifyError(parsed.error)}, got ${excerpt(text)}`);
  return parsed.data;
}

const EXCERPT = 80;

function excerpt(text: string): string {
  return text.length <= EXCERPT ? text : `${text.slice(0, EXCERPT)}…`;
}

function reading<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (cause) {
    throw new RequestError(path, `cannot be read: ${describe(cause)}`, { cause });
  }
}

/** @param consolation what the message ends with. @throws RequestError that names the path. */
export function writing<T>(path: string, action: () => T, consolation = ''): T {
  try {
    return action();
  } catch (cause) {
    throw new RequestError(path, `cannot be written: ${describe(cause)}${consolation}`, { cause });
  }
}
