/** Batch invariance, bit for bit: a token's logits and features never depend on what is computed beside it. */
import { afterAll, describe, expect, it } from 'vitest';
import { openCheckpoint } from '../../src/checkpoint/checkpoint.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { nativeTables } from '../../src/kernels/native.ts';
import { COMMITTED, ForwardBatch } from '../../src/model/forward-batch.ts';
import { loadTarget } from '../../src/model/registry.ts';
import type { TargetModel } from '../../src/model/target.ts';

const path = new URL('../golden/eagle-tiny/target', import.meta.url).pathname;
const cases = nativeTables().flatMap((isa) => (['f32', 'q8', 'q4'] as const).map((dtype) => ({ isa, dtype })));

/** A small deterministic stream of whole numbers below `limit`. */
function numbers(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
}

function bits(data: Float32Array, row: number, cols: number): string {
  return Buffer.from(data.buffer, data.byteOffset + row * cols * 4, cols * 4).toString('base64');
}

describe.each(cases)('$isa $dtype', async ({ isa, dtype }) => {
  using checkpoint = await openCheckpoint(path);
  const target = loadTarget(createKernels({ isa, threads: 1 }), checkpoint.config, checkpoint.source, { dtype });
  afterAll(() => target[Symbol.dispose]());
  const next = numbers(1);
  const prompt = Array.from({ length: 37 }, () => next(512));

  /** logits and features of the last token of `ids`, one row at a time in a fresh cache. */
  function alone(model: TargetModel, ids: readonly number[]): string {
    using cache = model.createCache(1, 128);
    const batch = new ForwardBatch(1);
    let result = '';
    for (const id of ids) {
      batch.clear();
      batch.append(cache.sequences[0]!, id, COMMITTED, true);
      const { logits, features } = model.forward(batch, cache);
      cache.sequences[0]!.commitAll();
      result = bits(logits.data, 0, logits.cols) + bits(features.data, 0, features.cols);
    }
    return result;
  }

  it.each([1, 2, 3, 7, 16, 37])('prefill in chunks of %i gives the bits of one token at a time', (chunk) => {
    using cache = target.createCache(1, 128);
    const batch = new ForwardBatch(64);
    let last = '';
    for (let start = 0; start < prompt.length; start += chunk) {
      batch.clear();
      let parent = COMMITTED;
      for (const id of prompt.slice(start, start + chunk)) parent = batch.append(cache.sequences[0]!, id, parent, true);
      const { logits, features } = target.forward(batch, cache);
      cache.sequences[0]!.commitAll();
      last = bits(logits.data, batch.rows - 1, logits.cols) + bits(features.data, batch.rows - 1, features.cols);
    }
    expect(last).toBe(alone(target, prompt));
  });

  it.each([2, 9, 24, 64].flatMap((rows) => [1, 2].map((threads) => [rows, threads] as const)))(
    'a random tree of %i rows, with another sequence in the batch, on %i threads, then compacted',
    (rows, threads) => {
      createKernels({ isa, threads });
      const draw = numbers(rows);
      using cache = target.createCache(2, 128);
      const batch = new ForwardBatch(80);
      const [other, sequence] = cache.sequences;
      batch.clear();
      for (let i = 0, parent = COMMITTED; i < prompt.length; i++)
        parent = batch.append(sequence!, prompt[i]!, parent, false);
      target.forward(batch, cache);
      sequence!.commitAll();

      batch.clear();
      for (let i = 0, parent = COMMITTED; i < 5; i++) parent = batch.append(other!, draw(512), parent, true);
      const parents: number[] = [];
      const tokens: number[] = [];
      for (let node = 0; node < rows; node++) {
        parents.push(node === 0 ? -1 : draw(node));
        tokens.push(draw(512));
        batch.append(sequence!, tokens[node]!, node === 0 ? COMMITTED : 5 + parents[node]!, true);
      }
      const { logits, features } = target.forward(batch, cache);
      const pathTo = (node: number): number[] => (node < 0 ? [] : [...pathTo(parents[node]!), node]);
      const of = (row: number): string => bits(logits.data, row, logits.cols) + bits(features.data, row, features.cols);
      const got = tokens.map((_, node) => of(5 + node));
      for (let node = 0; node < rows; node += Math.ceil(rows / 6)) {
        expect(got[node]).toBe(alone(target, [...prompt, ...pathTo(node).map((n) => tokens[n]!)]));
      }

      // Accept the path to the last node: the compacted cache continues with a fresh cache's bits.
      const path = pathTo(rows - 1);
      sequence!.commit(Int32Array.from(path), path.length);
      batch.clear();
      batch.append(sequence!, 7, COMMITTED, true);
      const after = target.forward(batch, cache);
      expect(bits(after.logits.data, 0, after.logits.cols) + bits(after.features.data, 0, after.features.cols)).toBe(
        alone(target, [...prompt, ...path.map((n) => tokens[n]!), 7]),
      );
    },
  );
});
