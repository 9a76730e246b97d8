/** Chance without chance: a play that draws is played once for every way its draws can fall. */

export const sum = (values: ArrayLike<number>): number => Array.from(values).reduce((total, value) => total + value, 0);

export function normalised(weights: ArrayLike<number>): Float64Array {
  const mass = sum(weights);
  return Float64Array.from(weights, (weight) => weight / mass);
}

/** An index, with probability proportional to its weight. */
export type Choose = (weights: ArrayLike<number>) => number;

/** Plays once per way its choices can fall. */
export function enumerate<T>(play: (choose: Choose) => T, each: (outcome: T, probability: number) => void): void {
  const taken: { readonly shares: Float64Array; index: number }[] = [];
  for (;;) {
    let depth = 0;
    let probability = 1;
    const outcome = play((weights) => {
      if (depth === taken.length) {
        const shares = normalised(weights);
        taken.push({ shares, index: shares.findIndex((share) => share > 0) });
      }
      const { shares, index } = taken[depth++]!;
      probability *= shares[index]!;
      return index;
    });
    each(outcome, probability);
    for (;;) {
      const last = taken.at(-1);
      if (last === undefined) return;
      const next = last.shares.findIndex((share, index) => index > last.index && share > 0);
      if (next < 0) taken.pop();
      else {
        last.index = next;
        break;
      }
    }
  }
}
