import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { RequestError } from '../../src/errors.ts';
import { StopMatcher, StreamingDetokenizer } from '../../src/tokenizer/detokenizer.ts';
import { openSmol, type Smol } from './support.ts';

describe('StreamingDetokenizer', () => {
  let smol: Smol;
  beforeAll(async () => {
    smol = await openSmol();
  });

  test('an emoji split over tokens comes out whole, with its last token', () => {
    const ids = [...smol.tokenizer.encode('🦅')];
    expect(ids.length).toBeGreaterThan(1);
    const stream = new StreamingDetokenizer(smol.tokenizer);
    expect(ids.map((id) => stream.push(id))).toEqual([...ids.slice(1).map(() => ''), '🦅']);
    expect(stream.flush()).toBe('');
  });

  test('half a character at the end becomes U+FFFD', () => {
    const stream = new StreamingDetokenizer(smol.tokenizer);
    expect(stream.push(smol.tokenizer.encode('🦅')[0]!)).toBe('');
    expect(stream.flush()).toBe('\ufffd');
  });

  test('control tokens emit nothing unless asked for', () => {
    expect(new StreamingDetokenizer(smol.tokenizer).push(2)).toBe('');
    expect(new StreamingDetokenizer(smol.tokenizer, { includeSpecial: true }).push(2)).toBe('<|im_end|>');
  });

  test('the parts together are what decode gives, for any ids', () => {
    fc.assert(
      fc.property(fc.array(fc.nat({ max: 49_151 }), { maxLength: 30 }), (ids) => {
        const stream = new StreamingDetokenizer(smol.tokenizer);
        const parts = ids.map((id) => stream.push(id)).join('') + stream.flush();
        expect(parts).toBe(smol.tokenizer.decode(ids));
      }),
      { numRuns: 300 },
    );
  });
});

describe('StopMatcher', () => {
  /** What is emitted piece by piece, with `|STOP` where the text ended. */
  function run(stops: readonly string[], pieces: readonly string[]): string[] {
    const matcher = new StopMatcher(stops);
    const out = pieces.map((piece) => {
      const { text, stopped } = matcher.push(piece);
      return stopped ? `${text}|STOP` : text;
    });
    return [...out, matcher.flush()];
  }

  test.each([
    ['a stop string within a piece', ['END'], ['abENDcd'], ['ab|STOP', '']],
    ['a stop string across pieces', ['END'], ['ab', 'E', 'N', 'D'], ['ab', '', '', '|STOP', '']],
    ['a start that comes to nothing', ['END'], ['aE', 'N', 'x'], ['a', '', 'ENx', '']],
    ['a start left over', ['END'], ['aEN'], ['a', 'EN']],
    ['a start within a start', ['aab'], ['aa', 'a', 'b'], ['', 'a', '|STOP', '']],
    ['two stop strings, the one complete first', ['abcd', 'c'], ['abcd'], ['ab|STOP', '']],
    ['two stop strings complete together, the longer', ['bc', 'abc'], ['xabc'], ['x|STOP', '']],
    ['nothing after the stop', ['.'], ['a.', 'b'], ['a|STOP', '|STOP', '']],
    ['no stop strings', [], ['a', 'b'], ['a', 'b', '']],
    ['surrogate pairs', ['🙂'], ['a🙂'], ['a|STOP', '']],
  ])('%s', (_, stops, pieces, expected) => {
    expect(run(stops, pieces)).toEqual(expected);
  });

  test('the text is the same however it is cut', () => {
    const text = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 20 });
    const stops = fc.array(fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 4 }), {
      maxLength: 3,
    });
    fc.assert(
      fc.property(fc.array(text), stops, (pieces, these) => {
        expect(run(these, pieces).join('').split('|')[0]).toBe(
          run(these, [pieces.join('')])
            .join('')
            .split('|')[0],
        );
      }),
    );
  });

  test('an empty stop string is refused', () => {
    expect(() => new StopMatcher(['a', ''])).toThrow(RequestError);
  });
});
