/** What forwards cost on this machine, by the number of their rows: measured at load, refined by every forward since. */
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import type { KvCache } from '../model/kv-cache.ts';
import type { TargetModel } from '../model/target.ts';

/** Milliseconds by rows ascending; never empty. Between two points it is a line. */
export type CostCurve = readonly { readonly rows: number; readonly ms: number }[];

/** Live: budgets that are given the same curve learn from each other's forwards. */
export interface TreeCosts {
  readonly target: ForwardCost;
  /** The drafter's own forwards, with the choice of the best guesses. */
  readonly draft: ForwardCost;
}

/** A drafter's own forwards, to be timed. */
export interface DraftForwards extends Disposable {
  /** One over so many rows, on an empty cache. */
  forward(rows: number): void;
}

/** Of a drafter that looks guesses up. */
export const FREE: CostCurve = [{ rows: 1, ms: 0 }];

/** In the order in which they are measured: should the time run out, the curve is known roughly rather than in part. */
export const TARGET_ROWS = [1, 8, 4, 16, 2, 3, 6, 12, 32, 24] as const;
export const DRAFT_ROWS = [1, 8, 2, 4] as const;

/** Below its first point the curve is flat; beyond its last, where nothing was measured, every row costs as much as those before did on average. */
export function costAt(curve: CostCurve, rows: number): number {
  const last = curve.at(-1)!;
  if (rows >= last.rows) return (last.ms * rows) / last.rows;
  const after = curve.findIndex((point) => point.rows > rows);
  if (after === 0) return curve[0]!.ms;
  const [a, b] = [curve[after - 1]!, curve[after]!];
  return a.ms + ((rows - a.rows) * (b.ms - a.ms)) / (b.rows - a.rows);
}

/** One forward changes what is believed of all sizes by this share of its surprise: the machine is slower, or the context longer. */
const SHARED_RATE = 0.03;
/** And of its own size and those near it by this much more: the curve has another shape than was measured. */
const OWN_RATE = 0.05;
/** Sizes up to this many rows away, or this share of its own, count as near, less and less. */
const NEAR = 3;
const NEAR_SHARE = 0.5;
/** A forward that something interrupted says little: surprises are cut to this ratio. */
const LARGEST_SURPRISE = 2;

/** Rows of the largest forward whose cost is measured. */
export const MOST_ROWS = Math.max(...TARGET_ROWS);

/** A curve that learns. */
export class ForwardCost {
  readonly #ms: Float64Array; // [MOST_ROWS + 1]
  #forwards = 0;

  /** @param curve where it begins. */
  constructor(curve: CostCurve) {
    this.#ms = Float64Array.from({ length: MOST_ROWS + 1 }, (_, rows) =>
      Math.max(costAt(curve, rows), Number.MIN_VALUE),
    );
  }

  /** That it has learned from. */
  get forwards(): number {
    return this.#forwards;
  }

  /** Milliseconds; beyond MOST_ROWS, rows cost as much as those on average, as in `costAt`. */
  at(rows: number): number {
    const last = this.#ms.length - 1;
    return rows <= last ? this.#ms[rows]! : (this.#ms[last]! * rows) / last;
  }

  /** @returns the milliseconds as they are believed. */
  learn(rows: number, ms: number): number {
    const costs = this.#ms;
    this.#forwards++;
    const own = Math.min(rows, costs.length - 1);
    const expected = this.at(rows);
    const ratio = Math.min(Math.max(ms / expected, 1 / LARGEST_SURPRISE), LARGEST_SURPRISE);
    const believed = ratio * expected;
    const reach = Math.max(NEAR, NEAR_SHARE * own);
    for (let i = 0; i < costs.length; i++) {
      const nearness = Math.max(0, 1 - Math.abs(i - own) / reach);
      costs[i] = costs[i]! * (1 + (ratio - 1) * (SHARED_RATE + OWN_RATE * nearness));
    }
    return believed;
  }

  /** As it stands now. */
  curve(): CostCurve {
    return Array.from(this.#ms.subarray(1), (ms, i) => ({ rows: i + 1, ms }));
  }
}

/** Loading is meant to take about a second: measuring may add a quarter. A forward that has begun is waited for. */
const TARGET_BUDGET_MS = 220;
const DRAFT_BUDGET_MS = 30;
const MOST_REPEATS = 5;

/** @param forwards of the drafter; absent where drafting takes none. */
export function measureCosts(target: TargetModel, forwards: (() => DraftForwards) | undefined): TreeCosts {
  const draft = forwards === undefined ? FREE : measureDraft(forwards);
  return { target: new ForwardCost(measureTarget(target)), draft: new ForwardCost(draft) };
}

/** Times forwards of a few sizes on an empty cache. */
export function measureTarget(target: TargetModel): CostCurve {
  const batch = new ForwardBatch(MOST_ROWS);
  using cache = target.createCache(1, batch.maxRows);
  return measure(TARGET_ROWS, TARGET_BUDGET_MS, (rows) => {
    fillFlat(batch, cache, rows);
    target.forward(batch, cache);
  });
}

/** @param make the forwards, which go when they are timed. */
export function measureDraft(make: () => DraftForwards): CostCurve {
  using forwards = make();
  return measure(DRAFT_ROWS, DRAFT_BUDGET_MS, (rows) => forwards.forward(rows));
}

/** A batch of the root and children of it, in an empty cache; tokens are all alike to a forward. */
export function fillFlat(batch: ForwardBatch, cache: KvCache, rows: number): void {
  const sequence = cache.sequences[0]!;
  sequence.rollback();
  batch.clear();
  for (let row = 0; row < rows; row++) batch.append(sequence, 0, row === 0 ? COMMITTED : 0, true);
}

/**
 * The quickest of a few turns through all sizes. Two sizes are measured in any case, more while the time lasts. What disturbs a measurement
 * makes it longer, and more rows take no less time than fewer: so a size costs at most what was measured for any larger one.
 */
function measure(sizes: readonly number[], budgetMs: number, forward: (rows: number) => void): CostCurve {
  const fastest: number[] = [];
  const began = performance.now();
  forward(sizes[0]!); // first touch of weights and scratch
  for (let turn = 0; turn < MOST_REPEATS; turn++) {
    for (const [i, rows] of sizes.entries()) {
      const start = performance.now();
      if (start - began > budgetMs && fastest.length >= 2) break;
      forward(rows);
      fastest[i] = Math.min(fastest[i] ?? Number.POSITIVE_INFINITY, performance.now() - start);
    }
  }
  const points = fastest.map((ms, i) => ({ rows: sizes[i]!, ms })).sort((a, b) => a.rows - b.rows);
  return points.map(({ rows }, i) => ({ rows, ms: Math.min(...points.slice(i).map(({ ms }) => ms)) }));
}
