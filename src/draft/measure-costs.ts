/** Times forwards on this machine, at load: where the curves of costs.ts begin. */
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import type { KvCache } from '../model/kv-cache.ts';
import type { TargetModel } from '../model/target.ts';
import { type CostCurve, costAt, ForwardCost, FREE, MOST_ROWS, type TreeCosts } from './costs.ts';

/** A drafter's own forwards, to be timed. */
export interface DraftForwards extends Disposable {
  /** One over so many rows, on an empty cache. */
  forward(rows: number): void;
}

/** In the order in which they are measured: should the time run out, the curve is known roughly rather than in part. */
export const TARGET_ROWS = [1, 8, 4, 2, 16, 3, 6, 12, MOST_ROWS, 24] as const;
export const DRAFT_ROWS = [1, 8, 2, 4] as const;
/** Attention has another way with each of the first few rows; then it costs by the row. */
const CONTEXT_ROWS = [1, 8, 2, 4, 3, 16, MOST_ROWS] as const;

/** Loading is meant to take about a second: measuring may add a quarter. No forward is begun that would end later. */
const STEADY_BUDGET_MS = 50;
const TARGET_BUDGET_MS = 150;
const CONTEXT_BUDGET_MS = 30;
const DRAFT_BUDGET_MS = 30;
const MOST_REPEATS = 5;

/** Tokens of context behind which attention is timed: with fewer the clock sees little, with more it takes long. */
const CONTEXT = 512;
/** Attention is timed over so many layers that their keys and values do not stay in a second-level cache, as those of a model do not. */
const CONTEXT_BYTES = 8 * 2 ** 20;

/** @param forwards of the drafter; absent where drafting takes none. */
export function measureCosts(target: TargetModel, forwards: (() => DraftForwards) | undefined): TreeCosts {
  const draft = forwards === undefined ? FREE : measureDraft(forwards);
  return { target: new ForwardCost(measureTarget(target)), draft: new ForwardCost(draft) };
}

/** Times forwards of a few sizes on an empty cache, and what context adds. */
export function measureTarget(target: TargetModel): CostCurve {
  const batch = new ForwardBatch(MOST_ROWS);
  using cache = target.createCache(1, MOST_ROWS);
  const forward = (rows: number): void => {
    fillFlat(batch, cache, rows);
    target.forward(batch, cache);
  };
  const steadyMs = measureSteady(() => forward(1));
  const curve = measure(TARGET_ROWS, TARGET_BUDGET_MS, forward);
  const contextMs = measureContext(target);
  return curve.map(({ rows, ms }) => ({
    rows,
    ms,
    contextMs: costAt(contextMs, rows),
    ...(rows === 1 && { steadyMs: Math.min(steadyMs, ms) }),
  }));
}

/** The same forward again and again, which the processor's clocks take a while to follow: the quickest of the last few. */
function measureSteady(forward: () => void): number {
  let quickest = Number.POSITIVE_INFINITY;
  for (let now = performance.now(), end = now + STEADY_BUDGET_MS; now < end; ) {
    forward();
    const after = performance.now();
    if (after > end - STEADY_BUDGET_MS / 2) quickest = Math.min(quickest, after - now);
    now = after;
  }
  return quickest;
}

/** Milliseconds that a thousand tokens of context add: attention reads no weights, so it is timed alone, on keys and values of no meaning. */
function measureContext(target: TargetModel): CostCurve {
  const { heads, kvHeads, headDim, contextLength } = target.config;
  const context = Math.min(CONTEXT, contextLength - MOST_ROWS);
  if (context <= 0) return FREE;
  const batch = new ForwardBatch(MOST_ROWS);
  const stride = (heads + 2 * kvHeads) * headDim;
  const qkv = new Float32Array(MOST_ROWS * stride);
  const out = new Float32Array(MOST_ROWS * heads * headDim);
  using cache = target.createCache(1, context + MOST_ROWS);
  const { keys, values } = cache.layers[0]!;
  const timed = cache.layers.slice(0, Math.ceil(CONTEXT_BYTES / (keys.byteLength + values.byteLength)));
  for (const { keys, values } of timed) for (const half of [keys, values]) half.fill(0); // pages that were never written are one page
  const attend = (rows: number): void => {
    fillFlat(batch, cache, rows);
    for (const kv of timed) target.kernels.attention(out, qkv, stride, heads, kv, batch.layout);
  };
  const without = measure(CONTEXT_ROWS, CONTEXT_BUDGET_MS / 4, attend);
  const sequence = cache.sequences[0]!;
  sequence.rollback();
  for (let token = 0; token < context; token++) sequence.append(0);
  sequence.commitAll();
  const behind = measure(CONTEXT_ROWS, (CONTEXT_BUDGET_MS * 3) / 4, attend);
  const thousand = (1000 / context) * (cache.layers.length / timed.length);
  return behind.map(({ rows, ms }) => ({ rows, ms: Math.max(0, ms - costAt(without, rows)) * thousand }));
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
 * The quickest of a few turns through all sizes. Two sizes are measured in any case, others while they end in time. What disturbs a measurement
 * makes it longer, and more rows take no less time than fewer: so a size costs at most what was measured for any larger one.
 */
function measure(sizes: readonly number[], budgetMs: number, forward: (rows: number) => void): CostCurve {
  const end = performance.now() + budgetMs;
  const quickest = new Map<number, number>();
  forward(sizes[1]!); // first touch of weights, code and scratch
  for (let turn = 0; turn < MOST_REPEATS; turn++) {
    for (const rows of sizes) {
      if (quickest.size >= 2 && performance.now() + costAt(rising(quickest), rows) > end) continue;
      const start = performance.now();
      forward(rows);
      quickest.set(rows, Math.min(quickest.get(rows) ?? Number.POSITIVE_INFINITY, performance.now() - start));
    }
  }
  return rising(quickest);
}

/** @param quickest milliseconds by rows. */
function rising(quickest: ReadonlyMap<number, number>): CostCurve {
  const points = Array.from(quickest, ([rows, ms]) => ({ rows, ms })).sort((a, b) => a.rows - b.rows);
  return points.map(({ rows }, i) => ({ rows, ms: Math.min(...points.slice(i).map(({ ms }) => ms)) }));
}
