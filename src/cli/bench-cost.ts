/** What one forward of the target costs by its number of rows: the curve that draft trees are sized by. */
import type { Command } from 'commander';
import { RequestError } from '../errors.ts';
import type { ModelConfig } from '../model/config.ts';
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import type { KvCache } from '../model/kv-cache.ts';
import type { TargetModel } from '../model/target.ts';
import {
  type ModelOptions,
  openEngine,
  positiveNumber,
  positiveNumbers,
  printJson,
  wholeNumber,
  withModelOptions,
} from './common.ts';
import { formatTable } from './format.ts';
import { ProgressBar } from './progress.ts';
import { median } from './statistics.ts';

interface Flags extends ModelOptions {
  readonly rows: readonly number[];
  readonly repeats: number;
  readonly context: number;
  readonly json?: boolean;
}

/** Far beyond any cache, so that memory is what is measured. */
const BANDWIDTH_BYTES = 512e6;
const FILL_ROWS = 64;

export function register(bench: Command): void {
  withModelOptions(bench.command('cost').description('one forward of the target by number of rows'))
    .option('--rows <list>', 'numbers of rows', positiveNumbers, [1, 2, 4, 6, 8, 12, 16, 32, 64])
    .option('--context <n>', 'tokens already in the cache', wholeNumber, 0)
    .option('--repeats <n>', 'interleaved repeats; the median counts', positiveNumber, 15)
    .option('--json', 'one JSON line')
    .action(cost);
}

async function cost(flags: Flags): Promise<void> {
  using engine = await openEngine(flags);
  const { target, kernels } = engine;
  const positions = flags.context + Math.max(...flags.rows);
  if (positions > target.config.contextLength)
    throw new RequestError(
      '--context',
      `with ${Math.max(...flags.rows)} rows must fit in the model's ${target.config.contextLength} positions, got ${flags.context}`,
    );
  using cache = target.createCache(1, positions);
  fill(target, cache, flags.context);
  const { times, bandwidthGBs } = measure(target, cache, flags);
  const perRow = macsPerRow(target.config);
  const result = {
    dtype: flags.dtype,
    isa: kernels.isa,
    threads: kernels.threads,
    bandwidthGBs,
    ...(flags.context > 0 && { context: flags.context }),
    rows: flags.rows.map((rows, i) => {
      const ms = median(times[i]!);
      return { rows, ms, gmacs: (perRow * rows) / ms / 1e6, gbs: target.weightBytes / ms / 1e6 };
    }),
  };
  if (flags.json) return printJson(result);
  const first = result.rows[0]!;
  process.stdout.write(
    `${flags.dtype} · ${kernels.isa} · ${kernels.threads} threads · reads ${bandwidthGBs.toFixed(1)} GB/s · ${flags.context} tokens of context\n` +
      formatTable(
        ['rows', 'ms', `x of ${first.rows}`, 'GMAC/s', 'GB/s'],
        result.rows.map(({ rows, ms, gmacs, gbs }) => [
          String(rows),
          ms.toFixed(2),
          (ms / first.ms).toFixed(2),
          gmacs.toFixed(0),
          gbs.toFixed(1),
        ]),
      ),
  );
}

/** Commits `context` rows once; every measurement then looks back at them. Which tokens they are makes no difference to the cost. */
function fill(target: TargetModel, cache: KvCache, context: number): void {
  const sequence = cache.sequences[0]!;
  const batch = new ForwardBatch(FILL_ROWS);
  for (let start = 0; start < context; start += FILL_ROWS) {
    batch.clear();
    for (let i = start, parent = COMMITTED; i < Math.min(start + FILL_ROWS, context); i++)
      parent = batch.append(sequence, i % target.config.vocabSize, parent, false);
    target.forward(batch, cache);
    sequence.commitAll();
  }
}

/** Sizes take turns, so that a slow moment of the machine falls on all of them; bandwidth is measured in between, and its best counts. */
function measure(
  target: TargetModel,
  cache: KvCache,
  { rows: sizes, repeats }: Flags,
): { readonly times: readonly number[][]; readonly bandwidthGBs: number } {
  const { kernels, config } = target;
  const { vocabSize } = config;
  const batch = new ForwardBatch(Math.max(...sizes));
  const sequence = cache.sequences[0]!;
  const times = sizes.map((): number[] => []);
  let bandwidthGBs = 0;
  using progress = new ProgressBar('measuring', repeats);
  for (let repeat = -1; repeat < repeats; repeat++) {
    if (repeat >= 0 && repeat % 5 === 0) bandwidthGBs = Math.max(bandwidthGBs, kernels.bandwidth(BANDWIDTH_BYTES, 2));
    for (const [i, rows] of sizes.entries()) {
      batch.clear();
      for (let row = 0, parent = COMMITTED; row < rows; row++)
        parent = batch.append(sequence, (row + 1) % vocabSize, parent, true);
      const began = performance.now();
      target.forward(batch, cache);
      const ms = performance.now() - began;
      if (repeat >= 0) times[i]!.push(ms); // the first round warms up
      sequence.rollback();
    }
    progress.update(repeat + 1);
  }
  return { times, bandwidthGBs };
}

/** Multiply-adds of all matrices for one row, LM head included; attention over the context is not counted. */
function macsPerRow({ layers, heads, kvHeads, headDim, hiddenSize, intermediateSize, vocabSize }: ModelConfig): number {
  const attention = (2 * heads + 2 * kvHeads) * headDim * hiddenSize;
  return layers * (attention + 3 * hiddenSize * intermediateSize) + vocabSize * hiddenSize;
}
