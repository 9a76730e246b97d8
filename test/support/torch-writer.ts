/** Files as `torch.save` makes them, in memory: a pickle of opcodes in a zip of stored members. Parts can be replaced by hostile ones. */
import { openSafetensors } from '../../src/checkpoint/safetensors.ts';
import { buildZip } from './zip-writer.ts';

export interface TensorToPickle {
  readonly name: string;
  /** "FloatStorage" and so on. */
  readonly storage: string;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
  readonly elements: number;
  readonly strides?: readonly number[];
  readonly offset?: number;
  /** Names the storage; counted when absent. */
  readonly key?: string;
}

/** A value of the little language that torch's pickles are written in. */
export const pickle = {
  text(text: string): Buffer {
    const bytes = Buffer.from(text);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(bytes.length);
    return Buffer.concat([Buffer.from('X'), length, bytes]);
  },
  /** BININT1, BININT, or LONG1, as Python chooses; BININT2 it takes for what fits in two bytes. */
  integer(value: number): Buffer {
    if (value >= 0 && value < 256) return Buffer.of(0x4b, value);
    const bytes = Buffer.alloc(10);
    if (value >= 0 && value < 65_536) {
      bytes[0] = 0x4d;
      bytes.writeUInt16LE(value, 1);
      return bytes.subarray(0, 3);
    }
    if (Math.abs(value) < 2 ** 31) {
      bytes[0] = 0x4a;
      bytes.writeInt32LE(value, 1);
      return bytes.subarray(0, 5);
    }
    bytes.set([0x8a, 8]);
    bytes.writeBigInt64LE(BigInt(value), 2);
    return bytes;
  },
  tuple: (...items: readonly Uint8Array[]): Buffer => Buffer.concat([Buffer.from('('), ...items, Buffer.from('t')]),
  global: (module: string, name: string): Buffer => Buffer.from(`c${module}\n${name}\n`),
  call: (module: string, name: string, args: Uint8Array): Buffer =>
    Buffer.concat([pickle.global(module, name), args, Buffer.from('R')]),
  orderedDict: (): Buffer => pickle.call('collections', 'OrderedDict', Buffer.from(')')),
  storage: (kind: string, key: string, elements: number): Buffer =>
    Buffer.concat([
      pickle.tuple(
        pickle.text('storage'),
        pickle.global('torch', kind),
        pickle.text(key),
        pickle.text('cpu'),
        pickle.integer(elements),
      ),
      Buffer.from('Q'),
    ]),
  tensor(storage: Uint8Array, offset: number, shape: readonly number[], strides: readonly number[]): Buffer {
    const [sizes, steps] = [shape, strides].map((numbers) => pickle.tuple(...numbers.map(pickle.integer)));
    const args = pickle.tuple(storage, pickle.integer(offset), sizes!, steps!, Buffer.of(0x89), pickle.orderedDict());
    return pickle.call('torch._utils', '_rebuild_tensor_v2', args);
  },
  program: (...parts: readonly Uint8Array[]): Buffer => Buffer.concat([Buffer.of(0x80, 2), ...parts, Buffer.from('.')]),
  stateDict: (items: readonly (readonly [name: string, value: Uint8Array])[]): Buffer =>
    pickle.program(
      Buffer.from('}('),
      ...items.flatMap(([name, value]) => [pickle.text(name), value]),
      Buffer.from('u'),
    ),
};

export function contiguousStrides(shape: readonly number[]): number[] {
  return shape.map((_, i) => shape.slice(i + 1).reduce((a, b) => a * b, 1));
}

/** The pickle of a state dict of these tensors. */
export function pickleTensors(tensors: readonly TensorToPickle[]): Buffer {
  return pickle.stateDict(
    tensors.map(({ name, storage, shape, elements, strides, offset, key }, i) => [
      name,
      pickle.tensor(
        pickle.storage(storage, key ?? `${i}`, elements),
        offset ?? 0,
        shape,
        strides ?? contiguousStrides(shape),
      ),
    ]),
  );
}

/** A whole file. `data` replaces data.pkl; `byteOrder` null leaves its member out. */
export function buildTorch(
  tensors: readonly TensorToPickle[],
  options: { readonly data?: Uint8Array; readonly byteOrder?: string | null } = {},
): Buffer {
  const { data = pickleTensors(tensors), byteOrder = 'little' } = options;
  return buildZip([
    { name: 'archive/data.pkl', data },
    ...(byteOrder === null ? [] : [{ name: 'archive/byteorder', data: Buffer.from(byteOrder) }]),
    ...tensors.flatMap((tensor, i) =>
      tensor.key === undefined ? [{ name: `archive/data/${i}`, data: tensor.data }] : [],
    ),
    { name: 'archive/version', data: Buffer.from('3\n') },
  ]);
}

export function floatTensor(name: string, shape: readonly number[], first = 0): TensorToPickle {
  const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => first + i);
  return { name, storage: 'FloatStorage', shape, elements: values.length, data: new Uint8Array(values.buffer) };
}

/** The tensors of a safetensors file, which must be F32, as a torch file. */
export function torchFromSafetensors(path: string, rename: (name: string) => string = (name) => name): Buffer {
  using source = openSafetensors(path);
  const tensors = Array.from(source.entries.values(), ({ name, type, shape, byteLength }) => {
    if (type !== 'F32') throw new TypeError(`${name}: must be F32, got ${type}`);
    const data = source.read(name).slice();
    return { name: rename(name), storage: 'FloatStorage', shape, elements: byteLength / 4, data };
  });
  return buildTorch(tensors);
}
