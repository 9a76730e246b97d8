/** f16 and bf16 as 16-bit integers: to f32, exactly; from f32 to f16, rounded to nearest, ties to even. */

const float = new Float32Array(1);
const floatBits = new Uint32Array(float.buffer);

const fromBits = (bits: number): number => {
  floatBits[0] = bits;
  return float[0]!;
};

/** An f64 is rounded to f32 first: every number of the kernels is an f32. */
const toBits = (value: number): number => {
  float[0] = value;
  return floatBits[0]!;
};

/** Exact. @param half the 16 bits of an f16. */
export function halfToFloat(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const mantissa = half & 0x3ff;
  if (exponent === 31) return mantissa === 0 ? sign * Infinity : NaN;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  return fromBits(((half & 0x8000) << 16) | ((exponent + 112) << 23) | (mantissa << 13));
}

/** @returns the 16 bits of the nearest f16; 65520 and above is Infinity, every NaN the quiet one. */
export function floatToHalf(value: number): number {
  const bits = toBits(value);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Below 2^-14, subnormal. 0.5 puts the f16 unit 2^-24 at the last bit of the f32 mantissa: the addition itself rounds.
    return sign | (toBits(Math.fround(fromBits(magnitude) + 0.5)) - 0x3f000000);
  }
  const rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return sign | ((rounded - 0x38000000) >> 13);
}

/** Exact. @param bfloat the 16 bits of a bf16. */
export function bfloatToFloat(bfloat: number): number {
  return fromBits(bfloat << 16);
}
