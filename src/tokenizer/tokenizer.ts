/**
 * Text to token ids and back, for byte-level BPE vocabularies. Merging is done by `@huggingface/tokenizers`; what is added here
 * is the border: files are checked, control tokens are parsed only on demand, and decoding is exact to the byte.
 * Knows nothing of chat templates or models.
 */
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';
import { CheckpointError, RequestError, show } from '../errors.ts';
import { bytesOfAlphabet } from './byte-alphabet.ts';
import { asInRust, PRE_TOKENIZERS } from './pre-tokenizers.ts';

/** What a GGUF file says about its tokenizer. */
export interface GgufTokenizerData {
  /** `gpt2` = byte-level BPE, `llama` = SentencePiece. */
  readonly model: string;
  readonly pre: string;
  /** By token id. */
  readonly tokens: readonly string[];
  /** By token id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. */
  readonly tokenTypes: ArrayLike<number>;
  /** Pairs "left right", best first. */
  readonly merges: readonly string[];
  readonly bosId?: number;
  readonly eosId?: number;
  readonly addBos: boolean;
  readonly chatTemplate?: string;
}

export interface EncodeOptions {
  /** What becomes of control tokens written out in the text: they stay `text`, or each becomes the `special` token. */
  readonly parseSpecial?: 'text' | 'special';
}

export interface DecodeOptions {
  /** Write control tokens out; otherwise they are skipped. */
  readonly includeSpecial?: boolean;
}

/** A token outside the merges, found in text before anything else. */
interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** Control tokens are commands to the model; the others (`<think>`, `<tool_call>`) are words that users may write. */
  readonly control: boolean;
  /** Swallows the white space before it, or after it. */
  readonly lstrip: boolean;
  readonly rstrip: boolean;
}

interface TokenizerParts {
  /** By token id; ids without a token are holes. */
  readonly tokens: readonly (string | undefined)[];
  readonly added: readonly AddedToken[];
  readonly merges: readonly (readonly [string, string])[];
  readonly normalizer: unknown;
  readonly preTokenizer: unknown;
  readonly ignoreMerges: boolean;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  readonly addBos: boolean;
}

/** The largest vocabularies in use have 262k tokens and 514k merges (Gemma 3). */
const MAX_TOKENS = 2 ** 20;
const MAX_MERGES = 2 ** 21;
/** They become one regular expression. Gemma 3 has the most, about 6,400. */
const MAX_ADDED_TOKENS = 2 ** 14;
/** UTF-16 units. Encoding takes about 1 s for each million and blocks the event loop; contexts end long before. */
const MAX_TEXT = 2 ** 22;

/** Tokens that end a turn or a document, whichever family they come from; they count only when they are control tokens. */
const END_TOKENS = [
  '<|im_end|>',
  '<|eot_id|>',
  '<|eom_id|>',
  '<|end_of_text|>',
  '<|endoftext|>',
  '<|end|>',
  '<|return|>',
  '<end_of_turn>',
  '</s>',
];

const utf8 = new TextEncoder();
const NO_BYTES = new Uint8Array(0);

export class Tokenizer {
  /** One more than the largest id; the model's embedding may have further rows, which stand for nothing. */
  readonly vocabSize: number;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  /** Whether the model wants `bosId` before a bare prompt. `encode` leaves that to the caller. */
  readonly addBos: boolean;
  /** Ids after which generation is over. */
  readonly endTokens: ReadonlySet<number>;
  readonly #tokens: readonly (string | undefined)[];
  readonly #ids: ReadonlyMap<string, number>;
  readonly #added: ReadonlyMap<number, AddedToken>;
  readonly #controls: readonly AddedToken[];
  readonly #controlPattern: RegExp;
  /** Has no control tokens at all, neither added nor in the vocabulary. */
  readonly #literal: HuggingFaceTokenizer;
  /** By token id, filled on demand. */
  readonly #bytes: Uint8Array[] = [];

  /** From checked parts; use `tokenizerFromGguf` or `tokenizerFromJson`. */
  constructor(parts: TokenizerParts) {
    this.vocabSize = parts.tokens.length;
    this.bosId = parts.bosId;
    this.eosId = parts.eosId;
    this.addBos = parts.addBos && parts.bosId !== undefined;
    this.#tokens = parts.tokens;
    this.#ids = idsByToken(parts.tokens);
    this.#added = new Map(parts.added.map((token) => [token.id, token]));
    this.#controls = parts.added.filter(({ control }) => control);
    this.#controlPattern = alternatives(this.controlTokens);
    this.#literal = literalTokenizer(parts);
    const ends = END_TOKENS.map((token) => this.#ids.get(token)).filter((id) => id !== undefined && this.isControl(id));
    this.endTokens = new Set([parts.eosId, ...ends].filter((id) => id !== undefined));
  }

  /** Without BOS. Bytes that the vocabulary lacks are left out, as the reference tokenizers do. */
  encode(text: string, { parseSpecial = 'text' }: EncodeOptions = {}): Int32Array {
    return Int32Array.from(this.encodeParts(parseSpecial === 'special' ? this.splitControls(text) : [text]));
  }

  /** Joins what `splitControls` parted; the text in it is read as plain text. */
  encodeParts(parts: readonly (string | number)[]): number[] {
    return parts.flatMap((part) => {
      if (typeof part === 'number') return [part];
      if (part.length > MAX_TEXT) {
        throw new RequestError('text', `must have at most ${MAX_TEXT} UTF-16 units, got ${part.length}`);
      }
      return this.#literal.encode(part, { add_special_tokens: false }).ids;
    });
  }

  /** Control tokens as their ids, and the stretches of text between them, in order; the longest token wins. */
  splitControls(text: string): (string | number)[] {
    const parts: (string | number)[] = [];
    let from = 0;
    let strip = false;
    const pushText = (to: number, stripEnd: boolean): void => {
      let stretch = text.slice(from, to);
      if (strip) stretch = stretch.trimStart();
      if (stripEnd) stretch = stretch.trimEnd();
      if (stretch !== '') parts.push(stretch);
    };
    for (const match of text.matchAll(this.#controlPattern)) {
      const token = this.#added.get(this.#ids.get(match[0])!)!;
      pushText(match.index, token.lstrip);
      parts.push(token.id);
      from = match.index + match[0].length;
      strip = token.rstrip;
    }
    pushText(text.length, false);
    return parts;
  }

  /** Exact: no clean-up of spaces. Bytes that are not UTF-8, such as half a character, become U+FFFD. */
  decode(ids: Iterable<number>, { includeSpecial = false }: DecodeOptions = {}): string {
    const pieces: Uint8Array[] = [];
    for (const id of ids) {
      if (includeSpecial || !this.isControl(id)) pieces.push(this.tokenBytes(id));
    }
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(Buffer.concat(pieces));
  }

  /** Shared between calls, not to be written to. Empty for an id that stands for nothing. */
  tokenBytes(id: number): Uint8Array {
    const known = this.#bytes[id];
    if (known !== undefined) return known;
    if (!Number.isInteger(id) || id < 0) throw new RangeError(`tokenBytes: id must be 0 or more, got ${id}`);
    const token = this.#tokens[id];
    if (token === undefined) return NO_BYTES;
    const bytes = (this.#added.has(id) ? undefined : bytesOfAlphabet(token)) ?? utf8.encode(token);
    this.#bytes[id] = bytes;
    return bytes;
  }

  isControl(id: number): boolean {
    return this.#added.get(id)?.control === true;
  }

  /** The texts of all control tokens. */
  get controlTokens(): readonly string[] {
    return this.#controls.map(({ content }) => content);
  }

  /** Of a token as the vocabulary writes it: control tokens as they read, others in GPT-2's byte alphabet (`Ġthe`). */
  idOf(token: string): number | undefined {
    return this.#ids.get(token);
  }

  /** The vocabulary's writing of a token; the inverse of `idOf`. */
  textOf(id: number): string | undefined {
    return this.#tokens[id];
  }
}

/** Matches any of the texts, the longest where several begin; nothing when there are none. */
export function alternatives(texts: readonly string[]): RegExp {
  const escaped = texts
    .toSorted((a, b) => b.length - a.length)
    .map((text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&'));
  return new RegExp(escaped.length === 0 ? '(?!)' : escaped.join('|'), 'gu');
}

function idsByToken(tokens: readonly (string | undefined)[]): Map<string, number> {
  const ids = new Map<string, number>();
  tokens.forEach((token, id) => {
    if (token !== undefined) ids.set(token, id);
  });
  return ids;
}

function literalTokenizer(parts: TokenizerParts): HuggingFaceTokenizer {
  const controls = new Set(parts.added.filter(({ control }) => control).map(({ id }) => id));
  // Without a prototype: `__proto__` is a token like any other.
  const vocab: Record<string, number> = Object.create(null);
  parts.tokens.forEach((token, id) => {
    if (token !== undefined && !controls.has(id)) vocab[token] = id;
  });
  const words = parts.added.filter(({ control }) => !control);
  const json = {
    normalizer: parts.normalizer,
    pre_tokenizer: parts.preTokenizer,
    model: { type: 'BPE', vocab, merges: [...parts.merges], unk_token: null, ignore_merges: parts.ignoreMerges },
    post_processor: null,
    decoder: null,
    added_tokens: words.map((token) => ({ ...token, single_word: false, normalized: false, special: false })),
  };
  const tokenizer = new HuggingFaceTokenizer(json, {});
  // It keeps what it was built from and never reads it again: 11 MB for 49,152 tokens (version 0.2.0).
  json.model.merges.length = 0;
  json.model.vocab = {};
  return tokenizer;
}

/** @param file the file's path, for messages. */
export function tokenizerFromGguf(data: GgufTokenizerData, file: string): Tokenizer {
  if (data.model !== 'gpt2') {
    const rule = `unsupported tokenizer, supported: gpt2 (byte-level BPE), got ${show(data.model)}`;
    throw new CheckpointError(file, 'tokenizer.ggml.model', rule);
  }
  const pre = PRE_TOKENIZERS.get(data.pre);
  if (pre === undefined) {
    const rule = `unsupported pre-tokenizer, supported: ${[...PRE_TOKENIZERS.keys()].join(', ')}, got ${show(data.pre)}`;
    throw new CheckpointError(file, 'tokenizer.ggml.pre', rule);
  }
  const { tokens, tokenTypes } = data;
  if (tokenTypes.length !== tokens.length) {
    const rule = `must have ${tokens.length} entries, one for each token, got ${tokenTypes.length}`;
    throw new CheckpointError(file, 'tokenizer.ggml.token_type', rule);
  }
  const added: AddedToken[] = [];
  for (const [id, content] of tokens.entries()) {
    const type = tokenTypes[id]!;
    if (!Number.isInteger(type) || type < 1 || type > 6) {
      throw new CheckpointError(file, 'tokenizer.ggml.token_type', `must be 1 to 6, got ${type} for token ${id}`);
    }
    if (type >= 2 && type <= 4) added.push({ id, content, control: type !== 4, lstrip: false, rstrip: false });
  }
  const merges = data.merges.map((merge, rank) => splitMerge(merge, file, 'tokenizer.ggml.merges', rank));
  return checkedTokenizer(file, {
    fields: {
      tokens: 'tokenizer.ggml.tokens',
      added: 'tokenizer.ggml.token_type',
      merges: 'tokenizer.ggml.merges',
      bosId: 'tokenizer.ggml.bos_token_id',
      eosId: 'tokenizer.ggml.eos_token_id',
    },
    tokens,
    added,
    merges,
    normalizer: pre.normalizer,
    preTokenizer: pre.steps,
    ignoreMerges: pre.ignoreMerges,
    bosId: data.bosId,
    eosId: data.eosId,
    addBos: data.addBos,
  });
}

/** From the parsed `tokenizer.json` and `tokenizer_config.json` (which may be absent) of a Hugging Face directory. */
export function tokenizerFromJson(tokenizerJson: unknown, tokenizerConfig: unknown, file: string): Tokenizer {
  const json = record(tokenizerJson, file, 'tokenizer.json');
  const config = record(tokenizerConfig ?? {}, file, 'tokenizer_config.json');
  const model = record(json.model, file, 'model');
  if (model.type !== 'BPE' || model.byte_fallback === true || !isByteLevel(json.decoder)) {
    const decoder = isRecord(json.decoder) ? json.decoder.type : undefined;
    const rule = `must be byte-level BPE, got ${show(model.type)} with decoder ${show(decoder)}`;
    throw new CheckpointError(file, 'model', rule);
  }
  for (const suffix of ['continuing_subword_prefix', 'continuing_subword_suffix', 'end_of_word_suffix']) {
    if (model[suffix]) throw new CheckpointError(file, `model.${suffix}`, 'is not supported for byte-level BPE');
  }
  const tokens: (string | undefined)[] = [];
  const place = (token: string, id: unknown, field: string): number => {
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= MAX_TOKENS) {
      throw new CheckpointError(file, field, `id must be below ${MAX_TOKENS}, got ${show(id)}`);
    }
    if (tokens[id] !== undefined && tokens[id] !== token) {
      throw new CheckpointError(file, field, `id ${id} must stand for one token, got two`);
    }
    tokens[id] = token;
    return id;
  };
  for (const [token, id] of Object.entries(record(model.vocab, file, 'model.vocab'))) place(token, id, 'model.vocab');
  const added = list(json.added_tokens ?? [], file, 'added_tokens').map((entry, index): AddedToken => {
    const field = `added_tokens[${index}]`;
    const token = record(entry, file, field);
    if (typeof token.content !== 'string') throw new CheckpointError(file, field, 'content must be a string');
    if (token.single_word === true) throw new CheckpointError(file, field, 'single_word is not supported');
    const { content } = token;
    const id = place(content, token.id, field);
    return {
      id,
      content,
      control: token.special === true,
      lstrip: token.lstrip === true,
      rstrip: token.rstrip === true,
    };
  });
  const merges = list(model.merges, file, 'model.merges').map((merge, rank): readonly [string, string] => {
    if (typeof merge === 'string') return splitMerge(merge, file, 'model.merges', rank);
    if (Array.isArray(merge) && merge.length === 2) return [String(merge[0]), String(merge[1])];
    throw new CheckpointError(file, 'model.merges', `entry ${rank} must be a pair`);
  });
  const dense = Array.from(tokens);
  const bosToken = tokenText(config.bos_token);
  const bosId = namedToken(bosToken, dense, file, 'bos_token');
  const addBos = typeof config.add_bos_token === 'boolean' ? config.add_bos_token : startsWith(json, bosToken);
  return checkedTokenizer(file, {
    fields: {
      tokens: 'model.vocab',
      added: 'added_tokens',
      merges: 'model.merges',
      bosId: 'bos_token',
      eosId: 'eos_token',
    },
    tokens: dense,
    added,
    merges,
    normalizer: json.normalizer ?? null,
    preTokenizer: asInRust(json.pre_tokenizer ?? null),
    ignoreMerges: model.ignore_merges === true,
    bosId,
    eosId: namedToken(tokenText(config.eos_token), dense, file, 'eos_token'),
    addBos,
  });
}

interface UncheckedParts extends TokenizerParts {
  /** What the file calls each part. */
  readonly fields: Readonly<Record<'tokens' | 'added' | 'merges' | 'bosId' | 'eosId', string>>;
}

/** The rules that hold whatever the format. */
function checkedTokenizer(file: string, parts: UncheckedParts): Tokenizer {
  const { tokens, added, merges, fields } = parts;
  checkCount(file, fields.tokens, tokens.length, 1, MAX_TOKENS);
  checkCount(file, fields.merges, merges.length, 0, MAX_MERGES);
  checkCount(file, fields.added, added.length, 0, MAX_ADDED_TOKENS);
  const seen = new Set<string>();
  for (const [id, token] of tokens.entries()) {
    if (token === undefined) continue;
    if (seen.has(token)) {
      throw new CheckpointError(file, fields.tokens, `must be distinct, got ${show(token)} again at ${id}`);
    }
    seen.add(token);
  }
  if (added.some(({ content }) => content === '')) {
    throw new CheckpointError(file, fields.added, 'control and added tokens must not be empty');
  }
  for (const [rank, [left, right]] of merges.entries()) {
    if (!seen.has(left) || !seen.has(right) || !seen.has(left + right)) {
      const rule = `both halves and their join must be tokens, got ${show(left)} and ${show(right)} at ${rank}`;
      throw new CheckpointError(file, fields.merges, rule);
    }
  }
  for (const key of ['bosId', 'eosId'] as const) {
    const id = parts[key];
    if (id !== undefined && (!Number.isInteger(id) || tokens[id] === undefined)) {
      throw new CheckpointError(file, fields[key], `must be the id of a token below ${tokens.length}, got ${id}`);
    }
  }
  try {
    return new Tokenizer(parts);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new CheckpointError(file, fields.tokens, `cannot be made into a tokenizer: ${reason}`, { cause: error });
  }
}

function checkCount(file: string, field: string, count: number, min: number, max: number): void {
  if (count >= min && count <= max) return;
  throw new CheckpointError(file, field, `must have ${min} to ${max} entries, got ${count}`);
}

function splitMerge(merge: string, file: string, field: string, rank: number): readonly [string, string] {
  const [left, right, ...rest] = merge.split(' ');
  if (left && right && rest.length === 0) return [left, right];
  throw new CheckpointError(file, field, `must be "left right", got ${show(merge)} at ${rank}`);
}

/** Whether a decoder turns tokens to text by GPT-2's byte alphabet and nothing else. */
function isByteLevel(decoder: unknown): boolean {
  if (!isRecord(decoder)) return false;
  if (decoder.type !== 'Sequence') return decoder.type === 'ByteLevel';
  return Array.isArray(decoder.decoders) && decoder.decoders.length > 0 && decoder.decoders.every(isByteLevel);
}

/** Whether the post-processor puts `token` before a text. */
function startsWith({ post_processor: processor }: Record<string, unknown>, token: string | undefined): boolean {
  if (token === undefined || !isRecord(processor)) return false;
  const steps = Array.isArray(processor.processors) ? processor.processors : [processor];
  return steps.some((step) => {
    const first: unknown = isRecord(step) && Array.isArray(step.single) ? step.single[0] : undefined;
    return isRecord(first) && isRecord(first.SpecialToken) && first.SpecialToken.id === token;
  });
}

/** tokenizer_config.json names a token by its text or by an object that holds it. */
function tokenText(token: unknown): string | undefined {
  const text = isRecord(token) ? token.content : token;
  return typeof text === 'string' ? text : undefined;
}

function namedToken(
  token: string | undefined,
  tokens: readonly (string | undefined)[],
  file: string,
  field: string,
): number | undefined {
  if (token === undefined) return undefined;
  const id = tokens.indexOf(token);
  if (id < 0) throw new CheckpointError(file, field, `must be in the vocabulary, got ${show(token)}`);
  return id;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function record(value: unknown, file: string, field: string): Record<string, unknown> {
  if (isRecord(value)) return value;
  throw new CheckpointError(file, field, `must be an object, got ${show(value)}`);
}

function list(value: unknown, file: string, field: string): readonly unknown[] {
  if (Array.isArray(value)) return value;
  throw new CheckpointError(file, field, `must be an array, got ${show(value)}`);
}
