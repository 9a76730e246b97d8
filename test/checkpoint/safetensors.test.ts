import { mkdirSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  openSafetensors,
  openSafetensorsDirectory,
  type TensorToWrite,
  writeSafetensors,
} from '../../src/checkpoint/safetensors.ts';
import { CheckpointError, DisposedError } from '../../src/errors.ts';
import { u64 } from '../support/gguf-writer.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';

const directory = temporaryDirectory();
let fileNumber = 0;

function save(header: unknown, dataBytes: number, headerBytes?: number | bigint): string {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const path = join(directory, `${fileNumber++ % 8}.safetensors`);
  writeFileSync(path, Buffer.concat([u64(headerBytes ?? json.length), json, Buffer.alloc(dataBytes, 7)]));
  return path;
}

const f32 = (name: string, shape: readonly number[], first: number): TensorToWrite => {
  const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => first + i);
  return { name, type: 'F32', shape, data: new Uint8Array(values.buffer) };
};

describe('a safetensors file', () => {
  it('reads back what was written, every element type', () => {
    const path = join(directory, 'all.safetensors');
    const tensors: TensorToWrite[] = [
      { name: 't2d', type: 'BOOL', shape: [3], data: Uint8Array.of(1, 0, 1) },
      { name: 'half', type: 'F16', shape: [1, 2], data: Uint8Array.of(0, 60, 0, 64) },
      { name: 'brain', type: 'BF16', shape: [2], data: Uint8Array.of(128, 63, 0, 64) },
      f32('norm', [2, 3], 1),
      { name: 'd2t', type: 'I64', shape: [1], data: new Uint8Array(8).fill(1) },
      { name: '__proto__', type: 'F32', shape: [], data: new Uint8Array(4) },
    ];
    writeSafetensors(path, tensors, { format: 'pt' });
    using file = openSafetensors(path);
    expect(file.metadata.get('format')).toBe('pt');
    expect(file.fileBytes).toBe(readFileSync(path).length);
    expect(file.entries.size).toBe(tensors.length);
    for (const { name, type, shape, data } of tensors) {
      expect(file.entries.get(name)).toEqual({ name, type, shape, byteLength: data.length });
      expect([...file.read(name)]).toEqual([...data]);
    }
  });

  it('is written whole or not at all', () => {
    const inside = mkdtempSync(join(directory, 'whole-'));
    const path = join(inside, 'x.safetensors');
    writeSafetensors(path, [f32('a', [2], 0)]);
    expect(() => writeSafetensors(path, [{ ...f32('a', [2], 0), shape: [3] }])).toThrow(
      'data must have 12 bytes, got 8',
    );
    expect(() => writeSafetensors(path, [f32('a', [2], 0), f32('a', [2], 0)])).toThrow('must be unique');
    expect(() => writeSafetensors(join(inside, 'no/x.safetensors'), [])).toThrow(/must be writable/);
    expect(readdirSync(inside)).toEqual(['x.safetensors']);
    using file = openSafetensors(path);
    expect(file.read('a')).toHaveLength(8);
  });

  it('cannot be read after it was disposed', () => {
    const path = join(directory, 'disposed.safetensors');
    writeSafetensors(path, [f32('a', [2], 0)]);
    const file = openSafetensors(path);
    file[Symbol.dispose]();
    expect(() => file.read('a')).toThrow(DisposedError);
  });
});

describe('a hostile safetensors file', () => {
  const entry = (shape: unknown, begin: unknown, end: unknown, dtype: unknown = 'F32') => ({
    dtype,
    shape,
    data_offsets: [begin, end],
  });
  const cases: readonly (readonly [string, unknown, number, number | bigint | undefined, string])[] = [
    ['a header of 2^63 bytes', {}, 0, 2n ** 63n, 'header length'],
    ['a header of 100,000,001 bytes', {}, 0, 100_000_001, 'header length'],
    ['a header past the end', {}, 0, 3, 'header length'],
    ['a header of no bytes', {}, 0, 0, 'header length'],
    ['a header that starts with a space', ' {}', 0, undefined, 'must start with "{"'],
    ['a list as header', '[]', 0, undefined, 'must start with "{"'],
    ['a header that is not JSON', '{"a":}', 0, undefined, 'must be JSON'],
    ['a header cut short', { a: entry([1], 0, 4) }, 4, 10, 'must be JSON'],
    ['a name twice', '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}', 4, undefined, 'a key twice'],
    [
      'a field twice',
      '{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
      4,
      undefined,
      'key twice',
    ],
    ['a million brackets', `{"a":${'['.repeat(1e6)}${']'.repeat(1e6)}}`, 0, undefined, 'must not nest deeper than 3'],
    ['a million numbers', `{"a":[${'1,'.repeat(1e6)}1]}`, 0, undefined, '1000000 commas to 1 keys'],
    ['a million keys', `{${'"":1,'.repeat(1e6)}"":1}`, 0, undefined, 'must have at most 266240 keys'],
    ['metadata that is no text', { __metadata__: { a: 1 } }, 0, undefined, '__metadata__'],
    ['metadata that is a list', { __metadata__: [] }, 0, undefined, '__metadata__'],
    ['metadata that is null', { __metadata__: null }, 0, undefined, '__metadata__'],
    ['a blank name', { '': entry([1], 0, 4) }, 4, undefined, 'must not be empty'],
    ['a tensor that is null', { a: null }, 0, undefined, 'a:'],
    ['an element type of 8 bits', { a: entry([4], 0, 4, 'F8_E4M3') }, 4, undefined, 'got F8_E4M3'],
    ['no element type', { a: entry([1], 0, 4, null) }, 4, undefined, 'dtype'],
    ['an extra field', { a: { ...entry([1], 0, 4), x: 1 } }, 4, undefined, 'a:'],
    ['a shape of text', { a: entry(['1'], 0, 4) }, 4, undefined, 'shape'],
    ['nine dimensions', { a: entry(Array(9).fill(1), 0, 4) }, 4, undefined, 'shape'],
    ['a size of 0', { a: entry([0], 0, 0) }, 0, undefined, 'positive integers'],
    ['a size of -1', { a: entry([-1], 0, 4) }, 4, undefined, 'positive integers'],
    ['half a size', { a: entry([0.5], 0, 2) }, 2, undefined, 'positive integers'],
    ['sizes whose product wraps', { a: entry([2 ** 40, 2 ** 40], 0, 4) }, 4, undefined, 'more elements than'],
    ['a shape of other bytes', { a: entry([2], 0, 4) }, 4, undefined, 'takes 8 bytes, got offsets 0 to 4'],
    ['offsets in reverse', { a: entry([1], 4, 0) }, 4, undefined, 'takes 4 bytes'],
    ['negative offsets', { a: entry([1], -4, 0) }, 4, undefined, 'data_offsets'],
    ['data past the end', { a: entry([2], 0, 8) }, 4, undefined, 'cover 8 bytes, but the file has 4'],
    ['data behind the tensors', { a: entry([1], 0, 4) }, 8, undefined, 'cover 4 bytes, but the file has 8'],
    ['a hole at the start', { a: entry([1], 4, 8) }, 8, undefined, 'leaves a hole'],
    ['a hole between', { a: entry([1], 0, 4), b: entry([1], 8, 12) }, 12, undefined, 'leaves a hole'],
    ['an overlap', { a: entry([2], 0, 8), b: entry([1], 4, 8) }, 8, undefined, 'inside "a"'],
  ];

  it.each(cases)('is refused for %s', (_, header, dataBytes, headerBytes, message) => {
    const path = save(header, dataBytes, headerBytes);
    expect(() => openSafetensors(path)).toThrow(CheckpointError);
    expect(() => openSafetensors(path)).toThrow(message);
  });

  it('is refused when it ends anywhere before its end', () => {
    const path = join(directory, 'cut.safetensors');
    writeSafetensors(path, [f32('a', [2, 3], 0), f32('b', [4], 0)]);
    const bytes = readFileSync(path);
    for (let length = 0; length < bytes.length; length++) {
      writeFileSync(path, bytes.subarray(0, length));
      expect(() => openSafetensors(path), `${length} bytes`).toThrow(CheckpointError);
    }
  });

  it('opens or is refused with little memory, whatever bytes are changed', () => {
    const path = join(directory, 'mutated.safetensors');
    writeSafetensors(path, [f32('a', [2, 3], 0), f32('b', [4], 0)], { format: 'pt' });
    const original = readFileSync(path);
    const mutation = fc.tuple(
      fc.nat(original.length - 9),
      fc.oneof(fc.uint8Array({ minLength: 1, maxLength: 8 }), fc.constantFrom(u64(2n ** 60n), Buffer.from('9999'))),
    );
    fc.assert(
      fc.property(fc.array(mutation, { minLength: 1, maxLength: 3 }), (mutations) => {
        const bytes = Buffer.from(original);
        for (const [at, replacement] of mutations) bytes.set(replacement, at);
        writeFileSync(path, bytes);
        const before = process.memoryUsage().arrayBuffers;
        try {
          using file = openSafetensors(path);
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

describe('a directory of shards', () => {
  function shards(weightMap: unknown): string {
    const inside = mkdtempSync(join(directory, 'shards-'));
    writeSafetensors(join(inside, 'model-1.safetensors'), [f32('a', [2], 1), f32('stray', [1], 9)]);
    writeSafetensors(join(inside, 'model-2.safetensors'), [f32('b', [3], 5)]);
    writeFileSync(
      join(inside, 'model.safetensors.index.json'),
      JSON.stringify({ metadata: {}, weight_map: weightMap }),
    );
    return inside;
  }

  it('reads as one', () => {
    using source = openSafetensorsDirectory(shards({ a: 'model-1.safetensors', b: 'model-2.safetensors' }));
    expect([...source.entries.keys()]).toEqual(['a', 'b']);
    expect([...new Float32Array(Uint8Array.from(source.read('b')).buffer)]).toEqual([5, 6, 7]);
    expect([...new Float32Array(Uint8Array.from(source.read('a')).buffer)]).toEqual([1, 2]);
    expect([...new Float32Array(Uint8Array.from(source.read('b', 1, 1)).buffer)]).toEqual([6]);
    expect(() => source.read('c')).toThrow(CheckpointError);
    expect(source.fileBytes).toBeGreaterThan(0);
  });

  it('may be a single file without an index', () => {
    const inside = mkdtempSync(join(directory, 'single-'));
    writeSafetensors(join(inside, 'model.safetensors'), [f32('a', [2], 1)]);
    using source = openSafetensorsDirectory(inside);
    expect(source.entries.has('a')).toBe(true);
  });

  it.each<[string, unknown, string]>([
    ['leads out of the directory', { a: '../model-1.safetensors' }, 'must name files beside the index'],
    ['is absolute', { a: '/etc/x.safetensors' }, 'must name files beside the index'],
    ['names a file that is not there', { a: 'model-3.safetensors' }, 'must be readable'],
    ['names the wrong file', { a: 'model-2.safetensors' }, 'must be in model-2.safetensors, which lacks it'],
    ['is no map', ['a'], 'must map tensor names to file names'],
    ['maps to numbers', { a: 1 }, 'must map tensor names to file names'],
    [
      'names a thousand files',
      Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [i, `${i}.safetensors`])),
      '512',
    ],
  ])('is refused when its index %s', (_, weightMap, message) => {
    const inside = shards(weightMap);
    expect(() => openSafetensorsDirectory(inside)).toThrow(CheckpointError);
    expect(() => openSafetensorsDirectory(inside)).toThrow(message);
  });

  it('is refused when it holds no weights', () => {
    const empty = join(directory, 'empty');
    mkdirSync(empty);
    expect(() => openSafetensorsDirectory(empty)).toThrow('must hold model.safetensors');
  });
});
