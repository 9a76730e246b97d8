import { existsSync, mkdtempSync, readdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeAll, describe, expect, it } from 'vitest';
import { openCheckpoint } from '../../src/checkpoint/checkpoint.ts';
import { openGguf } from '../../src/checkpoint/gguf.ts';
import { resolveModel } from '../../src/checkpoint/hub.ts';
import { footprintOf } from '../../src/cli/footprint.ts';
import { CheckpointError, DisposedError } from '../../src/errors.ts';
import { createSizingKernels } from '../../src/kernels/sizing.ts';
import { loadTarget } from '../../src/model/registry.ts';
import {
  buildGguf,
  type GgufTestFile,
  type GgufTestValue,
  string,
  TINY_LLAMA,
  u32,
  u64,
  withKeys,
  withTensor,
} from '../support/gguf-writer.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';

const directory = temporaryDirectory();
let fileNumber = 0;

function save(bytes: Uint8Array): string {
  const path = join(directory, `${fileNumber++ % 8}.gguf`);
  writeFileSync(path, bytes);
  return path;
}

const number = (value: number): GgufTestValue => ({ type: 'u32', value });
const text = (value: string): GgufTestValue => ({ type: 'string', value });

describe('a well-formed file', () => {
  it('gives its hyper-parameters', async () => {
    using file = await openGguf(save(buildGguf(TINY_LLAMA)));
    expect(file.config).toEqual({
      architecture: 'llama',
      layers: 1,
      hiddenSize: 32,
      intermediateSize: 64,
      heads: 2,
      kvHeads: 1,
      headDim: 16,
      vocabSize: 8,
      contextLength: 64,
      ropeTheta: 10_000,
      rmsNormEps: Math.fround(1e-5),
      tiedEmbeddings: true,
      rotaryLayout: 'interleaved',
    });
    expect(file.generalName).toBe('Tiny');
  });

  it('gives its tokenizer as it stands, byte-order marks included', async () => {
    using file = await openGguf(save(buildGguf(TINY_LLAMA)));
    expect(file.tokenizer).toEqual({
      model: 'gpt2',
      pre: 'smollm',
      tokens: ['<|end|>', 'a', 'b', 'c', 'ab', '\ufeff', 'é', '__proto__'],
      tokenTypes: Int32Array.of(3, 1, 1, 1, 1, 1, 1, 1),
      merges: ['a b'],
      eosId: 0,
      addBos: false,
      chatTemplate: '{{ messages[0].content }}',
    });
  });

  it('gives tensors under Hugging Face names, outermost size first', async () => {
    using file = await openGguf(save(buildGguf(TINY_LLAMA)));
    expect([...file.source.entries.keys()]).toEqual([
      'model.embed_tokens.weight',
      'model.layers.0.input_layernorm.weight',
      'model.layers.0.self_attn.q_proj.weight',
      'model.layers.0.self_attn.k_proj.weight',
      'model.layers.0.self_attn.v_proj.weight',
      'model.layers.0.self_attn.o_proj.weight',
      'model.layers.0.post_attention_layernorm.weight',
      'model.layers.0.mlp.gate_proj.weight',
      'model.layers.0.mlp.up_proj.weight',
      'model.layers.0.mlp.down_proj.weight',
      'model.norm.weight',
    ]);
    expect(file.source.entries.get('model.layers.0.mlp.down_proj.weight')).toEqual({
      name: 'model.layers.0.mlp.down_proj.weight',
      type: 'Q4_1',
      shape: [32, 64],
      byteLength: 32 * 40,
    });
  });

  it('reads the bytes of the tensor that was asked for', async () => {
    const bytes = buildGguf(TINY_LLAMA);
    const dataBytes = TINY_LLAMA.tensors.reduce((sum, tensor) => sum + Math.ceil(tensor.bytes / 32) * 32, 0);
    const data = bytes.subarray(bytes.length - dataBytes);
    using file = await openGguf(save(bytes));
    let offset = 0;
    for (const [i, entry] of [...file.source.entries.values()].entries()) {
      const expected = data.subarray(offset, offset + entry.byteLength);
      expect(Buffer.from(file.source.read(entry.name)).equals(expected)).toBe(true);
      const [rows = 1] = entry.shape;
      const rowBytes = entry.byteLength / rows;
      const part = file.source.read(entry.name, 1, rows - 2);
      expect(Buffer.from(part).equals(expected.subarray(rowBytes, -rowBytes))).toBe(true);
      offset += Math.ceil(TINY_LLAMA.tensors[i]!.bytes / 32) * 32;
    }
  });

  it('may use another alignment', async () => {
    const aligned = { ...withKeys({ 'general.alignment': number(128) }), alignment: 128 };
    using file = await openGguf(save(buildGguf(aligned)));
    expect(file.source.read('model.norm.weight')).toHaveLength(128);
  });

  it('may lack a tokenizer', async () => {
    using file = await openGguf(save(buildGguf(withKeys({ 'tokenizer.ggml.model': undefined }))));
    expect(file.tokenizer).toBeUndefined();
  });

  it('has an LM head of its own when there is output.weight', async () => {
    const head = { name: 'output.weight', dims: [32, 8], type: 8, bytes: 8 * 34 };
    const untied = { ...TINY_LLAMA, tensors: [...TINY_LLAMA.tensors, head] };
    using file = await openGguf(save(buildGguf(untied)));
    expect(file.config.tiedEmbeddings).toBe(false);
    expect(file.source.entries.has('lm_head.weight')).toBe(true);
  });

  it('opens as a checkpoint', async () => {
    using checkpoint = await openCheckpoint(save(buildGguf(TINY_LLAMA)));
    expect(checkpoint.format).toBe('gguf');
    expect(checkpoint.tokenizer?.kind).toBe('gguf');
  });

  it('cannot be read after it was disposed, and may be disposed twice', async () => {
    const file = await openGguf(save(buildGguf(TINY_LLAMA)));
    file[Symbol.dispose]();
    file[Symbol.dispose]();
    expect(() => file.source.read('model.norm.weight')).toThrow(DisposedError);
  });
});

describe('what a model may ask of a source', () => {
  it('names a missing tensor', async () => {
    const path = save(buildGguf(withTensor('output_norm.weight', undefined)));
    using file = await openGguf(path);
    const message = `${path}: model.norm.weight: the tensor is missing from the file`;
    expect(() => file.source.read('model.norm.weight')).toThrow(message);
  });

  it.each([
    [33, 0],
    [0, 33],
    [20, 13],
    [-1, 1],
    [0, -1],
    [0.5, 1],
    [0, Number.NaN],
  ])('refuses rows that the tensor does not have: from %d, %d of 32', async (firstRow, rows) => {
    using file = await openGguf(save(buildGguf(TINY_LLAMA)));
    expect(() => file.source.read('model.layers.0.mlp.down_proj.weight', firstRow, rows)).toThrow(RangeError);
  });

  it('opens with a tensor of another element type, and refuses to load it, by its own name', async () => {
    const path = save(buildGguf(withTensor('blk.0.ffn_up.weight', { type: 14 })));
    using file = await openGguf(path);
    const message = `${path}: blk.0.ffn_up.weight: must be of type F32, F16, BF16, Q8_0, Q4_0, Q4_1, got Q6_K`;
    expect(() => file.source.read('model.layers.0.mlp.up_proj.weight')).toThrow(message);
    const load = () => loadTarget(createSizingKernels(), file.config, file.source, { dtype: 'auto' });
    expect(load).toThrow(CheckpointError);
    expect(load).toThrow(message);
    expect(() => footprintOf(file)).toThrow(message); // what `inspect` asks
  });

  it('says so when the file shrinks after it was opened', async () => {
    const path = save(buildGguf(TINY_LLAMA));
    using file = await openGguf(path);
    truncateSync(path, 100);
    expect(() => file.source.read('model.norm.weight')).toThrow(CheckpointError);
  });
});

describe('a hostile or unsupported file', () => {
  const nested: GgufTestValue = { type: 'raw', tag: 9, bytes: Buffer.concat([u32(9), u64(1), u32(4), u64(0)]) };
  const endless: GgufTestValue = { type: 'raw', tag: 9, bytes: Buffer.concat([u32(8), u64(2n ** 63n)]) };
  const manyBytes: GgufTestValue = { type: 'raw', tag: 9, bytes: Buffer.concat([u32(0), u64(1_000_000)]) };
  const cases: readonly (readonly [string, GgufTestFile, string | RegExp])[] = [
    ['another magic', { ...TINY_LLAMA, magic: 'GGML' }, 'must start with "GGUF"'],
    ['version 1', { ...TINY_LLAMA, version: 1 }, 'supported are 2 and 3, got 1'],
    ['big endian', { ...TINY_LLAMA, version: 0x0300_0000 }, 'big-endian'],
    ['8 million tensors', { ...TINY_LLAMA, tensorCount: 8_000_000 }, 'tensor_count: must be at most 65536'],
    ['more tensors than bytes', { ...TINY_LLAMA, tensorCount: 60_000 }, /tensor_count: .* the file has \d+ left/],
    ['2^64 - 1 tensors', { ...TINY_LLAMA, tensorCount: 2n ** 64n - 1n }, 'larger than any file'],
    ['one tensor too many', { ...TINY_LLAMA, tensorCount: 12 }, /./],
    ['too many keys', { ...TINY_LLAMA, keyCount: 1_000_000 }, 'kv_count: must be at most 4096'],
    ['one key too many', { ...TINY_LLAMA, keyCount: TINY_LLAMA.keys.length + 1 }, /./],
    ['one key too few', { ...TINY_LLAMA, keyCount: TINY_LLAMA.keys.length - 1 }, /./],
    ['a key twice', { ...TINY_LLAMA, keys: [...TINY_LLAMA.keys, TINY_LLAMA.keys[0]!] }, 'appears twice'],
    ['a blank key', { ...TINY_LLAMA, keys: [...TINY_LLAMA.keys, ['', number(1)]] }, 'must not be empty'],
    ['an unknown value type', withKeys({ x: { type: 'raw', tag: 13, bytes: Buffer.alloc(8) } }), 'value type 13'],
    ['an array of arrays', withKeys({ x: nested }), 'arrays of arrays'],
    ['an array of 2^63', withKeys({ x: endless }), 'larger than any file'],
    ['an array past the end', withKeys({ x: manyBytes }), /x: 1000000 entries need 1000000 bytes/],
    ['a string of 2^40', withKeys({ x: { type: 'raw', tag: 8, bytes: u64(2 ** 40) } }), 'at most 1048576 bytes'],
    ['another family', withKeys({ 'general.architecture': text('qwen2') }), 'supported: llama, got "qwen2"'],
    [
      'a family of a megabyte',
      withKeys({ 'general.architecture': text('\u001b[2J'.repeat(2 ** 17)) }),
      /got "\\u001b.{53}$/,
    ],
    [
      'a key of 60 kB twice',
      { ...TINY_LLAMA, keys: [...TINY_LLAMA.keys, ['k'.repeat(60_000), number(1)], ['k'.repeat(60_000), number(1)]] },
      /: k{1000}…: appears twice$/,
    ],
    [
      'a context of one token',
      withKeys({ 'llama.context_length': number(1) }),
      'must be an integer from 2 to 16777216',
    ],
    ['no family', withKeys({ 'general.architecture': undefined }), 'supported: llama, got nothing'],
    ['a family of another type', withKeys({ 'general.architecture': number(1) }), 'must be a string, got number'],
    ['an adapter', withKeys({ 'general.type': text('adapter') }), 'must be a whole model'],
    ['a part of a split file', withKeys({ 'split.count': number(3) }), 'split.count'],
    ['scaled RoPE', withKeys({ 'llama.rope.scaling.type': text('yarn') }), 'must be none or absent, got "yarn"'],
    [
      'RoPE scaled by a factor',
      withKeys({ 'llama.rope.scaling.factor': number(8) }),
      'must be 0 or 1 or absent, got 8',
    ],
    [
      'angles without end',
      withKeys({ 'llama.context_length': number(2 ** 24), 'llama.attention.key_length': number(16) }),
      'must be at most 134217728, got 16777216',
    ],
    ['experts', withKeys({ 'llama.expert_count': number(8) }), 'llama.expert_count'],
    ['alignment 0', withKeys({ 'general.alignment': number(0) }), 'must be a power of two'],
    ['alignment 24', withKeys({ 'general.alignment': number(24) }), 'must be a power of two'],
    ['alignment 2^31', withKeys({ 'general.alignment': number(2 ** 31) }), 'must be a power of two'],
    ['alignment as text', withKeys({ 'general.alignment': text('32') }), 'must be a power of two'],
    ['no layers', withKeys({ 'llama.block_count': number(0) }), 'llama.block_count: must be an integer from 1'],
    ['2^31 layers', withKeys({ 'llama.block_count': number(2 ** 31) }), 'llama.block_count: must be an integer from 1'],
    ['layers as text', withKeys({ 'llama.block_count': text('1') }), 'must be a number, got string'],
    [
      '2^60 layers',
      withKeys({ 'llama.block_count': { type: 'u64', value: 2n ** 60n } }),
      'must be a number, got bigint',
    ],
    ['no heads', withKeys({ 'llama.attention.head_count': number(0) }), 'head'],
    [
      'heads that do not group',
      withKeys({ 'llama.attention.head_count_kv': number(3) }),
      'must divide the 2 query heads',
    ],
    [
      'a fraction of a head size',
      withKeys({ 'llama.attention.head_count': number(3) }),
      'key_length: must be an integer',
    ],
    ['an odd head size', withKeys({ 'llama.attention.key_length': number(15) }), 'must be even'],
    ['two head sizes', withKeys({ 'llama.attention.value_length': number(8) }), 'must be the head size 16, got 8'],
    ['partial RoPE', withKeys({ 'llama.rope.dimension_count': number(8) }), 'must be the head size 16, got 8'],
    ['eps NaN', withKeys({ 'llama.attention.layer_norm_rms_epsilon': { type: 'f32', value: Number.NaN } }), 'got NaN'],
    ['no eps', withKeys({ 'llama.attention.layer_norm_rms_epsilon': undefined }), 'must be a number, got nothing'],
    ['theta infinite', withKeys({ 'llama.rope.freq_base': { type: 'f32', value: Infinity } }), 'got Infinity'],
    ['a lying vocabulary', withKeys({ 'llama.vocab_size': number(9) }), 'must be the 8 rows of token_embd.weight'],
    ['another width', withKeys({ 'llama.embedding_length': number(64) }), 'expected a matrix [vocabulary, 64]'],
    [
      'too many tokens',
      withKeys({ 'tokenizer.ggml.tokens': { type: 'strings', value: Array(9).fill('x') } }),
      'at most 8',
    ],
    ['tokens as text', withKeys({ 'tokenizer.ggml.tokens': text('a') }), 'must be an array of strings, got string'],
    ['tokens as numbers', withKeys({ 'tokenizer.ggml.tokens': { type: 'i32s', value: [1] } }), 'an array of strings'],
    [
      'types for other tokens',
      withKeys({ 'tokenizer.ggml.token_type': { type: 'i32s', value: [1] } }),
      'must have 8 entries',
    ],
    ['an end token out of range', withKeys({ 'tokenizer.ggml.eos_token_id': number(8) }), 'a token id below 8, got 8'],
    ['a negative end token', withKeys({ 'tokenizer.ggml.eos_token_id': { type: 'i32', value: -1 } }), 'got -1'],
    ['a blank tensor name', withTensor('output_norm.weight', { name: '' }), 'its name must not be empty'],
    ['a long tensor name', withTensor('output_norm.weight', { name: 'x'.repeat(65) }), 'at most 64 bytes'],
    ['a tensor twice', withTensor('output_norm.weight', { name: 'blk.0.ffn_norm.weight' }), 'appears twice'],
    ['two names for one tensor', withTensor('blk.0.ffn_norm.weight', { name: 'model.norm.weight' }), 'appears twice'],
    ['no embedding', withTensor('token_embd.weight', undefined), 'expected a matrix [vocabulary, 32]'],
    [
      'an unreadable embedding',
      withTensor('token_embd.weight', { type: 14 }),
      'token_embd.weight: must be of type F32, F16, BF16, Q8_0, Q4_0, Q4_1, got Q6_K',
    ],
    ['an embedding of one dimension', withTensor('token_embd.weight', { dims: [256] }), 'got [256]'],
    ['biases', withTensor('output_norm.weight', { name: 'blk.0.attn_q.bias' }), 'biases'],
    ['RoPE factors', withTensor('output_norm.weight', { name: 'rope_freqs.weight' }), 'scaled RoPE'],
    ['no dimensions', withTensor('output_norm.weight', { dims: [] }), '1 to 4 dimensions, got 0'],
    ['five dimensions', withTensor('output_norm.weight', { dims: [1, 1, 1, 1, 1] }), '1 to 4 dimensions, got 5'],
    ['a size of 0', withTensor('output_norm.weight', { dims: [0] }), 'must be positive integers'],
    ['a size of 2^63', withTensor('output_norm.weight', { dims: [2n ** 63n] }), 'larger than any file'],
    [
      'sizes whose product wraps',
      withTensor('output_norm.weight', { dims: [2n ** 32n, 2n ** 32n] }),
      'more elements than',
    ],
    ['a size past the end', withTensor('output_norm.weight', { dims: [1000] }), 'ends at byte'],
    ['part of a block', withTensor('blk.0.ffn_up.weight', { dims: [33, 64] }), 'rows of a multiple of 32'],
    ['an unaligned offset', withTensor('output_norm.weight', { offset: 1 }), 'must be a multiple of 32, got 1'],
    ['an offset past the end', withTensor('output_norm.weight', { offset: 2 ** 40 }), 'ends at byte'],
    ['an offset of 2^64 - 32', withTensor('output_norm.weight', { offset: 2n ** 64n - 32n }), 'larger than any file'],
    ['overlapping tensors', withTensor('output_norm.weight', { offset: 32 }), 'inside "token_embd.weight"'],
  ];

  it.each(cases)('is refused for %s', async (_, file, message) => {
    const refusal = openGguf(save(buildGguf(file)));
    await expect(refusal).rejects.toThrow(CheckpointError);
    await expect(refusal).rejects.toThrow(message);
  });

  it('is refused when it ends anywhere before its end', async () => {
    const bytes = buildGguf(TINY_LLAMA);
    for (let length = 0; length < bytes.length; length += length < 2048 ? 1 : 37) {
      await expect(openGguf(save(bytes.subarray(0, length))), `${length} bytes`).rejects.toThrow(CheckpointError);
    }
  });

  it('is refused when it is not there, is a directory, or is a device', async () => {
    for (const path of [join(directory, 'none.gguf'), directory, '/dev/null']) {
      await expect(openGguf(path)).rejects.toThrow(CheckpointError);
    }
  });

  it.runIf(existsSync('/proc/self/fd'))('leaves no file open', async () => {
    const path = save(buildGguf(withKeys({ 'llama.block_count': number(0) })));
    const openFiles = () => readdirSync('/proc/self/fd').length;
    const before = openFiles();
    for (let i = 0; i < 20; i++) await expect(openGguf(path)).rejects.toThrow();
    expect(openFiles()).toBe(before);
  });

  it('opens or is refused with little memory, whatever bytes are changed', async () => {
    const original = buildGguf(TINY_LLAMA);
    const mutation = fc.record({
      at: fc.nat(original.length - 8),
      bytes: fc.oneof(
        fc.uint8Array({ minLength: 1, maxLength: 8 }),
        fc.constantFrom(u64(2n ** 64n - 1n), u64(2n ** 53n), u64(2n ** 32n), u64(1_000_000), u32(0), string('')),
      ),
    });
    const path = join(mkdtempSync(join(directory, 'fuzz-')), 'x.gguf');
    await fc.assert(
      fc.asyncProperty(fc.array(mutation, { minLength: 1, maxLength: 3 }), async (mutations) => {
        const bytes = Buffer.from(original);
        for (const { at, bytes: replacement } of mutations) bytes.set(replacement.subarray(0, bytes.length - at), at);
        writeFileSync(path, bytes);
        const before = process.memoryUsage();
        const begun = performance.now();
        try {
          using file = await openGguf(path);
          for (const name of file.source.entries.keys()) file.source.read(name);
        } catch (error) {
          expect(error).toBeInstanceOf(CheckpointError);
        }
        const after = process.memoryUsage();
        expect(after.arrayBuffers - before.arrayBuffers).toBeLessThan(4e6);
        expect(after.heapUsed - before.heapUsed).toBeLessThan(16e6);
        expect(performance.now() - begun).toBeLessThan(10_000); // a few milliseconds, and what a busy machine adds
      }),
      { numRuns: 1500 },
    );
  });
});

describe('SmolLM2-135M-Instruct', () => {
  let path = '';
  beforeAll(async () => {
    path = await resolveModel('smollm2-135m-instruct');
  });

  it('has 272 tensors of the shapes its config says', async () => {
    using file = await openGguf(path);
    const { source, config } = file;
    expect(source.entries.size).toBe(272);
    expect(config).toMatchObject({
      layers: 30,
      hiddenSize: 576,
      heads: 9,
      kvHeads: 3,
      headDim: 64,
      ropeTheta: 100_000,
    });
    expect(source.entries.get('model.embed_tokens.weight')?.type).toBe('Q8_0');
    for (let layer = 0; layer < config.layers; layer++) {
      expect(source.entries.get(`model.layers.${layer}.self_attn.k_proj.weight`)?.shape).toEqual([192, 576]);
      expect(source.entries.get(`model.layers.${layer}.mlp.down_proj.weight`)?.shape).toEqual([576, 1536]);
    }
    expect(file.tokenizer?.tokens).toHaveLength(49_152);
    expect(file.tokenizer?.merges).toHaveLength(48_900);
    expect(file.tokenizer).toMatchObject({ model: 'gpt2', pre: 'smollm', bosId: 1, eosId: 2, addBos: false });
  });

  it("reads as Hugging Face's own parser reads it", async () => {
    const { gguf } = await import('@huggingface/gguf');
    const { metadata, tensorInfos } = await gguf(path, { allowLocalFile: true });
    const values: Readonly<Record<string, unknown>> = { ...metadata };
    using file = await openGguf(path);
    const entries = [...file.source.entries.values()];
    expect(entries.map(({ shape }) => shape)).toEqual(tensorInfos.map((info) => info.shape.map(Number).reverse()));
    expect(file.tokenizer?.tokens).toEqual(values['tokenizer.ggml.tokens']);
    expect(file.tokenizer?.merges).toEqual(values['tokenizer.ggml.merges']);
    expect([...(file.tokenizer?.tokenTypes ?? [])]).toEqual(values['tokenizer.ggml.token_type']);
    expect(file.tokenizer?.chatTemplate).toBe(values['tokenizer.chat_template']);
  });
});
