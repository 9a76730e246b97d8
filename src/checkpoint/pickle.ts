/**
 * A reader of the pickles that `torch.save` writes for a state dict, which rebuilds tensors' descriptions and nothing else. A pickle is
 * a program for a stack machine that may name any Python function and call it; here no name is looked up and nothing is called. The
 * opcodes and names of a state dict are known, all others are errors. Knows nothing of zip files, nor where a storage's bytes are.
 *
 * After CPython's pickletools.py, and torch/_weights_only_unpickler.py, which restricts itself likewise.
 */
import { CheckpointError } from '../errors.ts';

/** Element types of storages; torch's name is "torch.FloatStorage" and so on. */
export const STORAGE_KINDS = ['Float', 'Half', 'BFloat16', 'Long', 'Bool'] as const;
export type StorageKind = (typeof STORAGE_KINDS)[number];

export interface PickledStorage {
  readonly kind: StorageKind;
  /** Names the zip member `data/<key>`. */
  readonly key: string;
  readonly elements: number;
}

/** As the file says it: numbers are safe integers, nothing more is checked. */
export interface PickledTensor {
  readonly storage: PickledStorage;
  /** Elements from the storage's start. */
  readonly offset: number;
  readonly shape: readonly number[];
  /** Elements from one index to the next, per dimension. */
  readonly strides: readonly number[];
}

/** Heads have some 15 tensors; models come in shards of some hundred. */
const MAX_TENSORS = 4096;
/** torch takes about 100 bytes a tensor, and its name. It also bounds the opcodes, and with them the time and the memory. */
export const MAX_PICKLE_BYTES = 256 * MAX_TENSORS;
/** Python's pickler sets dict items 1000 at a time, which are 2000 values. */
const MAX_STACK = 4096;
/** A dict item is four marks deep: items, tensor, storage. */
const MAX_MARKS = 16;
/** torch memoizes about 12 values a tensor. */
const MAX_MEMO = 16 * MAX_TENSORS;
/** The longest names in use have some 100 bytes. */
const MAX_STRING_BYTES = 512;
/** The most in use is 5, for convolutions over video. */
const MAX_DIMS = 8;

interface Tuple {
  readonly is: 'tuple';
  readonly items: readonly Value[];
}
interface Dict {
  readonly is: 'dict';
  readonly ordered: boolean;
  /** Made at the first item: a pickle of a million empty dicts shall not make a million maps. */
  items: Map<string, Value> | undefined;
}
type Global =
  | { readonly is: 'storage class'; readonly kind: StorageKind }
  | { readonly is: 'function'; readonly name: keyof typeof FUNCTIONS };
type Value =
  | string
  | number
  | boolean
  | Tuple
  | Dict
  | Global
  | ({ readonly is: 'storage' } & PickledStorage)
  | ({ readonly is: 'tensor' } & PickledTensor);

type Fail = (rule: string) => CheckpointError;

/** What each of torch's functions would make of its arguments. */
const FUNCTIONS = {
  'collections.OrderedDict': ({ items }: Tuple, fail: Fail): Value => {
    if (items.length !== 0) throw fail(`collections.OrderedDict must have no arguments, got ${items.length}`);
    return { is: 'dict', ordered: true, items: undefined };
  },
  'torch._utils._rebuild_tensor_v2': ({ items }: Tuple, fail: Fail): Value => {
    const [storage, offset, shape, strides, requiresGrad, hooks] = items;
    const plain = items.length === 6 && typeof requiresGrad === 'boolean' && isEmptyDict(hooks);
    if (!plain || !isA(storage, 'storage') || typeof offset !== 'number' || !isA(shape, 'tuple')) {
      throw fail('torch._utils._rebuild_tensor_v2 must have storage, offset, shape, strides, flag and no hooks');
    }
    return { is: 'tensor', storage, offset, shape: numbersOf(shape, fail), strides: numbersOf(strides, fail) };
  },
  'torch._utils._rebuild_parameter': ({ items }: Tuple, fail: Fail): Value => {
    const [tensor, requiresGrad, hooks] = items;
    if (items.length !== 3 || !isA(tensor, 'tensor') || typeof requiresGrad !== 'boolean' || !isEmptyDict(hooks)) {
      throw fail('torch._utils._rebuild_parameter must have a tensor, a flag and no hooks');
    }
    return tensor;
  },
};

function isA<Is extends Exclude<Value, string | number | boolean>['is']>(
  value: Value | undefined,
  is: Is,
): value is Extract<Value, { is: Is }> {
  return typeof value === 'object' && value.is === is;
}

const isEmptyDict = (value: Value | undefined): boolean => isA(value, 'dict') && value.items === undefined;

function numbersOf(value: Value | undefined, fail: Fail): number[] {
  if (!isA(value, 'tuple') || value.items.length > MAX_DIMS) {
    throw fail(`shapes and strides must be tuples of at most ${MAX_DIMS} numbers`);
  }
  return value.items.map((item) => {
    if (typeof item !== 'number') throw fail('shapes and strides must be tuples of numbers');
    return item;
  });
}

function findGlobal(name: string): Global | undefined {
  const kind = STORAGE_KINDS.find((candidate) => name === `torch.${candidate}Storage`);
  if (kind !== undefined) return { is: 'storage class', kind };
  return Object.hasOwn(FUNCTIONS, name) ? { is: 'function', name: name as keyof typeof FUNCTIONS } : undefined;
}

/** The state dict: tensors by name. @param file for messages. */
export function readStateDict(file: string, bytes: Uint8Array): ReadonlyMap<string, PickledTensor> {
  if (bytes.length > MAX_PICKLE_BYTES) {
    throw new CheckpointError(file, 'data.pkl', `must have at most ${MAX_PICKLE_BYTES} bytes, got ${bytes.length}`);
  }
  const value = new Unpickler(file, bytes).run();
  if (!isA(value, 'dict')) throw new CheckpointError(file, 'data.pkl', 'must hold a dict of tensors');
  const tensors = new Map<string, PickledTensor>();
  for (const [name, tensor] of value.items ?? []) {
    if (!isA(tensor, 'tensor')) {
      throw new CheckpointError(file, name.slice(0, 100), 'must be a tensor: save the state dict alone');
    }
    tensors.set(name, tensor);
  }
  return tensors;
}

class Unpickler {
  readonly #file: string;
  readonly #bytes: Buffer;
  #at = 0;
  readonly #stack: Value[] = [];
  /** Heights of the stack. */
  readonly #marks: number[] = [];
  readonly #memo = new Map<number, Value>();
  #tensors = 0;

  constructor(file: string, bytes: Uint8Array) {
    this.#file = file;
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  run(): Value {
    if (this.#byte() !== 0x80) throw this.#fail('must start with the opcode PROTO');
    const protocol = this.#byte();
    if (protocol !== 2) throw this.#fail(`must be of pickle protocol 2, torch.save's default, got ${protocol}`);
    while (true) {
      const opcode = this.#byte();
      if (opcode === 0x2e) break; // STOP
      this.#step(opcode);
    }
    const value = this.#pop();
    if (this.#stack.length > 0 || this.#marks.length > 0) throw this.#fail('leaves more than one value');
    if (this.#at !== this.#bytes.length) throw this.#fail('must end with the opcode STOP');
    return value;
  }

  #step(opcode: number): void {
    switch (opcode) {
      case 0x28: // MARK
        if (this.#marks.length >= MAX_MARKS) throw this.#fail(`must not nest deeper than ${MAX_MARKS} marks`);
        this.#marks.push(this.#stack.length);
        break;
      case 0x7d: // EMPTY_DICT
        this.#push({ is: 'dict', ordered: false, items: undefined });
        break;
      case 0x29: // EMPTY_TUPLE
        this.#push({ is: 'tuple', items: [] });
        break;
      case 0x74: // TUPLE
        this.#push({ is: 'tuple', items: this.#popToMark() });
        break;
      case 0x85: // TUPLE1
      case 0x86: // TUPLE2
      case 0x87: // TUPLE3
        this.#push({ is: 'tuple', items: this.#popMany(opcode - 0x84) });
        break;
      case 0x88: // NEWTRUE
      case 0x89: // NEWFALSE
        this.#push(opcode === 0x88);
        break;
      case 0x4b: // BININT1
        this.#push(this.#byte());
        break;
      case 0x4d: // BININT2
        this.#push(this.#take(2).readUInt16LE());
        break;
      case 0x4a: // BININT
        this.#push(this.#take(4).readInt32LE());
        break;
      case 0x8a: // LONG1
        this.#push(this.#readLong());
        break;
      case 0x58: // BINUNICODE
        this.#push(this.#readString());
        break;
      case 0x63: // GLOBAL
        this.#push(this.#readGlobal());
        break;
      case 0x71: // BINPUT
        this.#memoize(this.#byte());
        break;
      case 0x72: // LONG_BINPUT
        this.#memoize(this.#take(4).readUInt32LE());
        break;
      case 0x68: // BINGET
        this.#push(this.#recall(this.#byte()));
        break;
      case 0x6a: // LONG_BINGET
        this.#push(this.#recall(this.#take(4).readUInt32LE()));
        break;
      case 0x73: // SETITEM
        this.#setItems(this.#popMany(2));
        break;
      case 0x75: // SETITEMS
        this.#setItems(this.#popToMark());
        break;
      case 0x51: // BINPERSID
        this.#push(this.#storage(this.#pop()));
        break;
      case 0x52: // REDUCE
        this.#reduce();
        break;
      case 0x62: // BUILD
        this.#dropAttributes();
        break;
      default: {
        const name = REFUSED_NAMES[opcode] ?? 'no opcode that torch.save writes';
        throw this.#fail(`opcode 0x${opcode.toString(16)} (${name}) is refused: only tensors are read`);
      }
    }
  }

  #fail(rule: string): CheckpointError {
    return new CheckpointError(this.#file, 'data.pkl', `${rule}, at byte ${this.#at}`);
  }

  #take(length: number): Buffer {
    const end = this.#at + length;
    if (end > this.#bytes.length) throw this.#fail('is cut short');
    const part = this.#bytes.subarray(this.#at, end);
    this.#at = end;
    return part;
  }

  #byte(): number {
    return this.#take(1)[0]!;
  }

  #readLong(): number {
    const bytes = this.#take(this.#byte());
    // Negative ones are no sizes. 7 bytes hold more than 2^53, and an eighth keeps the sign bit of a seventh.
    const value = bytes.length > 0 && bytes.length <= 8 ? BigInt.asIntN(64, readLittle(bytes)) : -1n;
    if (value < 0n || value > Number.MAX_SAFE_INTEGER) throw this.#fail('numbers must be from 0 to 2^53 - 1');
    return Number(value);
  }

  #readString(): string {
    const length = this.#take(4).readUInt32LE();
    if (length > MAX_STRING_BYTES) throw this.#fail(`strings have at most ${MAX_STRING_BYTES} bytes, got ${length}`);
    return this.#take(length).toString('utf8');
  }

  #readGlobal(): Global {
    const name = `${this.#readLine()}.${this.#readLine()}`;
    const global = findGlobal(name);
    if (global === undefined) throw this.#fail(`global ${JSON.stringify(name)} is refused: only tensors are read`);
    return global;
  }

  #readLine(): string {
    const end = this.#bytes.subarray(this.#at, this.#at + 100).indexOf(0x0a);
    if (end < 0) throw this.#fail('names of globals have at most 100 bytes and end with a line feed');
    return this.#take(end + 1).toString('latin1', 0, end);
  }

  #push(value: Value): void {
    if (this.#stack.length >= MAX_STACK) throw this.#fail(`must not stack more than ${MAX_STACK} values`);
    this.#stack.push(value);
  }

  /** Nothing reaches below the last mark. */
  #popMany(count: number): Value[] {
    if (this.#stack.length - (this.#marks.at(-1) ?? 0) < count) throw this.#fail('takes a value that is not there');
    return this.#stack.splice(this.#stack.length - count, count);
  }

  #pop(): Value {
    return this.#popMany(1)[0]!;
  }

  #popToMark(): Value[] {
    const mark = this.#marks.pop();
    if (mark === undefined) throw this.#fail('takes a mark that is not there');
    return this.#stack.splice(mark);
  }

  #top(): Value {
    const value = this.#stack.length > (this.#marks.at(-1) ?? 0) ? this.#stack.at(-1) : undefined;
    if (value === undefined) throw this.#fail('takes a value that is not there');
    return value;
  }

  #memoize(index: number): void {
    if (index >= MAX_MEMO) throw this.#fail(`must not memoize more than ${MAX_MEMO} values, got index ${index}`);
    this.#memo.set(index, this.#top());
  }

  #recall(index: number): Value {
    const value = this.#memo.get(index);
    if (value === undefined) throw this.#fail(`recalls memo ${index}, which was not set`);
    return value;
  }

  #setItems(flat: readonly Value[]): void {
    const dict = this.#top();
    if (!isA(dict, 'dict')) throw this.#fail('items may be set on a dict only');
    if (flat.length % 2 !== 0) throw this.#fail('a key has no value');
    for (let i = 0; i < flat.length; i += 2) {
      const key = flat[i];
      if (typeof key !== 'string') throw this.#fail('keys must be strings');
      dict.items ??= new Map();
      if (dict.items.has(key)) throw this.#fail(`has the key ${JSON.stringify(key.slice(0, 100))} twice`);
      dict.items.set(key, flat[i + 1]!);
    }
  }

  /** What torch pickles by a "persistent id": ("storage", class, key, device, elements). */
  #storage(id: Value): Value {
    const [tag, storageClass, key, device, elements] = isA(id, 'tuple') && id.items.length === 5 ? id.items : [];
    if (tag !== 'storage' || !isA(storageClass, 'storage class')) {
      throw this.#fail("a persistent id is refused: it is not a storage's");
    }
    if (typeof key !== 'string' || typeof device !== 'string' || typeof elements !== 'number') {
      throw this.#fail('a storage must have a key, a device and a number of elements');
    }
    return { is: 'storage', kind: storageClass.kind, key, elements };
  }

  #reduce(): void {
    const [called, args] = this.#popMany(2);
    if (!isA(called, 'function') || !isA(args, 'tuple')) throw this.#fail('REDUCE must have a function and a tuple');
    const fail = (rule: string) => this.#fail(rule);
    const value = FUNCTIONS[called.name](args, fail);
    if (called.name === 'torch._utils._rebuild_tensor_v2' && ++this.#tensors > MAX_TENSORS) {
      throw this.#fail(`must have at most ${MAX_TENSORS} tensors`);
    }
    this.#push(value);
  }

  /** The one object with attributes is the OrderedDict of `module.state_dict()`, whose `_metadata` says versions of modules. */
  #dropAttributes(): void {
    const state = this.#pop();
    const object = this.#top();
    if (!isA(object, 'dict') || !object.ordered || !isA(state, 'dict')) {
      throw this.#fail('opcode BUILD is refused, but for the attributes of a collections.OrderedDict');
    }
  }
}

/** For the message alone: the ones that attackers and other programs use. */
const REFUSED_NAMES: Readonly<Record<number, string>> = {
  66: 'BINBYTES',
  67: 'SHORT_BINBYTES',
  71: 'BINFLOAT',
  73: 'INT',
  78: 'NONE',
  80: 'PERSID',
  93: 'EMPTY_LIST',
  97: 'APPEND',
  101: 'APPENDS',
  105: 'INST',
  108: 'LIST',
  111: 'OBJ',
  128: 'PROTO',
  129: 'NEWOBJ',
  130: 'EXT1',
  131: 'EXT2',
  132: 'EXT4',
  139: 'LONG4',
  140: 'SHORT_BINUNICODE',
  146: 'NEWOBJ_EX',
  147: 'STACK_GLOBAL',
  149: 'FRAME',
};

function readLittle(bytes: Uint8Array): bigint {
  let value = 0n;
  for (let i = bytes.length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i]!);
  return bytes.at(-1)! >= 0x80 ? value - (1n << BigInt(8 * bytes.length)) : value;
}
