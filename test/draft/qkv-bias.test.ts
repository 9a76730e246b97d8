/** Heads of Qwen2's kind, with biases on queries, keys and values: against the formulas, written out row by row. */
import { afterAll, describe, expect, it } from 'vitest';
import { EagleHead } from '../../src/draft/eagle-head.ts';
import { CheckpointError } from '../../src/errors.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { COMMITTED, ForwardBatch } from '../../src/model/forward-batch.ts';
import { type MemoryTensor, memorySource } from '../../src/tensor/memory-source.ts';
import { ScratchTensor } from '../../src/tensor/tensor.ts';
import { randomFloats, xorshift } from '../support/random.ts';
import { tinyHeadParts, tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
const target = tinyTarget(kernels);
afterAll(() => target[Symbol.dispose]());

const { config, tensors: plain } = tinyHeadParts(target);
const { hiddenSize: d, heads, kvHeads, headDim, intermediateSize } = config;
const random = xorshift(5);
const bias = (length: number): MemoryTensor => ({ shape: [length], data: randomFloats(random, length, 1) });
const biases = {
  'layers.0.self_attn.q_proj.bias': bias(heads * headDim),
  'layers.0.self_attn.k_proj.bias': bias(kvHeads * headDim),
  'layers.0.self_attn.v_proj.bias': bias(kvHeads * headDim),
};
const TOKENS = [3, 14, 15, 92, 65];
const FEATURES = randomFloats(random, TOKENS.length * d, 1);

function load(tensors: Readonly<Record<string, MemoryTensor>>): EagleHead {
  return new EagleHead(target, config, memorySource('tiny-head', tensors), { dtype: 'f32' });
}

function forward(head: EagleHead): number[] {
  using cache = head.createCache(64);
  const features = new ScratchTensor().reshape(TOKENS.length, d);
  features.data.set(FEATURES);
  const batch = new ForwardBatch(16);
  let parent: number = COMMITTED;
  for (const token of TOKENS) parent = batch.append(cache.sequences[0]!, token, parent, true);
  return [...head.forward(batch, features, cache).data.subarray(0, TOKENS.length * d)];
}

/** The same in doubles, from the paper's formulas. */
function reference(tensors: Readonly<Record<string, MemoryTensor>>): number[] {
  const linear = (name: string, x: readonly number[], rows: number): number[] => {
    const weight = tensors[`${name}.weight`]!.data as Float32Array;
    const added = tensors[`${name}.bias`]?.data as Float32Array | undefined;
    return Array.from({ length: rows }, (_, row) =>
      x.reduce((sum, value, i) => sum + value * weight[row * x.length + i]!, added?.[row] ?? 0),
    );
  };
  const rotate = (x: readonly number[], position: number): number[] =>
    x.map((value, i) => {
      const within = i % headDim;
      const half = headDim / 2;
      const angle = position * config.ropeTheta ** ((-2 * (within % half)) / headDim);
      const partner = within < half ? -x[i + half]! : x[i - half]!;
      return value * Math.cos(angle) + partner * Math.sin(angle);
    });
  const embedded = new Float32Array(TOKENS.length * d);
  kernels.gatherRows(embedded, d, target.embedding, Int32Array.from(TOKENS), TOKENS.length);
  const keys: number[][] = [];
  const values: number[][] = [];
  return TOKENS.flatMap((_, row) => {
    const part = (of: Float32Array) => [...of.subarray(row * d, (row + 1) * d)];
    const x = linear('fc', [...part(embedded), ...part(FEATURES)], d);
    const projected = (of: string, count: number) => linear(`layers.0.self_attn.${of}_proj`, x, count * headDim);
    const query = rotate(projected('q', heads), row);
    keys.push(rotate(projected('k', kvHeads), row));
    values.push(projected('v', kvHeads));
    const attended = Array.from({ length: heads }, (_, head) => {
      const kvFirst = Math.floor(head / (heads / kvHeads)) * headDim;
      const scores = keys.map((key) => {
        let sum = 0;
        for (let i = 0; i < headDim; i++) sum += query[head * headDim + i]! * key[kvFirst + i]!;
        return Math.exp(sum / Math.sqrt(headDim));
      });
      const total = scores.reduce((a, b) => a + b, 0);
      return Array.from({ length: headDim }, (_, i) =>
        scores.reduce((sum, score, at) => sum + (score / total) * values[at]![kvFirst + i]!, 0),
      );
    }).flat();
    const h = linear('layers.0.self_attn.o_proj', attended, d).map((value, i) => value + x[i]!);
    const scale = 1 / Math.sqrt(h.reduce((sum, value) => sum + value * value, 0) / d + config.rmsNormEps);
    const norm = tensors['layers.0.post_attention_layernorm.weight']!.data as Float32Array;
    const normed = h.map((value, i) => value * scale * norm[i]!);
    const up = linear('layers.0.mlp.up_proj', normed, intermediateSize);
    const gated = linear('layers.0.mlp.gate_proj', normed, intermediateSize).map(
      (gate, i) => (gate / (1 + Math.exp(-gate))) * up[i]!,
    );
    return linear('layers.0.mlp.down_proj', gated, d).map((value, i) => value + h[i]!);
  });
}

const largestDifference = (a: readonly number[], b: readonly number[]): number =>
  a.reduce((largest, value, i) => Math.max(largest, Math.abs(value - b[i]!)), 0);

describe('a head', () => {
  it('adds the biases of queries, keys and values that its file has', () => {
    const withBiases = { ...plain, ...biases };
    using head = load(withBiases);
    const expected = reference(withBiases);
    // f32 sums of 64 terms of about 1: the values are some tens.
    const tolerance = 1e-5 * Math.max(...expected.map(Math.abs));
    expect(largestDifference(forward(head), expected)).toBeLessThan(tolerance);
    // And each of the three matters, or the test would not see it.
    for (const name of Object.keys(biases)) {
      const { [name]: _, ...without } = withBiases as Record<string, MemoryTensor>;
      expect(largestDifference(reference(without), expected), name).toBeGreaterThan(100 * tolerance);
    }
  });

  it('without biases is as it was', () => {
    using head = load(plain);
    const expected = reference(plain);
    expect(largestDifference(forward(head), expected)).toBeLessThan(1e-5 * Math.max(...expected.map(Math.abs)));
  });

  it.each<[string, Record<string, MemoryTensor>, string]>([
    ['some of the biases', { ...biases, 'layers.0.self_attn.k_proj.bias': undefined as never }, 'k_proj.bias'],
    ['a bias of other length', { ...biases, 'layers.0.self_attn.q_proj.bias': bias(3) }, 'q_proj.bias: expected shape'],
    ['embeddings of another target', { 'embed_tokens.weight': bias(3) }, 'embed_tokens.weight: expected shape [96,32]'],
  ])('is refused for %s', (_, more, message) => {
    const tensors = Object.fromEntries(
      Object.entries({ ...plain, ...more }).filter(([, tensor]) => tensor !== undefined),
    );
    expect(() => load(tensors)).toThrow(CheckpointError);
    expect(() => load(tensors)).toThrow(message);
  });

  it('ignores embeddings of the right shape', () => {
    const { vocabSize } = config;
    const zeros = { shape: [vocabSize, d], data: new Float32Array(vocabSize * d) };
    using head = load({ ...plain, 'embed_tokens.weight': zeros });
    using twin = load(plain);
    expect(forward(head)).toEqual(forward(twin));
  });
});
