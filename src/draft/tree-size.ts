/**
 * How many nodes a fixed tree should have on this machine: what a forward of so many rows costs is measured at load, how often guesses
 * are right is the head's, and the size with the most expected tokens per second wins; 1 node, plain decoding, where none wins.
 */
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import type { KvCache } from '../model/kv-cache.ts';
import type { TargetModel } from '../model/target.ts';
import { ScratchTensor } from '../tensor/tensor.ts';
import type { EagleHead } from './eagle-head.ts';
import { EAGLE_STATIC_PATHS, staticShape, type TreeShape } from './tree.ts';

/** What one forward costs, by rows ascending; never empty. Between two points it is a line. */
export type CostCurve = readonly { readonly rows: number; readonly ms: number }[];

export interface TreeCosts {
  readonly target: CostCurve;
  /** The head with its LM head and the choice of the best guesses. */
  readonly head: CostCurve;
}

/** @param acceptance how often a node's rank-th guess is right; trees larger than the target's curve reaches are not considered. */
export function chooseTreeSize({ target, head }: TreeCosts, acceptance: readonly number[]): number {
  const most = Math.min(EAGLE_STATIC_PATHS.length + 1, target.at(-1)!.rows);
  let best = 1;
  let bestRate = 1 / costAt(target, 1);
  for (let size = 2; size <= most; size++) {
    const shape = staticShape(size, acceptance);
    const tokens = expectedTokens(shape, acceptance);
    const rate = tokens / (costAt(target, size) + draftCost(shape, head, tokens));
    if (rate > bestRate) {
      best = size;
      bestRate = rate;
    }
  }
  return best;
}

/** Tokens of a round: the bonus, and every node that is reached, each guess being right independently of the others. */
export function expectedTokens({ size, parents, ranks }: TreeShape, acceptance: readonly number[]): number {
  const reached = new Float64Array(size).fill(1);
  let sum = 1;
  for (let node = 1; node < size; node++) {
    reached[node] = reached[parents[node]!]! * acceptance[ranks[node]!]!;
    sum += reached[node]!;
  }
  return sum;
}

/** One forward catches up with the tokens of the round before, then one runs the inner nodes of each level. */
function draftCost({ size, parents, depths }: TreeShape, head: CostCurve, tokens: number): number {
  const inner = new Set(parents.subarray(1, size));
  inner.delete(0); // the root's own guesses come from the catching up
  const levels = new Map<number, number>();
  for (const node of inner) levels.set(depths[node]!, (levels.get(depths[node]!) ?? 0) + 1);
  return [...levels.values()].reduce((ms, rows) => ms + costAt(head, rows), costAt(head, tokens));
}

/** Beyond its ends the curve goes on as it began and ended. */
export function costAt(curve: CostCurve, rows: number): number {
  if (curve.length === 1) return curve[0]!.ms;
  let i = 1;
  while (i + 1 < curve.length && curve[i]!.rows < rows) i++;
  const [a, b] = [curve[i - 1]!, curve[i]!];
  return a.ms + ((rows - a.rows) * (b.ms - a.ms)) / (b.rows - a.rows);
}

const TARGET_ROWS = [1, 4, 8, 12, 16, 26] as const;
const HEAD_ROWS = [1, 2, 4] as const;
/** Loading is meant to take about a second: measuring may add a quarter. A forward that has begun is waited for. */
const TARGET_BUDGET_MS = 200;
const HEAD_BUDGET_MS = 40;
const MOST_REPEATS = 5;

/** Times forwards of a few sizes on empty caches of their own. */
export function measureTreeCosts(target: TargetModel, head: EagleHead): TreeCosts {
  const batch = new ForwardBatch(TARGET_ROWS.at(-1)!);
  using targetCache = target.createCache(1, batch.maxRows);
  using headCache = head.createCache(batch.maxRows);
  const features = new ScratchTensor();
  const ids = new Int32Array(HEAD_ROWS.at(-1)!);
  const values = new Float32Array(ids.length);
  return {
    target: measure(TARGET_ROWS, TARGET_BUDGET_MS, (rows) => {
      fill(batch, targetCache, rows);
      target.forward(batch, targetCache);
    }),
    head: measure(HEAD_ROWS, HEAD_BUDGET_MS, (rows) => {
      fill(batch, headCache, rows);
      const predicted = head.forward(batch, features.reshape(rows, target.config.hiddenSize), headCache);
      const logits = head.logits(batch, predicted);
      target.kernels.topK(ids, values, logits.data, rows, logits.cols, 1);
    }),
  };
}

/** The root and children of it; tokens are all alike to a forward. */
function fill(batch: ForwardBatch, cache: KvCache, rows: number): void {
  const sequence = cache.sequences[0]!;
  sequence.rollback();
  batch.clear();
  for (let row = 0; row < rows; row++) batch.append(sequence, 0, row === 0 ? COMMITTED : 0, true);
}

/** The quickest of a few turns through all sizes. Two sizes are measured in any case, more while the time lasts. */
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
  return fastest.map((ms, i) => ({ rows: sizes[i]!, ms }));
}
