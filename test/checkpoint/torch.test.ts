import { copyFileSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { isHeadDirectory, openHeadFiles } from '../../src/checkpoint/head.ts';
import { openSafetensors, writeSafetensors } from '../../src/checkpoint/safetensors.ts';
import { openTorch } from '../../src/checkpoint/torch.ts';
import { CheckpointError, DisposedError } from '../../src/errors.ts';
import type { TensorSource } from '../../src/tensor/source.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import {
  buildTorch,
  floatTensor,
  pickle,
  pickleTensors,
  type TensorToPickle,
  torchFromSafetensors,
} from '../support/torch-writer.ts';
import { buildZip, type ZipMember } from '../support/zip-writer.ts';

const golden = fileURLToPath(new URL('../golden/torch-tiny/', import.meta.url));
const directory = temporaryDirectory();
let fileNumber = 0;

function save(bytes: Uint8Array): string {
  const path = join(directory, `${fileNumber++ % 8}.bin`);
  writeFileSync(path, bytes);
  return path;
}

function floats(source: TensorSource, name: string): number[] {
  return [...new Float32Array(source.read(name).slice().buffer)];
}

function expectRefused(bytes: Uint8Array, message: string | RegExp): void {
  const path = save(bytes);
  expect(() => openTorch(path)).toThrow(CheckpointError);
  expect(() => openTorch(path)).toThrow(message);
  expect(() => openTorch(path)).toThrow(path);
}

describe('a file of torch.save', () => {
  it('holds the same tensors as its safetensors twin', () => {
    using file = openTorch(`${golden}pytorch_model.bin`);
    using twin = openSafetensors(`${golden}model.safetensors`);
    expect(file.fileBytes).toBe(readFileSync(file.path).length);
    expect([...file.entries.keys()].sort()).toEqual([...twin.entries.keys()].sort());
    expect(new Set(Array.from(twin.entries.values(), ({ type }) => type)).size).toBe(5);
    for (const [name, entry] of twin.entries) {
      expect(file.entries.get(name)).toEqual(entry);
      expect(Buffer.from(file.read(name)).equals(twin.read(name)), name).toBe(true);
    }
  });

  it('may hold parameters rather than tensors', () => {
    using file = openTorch(`${golden}parameters.bin`);
    expect(file.entries.size).toBe(30);
    expect(floats(file, 'layers.29.weight')).toEqual([29, 29]);
  });

  it.each([
    ['before-1.6.bin', /has the format of torch before 1\.6: save it again with torch\.save\(torch\.load\(/],
    ['transposed.bin', /fc\.weight: must be contiguous, got shape \[8, 4\] with strides \[1, 8\].*\.contiguous\(\)/],
    ['nested.bin', /model: must be a tensor: save the state dict alone/],
  ])('is refused with what to do about it: %s', (name, message) => {
    expect(() => openTorch(golden + name)).toThrow(CheckpointError);
    expect(() => openTorch(golden + name)).toThrow(message);
  });
});

describe('a torch file of our own', () => {
  const elements: readonly TensorToPickle[] = [
    { name: 'half', storage: 'HalfStorage', shape: [1, 2], elements: 2, data: Uint8Array.of(0, 60, 0, 64) },
    { name: 'brain', storage: 'BFloat16Storage', shape: [2], elements: 2, data: Uint8Array.of(128, 63, 0, 64) },
    { name: 'd2t', storage: 'LongStorage', shape: [1], elements: 1, data: new Uint8Array(8).fill(1) },
    { name: 't2d', storage: 'BoolStorage', shape: [3], elements: 3, data: Uint8Array.of(1, 0, 1) },
    { ...floatTensor('part', [6]), shape: [1, 2], strides: [99, 1], offset: 3 },
    { ...floatTensor('__proto__', [6]), key: '4', shape: [], offset: 5 },
    floatTensor('wide', [300, 300]),
  ];

  it('reads back, every element type, and views into a storage', () => {
    const path = save(buildTorch(elements));
    const file = openTorch(path);
    const types = Array.from(file.entries.values(), ({ type, shape }) => [type, shape]);
    expect(types).toEqual([
      ['F16', [1, 2]],
      ['BF16', [2]],
      ['I64', [1]],
      ['BOOL', [3]],
      ['F32', [1, 2]],
      ['F32', []],
      ['F32', [300, 300]],
    ]);
    expect([...file.read('half')]).toEqual([0, 60, 0, 64]);
    expect([...file.read('t2d')]).toEqual([1, 0, 1]);
    expect(floats(file, 'part')).toEqual([3, 4]);
    expect(floats(file, '__proto__')).toEqual([5]);
    expect(floats(file, 'wide').at(-1)).toBe(89_999);
    expect(() => file.read('constructor')).toThrow(CheckpointError);
    file[Symbol.dispose]();
    expect(() => file.read('half')).toThrow(DisposedError);
  });

  it('may be older than the member byteorder', () => {
    using file = openTorch(save(buildTorch(elements, { byteOrder: null })));
    expect(file.entries.size).toBe(elements.length);
  });

  it('is refused when it is big-endian', () => {
    expectRefused(buildTorch(elements, { byteOrder: 'big' }), 'byteorder: must be "little"');
  });

  it.each<[string, Partial<TensorToPickle>, string]>([
    ['elements past its storage', { shape: [7] }, 'elements 0 to 7 are outside its storage of 6'],
    ['an offset past its storage', { offset: 1 }, 'elements 1 to 7 are outside'],
    ['a negative offset', { offset: -1 }, 'elements -1 to 5 are outside'],
    ['a storage of other length', { elements: 7 }, 'its storage of 7 F32 must be as long as its 24 bytes'],
    ['a storage of 2^53 - 1', { elements: 2 ** 53 - 1 }, 'must be as long as its 24 bytes'],
    ['a storage that is not there', { key: '../7' }, 'its storage "../7" is missing'],
    ['a size of 0', { shape: [0] }, 'positive integers'],
    ['a size of -1', { shape: [-6] }, 'positive integers'],
    ['sizes whose product wraps', { shape: [2 ** 40, 2 ** 40], strides: [2 ** 40, 1] }, 'more elements than any file'],
    ['strides with gaps', { shape: [2], strides: [2] }, 'must be contiguous'],
    ['strides of 0', { shape: [6], strides: [0] }, 'must be contiguous'],
    ['fewer strides than sizes', { shape: [6], strides: [] }, 'must be contiguous'],
    ['more strides than sizes', { shape: [6], strides: [1, 1] }, 'must be contiguous'],
    ['nine dimensions', { shape: Array(9).fill(1) }, 'at most 8 numbers'],
    ['no name', { name: '' }, 'tensor names must not be empty'],
    ['doubles', { storage: 'DoubleStorage' }, 'global "torch.DoubleStorage" is refused'],
  ])('is refused for a tensor with %s', (_, change, message) => {
    expectRefused(buildTorch([{ ...floatTensor('a', [6]), ...change }]), message);
  });
});

describe('a hostile pickle', () => {
  const ascii = (text: string) => Buffer.from(text, 'latin1');
  const tensor = pickle.tensor(pickle.storage('FloatStorage', '0', 6), 0, [6], [1]);
  const repeat = (part: string, count: number) => Buffer.concat(Array.from({ length: count }, () => ascii(part)));
  const cases: readonly (readonly [string, Buffer, string | RegExp])[] = [
    [
      'os.system',
      pickle.program(pickle.call('os', 'system', pickle.tuple(pickle.text('id')))),
      '"os.system" is refused',
    ],
    ['posix.system by INST', pickle.program(ascii('('), pickle.text('id'), ascii('iposix\nsystem\n')), '0x69 (INST)'],
    ['a call by OBJ', pickle.program(ascii('(cos\nsystem\no')), '"os.system" is refused'],
    ['OBJ', pickle.program(ascii('(o')), '0x6f (OBJ)'],
    ['NEWOBJ', pickle.program(ascii('ccollections\nOrderedDict\n)\x81')), '0x81 (NEWOBJ)'],
    [
      'a global by name on the stack',
      pickle.program(pickle.text('os'), pickle.text('system'), ascii('\x93')),
      'STACK_GLOBAL',
    ],
    ['an extension', pickle.program(ascii('\x82\x01')), '0x82 (EXT1)'],
    ['a persistent id by line', pickle.program(ascii('Pmodule\n')), '0x50 (PERSID)'],
    ['a persistent id of text', pickle.program(pickle.text('module'), ascii('Q')), 'a persistent id is refused'],
    [
      'a persistent id of a module',
      pickle.program(pickle.tuple(...Array(5).fill(pickle.text('module'))), ascii('Q')),
      'a persistent id is refused',
    ],
    [
      'a storage whose key is a number',
      pickle.program(
        pickle.tuple(
          pickle.text('storage'),
          pickle.global('torch', 'FloatStorage'),
          ...Array(3).fill(pickle.integer(1)),
        ),
        ascii('Q'),
      ),
      'must have a key, a device',
    ],
    ['BUILD on a tensor', pickle.program(tensor, ascii('}b')), 'opcode BUILD is refused'],
    ['BUILD on a plain dict', pickle.program(ascii('}}b')), 'opcode BUILD is refused'],
    ['BUILD on a class', pickle.program(pickle.global('torch', 'FloatStorage'), ascii('}b')), 'BUILD is refused'],
    ['BUILD with a tuple', pickle.program(pickle.orderedDict(), ascii(')b')), 'opcode BUILD is refused'],
    ['a list', pickle.program(ascii(']')), '0x5d (EMPTY_LIST)'],
    ['an opcode that is none', pickle.program(ascii('\xff')), '0xff (no opcode that torch.save writes)'],
    ['a second PROTO', pickle.program(ascii('\x80\x02')), '0x80 (PROTO)'],
    ['protocol 4', ascii('\x80\x04}.'), "pickle protocol 2, torch.save's default, got 4"],
    ['no protocol', ascii('}.'), 'must start with the opcode PROTO'],
    ['nothing', Buffer.alloc(0), 'cut short'],
    ['a class called', pickle.program(pickle.call('torch', 'FloatStorage', ascii(')'))), 'must have a function'],
    ['text called', pickle.program(pickle.text('os.system'), ascii(')R')), 'must have a function'],
    [
      'a function called with text',
      pickle.program(pickle.call('collections', 'OrderedDict', pickle.text('a'))),
      'a tuple',
    ],
    [
      'a filled OrderedDict',
      pickle.program(pickle.call('collections', 'OrderedDict', ascii('K\x01\x85'))),
      'must have no arguments, got 1',
    ],
    ['an own property of objects', pickle.program(pickle.call('constructor', 'constructor', ascii(')'))), 'is refused'],
    [
      'a tensor of text',
      pickle.program(pickle.call('torch._utils', '_rebuild_tensor_v2', ascii(')'))),
      'must have storage',
    ],
    [
      'a parameter of text',
      pickle.program(pickle.call('torch._utils', '_rebuild_parameter', ascii(')'))),
      'must have a tensor',
    ],
    [
      'hooks',
      pickle.program(
        pickle.call(
          'torch._utils',
          '_rebuild_parameter',
          pickle.tuple(tensor, Buffer.of(0x88), pickle.orderedDict(), pickle.text('a'), pickle.text('b'), ascii('s')),
        ),
      ),
      'no hooks',
    ],
    [
      'a name twice',
      pickle.stateDict([
        ['a', tensor],
        ['a', tensor],
      ]),
      'the key "a" twice',
    ],
    [
      'a key that is a number',
      pickle.program(ascii('}'), pickle.integer(1), tensor, ascii('s')),
      'keys must be strings',
    ],
    ['a key without a value', pickle.program(ascii('}('), pickle.text('a'), ascii('u')), 'a key has no value'],
    ['items of a tuple', pickle.program(ascii(')'), pickle.text('a'), tensor, ascii('s')), 'on a dict only'],
    ['a value that is text', pickle.stateDict([['a', pickle.text('b')]]), 'a: must be a tensor'],
    ['a tensor alone', pickle.program(tensor), 'must hold a dict'],
    ['two values', pickle.program(ascii('}}')), 'leaves more than one value'],
    ['a mark left', pickle.program(ascii('}(')), /not there|more than one/],
    ['bytes behind STOP', Buffer.concat([pickle.program(ascii('}')), ascii('}')]), 'must end with the opcode STOP'],
    ['an empty stack', pickle.program(), 'takes a value that is not there'],
    ['a mark that is not there', pickle.program(ascii('t')), 'takes a mark that is not there'],
    ['a value below the mark', pickle.program(ascii('}(\x85t')), 'takes a value that is not there'],
    ['a memo that was not set', pickle.program(ascii('h\x07')), 'recalls memo 7'],
    ['memo 2^32 - 1', pickle.program(ascii('}r\xff\xff\xff\xff')), 'got index 4294967295'],
    ['text of 4 GiB', pickle.program(ascii('X\xff\xff\xff\xff')), 'at most 512 bytes, got 4294967295'],
    ['a number of 255 bytes', pickle.program(ascii('\x8a\xff'), Buffer.alloc(255)), '2^53 - 1'],
    ['a number of 0 bytes', pickle.program(ascii('\x8a\x00')), '2^53 - 1'],
    ['a number of 2^53', pickle.program(ascii('\x8a\x07\x00\x00\x00\x00\x00\x00\x20')), '2^53 - 1'],
    ['a negative long number', pickle.program(ascii('\x8a\x02\x00\x80')), '2^53 - 1'],
    ['an endless name', pickle.program(ascii('c'), Buffer.alloc(1000, 'a')), 'at most 100 bytes'],
    ['a million values', pickle.program(repeat('}', 1_000_000)), 'must not stack more than 4096'],
    ['a million marks', pickle.program(repeat('(', 1_000_000)), 'must not nest deeper than 16'],
    [
      'a million tuples in one another',
      pickle.program(ascii(')'), repeat('\x85', 1_000_000)),
      'must hold a dict of tensors',
    ],
    ['two megabytes', pickle.program(repeat('}', 2_000_000)), 'must have at most 1048576 bytes'],
  ];

  it.each(cases)('is refused for %s', (_, data, message) => {
    const begun = performance.now();
    const before = process.memoryUsage().heapUsed;
    expectRefused(buildTorch([floatTensor('a', [6])], { data }), message);
    expect(process.memoryUsage().heapUsed - before).toBeLessThan(400e6);
    expect(performance.now() - begun).toBeLessThan(20_000); // what is quadratic takes minutes, and a busy machine a few seconds
  });

  it('is refused for more tensors than a file has', () => {
    // Made again from the memo, which is cheap, each in a tuple with the one before.
    const call = Buffer.concat([pickle.global('torch._utils', '_rebuild_tensor_v2'), ascii('q\x00')]);
    const args = tensor.subarray(call.length - 2, -1);
    const many = pickle.program(
      call,
      args,
      ascii('q\x01R'),
      ascii('\x85'),
      ...Array.from({ length: 5000 }, () => ascii('h\x00h\x01R\x86')),
    );
    expectRefused(buildTorch([floatTensor('a', [6])], { data: many }), 'must have at most 4096 tensors');
  });

  it('may put a dict into itself', () => {
    const loop = pickle.program(ascii('}q\x00'), pickle.text('a'), ascii('h\x00s'));
    expectRefused(buildTorch([], { data: loop }), 'a: must be a tensor');
  });

  it('is refused when it ends anywhere before its end', () => {
    const whole = pickleTensors([floatTensor('a', [6]), floatTensor('b', [300])]);
    const tensors = [floatTensor('a', [6]), floatTensor('b', [300])];
    for (let length = 0; length < whole.length; length++) {
      const path = save(buildTorch(tensors, { data: whole.subarray(0, length) }));
      expect(() => openTorch(path), `${length} bytes`).toThrow(CheckpointError);
    }
  });
});

describe('a hostile zip file', () => {
  const tensors = [floatTensor('a', [6]), floatTensor('b', [2])];
  const members: readonly ZipMember[] = [
    { name: 'archive/data.pkl', data: pickleTensors(tensors) },
    { name: 'archive/data/0', data: tensors[0]!.data },
    { name: 'archive/data/1', data: tensors[1]!.data },
  ];
  const zip = (change: (list: ZipMember[]) => void): Buffer => {
    const list = [...members];
    change(list);
    return buildZip(list);
  };
  const claim = (index: number, claims: NonNullable<ZipMember['claims']>) =>
    zip((list) => {
      list[index] = { ...list[index]!, claims };
    });

  it('opens as it is', () => {
    using file = openTorch(save(buildZip(members)));
    expect(floats(file, 'b')).toEqual([0, 1]);
  });

  it.each<[string, Buffer, string]>([
    ['a compressed member', zip((list) => (list[1] = { ...list[1]!, deflate: true })), 'got compression method 8'],
    ['an encrypted member', claim(1, { flags: 1 }), 'archive/data/0: is encrypted'],
    ['a strongly encrypted one', claim(1, { flags: 0x40 }), 'is encrypted'],
    ['zip64 sizes', claim(1, { bytes: 0xffff_ffff, packedBytes: 0xffff_ffff }), 'zip64 is not supported'],
    ['a zip64 offset', claim(1, { start: 0xffff_ffff }), 'zip64 is not supported'],
    ['two sizes', claim(1, { packedBytes: 20 }), 'its sizes must be equal, got 20 and 24'],
    ['a size past the directory', claim(2, { bytes: 10_000, packedBytes: 10_000 }), 'run into the zip directory'],
    ['a size that overlaps', claim(1, { bytes: 60, packedBytes: 60 }), 'archive/data/1: starts at byte'],
    ['an offset past the directory', claim(1, { start: 2 ** 31 }), 'its local header is past'],
    ['an offset to nowhere', claim(1, { start: 5 }), 'its local header is damaged'],
    ['an offset to another member', claim(1, { start: 0 }), 'must agree with the zip directory'],
    ['a name twice', zip((list) => list.push(list[0]!)), 'archive/data.pkl: the zip file names it twice'],
    ['a blank name', zip((list) => list.push({ name: '', data: Buffer.alloc(0) })), 'zip directory: damaged'],
    ['a long name', zip((list) => list.push({ name: 'a'.repeat(513), data: Buffer.alloc(0) })), 'at most 512 bytes'],
    ['two pickles', zip((list) => list.push({ ...list[0]!, name: 'b/data.pkl' })), 'must be there once, got 2'],
    ['no pickle', buildZip(members.slice(1)), 'must be there once, got 0'],
    ['a pickle in no folder', buildZip([{ name: 'data.pkl', data: Buffer.from('x') }]), 'must be there once, got 0'],
    ['a comment', buildZip(members, 'hello'), 'must end the file, without a comment'],
    ['no bytes', Buffer.alloc(0), 'got a file of 0 bytes'],
    ['other bytes', Buffer.alloc(100, 'a'), 'or no zip file'],
    ['a missing storage', buildZip(members.slice(0, 2)), 'b: its storage "1" is missing from the file'],
  ])('is refused for %s', (_, bytes, message) => expectRefused(bytes, message));

  it.each<[string, number, number, string]>([
    ['a volume number', 4, 1, 'several volumes'],
    ['another count on this volume', 8, 2, 'several volumes'],
    ['a zip64 count', 10, 0xffff, 'zip64 is not supported'],
    ['a directory of 4 GiB', 12, 0xffff_fff0, 'must have at most 8388608 bytes'],
    ['a directory past the end', 16, 0xffff_fff0, 'run past its end record'],
    ['a zip64 directory', 16, 0xffff_ffff, 'zip64 is not supported'],
    ['a directory that starts late', 16, 100, 'zip directory'],
  ])('is refused for %s', (_, field, value, message) => {
    const bytes = buildZip(members);
    const at = bytes.length - 22 + field;
    if (field < 12) bytes.writeUInt16LE(value, at);
    else bytes.writeUInt32LE(value, at);
    expectRefused(bytes, message);
  });

  it('is refused for a count that its directory does not have', () => {
    const bytes = buildZip(members);
    for (const [count, message] of [
      [2, 'entries take'],
      [4, /damaged|too few/],
      [60_000, 'too few for 60000 entries'],
    ] as const) {
      bytes.writeUInt16LE(count, bytes.length - 14);
      bytes.writeUInt16LE(count, bytes.length - 12);
      expectRefused(bytes, message);
    }
  });

  it.each(['pytorch_model.bin', undefined])('is refused when it ends anywhere before its end: %s', (name) => {
    const whole = name === undefined ? buildZip(members) : readFileSync(golden + name);
    for (let length = 0; length < whole.length; length++) {
      const path = save(whole.subarray(0, length));
      expect(() => openTorch(path), `${length} bytes`).toThrow(CheckpointError);
    }
  });

  it('opens or is refused with little memory, whatever bytes are changed', () => {
    const original = readFileSync(`${golden}pytorch_model.bin`);
    // Three quarters of the changes go into the pickle, the rest anywhere.
    const at = fc.oneof(
      { weight: 3, arbitrary: fc.integer({ min: 64, max: 64 + 895 }) },
      { weight: 1, arbitrary: fc.nat(original.length - 9) },
    );
    const replacement = fc.oneof(
      fc.uint8Array({ minLength: 1, maxLength: 8 }),
      fc.constantFrom(
        ...['(', ')', 't', 'R', 'Q', 'b', 'X\xff\xff\xff\x7f', '\x8a\x08', 'h\x01'].map((text) =>
          Buffer.from(text, 'latin1'),
        ),
      ),
    );
    fc.assert(
      fc.property(fc.array(fc.tuple(at, replacement), { minLength: 1, maxLength: 3 }), (mutations) => {
        const bytes = Buffer.from(original);
        for (const [offset, change] of mutations) bytes.set(change, offset);
        const path = save(bytes);
        const before = process.memoryUsage().arrayBuffers;
        try {
          using file = openTorch(path);
          for (const name of file.entries.keys()) file.read(name);
        } catch (error) {
          expect(error).toBeInstanceOf(CheckpointError);
        }
        expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(4e6);
      }),
      { numRuns: 1500 },
    );
  });
});

describe('the directory of a head', () => {
  const eagle = fileURLToPath(new URL('../golden/eagle-tiny/eagle1-head/', import.meta.url));
  /** The tensors of the golden head, under other names, in a torch file. */
  function torchHead(rename: (name: string) => string = (name) => name): string {
    const inside = mkdtempSync(join(directory, 'head-'));
    copyFileSync(`${eagle}config.json`, join(inside, 'config.json'));
    writeFileSync(join(inside, 'pytorch_model.bin'), torchFromSafetensors(`${eagle}model.safetensors`, rename));
    return inside;
  }

  it.each([
    ['as it is', ''],
    ['with "model." in front', 'model.'],
  ])('may hold pytorch_model.bin, names %s', (_, prefix) => {
    const inside = torchHead((name) => prefix + name);
    expect(isHeadDirectory(inside)).toBe(true);
    using head = openHeadFiles(inside);
    using twin = openHeadFiles(eagle);
    expect([head.format, twin.format]).toEqual(['torch', 'safetensors']);
    expect(head.source.fileBytes).toBeGreaterThan(300_000);
    expect([...head.source.entries.keys()].sort()).toEqual([...twin.source.entries.keys()].sort());
    for (const [name, entry] of twin.source.entries) {
      expect(head.source.entries.get(name)).toEqual(entry);
      expect(Buffer.from(head.source.read(name)).equals(twin.source.read(name)), name).toBe(true);
      expect(head.source.read(name, 1, 2), name).toHaveLength((entry.byteLength / entry.shape[0]!) * 2);
    }
    expect(() => head.source.read('constructor')).toThrow('the tensor is missing');
  });

  it('is read from model.safetensors when both files are there', () => {
    const inside = torchHead();
    writeFileSync(join(inside, 'pytorch_model.bin'), 'not read');
    copyFileSync(`${eagle}model.safetensors`, join(inside, 'model.safetensors'));
    using head = openHeadFiles(inside);
    expect(head.format).toBe('safetensors');
  });

  it('is refused for a name with and without "model."', () => {
    const inside = mkdtempSync(join(directory, 'head-'));
    copyFileSync(`${eagle}config.json`, join(inside, 'config.json'));
    const tensor = { type: 'F32', shape: [1], data: new Uint8Array(4) } as const;
    writeSafetensors(join(inside, 'model.safetensors'), [
      { name: 'a', ...tensor },
      { name: 'model.a', ...tensor },
    ]);
    expect(() => openHeadFiles(inside)).toThrow('a: is there twice, with "model." in front and without');
  });

  it('is refused without weights', () => {
    const inside = mkdtempSync(join(directory, 'head-'));
    copyFileSync(`${eagle}config.json`, join(inside, 'config.json'));
    expect(isHeadDirectory(inside)).toBe(false);
    expect(() => openHeadFiles(inside)).toThrow('must hold model.safetensors or pytorch_model.bin');
  });
});
