/**
 * Features of the training texts on disk, as f16: computing them takes longer than several passes of training over them.
 *
 * A directory with `features.f16` (rows of d numbers, texts one after another) and `texts.jsonl`: the settings, then one line for each text,
 * written when its features are. Whatever was cut off in the middle of writing is left out by those who read, and dropped by the next writer.
 */
import { createHash } from 'node:crypto';
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readSync,
  statfsSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { describe } from '../checkpoint/file.ts';
import { RequestError } from '../errors.ts';
import { floatToHalf, halfToFloat } from '../kernels/half.ts';
import { parseLine, readLines } from './json-lines.ts';
import type { EncodedText, TrainingText } from './unroll.ts';
import { WriteLock } from './write-lock.ts';

/** Whatever the features depend on; a store made with other settings is refused. */
export interface FeatureSettings {
  readonly model: string;
  readonly dtype: string;
  readonly hiddenSize: number;
}

/** Texts with their features, wherever these come from. */
export interface TextFeatures {
  readonly texts: number;
  /** Of all texts. */
  readonly tokens: number;
  text(index: number): EncodedText;
  read(index: number): TrainingText;
}

const BYTES = 2; // of an f16

/** Half-open ranges [start, end) in which the mask is 1, one after another. */
const textSchema = z.object({ ids: z.array(z.int().nonnegative()).min(1), counts: z.array(z.int().nonnegative()) });

interface StoredText {
  readonly text: EncodedText;
  /** Tokens before it. */
  readonly first: number;
}

/** Many may read a store, one may write it. */
export type StoreUse = 'read' | 'append';

export class FeatureStore implements TextFeatures, Disposable {
  readonly directory: string;
  readonly #settings: FeatureSettings;
  readonly #texts: StoredText[] = [];
  readonly #files: StoreFiles;
  /** Digests of the texts, once somebody asks. */
  #known: Set<string> | undefined;
  #tokens = 0;
  #row = new Uint16Array(0);

  /**
   * Opens the directory's store; to append, one is begun where there is none.
   * @throws RequestError where it was made with other settings, where it is no store, and where another process appends to it, too.
   */
  constructor(directory: string, settings: FeatureSettings, use: StoreUse = 'append') {
    this.directory = directory;
    this.#settings = settings;
    this.#files = new StoreFiles(directory, use);
    try {
      const kept = this.#readTexts();
      if (use === 'append') this.#dropRest(kept);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  get texts(): number {
    return this.#texts.length;
  }

  get tokens(): number {
    return this.#tokens;
  }

  text(index: number): EncodedText {
    return this.#texts[index]!.text;
  }

  /** Whether a text of these tokens is there. */
  has({ ids }: EncodedText): boolean {
    this.#known ??= new Set(this.#texts.map(({ text }) => digest(text.ids)));
    return this.#known.has(digest(ids));
  }

  /** @param features [text.ids.length, d] */
  append(text: EncodedText, features: Float32Array): void {
    const { hiddenSize } = this.#settings;
    const count = text.ids.length * hiddenSize;
    if (features.length < count) throw new RangeError(`features: expected ${count} numbers, got ${features.length}`);
    const halves = this.#buffer(count);
    for (let i = 0; i < count; i++) halves[i] = floatToHalf(features[i]!);
    this.#write(
      this.#files.features,
      new Uint8Array(halves.buffer, 0, count * BYTES),
      this.#tokens * hiddenSize * BYTES,
    );
    const line = JSON.stringify({ ids: [...text.ids], counts: runsOf(text.mask) });
    this.#write(this.#files.texts, Buffer.from(`${line}\n`));
    this.#texts.push({ text, first: this.#tokens });
    this.#known?.add(digest(text.ids));
    this.#tokens += text.ids.length;
  }

  /** What was written so far outlives a crash of the machine. */
  sync(): void {
    fsyncSync(this.#files.features);
    fsyncSync(this.#files.texts);
  }

  read(index: number): TrainingText {
    const { text, first } = this.#texts[index]!;
    const { hiddenSize } = this.#settings;
    const count = text.ids.length * hiddenSize;
    const halves = this.#buffer(count);
    const bytes = new Uint8Array(halves.buffer, 0, count * BYTES);
    for (let done = 0; done < bytes.length; ) {
      const got = readSync(this.#files.features, bytes, done, bytes.length - done, first * hiddenSize * BYTES + done);
      if (got === 0)
        throw new RequestError(this.#file('features.f16'), `text ${index} is not there: the file is too short`);
      done += got;
    }
    const features = new Float32Array(count);
    const table = halfTable();
    for (let i = 0; i < count; i++) features[i] = table[halves[i]!]!;
    return { ...text, features };
  }

  /** @returns bytes of the lines that hold. */
  #readTexts(): number {
    const file = this.#file('texts.jsonl');
    const settings = JSON.stringify(this.#settings);
    const rows = Math.floor(fstatSync(this.#files.features).size / (this.#settings.hiddenSize * BYTES));
    let kept = 0; // bytes
    for (const { text, number, start, ended } of readLines(file)) {
      if (!ended) break; // written by half
      if (number === 1) {
        if (text !== settings)
          throw new RequestError(file, `was made with ${text}, this run has ${settings}: give another directory`);
      } else {
        const { ids, counts } = parseLine(text, `${file}:${number}`, textSchema);
        if (this.#tokens + ids.length > rows) break; // its features were lost
        this.#texts.push({
          text: { ids: Int32Array.from(ids), mask: maskOf(ids.length, counts) },
          first: this.#tokens,
        });
        this.#tokens += ids.length;
      }
      kept = start + Buffer.byteLength(text) + 1;
    }
    return kept;
  }

  /** What was written by half. @param kept bytes of the lines that hold. */
  #dropRest(kept: number): void {
    ftruncateSync(this.#files.texts, kept);
    if (kept === 0) this.#write(this.#files.texts, Buffer.from(`${JSON.stringify(this.#settings)}\n`));
    ftruncateSync(this.#files.features, featureBytes(this.#tokens, this.#settings.hiddenSize));
  }

  #write(fd: number, bytes: Uint8Array, position?: number): void {
    try {
      for (let done = 0; done < bytes.length; )
        done += writeSync(fd, bytes, done, bytes.length - done, position === undefined ? null : position + done);
    } catch (cause) {
      throw new RequestError(this.directory, `must be writable, got ${describe(cause)}`, { cause });
    }
  }

  #buffer(count: number): Uint16Array {
    if (this.#row.length < count) this.#row = new Uint16Array(count);
    return this.#row;
  }

  #file(name: string): string {
    return join(this.directory, name);
  }

  [Symbol.dispose](): void {
    this.#files[Symbol.dispose]();
  }
}

/** The two files of a store, and for its writer the lock. */
class StoreFiles implements Disposable {
  readonly texts: number;
  readonly features: number;
  readonly #lock: WriteLock | undefined;

  constructor(directory: string, use: StoreUse) {
    const open = (name: string, flags: string | number): number => {
      try {
        return openSync(join(directory, name), flags);
      } catch (cause) {
        throw new RequestError(directory, `must be a store of features, got ${describe(cause)}`, { cause });
      }
    };
    this.#lock = use === 'append' ? new WriteLock(directory, join(directory, 'features.lock')) : undefined;
    let texts: number | undefined;
    try {
      texts = open('texts.jsonl', use === 'append' ? 'a+' : 'r');
      this.features = open('features.f16', use === 'append' ? constants.O_RDWR | constants.O_CREAT : 'r');
      this.texts = texts;
    } catch (error) {
      if (texts !== undefined) closeSync(texts);
      this.#lock?.[Symbol.dispose]();
      throw error;
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.features);
    closeSync(this.texts);
    this.#lock?.[Symbol.dispose]();
  }
}

const digest = (ids: Int32Array): string =>
  createHash('sha256')
    .update(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength))
    .digest('base64');

/** Bytes that features of so many tokens take. */
export function featureBytes(tokens: number, hiddenSize: number): number {
  return tokens * hiddenSize * BYTES;
}

/** @throws RequestError where the directory's disk has no room for `bytes`, and a tenth more. */
export function requireSpace(directory: string, bytes: number): void {
  const { bavail, bsize } = statfsSync(directory);
  const free = bavail * bsize;
  if (free >= bytes * 1.1) return;
  const gigabytes = (count: number): string => `${(count / 1e9).toFixed(2)} GB`;
  const rule = `must have room for ${gigabytes(bytes)} of features and a tenth more, has ${gigabytes(free)}`;
  throw new RequestError(directory, rule);
}

function runsOf(mask: Uint8Array): number[] {
  const runs: number[] = [];
  for (let i = 0; i < mask.length; i++) if ((mask[i] ?? 0) !== (mask[i - 1] ?? 0)) runs.push(i);
  if (mask.at(-1)) runs.push(mask.length);
  return runs;
}

function maskOf(length: number, runs: readonly number[]): Uint8Array {
  const mask = new Uint8Array(length);
  for (let i = 0; i + 1 < runs.length; i += 2) mask.fill(1, runs[i], runs[i + 1]);
  return mask;
}

let halves: Float32Array | undefined;
function halfTable(): Float32Array {
  halves ??= Float32Array.from({ length: 65_536 }, (_, half) => halfToFloat(half));
  return halves;
}
