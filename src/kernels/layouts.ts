/** Where elements lie in packed matrices and KV caches (`kernels.ts` has the layouts), for kernels written in TypeScript. */
import { type AttentionLayout, KV_TILE, type KvLayer, type PackedMatrix, TILE_ROWS, tileBytes } from './kernels.ts';

/** Byte at which the tile of a row begins. */
export const tileStart = (m: PackedMatrix, row: number): number =>
  Math.floor(row / TILE_ROWS) * tileBytes(m.dtype, m.cols);

export const floatsOf = (m: PackedMatrix): Float32Array =>
  new Float32Array(m.data.buffer, m.data.byteOffset, m.data.byteLength / 4);

/** Index of input k of a row of an f32 matrix, in floats. */
export const floatAt = (m: PackedMatrix, row: number, k: number): number =>
  tileStart(m, row) / 4 + k * TILE_ROWS + (row % TILE_ROWS);

/** Element d of a key row lies at `keyAt(…) + d·KV_TILE`. */
export const keyAt = (kv: KvLayer, slot: number, head: number): number =>
  (Math.floor(slot / KV_TILE) * kv.kvHeads + head) * kv.headDim * KV_TILE + (slot % KV_TILE);

/** Also of rows [slots, kvHeads·headDim] in general. */
export const valueAt = (kv: KvLayer, slot: number, head: number): number => (slot * kv.kvHeads + head) * kv.headDim;

/** The slots a row looks at, in logical order. */
export function slotsOf(layout: AttentionLayout, row: number): Int32Array {
  const prefix = layout.prefix[row]!;
  const extras = layout.extras.subarray(layout.extrasStart[row]!, layout.extrasStart[row + 1]!);
  const slots = new Int32Array(prefix + extras.length);
  for (let j = 0; j < prefix; j++) slots[j] = layout.base[row]! + j;
  slots.set(extras, prefix);
  return slots;
}
