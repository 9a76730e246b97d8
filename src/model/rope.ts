import type { RotaryTables } from '../tensor/ops.ts';

/**
 * cos and sin of position · theta^(-2i/headDim), [positions, headDim/2]. Frequency and angle are rounded to f32 as the reference
 * implementations round them, so that long contexts agree with what models were trained on.
 */
export function rotaryTables(positions: number, headDim: number, theta: number): RotaryTables {
  const half = headDim / 2;
  const cos = new Float32Array(positions * half);
  const sin = new Float32Array(positions * half);
  for (let i = 0; i < half; i++) {
    const frequency = Math.fround(1 / Math.fround(theta ** ((2 * i) / headDim)));
    for (let position = 0; position < positions; position++) {
      const angle = Math.fround(position * frequency);
      cos[position * half + i] = Math.cos(angle);
      sin[position * half + i] = Math.sin(angle);
    }
  }
  return { cos, sin };
}
