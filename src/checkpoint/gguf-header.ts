/**
 * The header of a GGUF file (versions 2 and 3, little endian): metadata and tensor descriptors, bounds-checked, not yet
 * interpreted. Format: the GGUF specification in ggml's docs/gguf.md.
 *
 * Why not `@huggingface/gguf`, which the tests keep as a second opinion: it reads bytes past the end of the file as zeros (so a cut
 * header opens with blank names), slices strings without looking at what remains, stores keys in a plain object (where `__proto__` and
 * repeated keys do damage), and allocates by count: a file of 24 bytes that claims 8 million tensors costs it 2.4 s and 385 MB.
 * Checks around it cannot undo that; a reader that asks "are there so many bytes left?" first is shorter.
 */
import { CheckpointError } from '../errors.ts';
import { readExactly } from './file.ts';

/** Bytes of header read at most. Llama 3's 128k tokens and 280k merges make 8 MB; twice the vocabulary still fits. */
const MAX_HEADER_BYTES = 64 * 2 ** 20;
/** First read: most headers without a tokenizer fit. */
const FIRST_READ_BYTES = 64 * 2 ** 10;
/** llama.cpp gives 405B models 1,138 tensors and mixtures of experts a few thousand. */
const MAX_TENSORS = 65_536;
/** Files in use carry 20 to 60 keys. */
const MAX_KEYS = 4096;
/** The largest arrays in use are merge lists of about 515,000 entries (Gemma 3). */
const MAX_ARRAY_LENGTH = 2 ** 20;
/** The specification's bound on keys. */
const MAX_KEY_BYTES = 65_535;
/** The specification's bound on tensor names. */
const MAX_NAME_BYTES = 64;
/** Chat templates are the longest strings in use, about 30 kB. */
const MAX_STRING_BYTES = 2 ** 20;
/** ggml's bound. */
const MAX_DIMS = 4;
/** Smallest descriptors the format allows, to hold counts against the file's size. */
const MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8;
const MIN_KEY_BYTES = 8 + 1 + 4 + 1;

const MAGIC = 0x4655_4747; // "GGUF", little endian
const DEFAULT_ALIGNMENT = 32;
/** A page of the systems with the largest pages; more would only be padding. */
const MAX_ALIGNMENT = 65_536;

/** Type tags of metadata values, in the order of the format, with their size in bytes; 0 = variable. */
const VALUE_TYPES = [
  ['u8', 1],
  ['i8', 1],
  ['u16', 2],
  ['i16', 2],
  ['u32', 4],
  ['i32', 4],
  ['f32', 4],
  ['bool', 1],
  ['string', 0],
  ['array', 0],
  ['u64', 8],
  ['i64', 8],
  ['f64', 8],
] as const;
type ValueType = (typeof VALUE_TYPES)[number];

/** 64-bit integers beyond 2^53 stay bigint; null stands for an array that nobody here reads. */
export type GgufValue = number | bigint | boolean | string | readonly string[] | Int32Array | null;

export interface GgufTensorInfo {
  readonly name: string;
  /** Innermost first, as in the file. */
  readonly dims: readonly number[];
  /** ggml's number for the element type. */
  readonly type: number;
  /** From the start of the file, in bytes. */
  readonly offset: number;
}

export interface GgufHeader {
  readonly values: ReadonlyMap<string, GgufValue>;
  readonly tensors: readonly GgufTensorInfo[];
}

/** @param keepArrays keys whose arrays are wanted; any other array is stepped over. */
export function readGgufHeader(
  path: string,
  fd: number,
  fileBytes: number,
  keepArrays: ReadonlySet<string>,
): GgufHeader {
  const cursor = new HeaderCursor(path, fd, fileBytes);
  const magic = cursor.u32('magic');
  if (magic !== MAGIC) throw new CheckpointError(path, 'magic', 'the file must start with "GGUF"');
  const version = cursor.u32('version');
  if (version !== 2 && version !== 3) {
    const hint = version & 0xffff ? '' : ' (a big-endian file?)';
    throw new CheckpointError(path, 'version', `supported are 2 and 3, got ${version}${hint}`);
  }
  // Both counts are held against the file before anything is allocated for them.
  const tensorCount = cursor.count('tensor_count', MAX_TENSORS, MIN_TENSOR_BYTES);
  const keyCount = cursor.count('kv_count', MAX_KEYS, MIN_KEY_BYTES);

  const values = new Map<string, GgufValue>();
  for (let i = 0; i < keyCount; i++) {
    const key = cursor.string(`key ${i}`, MAX_KEY_BYTES);
    if (key === '') throw new CheckpointError(path, `key ${i}`, 'must not be empty');
    if (values.has(key)) throw new CheckpointError(path, key, 'appears twice');
    const type = cursor.valueType(key);
    values.set(key, type[0] === 'array' ? cursor.array(key, keepArrays.has(key)) : cursor.scalar(key, type));
  }

  const alignment = values.get('general.alignment') ?? DEFAULT_ALIGNMENT;
  if (
    typeof alignment !== 'number' ||
    alignment < 8 ||
    alignment > MAX_ALIGNMENT ||
    !Number.isInteger(Math.log2(alignment))
  ) {
    const rule = `must be a power of two from 8 to ${MAX_ALIGNMENT}, got ${String(alignment)}`;
    throw new CheckpointError(path, 'general.alignment', rule);
  }

  const relative: GgufTensorInfo[] = [];
  for (let i = 0; i < tensorCount; i++) {
    const name = cursor.string(`tensor ${i}`, MAX_NAME_BYTES);
    if (name === '') throw new CheckpointError(path, `tensor ${i}`, 'its name must not be empty');
    const dimCount = cursor.u32(name);
    if (dimCount < 1 || dimCount > MAX_DIMS) {
      throw new CheckpointError(path, name, `must have 1 to ${MAX_DIMS} dimensions, got ${dimCount}`);
    }
    const dims: number[] = [];
    for (let dim = 0; dim < dimCount; dim++) dims.push(cursor.size(name, 'size'));
    const type = cursor.u32(name);
    const offset = cursor.size(name, 'offset');
    if (offset % alignment !== 0) {
      throw new CheckpointError(path, name, `its offset must be a multiple of ${alignment}, got ${offset}`);
    }
    relative.push({ name, dims, type, offset });
  }

  const dataStart = Math.ceil(cursor.position / alignment) * alignment;
  return { values, tensors: relative.map((info) => ({ ...info, offset: dataStart + info.offset })) };
}

/** Walks the header; reads more of the file as it goes, never past its end or past MAX_HEADER_BYTES. */
class HeaderCursor {
  position = 0;
  readonly #path: string;
  readonly #fd: number;
  readonly #fileBytes: number;
  #buffer = Buffer.alloc(0);

  constructor(path: string, fd: number, fileBytes: number) {
    this.#path = path;
    this.#fd = fd;
    this.#fileBytes = fileBytes;
  }

  /** Moves over `bytes` bytes that are known to be there afterwards; returns where they start. */
  #take(bytes: number, field: string): number {
    const start = this.position;
    const end = start + bytes;
    if (end > this.#fileBytes) {
      const rule = `needs ${bytes} bytes at offset ${start}, but the file has ${this.#fileBytes}`;
      throw new CheckpointError(this.#path, field, rule);
    }
    if (end > MAX_HEADER_BYTES) {
      throw new CheckpointError(this.#path, field, `the header must be at most ${MAX_HEADER_BYTES} bytes`);
    }
    if (end > this.#buffer.length) {
      const wanted = Math.max(FIRST_READ_BYTES, this.#buffer.length * 2, end);
      const grown = Buffer.alloc(Math.min(wanted, this.#fileBytes, MAX_HEADER_BYTES));
      this.#buffer.copy(grown);
      const fresh = grown.subarray(this.#buffer.length);
      readExactly(this.#path, this.#fd, this.#buffer.length, fresh, field);
      this.#buffer = grown;
    }
    this.position = end;
    return start;
  }

  u32(field: string): number {
    // First take, then look: taking may replace the buffer.
    const start = this.#take(4, field);
    return this.#buffer.readUInt32LE(start);
  }

  /** A u64 that must be a safe integer; no size in a real file is larger. */
  size(field: string, what: string): number {
    const start = this.#take(8, field);
    const value = this.#buffer.readBigUInt64LE(start);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw new CheckpointError(this.#path, field, `its ${what} ${value} is larger than any file`);
    }
    return Number(value);
  }

  /** A count of things that take at least `minBytes` each: checked against a limit and against the bytes that are left. */
  count(field: string, limit: number, minBytes: number): number {
    const count = this.size(field, 'count');
    if (count > limit) throw new CheckpointError(this.#path, field, `must be at most ${limit}, got ${count}`);
    const left = this.#fileBytes - this.position;
    if (count * minBytes > left) {
      const rule = `${count} entries need ${count * minBytes} bytes or more, but the file has ${left} left`;
      throw new CheckpointError(this.#path, field, rule);
    }
    return count;
  }

  string(field: string, maxBytes: number): string {
    const length = this.size(field, 'length');
    if (length > maxBytes) {
      throw new CheckpointError(this.#path, field, `strings here are at most ${maxBytes} bytes, got ${length}`);
    }
    const start = this.#take(length, field);
    return this.#buffer.toString('utf8', start, start + length);
  }

  valueType(field: string): ValueType {
    const tag = this.u32(field);
    const type = VALUE_TYPES[tag];
    if (type === undefined) throw new CheckpointError(this.#path, field, `unknown value type ${tag}`);
    return type;
  }

  scalar(field: string, [type, bytes]: ValueType): GgufValue {
    if (type === 'string') return this.string(field, MAX_STRING_BYTES);
    const start = this.#take(bytes, field);
    const buffer = this.#buffer;
    switch (type) {
      case 'u8':
        return buffer.readUInt8(start);
      case 'i8':
        return buffer.readInt8(start);
      case 'u16':
        return buffer.readUInt16LE(start);
      case 'i16':
        return buffer.readInt16LE(start);
      case 'u32':
        return buffer.readUInt32LE(start);
      case 'i32':
        return buffer.readInt32LE(start);
      case 'f32':
        return buffer.readFloatLE(start);
      case 'bool':
        return buffer.readUInt8(start) !== 0;
      case 'u64':
        return narrowInteger(buffer.readBigUInt64LE(start));
      case 'i64':
        return narrowInteger(buffer.readBigInt64LE(start));
      case 'f64':
        return buffer.readDoubleLE(start);
      case 'array':
        throw new CheckpointError(this.#path, field, 'arrays of arrays are not supported; no known key has one');
      default:
        return type satisfies never;
    }
  }

  /** Strings and 32-bit integers are kept when wanted; everything else is only stepped over. */
  array(field: string, keep: boolean): GgufValue {
    const type = this.valueType(field);
    const [name, bytes] = type;
    // A string takes 8 bytes at least, for its length.
    const length = this.count(field, MAX_ARRAY_LENGTH, bytes || 8);
    if (name === 'string') {
      const strings: string[] = [];
      for (let i = 0; i < length; i++) {
        const text = this.string(field, MAX_STRING_BYTES);
        if (keep) strings.push(text);
      }
      return keep ? strings : null;
    }
    if (name === 'array') return this.scalar(field, type);
    const start = this.#take(length * bytes, field);
    if (!keep || (name !== 'i32' && name !== 'u32')) return null;
    const numbers = new Int32Array(length);
    for (let i = 0; i < length; i++) numbers[i] = this.#buffer.readInt32LE(start + 4 * i);
    return numbers;
  }
}

function narrowInteger(value: bigint): number | bigint {
  return BigInt.asIntN(54, value) === value ? Number(value) : value;
}
