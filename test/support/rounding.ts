/** How far f32 arithmetic may be off: what tolerances of the kernel tests are derived from. */

/** An f32 rounding is off by at most this part of its result … */
export const ROUNDING = 2 ** -24;
/** … or, where results are denormal, by half of this. */
export const SMALLEST = 2 ** -149;

/**
 * How far a sum may be off whose every term passes through at most `roundings` roundings, the absolute values of its terms adding up
 * to `magnitude`: γ of Higham, Accuracy and Stability of Numerical Algorithms, section 3.1. Holds in any order of summation.
 */
export const sumError = (roundings: number, magnitude: number): number =>
  ((roundings * ROUNDING) / (1 - roundings * ROUNDING)) * magnitude + roundings * SMALLEST;

/**
 * The native e^x in ROUNDINGs, relative: Taylor remainder 2^-27; range reduction, that n·ln 2 is taken off in two parts, below 0.5;
 * Horner with two roundings a step (a table without fma) 2·(1 + r + r²/2 + …) <= 2·e^0.35 over a result of at least e^-0.35: 4.1.
 */
export const EXP_ROUNDINGS = 6;
/** Below e^-87.3, about the smallest normal f32, it is 0. */
export const EXP_VANISHES = 1.22e-38;
