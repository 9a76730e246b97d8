import { describe, expect, test } from 'vitest';
import { bfloatToFloat, floatToHalf, halfToFloat } from '../../src/kernels/half.ts';

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** The f32 `steps` units in the last place further from zero. */
function neighbour(value: number, steps: number): number {
  float[0] = value;
  bits[0] = bits[0]! + steps;
  return float[0]!;
}

/** IEEE 754, by its definition. */
function ieeeValue(code: number, exponentBits: number): number {
  const mantissaBits = 15 - exponentBits;
  const bias = (1 << (exponentBits - 1)) - 1;
  const infinity = ((1 << exponentBits) - 1) << mantissaBits;
  const sign = code & 0x8000 ? -1 : 1;
  const exponent = (code & 0x7fff) >> mantissaBits;
  const fraction = (code & ((1 << mantissaBits) - 1)) / 2 ** mantissaBits;
  if ((code & 0x7fff) > infinity) return NaN;
  if ((code & 0x7fff) === infinity) return sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** (1 - bias) : sign * (1 + fraction) * 2 ** (exponent - bias);
}

/** Codes for which `holds` is false. */
const exceptions = (holds: (code: number) => boolean, count = 0x10000) =>
  Array.from({ length: count }, (_, code) => code).filter((code) => !holds(code));

test.each([
  { name: 'f16', exponentBits: 5, decode: halfToFloat },
  { name: 'bf16', exponentBits: 8, decode: bfloatToFloat },
])('all 65,536 values of $name are what IEEE 754 says', ({ exponentBits, decode }) => {
  expect(exceptions((code) => Object.is(decode(code), ieeeValue(code, exponentBits)))).toEqual([]);
});

describe('to f16', () => {
  const value = (code: number) => ieeeValue(code, 5);

  test('every number comes back to its own bits, every NaN to a NaN', () => {
    expect(
      exceptions((code) =>
        Number.isNaN(value(code)) ? Number.isNaN(halfToFloat(floatToHalf(NaN))) : floatToHalf(value(code)) === code,
      ),
    ).toEqual([]);
  });

  test('between two neighbours the nearer is taken, half-way the even one, beyond the largest Infinity', () => {
    // The neighbour of the largest number is taken as if the exponent went on: that is where Infinity begins.
    const spacing = (code: number) => Math.max(1, code >> 10) - 15 - 10;
    const infinity = 0x7c00;
    const wrong = exceptions((code) => {
      const middle = value(code) + 2 ** (spacing(code) - 1);
      return [1, -1].every((sign) => {
        const signBit = sign < 0 ? 0x8000 : 0;
        return (
          floatToHalf(sign * middle) === (signBit | (code + (code & 1))) &&
          floatToHalf(sign * neighbour(middle, -1)) === (signBit | code) &&
          floatToHalf(sign * neighbour(middle, 1)) === (signBit | (code + 1))
        );
      });
    }, infinity);
    expect(wrong).toEqual([]);
  });
});
