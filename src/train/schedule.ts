/** The learning rate over a run: a linear rise, then half a cosine down to a share of the peak (Loshchilov and Hutter, arXiv:1608.03983). */
export interface Schedule {
  readonly peak: number;
  /** Steps of the rise. */
  readonly warmup: number;
  /** Steps of the run. */
  readonly total: number;
  /** Share of the peak at the end. */
  readonly floor: number;
}

/** @param step counted from 0. */
export function learningRate({ peak, warmup, total, floor }: Schedule, step: number): number {
  if (step < warmup) return (peak * (step + 1)) / warmup;
  const done = Math.min(1, (step - warmup) / Math.max(1, total - warmup));
  return peak * (floor + (1 - floor) * 0.5 * (1 + Math.cos(Math.PI * done)));
}
