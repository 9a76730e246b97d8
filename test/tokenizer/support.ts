import { readFileSync } from 'node:fs';
import { openCheckpoint } from '../../src/checkpoint/checkpoint.ts';
import { type GgufTokenizerData, type Tokenizer, tokenizerFromGguf } from '../../src/tokenizer/tokenizer.ts';
import { smolPath } from '../support/model.ts';

export interface Smol {
  readonly data: GgufTokenizerData;
  readonly tokenizer: Tokenizer;
}

export async function openSmol(): Promise<Smol> {
  const path = await smolPath();
  using checkpoint = await openCheckpoint(path);
  if (checkpoint.tokenizer?.kind !== 'gguf') throw new Error(`${path} has no GGUF tokenizer`);
  const { data } = checkpoint.tokenizer;
  return { data, tokenizer: tokenizerFromGguf(data, path) };
}

export function golden<T>(name: string): T {
  return JSON.parse(readFileSync(new URL(`../golden/smollm2-135m-instruct/${name}`, import.meta.url), 'utf8'));
}

/** All 256 bytes, `ab`, `abc`, digits not merged, and control tokens: what the vocabulary of a byte-level BPE looks like. */
export function tinyData(changes: Partial<GgufTokenizerData> = {}): GgufTokenizerData {
  const bytes = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(byte));
  const printable = bytes.filter((_, byte) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad));
  const others = Array.from({ length: 256 - printable.length }, (_, i) => String.fromCharCode(256 + i));
  const tokens = [...printable, ...others, 'ab', 'abc', '<|a|>', '<|a|>b', '<word>'];
  const tokenTypes = tokens.map((_, id) => (id < 258 ? 1 : id < 260 ? 3 : 4));
  return { model: 'gpt2', pre: 'smollm', tokens, tokenTypes, merges: ['a b', 'ab c'], addBos: false, ...changes };
}

export const TINY = { ab: 256, abc: 257, control: 258, longControl: 259, word: 260 } as const;

export function tiny(changes: Partial<GgufTokenizerData> = {}): Tokenizer {
  return tokenizerFromGguf(tinyData(changes), 'tiny.gguf');
}
