/**
 * The file that synthesis writes: one conversation a line, appended as each is complete, and beside it the settings that its text
 * depends on. Opened again it knows what is there; a line that a crash left half written is cut off.
 */
import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { z } from 'zod';
import { writeAtomically } from '../checkpoint/file.ts';
import { RequestError } from '../errors.ts';
import { parseLine, readLines, writing } from './json-lines.ts';
import { differences } from './settings.ts';
import type { SynthesizedConversation } from './synthesize.ts';
import { WriteLock } from './write-lock.ts';

/** What the text depends on, by name; written as JSON. */
export type SynthesisSettings = Readonly<Record<string, string | number | readonly (string | number)[]>>;

const written = z.object({
  id: z.string(),
  messages: z.array(z.object({ role: z.string(), content: z.string() })).min(1),
  newTokens: z.int().min(1),
});

export interface WrittenConversation {
  readonly id: string;
  readonly messages: readonly { readonly role: string; readonly content: string }[];
}

export class ConversationFile implements Disposable {
  readonly path: string;
  /** Bytes of a half-written line that were cut off. */
  readonly cutBytes: number;
  readonly #file: number;
  readonly #lock: WriteLock;

  /**
   * @param onConversation sees what the file holds already.
   * @throws RequestError where the file was written with other settings, or is none of ours, and where another process writes it; it is left
   *   as it is.
   */
  constructor(
    path: string,
    settings: SynthesisSettings,
    onConversation: (conversation: WrittenConversation) => void = () => {},
  ) {
    this.path = path;
    const beside = settingsPath(path);
    this.#lock = new WriteLock(path, `${path}.lock`);
    try {
      const exists = existsSync(path);
      if (exists) checkSettings(path, beside, settings);
      const end = exists ? readWritten(path, onConversation) : undefined;
      this.cutBytes = end === undefined ? 0 : statSync(path).size - end;
      this.#file = writing(path, () => {
        if (end !== undefined) truncateSync(path, end);
        // Once: a file that is written anew at every start is empty at some moment of each.
        if (!exists) writeAtomically(beside, [Buffer.from(`${JSON.stringify(settings, undefined, 2)}\n`)]);
        return openSync(path, 'a');
      });
    } catch (error) {
      this.#lock[Symbol.dispose]();
      throw error;
    }
  }

  append(conversation: SynthesizedConversation): void {
    const consolation = '; conversations written so far stay, the same command goes on from them';
    writing(this.path, () => writeFileSync(this.#file, `${JSON.stringify(conversation)}\n`), consolation);
  }

  [Symbol.dispose](): void {
    try {
      fsyncSync(this.#file);
    } finally {
      closeSync(this.#file);
      this.#lock[Symbol.dispose]();
    }
  }
}

/** @returns where the last line begins, if it was written by half. */
function readWritten(path: string, onConversation: (conversation: WrittenConversation) => void): number | undefined {
  for (const { text, number, start, ended } of readLines(path)) {
    if (!ended) return start;
    onConversation(parseLine(text, `${path}:${number}`, written));
  }
  return undefined;
}

export function settingsPath(path: string): string {
  return `${path}.settings.json`;
}

function checkSettings(path: string, beside: string, settings: SynthesisSettings): void {
  let text: string;
  try {
    text = readFileSync(beside, 'utf8');
  } catch (cause) {
    throw new RequestError(path, `exists and has no settings beside it (${beside}): choose another file`, { cause });
  }
  const before = parseLine(text, beside, z.record(z.string(), z.unknown()));
  const differing = differences(before, settings);
  if (differing.length > 0)
    throw new RequestError(path, `was begun with ${differing.join('; ')}: give the same, or another file`);
}
