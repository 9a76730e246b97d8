/** Attention as the kernel tests ask for it: shapes of heads, sequences and trees in one cache, and what error rounding explains. */
import type { LayoutRow } from './kernels.ts';
import { permutation, type Random } from './random.ts';
import { EXP_ROUNDINGS, EXP_VANISHES, ROUNDING, sumError } from './rounding.ts';

export interface HeadShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** Groups of 1 to 8 query heads; heads on both sides of the vectors of 16 and 64. */
export const HEAD_SHAPES: readonly HeadShape[] = [
  { heads: 1, kvHeads: 1, headDim: 2 },
  { heads: 2, kvHeads: 2, headDim: 18 },
  { heads: 6, kvHeads: 2, headDim: 40 },
  { heads: 9, kvHeads: 3, headDim: 64 },
  { heads: 7, kvHeads: 1, headDim: 80 },
  { heads: 8, kvHeads: 1, headDim: 128 },
];

export const SLOTS = 512;
/** Sequences: where they begin, how many positions are written. All else is NaN. */
const SEQUENCES = [
  { base: 0, length: 100 },
  { base: 112, length: 17 },
  { base: 144, length: 1 },
  { base: 496, length: 16 }, // up to the last slot
];
/** Tree nodes lie anywhere else. */
const TREE_SLOTS = [120 + 16, 137, 170, 171, 172, 199, 200, 255, 256, 300, 431, 432, 433, 447, 448, 463, 479, 480, 495];

/** Rows of every sequence at every prefix on both sides of a key tile, with 0 to 19 tree nodes. */
export function attentionRows(random: Random): readonly LayoutRow[] {
  return SEQUENCES.flatMap(({ base, length }) =>
    [0, 1, 15, 16, 17, 100]
      .filter((prefix) => prefix <= length)
      .flatMap((prefix) =>
        [0, 1, 6, TREE_SLOTS.length]
          .filter((extras) => prefix + extras > 0)
          .map((extras) => ({
            slot: 0,
            base,
            prefix,
            extras: [...permutation(random, TREE_SLOTS.length)].slice(0, extras).map((i) => TREE_SLOTS[i]!),
          })),
      ),
  );
}

/** Every slot that holds a key and a value. */
export const WRITTEN_SLOTS: readonly number[] = [
  ...SEQUENCES.flatMap(({ base, length }) => Array.from({ length }, (_, i) => base + i)),
  ...TREE_SLOTS,
];

/** Relative error of a soft-max weight before it is divided by the sum: keys up to 1, queries up to `largest`. */
export function weightError(headDim: number, largest: number): number {
  // A score adds headDim products, absolute values up to headDim·largest in all. Taking the largest score off, 1/√headDim in f32
  // and its product: 3 roundings of a difference of at most twice that. An exponent's absolute error is its weight's relative one.
  const scores = headDim * largest;
  const exponent = (2 * sumError(headDim, scores) + sumError(3, 2 * scores)) / Math.sqrt(headDim);
  return exponent + EXP_ROUNDINGS * ROUNDING;
}

/** Keys and values up to 1, queries up to `largest`, `count` positions. */
export function attentionError(headDim: number, count: number, largest: number): number {
  // Weights are off, so is their sum, and by count additions; reciprocal and product; count products added up; the reference. Values are
  // at most 1 and weights add up to 1.
  return Math.expm1(2 * weightError(headDim, largest)) + sumError(2 * count + 4, 1) + count * EXP_VANISHES;
}
