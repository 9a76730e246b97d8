import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { openCheckpoint } from '../../src/checkpoint/checkpoint.ts';
import { openSafetensors } from '../../src/checkpoint/safetensors.ts';
import { generate } from '../../src/decode/generate.ts';
import { NoDrafter } from '../../src/draft/none.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { COMMITTED, ForwardBatch } from '../../src/model/forward-batch.ts';
import { loadTarget } from '../../src/model/registry.ts';
import type { ForwardOutput, TargetModel } from '../../src/model/target.ts';
import type { ModelDtype } from '../../src/model/weights.ts';
import { smolPath } from '../support/model.ts';

const golden = new URL('../golden/smollm2-135m-instruct/', import.meta.url).pathname;
const read = <T>(name: string): T => JSON.parse(readFileSync(golden + name, 'utf8')) as T;
const kernels = createKernels();
const path = await smolPath();
const open: TargetModel[] = [];

async function load(dtype: ModelDtype): Promise<TargetModel> {
  using checkpoint = await openCheckpoint(path);
  const target = loadTarget(kernels, checkpoint.config, checkpoint.source, { dtype });
  open.push(target);
  return target;
}

afterAll(() => {
  for (const target of open) target[Symbol.dispose]();
});

/** All rows of one prompt, each with logits. */
function forwardAll(target: TargetModel, ids: readonly number[], use: (output: ForwardOutput) => void): void {
  using cache = target.createCache(1, ids.length);
  const batch = new ForwardBatch(ids.length);
  for (let i = 0, parent = COMMITTED; i < ids.length; i++)
    parent = batch.append(cache.sequences[0]!, ids[i]!, parent, true);
  use(target.forward(batch, cache));
}

interface ForwardGolden {
  readonly ids: number[];
  readonly top20: { ids: number[]; logits: number[] }[];
}

describe('SmolLM2-135M-Instruct against PyTorch', async () => {
  const f32 = await load('f32');
  const { vocabSize, hiddenSize } = f32.config;

  it.each(read<ForwardGolden[]>('forward.json').map((entry, i) => [i, entry] as const))(
    'computes the logits and features of prompt %i to float error',
    (i, { ids, top20 }) => {
      using stored = openSafetensors(`${golden}forward.safetensors`);
      const features = new Float32Array(stored.read(`${i}.features`).slice().buffer);
      forwardAll(f32, ids, (output) => {
        // 30 layers of f32 sums in another order: a few 1e-6 relative of values up to 40.
        for (const [row, top] of top20.entries()) {
          for (const [k, id] of top.ids.entries()) {
            expect(Math.abs(output.logits.data[row * vocabSize + id]! - top.logits[k]!)).toBeLessThan(5e-4);
          }
        }
        for (let j = 0; j < ids.length * hiddenSize; j++) {
          expect(Math.abs(output.features.data[j]! - features[j]!)).toBeLessThan(1e-3);
        }
      });
    },
  );

  it('writes the greedy continuations token for token', () => {
    using cache = f32.createCache(1, 2048);
    for (const { promptIds, newIds } of read<{ promptIds: number[]; newIds: number[] }[]>('greedy.json')) {
      const emitted: number[] = [];
      for (const event of generate(f32, new NoDrafter(), cache, promptIds, { maxTokens: newIds.length })) {
        if (event.type === 'round') emitted.push(...event.tokens);
      }
      expect(emitted).toEqual(newIds);
    }
  });

  const perplexityGolden = read<{ chunk: number; ids: number[]; perplexity: number }>('perplexity.json');
  it.each([
    ['f32', 1e-4],
    ['q8', 5e-3],
    ['auto', 5e-3],
  ] as const)('has the perplexity of the reference at %s', async (dtype, tolerance) => {
    const target = dtype === 'f32' ? f32 : await load(dtype);
    let sum = 0;
    let count = 0;
    for (let start = 0; start < perplexityGolden.ids.length; start += perplexityGolden.chunk) {
      const ids = perplexityGolden.ids.slice(start, start + perplexityGolden.chunk);
      forwardAll(target, ids, ({ logits }) => {
        for (let row = 0; row + 1 < ids.length; row++) {
          const values = logits.data.subarray(row * vocabSize, (row + 1) * vocabSize);
          let largest = Number.NEGATIVE_INFINITY;
          for (const value of values) largest = Math.max(largest, value);
          let mass = 0;
          for (const value of values) mass += Math.exp(value - largest);
          sum += largest + Math.log(mass) - values[ids[row + 1]!]!;
          count++;
        }
      });
    }
    expect(Math.abs(Math.exp(sum / count) / perplexityGolden.perplexity - 1)).toBeLessThan(tolerance);
  });
});
