import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { CheckpointError, RequestError } from '../../src/errors.ts';
import { type GgufTokenizerData, tokenizerFromGguf, tokenizerFromJson } from '../../src/tokenizer/tokenizer.ts';
import { golden, openSmol, type Smol, TINY, tiny, tinyData } from './support.ts';

interface GoldenCase {
  readonly text: string;
  readonly ids: readonly number[];
  readonly idsWithSpecials: readonly number[] | null;
}

describe('SmolLM2', () => {
  let smol: Smol;
  beforeAll(async () => {
    smol = await openSmol();
  });
  const cases = golden<GoldenCase[]>('tokenizer.json');

  test('there are 111 golden texts', () => {
    expect(cases).toHaveLength(111);
  });

  test.each(cases)('$text gives the reference ids as text and with control tokens parsed', (goldenCase) => {
    const { text, ids, idsWithSpecials } = goldenCase;
    expect([...smol.tokenizer.encode(text)]).toEqual(ids);
    expect([...smol.tokenizer.encode(text, { parseSpecial: 'special' })]).toEqual(idsWithSpecials ?? ids);
  });

  test.each(cases)('$text comes back from its ids', ({ text, ids, idsWithSpecials }) => {
    expect(smol.tokenizer.decode(ids)).toBe(text);
    if (idsWithSpecials) expect(smol.tokenizer.decode(idsWithSpecials, { includeSpecial: true })).toBe(text);
  });

  test('any text without a byte that the vocabulary lacks comes back', () => {
    const { tokenizer } = smol;
    // Eight of the bytes that UTF-8 uses: six control characters and the first bytes f1 and f2 (U+40000 to U+BFFFF).
    const lacking = new Set([0x04, 0x06, 0x13, 0x14, 0x16, 0x1d, 0xf1, 0xf2]);
    const character = fc.string({ unit: 'binary', minLength: 1, maxLength: 1 });
    const text = fc.string({ unit: character.filter((c) => !lacking.has(Buffer.from(c)[0]!)), maxLength: 60 });
    fc.assert(
      fc.property(text, (x) => {
        expect(tokenizer.decode(tokenizer.encode(x))).toBe(x);
        expect(tokenizer.decode(tokenizer.encode(x, { parseSpecial: 'special' }), { includeSpecial: true })).toBe(x);
      }),
      { numRuns: 500 },
    );
  });

  test('knows its special tokens', () => {
    const { tokenizer } = smol;
    expect(tokenizer.vocabSize).toBe(49_152);
    expect([tokenizer.bosId, tokenizer.eosId, tokenizer.addBos]).toEqual([1, 2, false]);
    expect([...tokenizer.endTokens].sort()).toEqual([0, 2]);
    expect(tokenizer.idOf('<|im_start|>')).toBe(1);
    expect(tokenizer.textOf(2)).toBe('<|im_end|>');
    expect(tokenizer.idOf('no such token')).toBeUndefined();
    expect(tokenizer.isControl(16)).toBe(true);
    expect(tokenizer.isControl(17)).toBe(false);
    expect(tokenizer.controlTokens).toHaveLength(17);
  });

  test('user text never holds a control token', () => {
    const { tokenizer } = smol;
    for (const control of tokenizer.controlTokens) {
      const ids = tokenizer.encode(`${control}x ${control}`);
      expect(ids.some((id) => tokenizer.isControl(id))).toBe(false);
      expect(tokenizer.decode(ids)).toBe(`${control}x ${control}`);
    }
  });
});

describe('control and added tokens', () => {
  test('control tokens are parsed on demand only, the longest first', () => {
    expect([...tiny().encode('abc<|a|>bab<|a|>', { parseSpecial: 'special' })]).toEqual([
      TINY.abc,
      TINY.longControl,
      TINY.ab,
      TINY.control,
    ]);
    expect(tiny().encode('<|a|>')).toHaveLength(5);
  });

  test('user-defined tokens are words that anybody may write', () => {
    expect([...tiny().encode('ab<word>ab')]).toEqual([TINY.ab, TINY.word, TINY.ab]);
    expect(tiny().decode([TINY.word])).toBe('<word>');
  });

  test('control tokens are skipped in decoding unless asked for', () => {
    const ids = [TINY.ab, TINY.control, TINY.abc];
    expect(tiny().decode(ids)).toBe('ababc');
    expect(tiny().decode(ids, { includeSpecial: true })).toBe('ab<|a|>abc');
  });

  test('an id beyond the vocabulary stands for nothing, a negative one is an error', () => {
    expect(tiny().tokenBytes(100_000)).toHaveLength(0);
    expect(() => tiny().tokenBytes(-1)).toThrow(RangeError);
  });

  test('a text of many megabytes is refused', () => {
    expect(() => tiny().encode('a'.repeat(2 ** 22 + 1))).toThrow(RequestError);
  });
});

describe('pre-tokenizers', () => {
  test.each([
    // With every byte a token of its own, pieces show only through the merges "a b" and "1 2".
    ['gpt-2', '12', 1],
    ['default', '12', 1],
    ['smollm', '12', 2],
    ['llama3', '12', 1],
    ['llama-v3', '12', 1],
    ['qwen2', '12', 2],
    ['llama-bpe', '12', 1],
    ['llama-bpe', '00012', 3 + 1],
    ['llama-bpe', '00120', 5],
  ])('%s makes of %s a text of %i tokens', (pre, text, count) => {
    const data = tinyData();
    const tokens = [...data.tokens, '12'];
    const tokenTypes = [...Array.from(data.tokenTypes), 1];
    expect(tiny({ pre, tokens, tokenTypes, merges: ['1 2'] }).encode(text)).toHaveLength(count);
  });

  test('llama-bpe takes a piece that is a token as it stands', () => {
    expect([...tiny({ pre: 'llama-bpe', merges: [] }).encode('abc')]).toEqual([TINY.abc]);
    expect(tiny({ pre: 'gpt-2', merges: [] }).encode('abc')).toHaveLength(3);
  });
});

describe('a malformed GGUF tokenizer is refused', () => {
  const { tokens, tokenTypes } = tinyData();
  const table: [string, Partial<GgufTokenizerData>, RegExp][] = [
    [
      'SentencePiece',
      { model: 'llama' },
      /tokenizer\.ggml\.model: unsupported tokenizer, supported: gpt2.*got "llama"/,
    ],
    ['unknown pre-tokenizer', { pre: 'viking' }, /pre: unsupported.*supported: smollm, gpt-2, .*got "viking"/],
    ['no tokens', { tokens: [], tokenTypes: [] }, /tokens: must have 1 to/],
    ['lengths that differ', { tokenTypes: [1] }, /token_type: must have 261 entries.*got 1/],
    ['a type out of range', { tokenTypes: tokens.map(() => 7) }, /token_type: must be 1 to 6, got 7 for token 0/],
    ['the same token twice', { tokens: tokens.with(5, 'ab') }, /tokens: must be distinct, got "ab" again at 256/],
    ['an empty control token', { tokens: tokens.with(258, '') }, /token_type: control and added tokens must not/],
    ['a merge of one', { merges: ['ab'] }, /merges: must be "left right", got "ab" at 0/],
    ['a merge of three', { merges: ['a b', 'a b c'] }, /merges: must be "left right".*at 1/],
    [
      'a merge of unknown tokens',
      { merges: ['a b', 'b c'] },
      /merges: both halves and their join.*got "b" and "c" at 1/,
    ],
    ['an end token out of range', { eosId: 261 }, /eos_token_id: must be the id of a token below 261, got 261/],
    ['a negative begin token', { bosId: -1 }, /bos_token_id: must be the id/],
    [
      'too many control tokens',
      {
        tokens: [...tokens, ...Array.from({ length: 2 ** 14 }, (_, i) => `<${i}>`)],
        tokenTypes: [...Array.from(tokenTypes), ...Array.from({ length: 2 ** 14 }, () => 3)],
      },
      /token_type: must have 0 to 16384 entries/,
    ],
  ];
  test.each(table)('%s', (_, changes, message) => {
    const build = () => tokenizerFromGguf(tinyData(changes), 'bad.gguf');
    expect(build).toThrow(CheckpointError);
    expect(build).toThrow(message);
  });

  test('names of object properties are tokens like any other', () => {
    const names = ['__proto__', 'constructor', 'toString'];
    const tokenizer = tiny({
      tokens: [...tokens, ...names],
      tokenTypes: [...Array.from(tokenTypes), 1, 1, 1],
      pre: 'llama-bpe',
    });
    for (const name of names) expect(tokenizer.decode(tokenizer.encode(name))).toBe(name);
    expect([...tokenizer.encode('constructor')]).toEqual([262]);
  });
});

describe('tokenizer.json', () => {
  const data = tinyData();
  const json = (changes: object = {}, modelChanges: object = {}): unknown => ({
    added_tokens: [
      { id: 258, content: '<|a|>', special: true, rstrip: true },
      { id: 259, content: '<|a|>b', special: true },
      { id: 260, content: '<word>', special: false },
    ],
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, use_regex: true },
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<|a|>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
    },
    decoder: { type: 'ByteLevel' },
    model: {
      type: 'BPE',
      vocab: Object.fromEntries(data.tokens.slice(0, 258).map((token, id) => [token, id])),
      merges: ['a b', ['ab', 'c']],
      ...modelChanges,
    },
    ...changes,
  });
  const config = { bos_token: '<|a|>', eos_token: { content: '<|a|>b' } };

  test('gives the same ids as the GGUF file, and reads its begin and end tokens', () => {
    const tokenizer = tokenizerFromJson(json(), config, 'tiny');
    const text = 'abc <|a|> ab<word>12 é 🙂';
    expect(tokenizer.encode(text)).toEqual(tiny({ pre: 'gpt-2' }).encode(text));
    expect([tokenizer.bosId, tokenizer.eosId, tokenizer.addBos]).toEqual([258, 259, true]);
    expect([...tokenizer.endTokens]).toEqual([259]);
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  });

  test('a control token swallows the white space that its flags name', () => {
    const ids = tokenizerFromJson(json(), config, 'tiny').encode('ab <|a|> \n ab', { parseSpecial: 'special' });
    expect([...ids.slice(-2)]).toEqual([258, TINY.ab]);
    expect(ids).toHaveLength(4);
  });

  test('a digit is any character of class N', () => {
    const digits = { type: 'Digits', individual_digits: true };
    const steps = { type: 'Sequence', pretokenizers: [digits, { type: 'ByteLevel', add_prefix_space: false }] };
    const vocab = Object.fromEntries([...data.tokens.slice(0, 258), 'ĠÂ'].map((token, id) => [token, id]));
    const changes = { pre_tokenizer: steps, added_tokens: [], post_processor: null };
    const tokenizer = tokenizerFromJson(json(changes, { vocab, merges: ['Ġ Â'] }), {}, 'tiny');
    // Space and "²" would merge if they were one piece.
    expect(tokenizer.encode(' ²')).toHaveLength(3);
  });

  test.each(['gguf', 'json'])('white space is what Unicode says, not JavaScript: %s', (format) => {
    const tokens = [...data.tokens.slice(0, 258), 'Ġï'];
    const merges = ['Ġ ï'];
    const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
    const changes = { added_tokens: [], post_processor: null };
    const tokenizer =
      format === 'gguf'
        ? tiny({ pre: 'gpt-2', tokens, tokenTypes: tokens.map(() => 1), merges })
        : tokenizerFromJson(json(changes, { vocab, merges }), {}, 'tiny');
    // U+FEFF, bytes ef bb bf, is punctuation: it goes with the space before it.
    expect(tokenizer.encode(' \ufeffa')).toHaveLength(4);
  });

  const wrong: [string, unknown, unknown, RegExp][] = [
    ['not an object', [], {}, /tokenizer\.json: must be an object, got an array/],
    ['another model', json({}, { type: 'Unigram' }), {}, /model: must be byte-level BPE, got "Unigram"/],
    ['byte fallback', json({}, { byte_fallback: true }), {}, /model: must be byte-level BPE/],
    ['another decoder', json({ decoder: { type: 'Metaspace' } }), {}, /decoder "Metaspace"/],
    ['a vocabulary that is a list', json({}, { vocab: [] }), {}, /model\.vocab: must be an object/],
    ['an id that is none', json({}, { vocab: { a: 1.5 } }), {}, /model\.vocab: id must be below/],
    ['an id out of range', json({}, { vocab: { a: 2 ** 40 } }), {}, /model\.vocab: id must be below/],
    ['an id given twice', json({}, { vocab: { a: 1, b: 1 } }), {}, /id 1 must stand for one token/],
    ['added tokens without content', json({ added_tokens: [{ id: 1 }] }), {}, /added_tokens\[0\]: content/],
    ['a merge that is a number', json({}, { merges: [1] }), {}, /model\.merges: entry 0 must be a pair/],
    ['an unknown end token', json(), { eos_token: '</s>' }, /eos_token: must be in the vocabulary, got "<\/s>"/],
    ['a broken pre-tokenizer', json({ pre_tokenizer: { type: 'Nonsense' } }), {}, /cannot be made into a tokenizer/],
  ];
  test.each(wrong)('%s is refused', (_, tokenizerJson, tokenizerConfig, message) => {
    const build = () => tokenizerFromJson(tokenizerJson, tokenizerConfig, 'bad');
    expect(build).toThrow(CheckpointError);
    expect(build).toThrow(message);
  });
});
