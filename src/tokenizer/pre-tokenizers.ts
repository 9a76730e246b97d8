/** What cuts text into pieces before the merges, in the words of Hugging Face's `tokenizer.json`. */

export interface PreTokenizer {
  /** `pre_tokenizer` of tokenizer.json. */
  readonly steps: object;
  /** `normalizer` of tokenizer.json. */
  readonly normalizer: object | null;
  /** A piece that is a token as it stands skips the merges. */
  readonly ignoreMerges: boolean;
}

function isolated(regex: string): object {
  return { type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false };
}

const BYTES_ONLY = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };

/** The steps of GPT-2: `ByteLevel` with its own pattern; why not by that name, see `asInRust`. */
const GPT2_STEPS = [
  isolated("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"),
  BYTES_ONLY,
];

const GPT2: PreTokenizer = {
  steps: { type: 'Sequence', pretokenizers: GPT2_STEPS },
  normalizer: null,
  ignoreMerges: false,
};

const SMOLLM: PreTokenizer = {
  steps: { type: 'Sequence', pretokenizers: [isolated('\\p{N}'), ...GPT2_STEPS] },
  normalizer: null,
  ignoreMerges: false,
};

/** The patterns of Llama 3 and Qwen 2 differ only in how many digits make a piece. */
function tiktoken(digits: string): object {
  const contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
  const words = `[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*`;
  const regex = `${contractions}|${words}|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
  const pretokenizers = [isolated(regex), BYTES_ONLY];
  return { type: 'Sequence', pretokenizers };
}

const LLAMA3: PreTokenizer = { steps: tiktoken('\\p{N}{1,3}'), normalizer: null, ignoreMerges: true };
const QWEN2: PreTokenizer = { steps: tiktoken('\\p{N}'), normalizer: { type: 'NFC' }, ignoreMerges: false };

/** By `tokenizer.ggml.pre`. A file that is silent (`default`) is taken for GPT-2's, the origin of the format. */
export const PRE_TOKENIZERS: ReadonlyMap<string, PreTokenizer> = new Map([
  ['smollm', SMOLLM],
  ['gpt-2', GPT2],
  ['default', GPT2],
  ['llama-bpe', LLAMA3],
  ['llama3', LLAMA3],
  ['llama-v3', LLAMA3],
  ['qwen2', QWEN2],
]);

/**
 * The `pre_tokenizer` of a tokenizer.json, with the steps that `@huggingface/tokenizers` 0.2.0 takes otherwise than the Rust
 * original put as splits, where the two agree. In Rust, a digit of `Digits` is any character of class N ("①", "²" too; here
 * `\d`), and white space of `ByteLevel`'s pattern is Unicode's (here JavaScript's, with U+FEFF and without U+0085).
 * To be deleted once the tests of both pass without it.
 */
export function asInRust(step: unknown): unknown {
  if (typeof step !== 'object' || step === null) return step;
  const { type, individual_digits, add_prefix_space, use_regex, pretokenizers } = step as Readonly<
    Record<string, unknown>
  >;
  if (type === 'Digits') return isolated(individual_digits === true ? '\\p{N}' : '\\p{N}+');
  if (type === 'ByteLevel' && use_regex !== false && add_prefix_space === false) return GPT2.steps;
  if (type === 'Sequence' && Array.isArray(pretokenizers))
    return { ...step, pretokenizers: pretokenizers.map(asInRust) };
  return step;
}
