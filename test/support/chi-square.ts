/** Pearson's test: whether counts could have come from a law. */

export interface ChiSquare {
  readonly statistic: number;
  readonly degrees: number;
  /** Of a statistic as large as this or larger, where the law is right. */
  readonly p: number;
}

/** Bins that expect fewer are put together with their neighbours: the statistic's law is one of large counts. */
const LEAST_EXPECTED = 5;

/** @param probabilities as counts; any positive multiple. Something counted where the law has nothing gives p = 0. */
export function chiSquareTest(counts: ArrayLike<number>, probabilities: ArrayLike<number>): ChiSquare {
  return combine([binsOf(counts, probabilities)]);
}

/** Several independent counts against their laws, as one test; each is read before the next is asked for. */
export function chiSquareTests(
  pairs: Iterable<{ readonly counts: ArrayLike<number>; readonly probabilities: ArrayLike<number> }>,
): ChiSquare {
  return combine(Array.from(pairs, ({ counts, probabilities }) => binsOf(counts, probabilities)));
}

interface Bins {
  readonly statistic: number;
  readonly degrees: number;
}

function binsOf(counts: ArrayLike<number>, probabilities: ArrayLike<number>): Bins {
  let draws = 0;
  let mass = 0;
  for (let i = 0; i < counts.length; i++) {
    draws += counts[i]!;
    mass += probabilities[i]!;
    if (counts[i]! > 0 && probabilities[i] === 0) return { statistic: Number.POSITIVE_INFINITY, degrees: 1 };
  }
  let statistic = 0;
  let bins = 0;
  let counted = 0;
  let expected = 0;
  let left = draws;
  for (let i = 0; i < counts.length; i++) {
    counted += counts[i]!;
    expected += (probabilities[i]! / mass) * draws;
    left -= (probabilities[i]! / mass) * draws;
    // The last bin takes what is left, so that none is too small.
    if (expected < LEAST_EXPECTED || (left < LEAST_EXPECTED && i + 1 < counts.length)) continue;
    statistic += (counted - expected) ** 2 / expected;
    bins++;
    counted = 0;
    expected = 0;
  }
  return { statistic, degrees: Math.max(bins - 1, 0) };
}

function combine(all: readonly Bins[]): ChiSquare {
  const statistic = all.reduce((sum, bins) => sum + bins.statistic, 0);
  const degrees = all.reduce((sum, bins) => sum + bins.degrees, 0);
  return { statistic, degrees, p: degrees === 0 ? 1 : upperGamma(degrees / 2, statistic / 2) };
}

/** Regularised upper incomplete gamma function Q(a, x): its series below the bend, its continued fraction (by Lentz) above. */
export function upperGamma(a: number, x: number): number {
  if (x === Number.POSITIVE_INFINITY) return 0;
  const scale = Math.exp(a * Math.log(x) - x - logGamma(a));
  if (x === 0) return 1;
  if (x < a + 1) {
    let term = 1 / a;
    let sum = term;
    for (let n = 1; term > sum * 1e-16; n++) {
      term *= x / (a + n);
      sum += term;
    }
    return 1 - sum * scale;
  }
  let b = x + 1 - a;
  let c = 1e300;
  let d = 1 / b;
  let fraction = d;
  for (let n = 1; n < 10_000; n++) {
    const numerator = -n * (n - a);
    b += 2;
    d = 1 / (numerator * d + b);
    c = b + numerator / c;
    fraction *= c * d;
    if (Math.abs(c * d - 1) < 1e-15) break;
  }
  return scale * fraction;
}

/** Stirling's series, after the argument is brought above 10. */
function logGamma(z: number): number {
  let shift = 0;
  while (z < 10) shift += Math.log(z++);
  const r = 1 / (z * z);
  return (z - 0.5) * Math.log(z) - z + Math.log(2 * Math.PI) / 2 + (1 / 12 - r * (1 / 360 - r / 1260)) / z - shift;
}
