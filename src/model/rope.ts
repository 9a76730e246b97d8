import type { RotaryTables } from '../tensor/ops.ts';

/** Tables that reach positions[0..rows), and no further than their model does. */
export type Rotary = (positions: Int32Array, rows: number) => RotaryTables;

/** Positions of the first tables, 40 ms of the first forward with heads of 64; most texts need no others. Then they double. */
const FIRST_POSITIONS = 8192;

/**
 * cos and sin of position · theta^(-2i/headDim), [positions, headDim/2]. Frequency and angle are rounded to f32 as the reference
 * implementations round them, so that long contexts agree with what models were trained on. Made as far as texts get: all positions that a
 * file may claim take a minute and half a gigabyte.
 * @param most positions that there are.
 */
export function rotaryTables(most: number, headDim: number, theta: number): Rotary {
  const half = headDim / 2;
  let reach = 0; // positions
  let tables: RotaryTables = { cos: new Float32Array(0), sin: new Float32Array(0) };
  return (positions, rows) => {
    let needed = 0;
    for (let row = 0; row < rows; row++) needed = Math.max(needed, positions[row]! + 1);
    if (needed <= reach || needed > most) return tables;
    const first = reach;
    reach = Math.min(most, Math.max(FIRST_POSITIONS, 2 * first, needed));
    const cos = new Float32Array(reach * half);
    const sin = new Float32Array(reach * half);
    cos.set(tables.cos);
    sin.set(tables.sin);
    for (let i = 0; i < half; i++) {
      const frequency = Math.fround(1 / Math.fround(theta ** ((2 * i) / headDim)));
      for (let position = first; position < reach; position++) {
        const angle = Math.fround(position * frequency);
        cos[position * half + i] = Math.cos(angle);
        sin[position * half + i] = Math.sin(angle);
      }
    }
    tables = { cos, sin };
    return tables;
  };
}
