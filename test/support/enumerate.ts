/** Chance without chance: a play that draws is played once for every way its draws can fall. */

export function sum(values: ArrayLike<number>): number {
  let total = 0;
  for (let i = 0; i < values.length; i++) total += values[i]!;
  return total;
}

export function normalised(weights: ArrayLike<number>): Float64Array {
  const mass = sum(weights);
  const shares = new Float64Array(weights.length);
  for (let i = 0; i < shares.length; i++) shares[i] = weights[i]! / mass;
  return shares;
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
