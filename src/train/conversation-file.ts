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
import { describe } from '../checkpoint/file.ts';
import { RequestError } from '../errors.ts';
import { parseLine, readLines } from './json-lines.ts';
import type { SynthesizedConversation } from './synthesize.ts';

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

  /**
   * @param onConversation sees what the file holds already.
   * @throws RequestError where the file was written with other settings, or is none of ours; it is left as it is.
   */
  constructor(
    path: string,
    settings: SynthesisSettings,
    onConversation: (conversation: WrittenConversation) => void = () => {},
  ) {
    this.path = path;
    const beside = settingsPath(path);
    let end: number | undefined; // of the last whole line, where another was begun
    if (existsSync(path)) {
      checkSettings(path, beside, settings);
      for (const { text, number, start, ended } of readLines(path)) {
        if (ended) onConversation(parseLine(text, `${path}:${number}`, written));
        else end = start;
      }
    }
    this.cutBytes = end === undefined ? 0 : statSync(path).size - end;
    try {
      if (end !== undefined) truncateSync(path, end);
      writeFileSync(beside, `${JSON.stringify(settings, undefined, 2)}\n`);
      this.#file = openSync(path, 'a');
    } catch (cause) {
      throw new RequestError(path, `cannot be written: ${describe(cause)}`, { cause });
    }
  }

  append(conversation: SynthesizedConversation): void {
    try {
      writeFileSync(this.#file, `${JSON.stringify(conversation)}\n`);
    } catch (cause) {
      const rule = `cannot be written: ${describe(cause)}; conversations written so far stay, the same command goes on from them`;
      throw new RequestError(this.path, rule, { cause });
    }
  }

  [Symbol.dispose](): void {
    try {
      fsyncSync(this.#file);
    } finally {
      closeSync(this.#file);
    }
  }
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
  for (const name of new Set([...Object.keys(before), ...Object.keys(settings)])) {
    const was = JSON.stringify(before[name]);
    const is = JSON.stringify(settings[name]);
    if (was !== is)
      throw new RequestError(path, `was begun with ${name} ${was}, got ${is}: give the same, or another file`);
  }
}
