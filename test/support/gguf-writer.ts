/** Writes GGUF files in memory, right ones and wrong ones: every number of the header can be made to lie. */

/** Tags of metadata values. */
const TAGS = { u8: 0, u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9, u64: 10 } as const;

export type GgufTestValue =
  | { readonly type: 'u8' | 'u32' | 'i32' | 'f32'; readonly value: number }
  | { readonly type: 'u64'; readonly value: bigint }
  | { readonly type: 'bool'; readonly value: boolean }
  | { readonly type: 'string'; readonly value: string }
  | { readonly type: 'strings'; readonly value: readonly string[] }
  | { readonly type: 'i32s'; readonly value: readonly number[] }
  /** Tag and bytes as they are to stand in the file. */
  | { readonly type: 'raw'; readonly tag: number; readonly bytes: Buffer };

export interface GgufTestTensor {
  readonly name: string;
  /** Innermost first. */
  readonly dims: readonly (number | bigint)[];
  /** ggml's number. */
  readonly type: number;
  readonly bytes: number;
  /** Instead of the right one, from the start of the data. */
  readonly offset?: number | bigint;
}

export interface GgufTestFile {
  readonly magic?: string;
  readonly version?: number;
  readonly alignment?: number;
  readonly tensorCount?: number | bigint;
  readonly keyCount?: number | bigint;
  readonly keys: readonly (readonly [string, GgufTestValue])[];
  readonly tensors: readonly GgufTestTensor[];
}

export function buildGguf(file: GgufTestFile): Buffer {
  const alignment = file.alignment ?? 32;
  const align = (bytes: number) => Math.ceil(bytes / alignment) * alignment;
  const parts: Buffer[] = [
    Buffer.from(file.magic ?? 'GGUF', 'latin1'),
    u32(file.version ?? 3),
    u64(file.tensorCount ?? file.tensors.length),
    u64(file.keyCount ?? file.keys.length),
  ];
  for (const [key, value] of file.keys) parts.push(string(key), encode(value));
  let dataBytes = 0;
  for (const { name, dims, type, bytes, offset } of file.tensors) {
    parts.push(string(name), u32(dims.length), ...dims.map(u64), u32(type), u64(offset ?? dataBytes));
    dataBytes = align(dataBytes + bytes);
  }
  const header = Buffer.concat(parts);
  const data = Buffer.alloc(dataBytes);
  for (let i = 0; i < data.length; i++) data[i] = i % 251;
  return Buffer.concat([header, Buffer.alloc(align(header.length) - header.length), data]);
}

function encode(value: GgufTestValue): Buffer {
  switch (value.type) {
    case 'u8':
      return Buffer.concat([u32(TAGS.u8), Buffer.from([value.value])]);
    case 'u32':
      return Buffer.concat([u32(TAGS.u32), u32(value.value)]);
    case 'i32':
      return Buffer.concat([u32(TAGS.i32), i32(value.value)]);
    case 'f32': {
      const bytes = Buffer.alloc(4);
      bytes.writeFloatLE(value.value);
      return Buffer.concat([u32(TAGS.f32), bytes]);
    }
    case 'u64':
      return Buffer.concat([u32(TAGS.u64), u64(value.value)]);
    case 'bool':
      return Buffer.concat([u32(TAGS.bool), Buffer.from([value.value ? 1 : 0])]);
    case 'string':
      return Buffer.concat([u32(TAGS.string), string(value.value)]);
    case 'strings':
      return Buffer.concat([u32(TAGS.array), u32(TAGS.string), u64(value.value.length), ...value.value.map(string)]);
    case 'i32s':
      return Buffer.concat([u32(TAGS.array), u32(TAGS.i32), u64(value.value.length), ...value.value.map(i32)]);
    case 'raw':
      return Buffer.concat([u32(value.tag), value.bytes]);
  }
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function i32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
}

export function u64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

export function string(text: string): Buffer {
  const bytes = Buffer.from(text);
  return Buffer.concat([u64(bytes.length), bytes]);
}

const number = (value: number): GgufTestValue => ({ type: 'u32', value });
const text = (value: string): GgufTestValue => ({ type: 'string', value });

/** A whole Llama of one layer: d 32, 2 heads of 16, 1 KV head, 8 tokens. F32 norms, Q4_0, Q4_1, F16, BF16 and Q8_0 matrices. */
export const TINY_LLAMA: GgufTestFile = {
  keys: [
    ['general.architecture', text('llama')],
    ['general.name', text('Tiny')],
    ['llama.block_count', number(1)],
    ['llama.context_length', number(64)],
    ['llama.embedding_length', number(32)],
    ['llama.feed_forward_length', number(64)],
    ['llama.attention.head_count', number(2)],
    ['llama.attention.head_count_kv', number(1)],
    ['llama.attention.layer_norm_rms_epsilon', { type: 'f32', value: 1e-5 }],
    ['tokenizer.ggml.model', text('gpt2')],
    ['tokenizer.ggml.pre', text('smollm')],
    ['tokenizer.ggml.tokens', { type: 'strings', value: ['<|end|>', 'a', 'b', 'c', 'ab', '\ufeff', 'é', '__proto__'] }],
    ['tokenizer.ggml.token_type', { type: 'i32s', value: [3, 1, 1, 1, 1, 1, 1, 1] }],
    ['tokenizer.ggml.merges', { type: 'strings', value: ['a b'] }],
    ['tokenizer.ggml.eos_token_id', number(0)],
    ['tokenizer.chat_template', text('{{ messages[0].content }}')],
  ],
  tensors: [
    { name: 'token_embd.weight', dims: [32, 8], type: 8, bytes: 8 * 34 },
    { name: 'blk.0.attn_norm.weight', dims: [32], type: 0, bytes: 128 },
    { name: 'blk.0.attn_q.weight', dims: [32, 32], type: 3, bytes: 32 * 20 },
    { name: 'blk.0.attn_k.weight', dims: [32, 16], type: 3, bytes: 16 * 20 },
    { name: 'blk.0.attn_v.weight', dims: [32, 16], type: 1, bytes: 16 * 64 },
    { name: 'blk.0.attn_output.weight', dims: [32, 32], type: 30, bytes: 32 * 64 },
    { name: 'blk.0.ffn_norm.weight', dims: [32], type: 0, bytes: 128 },
    { name: 'blk.0.ffn_gate.weight', dims: [32, 64], type: 2, bytes: 64 * 18 },
    { name: 'blk.0.ffn_up.weight', dims: [32, 64], type: 2, bytes: 64 * 18 },
    { name: 'blk.0.ffn_down.weight', dims: [64, 32], type: 3, bytes: 32 * 40 },
    { name: 'output_norm.weight', dims: [32], type: 0, bytes: 128 },
  ],
};

/** The tiny Llama with keys set, added, or (undefined) taken away. */
export function withKeys(changes: Readonly<Record<string, GgufTestValue | undefined>>): GgufTestFile {
  const keys = new Map<string, GgufTestValue | undefined>([...TINY_LLAMA.keys, ...Object.entries(changes)]);
  return {
    ...TINY_LLAMA,
    keys: [...keys].flatMap(([key, value]) => (value === undefined ? [] : [[key, value] as const])),
  };
}

/** The tiny Llama with one tensor changed, or taken away. */
export function withTensor(name: string, change: Partial<GgufTestTensor> | undefined): GgufTestFile {
  const tensors = TINY_LLAMA.tensors.flatMap((tensor) =>
    tensor.name !== name ? [tensor] : change === undefined ? [] : [{ ...tensor, ...change }],
  );
  return { ...TINY_LLAMA, tensors };
}
