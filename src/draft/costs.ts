/** What forwards cost on this machine, by their rows and the context before them: measured at load, refined by every forward since. */
/** Milliseconds by rows ascending; never empty. Between two points it is a line. */
export type CostCurve = readonly CostPoint[];

export interface CostPoint {
  readonly rows: number;
  /** Without context. */
  readonly ms: number;
  /** Milliseconds more for every thousand tokens before the rows: attention's. Absent where that is not known, and taken for none. */
  readonly contextMs?: number | undefined;
  /** Of one row: as `ms`, where such a forward follows many of its like, as in plain decoding. Absent it is the same. */
  readonly steadyMs?: number | undefined;
}

/** Live: budgets that are given the same curve learn from each other's forwards. */
export interface TreeCosts {
  readonly target: ForwardCost;
  /** The drafter's own forwards, with the choice of the best guesses. */
  readonly draft: ForwardCost;
}

/** Of a drafter that looks guesses up. */
export const FREE: CostCurve = [{ rows: 1, ms: 0 }];

/** Rows of the largest forward whose cost is measured. */
export const MOST_ROWS = 32;

/**
 * Below its first point the curve is flat; beyond its last, where nothing was measured, every row costs as much as those before did on average.
 * @param what of a point; by default its milliseconds without context.
 */
export function costAt(curve: CostCurve, rows: number, what: (point: CostPoint) => number = ({ ms }) => ms): number {
  const last = curve.at(-1)!;
  if (rows >= last.rows) return (what(last) * rows) / last.rows;
  const after = curve.findIndex((point) => point.rows > rows);
  if (after === 0) return what(curve[0]!);
  const [a, b] = [curve[after - 1]!, curve[after]!];
  return what(a) + ((rows - a.rows) * (what(b) - what(a))) / (b.rows - a.rows);
}

const contextOf = ({ contextMs = 0 }: CostPoint): number => contextMs;

/** One forward changes what is believed of all sizes by this share of its surprise: the machine is slower than it was. */
const SHARED_RATE = 0.06;
/** And of its own size and those near it by this much more: the curve has another shape than was measured. */
const OWN_RATE = 0.02;
/**
 * The first forwards count for more, as in a mean: at load, before the processor's clocks have followed, small sizes were measured up to half
 * too slow (docs/log.md, 2026-11-28). What was measured counts as so many forwards, for the level and for a size.
 */
const MEASURED_LEVEL = 8;
const MEASURED_SIZE = 4;
/**
 * Sizes up to this many rows away, or this share of its own, count as near, less and less; larger ones twice as far, for what was thought dear
 * is not tried.
 */
const NEAR = 3;
const NEAR_SHARE = 0.5;
const NEAR_ABOVE = 2;
/** Forwards of a size that tell what it costs: from then on what decoding showed outweighs what was measured at load. */
const KNOWN_AFTER = 6;
/** Until then it may cost this much less: at load, in busy moments, sizes were measured up to 1.7 times too slow (docs/log.md, 2026-11-29). */
const HOPE = 0.4;
/** A forward that something interrupted says little: surprises are cut to this ratio. */
const LARGEST_SURPRISE = 2;
/**
 * One-row forwards in a row before the next counts as plain decoding's. Such forwards wait for memory, and a processor that sees nothing else
 * gives memory a faster clock: after trees the first is up to 15 % slower than plain decoding's, the eighth by 5 %, the sixteenth by none
 * (docs/log.md, 2026-11-29).
 */
export const STEADY_AFTER = 8;
/**
 * Those that come next show how plain decoding compares to the forwards before them; of still later ones it is the machine's speed that
 * changed. The first such forwards count as in a mean, later ones change what is believed by this share: some looks' mean, for in one all
 * may fall on a slow moment.
 */
const STEADY_LOOK = 8;
const PLAIN_RATE = 0.05;
/** One-row forwards in a row that show what plain decoding takes. */
export const PLAIN_LOOK = STEADY_AFTER + STEADY_LOOK;

/** A curve that learns. */
export class ForwardCost {
  readonly #ms: Float64Array; // [MOST_ROWS + 1] without context
  readonly #tokenMs: Float64Array; // [MOST_ROWS + 1] for every token of context
  /** Of a one-row forward among its like. */
  #plainMs: number;
  #plainSeen = 0; // such forwards
  #sincePlain = 0; // forwards since the last sample
  #singles = 0; // one-row forwards since the last of another size
  #forwards = 0;
  readonly #visits = new Int32Array(MOST_ROWS + 1);

  /** @param curve where it begins. */
  constructor(curve: CostCurve) {
    const byRows = (ms: (rows: number) => number): Float64Array =>
      Float64Array.from({ length: MOST_ROWS + 1 }, (_, rows) => ms(rows));
    this.#ms = byRows((rows) => Math.max(costAt(curve, rows), Number.MIN_VALUE));
    this.#tokenMs = byRows((rows) => costAt(curve, rows, contextOf) / 1000);
    this.#plainMs = curve[0]!.steadyMs ?? this.#ms[1]!;
  }

  /** That it has learned from. */
  get forwards(): number {
    return this.#forwards;
  }

  /** Milliseconds behind `context` tokens; beyond MOST_ROWS, rows cost as much as those on average, as in `costAt`. */
  at(rows: number, context = 0): number {
    const own = Math.min(rows, MOST_ROWS);
    const ms = this.#ms[own]! + context * this.#tokenMs[own]!;
    return rows === own ? ms : (ms * rows) / own;
  }

  /** Milliseconds of a forward of plain decoding, which looks at one row after another. */
  plain(context = 0): number {
    return this.#plainMs + context * this.#tokenMs[1]!;
  }

  /** As `at` where the size is known; else what it may cost at best, which is no less than what one row less may: `fewerMs`. */
  hoped(rows: number, context: number, fewerMs: number): number {
    const believed = this.at(rows, context);
    return this.#visits[rows]! >= KNOWN_AFTER ? believed : Math.max(fewerMs, believed * (1 - HOPE));
  }

  /** Forwards since one of plain decoding was seen. What was measured at load is believed a quarter as long as what decoding showed. */
  get sincePlain(): number {
    return this.#plainSeen > 0 ? this.#sincePlain : 4 * this.#sincePlain;
  }

  /** @returns the milliseconds as they are believed. */
  learn(rows: number, ms: number, context = 0): number {
    this.#forwards++;
    this.#singles = rows === 1 ? this.#singles + 1 : 0;
    const steady = this.#singles > STEADY_AFTER;
    this.#sincePlain = steady ? 0 : this.#sincePlain + 1;
    const own = Math.min(rows, MOST_ROWS);
    const expected = steady ? this.plain(context) : this.at(rows, context);
    const ratio = Math.min(Math.max(ms / expected, 1 / LARGEST_SURPRISE), LARGEST_SURPRISE);
    const believed = ratio * expected;
    const reach = Math.max(NEAR, NEAR_SHARE * own);
    const look = steady && this.#singles <= PLAIN_LOOK;
    const sharedRate = look ? 0 : Math.max(SHARED_RATE, 1 / (MEASURED_LEVEL + this.#forwards));
    const ownRate = Math.max(OWN_RATE, 1 / (MEASURED_SIZE + ++this.#visits[own]!));
    const plainRate = look ? Math.max(PLAIN_RATE, 1 / (1 + ++this.#plainSeen)) : 0;
    this.#plainMs *= 1 + (ratio - 1) * (sharedRate + plainRate);
    for (let i = 0; i <= MOST_ROWS; i++) {
      const rowsAway = i > own ? (i - own) / NEAR_ABOVE : own - i;
      const nearness = steady ? 0 : Math.max(0, 1 - rowsAway / reach);
      const change = 1 + (ratio - 1) * (sharedRate + ownRate * nearness);
      this.#ms[i] = this.#ms[i]! * change;
      this.#tokenMs[i] = this.#tokenMs[i]! * change;
    }
    return believed;
  }

  /** As it stands now. */
  curve(): CostCurve {
    return Array.from({ length: MOST_ROWS }, (_, i) => ({
      rows: i + 1,
      ms: this.#ms[i + 1]!,
      contextMs: 1000 * this.#tokenMs[i + 1]!,
      ...(i === 0 && { steadyMs: this.#plainMs }),
    }));
  }
}
