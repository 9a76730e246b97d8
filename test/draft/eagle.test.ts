import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { openCheckpoint } from '../../src/checkpoint/checkpoint.ts';
import { readHeadConfig } from '../../src/checkpoint/config.ts';
import { openSafetensors } from '../../src/checkpoint/safetensors.ts';
import { generate } from '../../src/decode/generate.ts';
import { EagleDrafter } from '../../src/draft/eagle.ts';
import { EagleHead } from '../../src/draft/eagle-head.ts';
import { NoDrafter } from '../../src/draft/none.ts';
import { staticShape } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { COMMITTED, ForwardBatch } from '../../src/model/forward-batch.ts';
import type { KvCache } from '../../src/model/kv-cache.ts';
import { loadTarget } from '../../src/model/registry.ts';
import { ScratchTensor } from '../../src/tensor/tensor.ts';

const golden = new URL('../golden/eagle-tiny/', import.meta.url).pathname;
const kernels = createKernels();
const checkpoint = await openCheckpoint(`${golden}target`);
const target = loadTarget(kernels, checkpoint.config, checkpoint.source, { dtype: 'f32' });

function openHead(name: string): EagleHead {
  const file = `${golden}${name}/config.json`;
  const config = readHeadConfig(JSON.parse(readFileSync(file, 'utf8')), file);
  return new EagleHead(target, config, openSafetensors(`${golden}${name}/model.safetensors`), { dtype: 'f32' });
}

afterAll(() => target[Symbol.dispose]());

function floats(bytes: Uint8Array): Float32Array {
  return new Float32Array(bytes.slice().buffer);
}

function largestDifference(a: Float32Array, b: Float32Array, count: number): number {
  let largest = 0;
  for (let i = 0; i < count; i++) largest = Math.max(largest, Math.abs(a[i]! - b[i]!));
  return largest;
}

describe.each([
  ['eagle1-head', 'eagle1'],
  ['eagle1-head-bias', 'eagle1-bias'],
])('%s', (folder, prefix) => {
  it.each([0, 1, 2])("computes the authors' outputs and logits, sequence %i", (index) => {
    using head = openHead(folder);
    using stored = openSafetensors(`${golden}head-forward.safetensors`);
    const ids = stored.read(`seq${index}.input_ids`).slice();
    const view = new DataView(ids.buffer);
    const n = ids.length / 8;
    const batch = new ForwardBatch(64);
    using cache = target.createCache(1, 64);
    for (let i = 0, parent = COMMITTED; i < n; i++) {
      parent = batch.append(cache.sequences[0]!, Number(view.getBigInt64(i * 8, true)), parent, true);
    }
    const output = target.forward(batch, cache);
    // Tolerances: the goldens' README, section 7.
    expect(
      largestDifference(floats(stored.read(`seq${index}.target.features`)), output.features.data, n * 64),
    ).toBeLessThan(5e-5);
    expect(
      largestDifference(floats(stored.read(`seq${index}.target.logits`)), output.logits.data, n * 512),
    ).toBeLessThan(1e-4);

    const features = new ScratchTensor().reshape(n - 1, 64);
    features.data.set(output.features.data.subarray(0, (n - 1) * 64));
    using headCache = head.createCache(64);
    const headBatch = new ForwardBatch(64);
    for (let i = 0, parent = COMMITTED; i < n - 1; i++) {
      parent = headBatch.append(headCache.sequences[0]!, Number(view.getBigInt64((i + 1) * 8, true)), parent, true);
    }
    const predicted = head.forward(headBatch, features, headCache);
    expect(
      largestDifference(floats(stored.read(`seq${index}.${prefix}.out`)), predicted.data, (n - 1) * 64),
    ).toBeLessThan(5e-5);
    const logits = head.logits(headBatch, predicted);
    expect(
      largestDifference(floats(stored.read(`seq${index}.${prefix}.logits`)), logits.data, (n - 1) * 512),
    ).toBeLessThan(1e-4);
  });

  it.each([1, 2, 9])('predicts the same bits behind %i rows that it only remembers', (remembered) => {
    using head = openHead(folder);
    const rows = 12;
    const features = new ScratchTensor().reshape(rows, 64);
    for (let i = 0; i < rows * 64; i++) features.data[i] = Math.sin(i * i);
    const append = (batch: ForwardBatch, cache: KvCache, from: number, to: number): ForwardBatch => {
      batch.clear();
      for (let i = from, parent = COMMITTED; i < to; i++)
        parent = batch.append(cache.sequences[0]!, (i * 37) % 512, parent, true);
      return batch;
    };
    const batch = new ForwardBatch(rows);
    using whole = head.createCache(rows);
    const wanted = head.forward(append(batch, whole, 0, rows), features, whole).data.slice(remembered * 64, rows * 64);

    using cache = head.createCache(rows);
    head.remember(append(batch, cache, 0, remembered), features.reshape(remembered, 64), cache);
    cache.sequences[0]!.commitAll();
    const rest = new ScratchTensor().reshape(rows - remembered, 64);
    rest.data.set(features.data.subarray(remembered * 64, rows * 64));
    const got = head.forward(append(batch, cache, remembered, rows), rest, cache).data.slice(0, wanted.length);
    expect(got).toEqual(wanted);
  });
});

interface StaticRound {
  readonly committed_len: number;
  readonly tree_tokens: number[];
  readonly accepted_path: number[];
  readonly emitted_tokens: number[];
  readonly bonus_token: number;
}

describe('static tree', () => {
  const record = JSON.parse(readFileSync(`${golden}eagle1-static.json`, 'utf8')) as {
    tree: { node_paths: number[][]; parents: number[] };
    prompts: { prompt: number[]; plain_greedy: number[]; rounds: StaticRound[] }[];
  };

  it("has the authors' nodes in the authors' order", () => {
    expect([...staticShape().parents]).toEqual(record.tree.parents);
  });

  it.each(record.prompts.map((p, i) => [i, p] as const))(
    "proposes, accepts and emits what the authors' code does, prompt %i",
    (_, entry) => {
      using drafter = new EagleDrafter(target, openHead('eagle1-head'), staticShape(), 256);
      using cache = target.createCache(1, 256);
      const trees: number[][] = [];
      const propose = drafter.propose.bind(drafter);
      drafter.propose = (root, maxDepth) => {
        const tree = propose(root, maxDepth);
        trees.push([...tree.tokens.subarray(0, tree.size)]);
        return tree;
      };
      const emitted: number[] = [];
      const accepted: number[] = [];
      const total = entry.rounds.reduce((sum, round) => sum + round.emitted_tokens.length, 0);
      // Room to spare behind the last recorded round, so that no limit trims a tree.
      for (const event of generate(target, drafter, cache, entry.prompt, { maxTokens: total + 16 })) {
        if (event.type !== 'round') continue;
        emitted.push(...event.tokens);
        if (event.treeSize > 0) accepted.push(event.drafted);
      }
      expect(trees.slice(0, entry.rounds.length)).toEqual(entry.rounds.map((round) => round.tree_tokens));
      expect(accepted.slice(0, entry.rounds.length)).toEqual(
        entry.rounds.map((round) => round.emitted_tokens.length - 1),
      );
      expect(emitted.slice(0, total)).toEqual(entry.rounds.flatMap((round) => round.emitted_tokens));
    },
  );

  it.each(record.prompts.map((p, i) => [i, p] as const))(
    'leaves plain greedy decoding unchanged, prompt %i',
    (_, entry) => {
      using cache = target.createCache(1, 256);
      const emitted: number[] = [];
      for (const event of generate(target, new NoDrafter(), cache, entry.prompt, { maxTokens: 64 })) {
        if (event.type === 'round') emitted.push(...event.tokens);
      }
      expect(emitted).toEqual(entry.plain_greedy.slice(0, 64));
    },
  );
});
