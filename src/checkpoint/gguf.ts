/**
 * GGUF files of the Llama family: hyper-parameters, tensors under their Hugging Face names, tokenizer data.
 * Knows what the keys mean; `gguf-header.ts` knows the bytes.
 */
import { closeSync } from 'node:fs';
import { CheckpointError, show } from '../errors.ts';
import { BLOCK, type SourceType, sourceRowBytes } from '../kernels/kernels.ts';
import type { ModelConfig } from '../model/config.ts';
import { absentTensor, type TensorSource, type UnsupportedTensor } from '../tensor/source.ts';
import { checkLimits, SUPPORTED_FAMILIES } from './config.ts';
import { openRegularFile } from './file.ts';
import { countElements, FileTensorSource, type PlacedTensor, refuseOverlaps } from './file-tensor-source.ts';
import { type GgufHeader, type GgufTensorInfo, type GgufValue, readGgufHeader } from './gguf-header.ts';

/** What a GGUF file says about its tokenizer, checked for sizes and ranges only. */
export interface GgufTokenizerData {
  /** `gpt2` = byte-level BPE, `llama` = SentencePiece. */
  readonly model: string;
  /** Name of the pre-tokenizer, `default` when the file is silent. */
  readonly pre: string;
  /** By token id. */
  readonly tokens: readonly string[];
  /** By token id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. */
  readonly tokenTypes: Int32Array;
  /** Pairs "left right", best first. */
  readonly merges: readonly string[];
  readonly bosId?: number;
  readonly eosId?: number;
  readonly addBos: boolean;
  readonly chatTemplate?: string;
}

export interface GgufFile extends Disposable {
  readonly config: ModelConfig;
  readonly source: TensorSource;
  /** Undefined when the file carries no vocabulary. */
  readonly tokenizer: GgufTokenizerData | undefined;
  readonly generalName?: string;
  readonly fileBytes: number;
}

/** ggml's numbers of the element types that `Kernels.pack` reads. */
const ELEMENT_TYPES: ReadonlyMap<number, SourceType> = new Map([
  [0, 'F32'],
  [1, 'F16'],
  [2, 'Q4_0'],
  [3, 'Q4_1'],
  [8, 'Q8_0'],
  [30, 'BF16'],
]);

/** Names of other element types in use, for messages only. */
const OTHER_TYPES: Readonly<Record<number, string>> = {
  6: 'Q5_0',
  7: 'Q5_1',
  10: 'Q2_K',
  11: 'Q3_K',
  12: 'Q4_K',
  13: 'Q5_K',
  14: 'Q6_K',
  20: 'IQ4_NL',
  23: 'IQ4_XS',
  39: 'MXFP4',
};

/** llama.cpp's tensor names and Hugging Face's. */
const NAMES: ReadonlyMap<string, string> = new Map([
  ['token_embd.weight', 'model.embed_tokens.weight'],
  ['output_norm.weight', 'model.norm.weight'],
  ['output.weight', 'lm_head.weight'],
]);
const LAYER_NAMES: ReadonlyMap<string, string> = new Map([
  ['attn_norm.weight', 'input_layernorm.weight'],
  ['attn_q.weight', 'self_attn.q_proj.weight'],
  ['attn_k.weight', 'self_attn.k_proj.weight'],
  ['attn_v.weight', 'self_attn.v_proj.weight'],
  ['attn_output.weight', 'self_attn.o_proj.weight'],
  ['ffn_norm.weight', 'post_attention_layernorm.weight'],
  ['ffn_gate.weight', 'mlp.gate_proj.weight'],
  ['ffn_up.weight', 'mlp.up_proj.weight'],
  ['ffn_down.weight', 'mlp.down_proj.weight'],
]);
/** Tensors that change the forward pass in a way the Llama forward here does not have. */
const REFUSED_TENSORS = /^(rope_freqs\.weight|blk\.\d+\.(rope_freqs\.weight|(attn_(q|k|v|output)|ffn_\w+)\.bias))$/;

const TOKENS = 'tokenizer.ggml.tokens';
const TOKEN_TYPES = 'tokenizer.ggml.token_type';
const MERGES = 'tokenizer.ggml.merges';
const ARRAYS_READ = new Set([TOKENS, TOKEN_TYPES, MERGES]);

/** BPE pre-tokenizers whose models start with BOS although the file need not say so; llama.cpp does the same. */
const PRE_WITH_BOS = new Set(['llama3', 'llama-v3', 'llama-bpe']);

/** Opens and checks everything in the header; weights are read later, through `source`. Dispose to close the file. */
export async function openGguf(path: string): Promise<GgufFile> {
  const { fd, bytes: fileBytes } = openRegularFile(path);
  try {
    const header = readGgufHeader(path, fd, fileBytes, ARRAYS_READ);
    const metadata = new Metadata(path, header.values);
    refuseUnsupportedFiles(path, metadata);
    const { placed, unsupported } = placeTensors(path, header, fileBytes);
    const source = new FileTensorSource(path, fd, placed, unsupported);
    const config = readConfig(path, metadata, source);
    const tokenizer = readTokenizer(path, metadata, config.vocabSize);
    const generalName = metadata.string('general.name');
    return {
      config,
      source,
      tokenizer,
      ...(generalName === undefined ? {} : { generalName }),
      fileBytes,
      [Symbol.dispose]: () => source[Symbol.dispose](),
    };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function refuseUnsupportedFiles(path: string, metadata: Metadata): void {
  const family = metadata.string('general.architecture');
  if (!SUPPORTED_FAMILIES.some((supported) => supported === family)) {
    const rule = `unsupported family, supported: ${SUPPORTED_FAMILIES.join(', ')}, got ${show(family)}`;
    throw new CheckpointError(path, 'general.architecture', rule);
  }
  const kind = metadata.string('general.type') ?? 'model';
  if (kind !== 'model') throw new CheckpointError(path, 'general.type', `must be a whole model, got ${show(kind)}`);
  // What must hold for plain Llama. Each of these keys, set otherwise, asks for a different forward pass.
  const plain: readonly (readonly [string, readonly GgufValue[]])[] = [
    ['split.count', [0, 1]],
    ['llama.rope.scaling.type', ['none']],
    // Of no type it is linear scaling's.
    ...(metadata.values.has('llama.rope.scaling.type') ? [] : [['llama.rope.scaling.factor', [0, 1]] as const]),
    ['llama.rope.scale_linear', [1]],
    ['llama.expert_count', [0]],
    ['llama.attention.sliding_window', [0]],
    ['llama.attention.causal', [true]],
  ];
  for (const [key, allowed] of plain) {
    const value = metadata.values.get(key);
    if (value !== undefined && !allowed.includes(value)) {
      throw new CheckpointError(path, key, `must be ${allowed.join(' or ')} or absent, got ${show(value)}`);
    }
  }
}

/** Gives every tensor its Hugging Face name and holds its bytes against the file. */
function placeTensors(path: string, header: GgufHeader, fileBytes: number) {
  const placed: PlacedTensor[] = [];
  const unsupported = new Map<string, UnsupportedTensor>();
  const extents: { name: string; begin: number; end: number }[] = [];
  const seen = new Set<string>();
  for (const info of header.tensors) {
    if (REFUSED_TENSORS.test(info.name)) {
      throw new CheckpointError(path, info.name, 'biases and scaled RoPE frequencies are not supported');
    }
    const name = huggingFaceName(info.name);
    if (seen.has(name)) throw new CheckpointError(path, info.name, 'appears twice');
    seen.add(name);
    const shape = info.dims.toReversed();
    const type = ELEMENT_TYPES.get(info.type);
    // The size of an element type we do not know is unknown; one byte keeps its place in the checks below.
    const byteLength = type === undefined ? 1 : tensorBytes(path, info, shape, type);
    const end = info.offset + byteLength;
    if (end > fileBytes) {
      throw new CheckpointError(path, info.name, `ends at byte ${end}, but the file has ${fileBytes}`);
    }
    extents.push({ name: info.name, begin: info.offset, end });
    if (type === undefined) {
      unsupported.set(name, { ownName: info.name, type: OTHER_TYPES[info.type] ?? `number ${info.type}` });
    } else {
      placed.push({ entry: { name, type, shape, byteLength }, offset: info.offset });
    }
  }
  refuseOverlaps(path, extents);
  return { placed, unsupported };
}

/** The one place where a GGUF tensor's size in bytes is computed. */
function tensorBytes(path: string, info: GgufTensorInfo, shape: readonly number[], type: SourceType): number {
  const elements = countElements(path, info.name, shape);
  const columns = info.dims[0]!;
  if (type.startsWith('Q') && columns % BLOCK !== 0) {
    const rule = `${type} needs rows of a multiple of ${BLOCK}, got shape [${shape.join(', ')}]`;
    throw new CheckpointError(path, info.name, rule);
  }
  return (elements / columns) * sourceRowBytes(type, columns);
}

function huggingFaceName(name: string): string {
  const whole = NAMES.get(name);
  if (whole !== undefined) return whole;
  const layer = /^blk\.(0|[1-9]\d*)\.(.+)$/.exec(name);
  const inLayer = layer && LAYER_NAMES.get(layer[2]!);
  return inLayer ? `model.layers.${layer[1]}.${inLayer}` : name;
}

/** The file's names for the fields of `ModelConfig`. */
const KEYS = {
  layers: 'llama.block_count',
  hiddenSize: 'llama.embedding_length',
  intermediateSize: 'llama.feed_forward_length',
  heads: 'llama.attention.head_count',
  kvHeads: 'llama.attention.head_count_kv',
  headDim: 'llama.attention.key_length',
  vocabSize: 'token_embd.weight',
  contextLength: 'llama.context_length',
  ropeTheta: 'llama.rope.freq_base',
  rmsNormEps: 'llama.attention.layer_norm_rms_epsilon',
} as const;

function readConfig(path: string, metadata: Metadata, source: FileTensorSource): ModelConfig {
  const { entries, unsupported } = source;
  const hiddenSize = metadata.number(KEYS.hiddenSize);
  const heads = metadata.number(KEYS.heads);
  const headDim = metadata.number(KEYS.headDim, hiddenSize / heads);
  const embedding = entries.get('model.embed_tokens.weight');
  if (embedding === undefined || embedding.shape.length !== 2 || embedding.shape[1] !== hiddenSize) {
    const got = embedding ? `[${embedding.shape.join(', ')}]` : 'nothing';
    const rule = `expected a matrix [vocabulary, ${hiddenSize}], got ${got}`;
    if (unsupported.has('model.embed_tokens.weight')) throw absentTensor(source, 'model.embed_tokens.weight', rule);
    throw new CheckpointError(path, 'token_embd.weight', rule);
  }
  const config: ModelConfig = {
    architecture: 'llama',
    layers: metadata.number(KEYS.layers),
    hiddenSize,
    intermediateSize: metadata.number(KEYS.intermediateSize),
    heads,
    kvHeads: metadata.number(KEYS.kvHeads, heads),
    headDim,
    vocabSize: embedding.shape[0]!,
    contextLength: metadata.number(KEYS.contextLength),
    ropeTheta: metadata.number(KEYS.ropeTheta, 10_000),
    rmsNormEps: metadata.number(KEYS.rmsNormEps),
    tiedEmbeddings: !entries.has('lm_head.weight') && !unsupported.has('lm_head.weight'),
    rotaryLayout: 'interleaved',
  };
  checkLimits(path, config, KEYS);
  for (const key of ['llama.attention.value_length', 'llama.rope.dimension_count']) {
    const value = metadata.number(key, headDim);
    if (value !== headDim) throw new CheckpointError(path, key, `must be the head size ${headDim}, got ${value}`);
  }
  const vocabSize = metadata.number('llama.vocab_size', config.vocabSize);
  if (vocabSize !== config.vocabSize) {
    const rule = `must be the ${config.vocabSize} rows of token_embd.weight, got ${vocabSize}`;
    throw new CheckpointError(path, 'llama.vocab_size', rule);
  }
  return config;
}

function readTokenizer(path: string, metadata: Metadata, vocabSize: number): GgufTokenizerData | undefined {
  const model = metadata.string('tokenizer.ggml.model');
  const tokens = metadata.strings(TOKENS);
  if (model === undefined || tokens === undefined) return undefined;
  if (tokens.length > vocabSize) {
    throw new CheckpointError(path, TOKENS, `must have at most ${vocabSize} entries, got ${tokens.length}`);
  }
  const tokenTypes = metadata.integers(TOKEN_TYPES) ?? new Int32Array(tokens.length).fill(1);
  if (tokenTypes.length !== tokens.length) {
    const rule = `must have ${tokens.length} entries, one for each token, got ${tokenTypes.length}`;
    throw new CheckpointError(path, TOKEN_TYPES, rule);
  }
  const pre = metadata.string('tokenizer.ggml.pre') ?? 'default';
  const bosId = metadata.tokenId('tokenizer.ggml.bos_token_id', tokens.length);
  const eosId = metadata.tokenId('tokenizer.ggml.eos_token_id', tokens.length);
  const chatTemplate = metadata.string('tokenizer.chat_template');
  return {
    model,
    pre,
    tokens,
    tokenTypes,
    merges: metadata.strings(MERGES) ?? [],
    ...(bosId === undefined ? {} : { bosId }),
    ...(eosId === undefined ? {} : { eosId }),
    addBos: metadata.boolean('tokenizer.ggml.add_bos_token') ?? (model === 'llama' || PRE_WITH_BOS.has(pre)),
    ...(chatTemplate === undefined ? {} : { chatTemplate }),
  };
}

/** Metadata by key, of the type that the reader expects. */
class Metadata {
  readonly values: ReadonlyMap<string, GgufValue>;
  readonly #path: string;

  constructor(path: string, values: ReadonlyMap<string, GgufValue>) {
    this.#path = path;
    this.values = values;
  }

  #wrong(key: string, expected: string, got: GgufValue | undefined): CheckpointError {
    const kind = got === undefined ? 'nothing' : got === null || typeof got === 'object' ? 'an array' : typeof got;
    return new CheckpointError(this.#path, key, `must be ${expected}, got ${kind}`);
  }

  string(key: string): string | undefined {
    const value = this.values.get(key);
    if (value === undefined || typeof value === 'string') return value;
    throw this.#wrong(key, 'a string', value);
  }

  boolean(key: string): boolean | undefined {
    const value = this.values.get(key);
    if (value === undefined || typeof value === 'boolean') return value;
    throw this.#wrong(key, 'a boolean', value);
  }

  number(key: string, fallback?: number): number {
    const value = this.values.get(key) ?? fallback;
    if (typeof value === 'number') return value;
    throw this.#wrong(key, 'a number', value);
  }

  strings(key: string): readonly string[] | undefined {
    const value = this.values.get(key);
    if (value === undefined) return undefined;
    if (Array.isArray(value)) return value;
    throw this.#wrong(key, 'an array of strings', value);
  }

  integers(key: string): Int32Array | undefined {
    const value = this.values.get(key);
    if (value === undefined || value instanceof Int32Array) return value;
    throw this.#wrong(key, 'an array of 32-bit integers', value);
  }

  tokenId(key: string, tokenCount: number): number | undefined {
    const value = this.values.get(key);
    if (value === undefined) return undefined;
    if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value < tokenCount) return value;
    throw new CheckpointError(this.#path, key, `must be a token id below ${tokenCount}, got ${show(value)}`);
  }
}
