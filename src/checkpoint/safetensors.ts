/**
 * safetensors: 8 bytes of length, a JSON header, the tensors' bytes. Reads one file or a directory of shards; writes one file.
 * The checks are those of the format's own Rust reader.
 */
import { closeSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { CheckpointError } from '../errors.ts';
import { sourceRowBytes } from '../kernels/kernels.ts';
import type { TensorEntry, TensorSource } from '../tensor/source.ts';
import { describe, openRegularFile, parseJson, readExactly, readTextIfPresent, writeAtomically } from './file.ts';
import { countElements, FileTensorSource, type PlacedTensor, refuseOverlaps } from './file-tensor-source.ts';

/** The format's own bound. */
const MAX_HEADER_BYTES = 100_000_000;
/** Checkpoints in use have some thousands; headers of 100,000 entries take seconds to check. */
const MAX_TENSORS = 65_536;
/** The most in use is 5, for convolutions over video. */
const MAX_DIMS = 8;
/** Llama 3.1 405B comes in 191 shards; each is an open file. */
const MAX_SHARDS = 512;
/** About 200 bytes for each of MAX_TENSORS names. */
const MAX_INDEX_BYTES = 16 * 2 ** 20;

/** The element types read and written, widest first: written in this order, every tensor starts at a multiple of its element's size. */
const TYPES = ['I64', 'F32', 'F16', 'BF16', 'BOOL'] as const;
export type SafetensorsType = (typeof TYPES)[number];

/** Whether a tensor can be written as it is: the quantised types of GGUF cannot. */
export function isSafetensorsType(type: string): type is SafetensorsType {
  return (TYPES as readonly string[]).includes(type);
}

function elementBytes(type: SafetensorsType): number {
  return type === 'I64' ? 8 : type === 'BOOL' ? 1 : sourceRowBytes(type, 1);
}

export interface SafetensorsFile extends TensorSource {
  /** The header's `__metadata__`. */
  readonly metadata: ReadonlyMap<string, string>;
  readonly fileBytes: number;
}

/** Opens and checks one file; weights are read later. Dispose to close it. */
export function openSafetensors(path: string): SafetensorsFile {
  const { fd, bytes: fileBytes } = openRegularFile(path);
  try {
    const { tensors, metadata } = readHeader(path, fd, fileBytes);
    return Object.assign(new FileTensorSource(path, fd, tensors), { metadata, fileBytes });
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function readHeader(path: string, fd: number, fileBytes: number) {
  const lengthBytes = Buffer.alloc(8);
  readExactly(path, fd, 0, lengthBytes, 'header length');
  const length = lengthBytes.readBigUInt64LE();
  // Compared before it is allocated: both bounds are smaller than 2^53.
  if (length < 2n || length > BigInt(Math.min(MAX_HEADER_BYTES, fileBytes - 8))) {
    const rule = `must be from 2 to ${MAX_HEADER_BYTES} and fit in the file of ${fileBytes} bytes, got ${length}`;
    throw new CheckpointError(path, 'header length', rule);
  }
  const bytes = Buffer.alloc(Number(length));
  readExactly(path, fd, 8, bytes, 'header');
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new CheckpointError(path, 'header', 'must be UTF-8', { cause });
  }
  if (text[0] !== '{') throw new CheckpointError(path, 'header', 'must start with "{"');
  const keys = countKeysInText(path, text);
  const json = parseJson(path, 'header', text);
  if (keys !== countKeys(json)) {
    throw new CheckpointError(path, 'header', 'must not name a key twice');
  }

  const metadata = new Map<string, string>();
  const tensors: PlacedTensor[] = [];
  const extents: { name: string; begin: number; end: number }[] = [];
  const dataStart = 8 + Number(length);
  const named = Object.entries(json as object);
  if (named.length > MAX_TENSORS) {
    throw new CheckpointError(path, 'header', `must have at most ${MAX_TENSORS} entries, got ${named.length}`);
  }
  for (const [name, value] of named) {
    if (name === '__metadata__') {
      for (const [key, text] of readMetadata(path, value)) metadata.set(key, text);
      continue;
    }
    const { entry, begin, end } = readEntry(path, name, value);
    tensors.push({ entry, offset: dataStart + begin });
    extents.push({ name, begin, end });
  }
  refuseOverlaps(path, extents);
  refuseHoles(path, extents, fileBytes - dataStart);
  return { tensors, metadata };
}

const entrySchema = z.strictObject({
  dtype: z.enum(TYPES),
  shape: z.array(z.number()).max(MAX_DIMS),
  data_offsets: z.tuple([z.int().nonnegative(), z.int().nonnegative()]),
});

function readEntry(path: string, name: string, value: unknown) {
  if (name === '') throw new CheckpointError(path, 'header', 'tensor names must not be empty');
  const parsed = entrySchema.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    const dtype = issue.path[0] === 'dtype' ? (value as { dtype: unknown }).dtype : undefined;
    const got = typeof dtype === 'string' ? `, got ${dtype.slice(0, 20)}` : '';
    throw new CheckpointError(path, name, `${[...issue.path, issue.message].join(': ')}${got}`);
  }
  const { dtype: type, shape, data_offsets } = parsed.data;
  const [begin, end] = data_offsets;
  const byteLength = countElements(path, name, shape) * elementBytes(type);
  if (end - begin !== byteLength) {
    const rule = `${type} [${shape.join(', ')}] takes ${byteLength} bytes, got offsets ${begin} to ${end}`;
    throw new CheckpointError(path, name, rule);
  }
  return { entry: { name, type, shape, byteLength } satisfies TensorEntry, begin, end };
}

function readMetadata(path: string, value: unknown): [string, string][] {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    const pairs: [string, unknown][] = Object.entries(value);
    if (pairs.every((pair): pair is [string, string] => typeof pair[1] === 'string')) return pairs;
  }
  throw new CheckpointError(path, '__metadata__', 'must map strings to strings');
}

/** Together with `refuseOverlaps`: the tensors cover the data exactly, so nothing can be smuggled between or behind them. */
function refuseHoles(
  path: string,
  extents: readonly { name: string; begin: number; end: number }[],
  dataBytes: number,
) {
  let covered = 0;
  for (const { name, begin, end } of extents.toSorted((a, b) => a.begin - b.begin)) {
    if (begin !== covered) {
      throw new CheckpointError(path, name, `leaves a hole: starts at ${begin}, the tensor before ends at ${covered}`);
    }
    covered = end;
  }
  if (covered !== dataBytes) {
    throw new CheckpointError(path, 'data', `tensors cover ${covered} bytes, but the file has ${dataBytes} of data`);
  }
}

/** { tensor: { "shape": [ is as deep as a header goes. */
const MAX_DEPTH = 3;
/** A tensor is a name with three fields; metadata in use has a handful of keys, training logs in LoRA files some hundred. */
const MAX_KEYS = 4 * MAX_TENSORS + 4096;
/** A tensor's four keys come with 11 commas at most: one after it, two between its fields, 7 in its shape, 1 in its offsets. */
const MAX_COMMAS_PER_KEY = 4;

/**
 * Counts keys, for `JSON.parse` keeps the last of two equal ones and says nothing: in valid JSON, every colon outside a string
 * belongs to one key. Refuses what no header looks like before it is parsed: 16 MB of brackets take 3 s and 0.5 GB.
 */
function countKeysInText(path: string, text: string): number {
  let keys = 0;
  let commas = 0;
  let depth = 0;
  let inString = false;
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === '"') inString = !inString;
    else if (inString) i += character === '\\' ? 1 : 0;
    else if (character === ':') keys++;
    else if (character === ',') commas++;
    else if (character === '}' || character === ']') depth--;
    else if ((character === '{' || character === '[') && ++depth > MAX_DEPTH) {
      throw new CheckpointError(path, 'header', `must not nest deeper than ${MAX_DEPTH}`);
    }
  }
  if (keys > MAX_KEYS) throw new CheckpointError(path, 'header', `must have at most ${MAX_KEYS} keys, got ${keys}`);
  if (commas > MAX_COMMAS_PER_KEY * (keys + 1)) {
    throw new CheckpointError(path, 'header', `has ${commas} commas to ${keys} keys: those are not shapes`);
  }
  return keys;
}

/** The number of keys that `JSON.parse` kept, at every depth; `countKeysInText` has bounded the depth. */
function countKeys(json: unknown): number {
  if (typeof json !== 'object' || json === null) return 0;
  const inner = Object.values(json);
  return inner.reduce<number>((sum, value) => sum + countKeys(value), Array.isArray(json) ? 0 : inner.length);
}

const indexSchema = z.object({ weight_map: z.record(z.string(), z.string()) });
/** A plain file name beside the index: no separators, no "..", nothing that leads elsewhere. */
const SHARD_NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors$/;

/** `model.safetensors.index.json` with its shards, or `model.safetensors`. */
export function openSafetensorsDirectory(directory: string): TensorSource & { readonly fileBytes: number } {
  const indexPath = join(directory, 'model.safetensors.index.json');
  const text = readTextIfPresent(indexPath, MAX_INDEX_BYTES);
  if (text === undefined) {
    const single = join(directory, 'model.safetensors');
    if (existsSync(single)) return openSafetensors(single);
    const rule = 'must hold model.safetensors or model.safetensors.index.json';
    throw new CheckpointError(directory, 'directory', rule);
  }
  const parsed = indexSchema.safeParse(parseJson(indexPath, 'file', text));
  if (!parsed.success) throw new CheckpointError(indexPath, 'weight_map', 'must map tensor names to file names');
  return openShards(directory, indexPath, new Map(Object.entries(parsed.data.weight_map)));
}

function openShards(directory: string, indexPath: string, shardOf: ReadonlyMap<string, string>) {
  const files = new Set(shardOf.values());
  if (files.size > MAX_SHARDS) {
    throw new CheckpointError(indexPath, 'weight_map', `must name at most ${MAX_SHARDS} files, got ${files.size}`);
  }
  const shards = new Map<string, SafetensorsFile>();
  const closeAll = () => {
    for (const shard of shards.values()) shard[Symbol.dispose]();
  };
  try {
    let fileBytes = 0;
    for (const file of files) {
      if (!SHARD_NAME.test(file)) {
        const rule = `must name files beside the index, got ${JSON.stringify(file.slice(0, 60))}`;
        throw new CheckpointError(indexPath, 'weight_map', rule);
      }
      const shard = openSafetensors(join(directory, file));
      shards.set(file, shard);
      fileBytes += shard.fileBytes;
    }
    const entries = new Map<string, TensorEntry>();
    for (const [name, file] of shardOf) {
      const entry = shards.get(file)!.entries.get(name);
      if (entry === undefined) throw new CheckpointError(indexPath, name, `must be in ${file}, which lacks it`);
      entries.set(name, entry);
    }
    return {
      path: directory,
      entries,
      fileBytes,
      read(name: string, firstRow?: number, rows?: number): Uint8Array {
        const shard = shards.get(shardOf.get(name) ?? '');
        if (shard === undefined) throw new CheckpointError(directory, name, 'the tensor is missing from the index');
        return shard.read(name, firstRow, rows);
      },
      [Symbol.dispose]: closeAll,
    };
  } catch (error) {
    closeAll();
    throw error;
  }
}

export interface TensorToWrite {
  readonly name: string;
  readonly type: SafetensorsType;
  readonly shape: readonly number[];
  /** Little endian, row-major, exactly as long as type and shape say. */
  readonly data: Uint8Array;
}

/** Writes one file, whole or not at all. */
export function writeSafetensors(
  path: string,
  tensors: readonly TensorToWrite[],
  metadata?: Readonly<Record<string, string>>,
): void {
  const ordered = tensors.toSorted((a, b) => elementBytes(b.type) - elementBytes(a.type));
  const header: Record<string, unknown> = Object.create(null);
  if (metadata !== undefined) header.__metadata__ = metadata;
  let offset = 0;
  for (const { name, type, shape, data } of ordered) {
    const bytes = countElements(path, name, shape) * elementBytes(type);
    if (data.length !== bytes) throw new RangeError(`${name}: data must have ${bytes} bytes, got ${data.length}`);
    if (name === '' || name in header)
      throw new RangeError(`tensor names must be unique, got "${name}" again or empty`);
    header[name] = { dtype: type, shape, data_offsets: [offset, offset + bytes] };
    offset += bytes;
  }
  const json = Buffer.from(JSON.stringify(header));
  // Spaces up to a multiple of 8, so that the data starts aligned for the widest type.
  const padded = Buffer.alloc(Math.ceil(json.length / 8) * 8, ' ');
  json.copy(padded);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  try {
    writeAtomically(path, [length, padded, ...ordered.map(({ data }) => data)]);
  } catch (cause) {
    throw new CheckpointError(path, 'file', `must be writable, got ${describe(cause)}`, { cause });
  }
}
