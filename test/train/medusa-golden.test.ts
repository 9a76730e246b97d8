/** The authors' Medusa loss on a tiny model: losses, gradients, and ten optimiser steps (goldens' README: `training.json`). */
import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { openCheckpoint } from '../../src/checkpoint/checkpoint.ts';
import { openSafetensors } from '../../src/checkpoint/safetensors.ts';
import { FeatureReader } from '../../src/decode/features.ts';
import { MedusaHeads } from '../../src/draft/medusa-heads.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { loadTarget } from '../../src/model/registry.ts';
import { type MemoryTensor, memorySource } from '../../src/tensor/memory-source.ts';
import type { TensorSource } from '../../src/tensor/source.ts';
import { rowMajor } from '../../src/train/matrices.ts';
import { MedusaTraining } from '../../src/train/medusa.ts';
import { AdamW, clipByNorm } from '../../src/train/optimizer.ts';
import type { TrainingText } from '../../src/train/unroll.ts';

const golden = new URL('../golden/medusa-tiny/', import.meta.url).pathname;
const kernels = createKernels();
const checkpoint = await openCheckpoint(`${golden}target`);
const target = loadTarget(kernels, checkpoint.config, checkpoint.source, { dtype: 'f32' });
const stored = openSafetensors(`${golden}training.safetensors`);
afterAll(() => {
  stored[Symbol.dispose]();
  target[Symbol.dispose]();
});

interface Curve {
  readonly clip_global_norm: number | null;
  readonly lm_head_frozen: boolean;
  readonly loss: readonly number[];
  readonly per_head_loss: readonly (readonly number[])[];
  readonly grad_norm_before_clip: readonly number[];
}
interface Case {
  readonly loss: number;
  readonly per_head: Readonly<Record<string, number>>;
  readonly grad_global_norm: number;
  readonly curves: Readonly<Record<string, Curve>>;
}
const { input_ids, attention_mask, labels, cases, optimizer } = JSON.parse(
  readFileSync(`${golden}training.json`, 'utf8'),
) as {
  readonly input_ids: readonly number[][];
  readonly attention_mask: readonly number[][];
  readonly labels: readonly number[][];
  readonly cases: Readonly<Record<string, Case>>;
  readonly optimizer: { readonly lr: number; readonly betas: readonly [number, number]; readonly eps: number };
};

const floats = (source: TensorSource, name: string): Float32Array => new Float32Array(source.read(name).slice().buffer);

/** A label is the token itself where it counts. */
const texts: readonly TrainingText[] = input_ids.map((padded, row) => {
  using reader = new FeatureReader(target, 40);
  const ids = Int32Array.from(padded.filter((_, i) => attention_mask[row]![i] === 1));
  const mask = Uint8Array.from(ids, (_, i) => Number(labels[row]![i] !== -100));
  return { ids, mask, features: reader.read(ids).data.slice(0, ids.length * target.config.hiddenSize) };
});

function openHeads(name: string): MedusaHeads {
  const config = { heads: 4, layers: 1 };
  const [layout, state] = name.split('_') as ['v01' | 'v2', 'init' | 'trained'];
  if (state === 'init') return new MedusaHeads(target, config, initial(`${name}.init.`, layout), { dtype: 'f32' });
  using source = openSafetensors(`${golden}heads-${layout}/medusa_lm_head.safetensors`);
  return new MedusaHeads(target, config, source, { dtype: 'f32' });
}

/** The stored start as a file: matrices are zero, LM heads copies of the target's. */
function initial(prefix: string, layout: 'v01' | 'v2'): TensorSource {
  const d = target.config.hiddenSize;
  const tensors: Record<string, MemoryTensor> = {};
  for (let head = 0; head < 4; head++) {
    tensors[`${head}.0.linear.weight`] = { shape: [d, d], data: new Float32Array(d * d) };
    const bias = floats(stored, `${prefix}${head}.0.linear.bias`);
    tensors[`${head}.0.linear.bias`] = { shape: [d], data: bias };
    if (layout === 'v2') continue;
    const data = rowMajor(kernels, { weight: target.lmHead, first: 0, rows: target.config.vocabSize });
    tensors[`${head}.1.weight`] = { shape: [target.config.vocabSize, d], data };
  }
  return memorySource('the authors’ start', tensors);
}

/** Some of the tensors are stored. */
const storedOf = (prefix: string): string[] =>
  [...stored.entries.keys()].filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));

function largestDifference(a: Float32Array, b: Float32Array): number {
  expect(a.length).toBe(b.length);
  return a.reduce((largest, value, i) => Math.max(largest, Math.abs(value - b[i]!)), 0);
}

describe.each(Object.entries(cases))('%s', (name, wanted) => {
  it("computes the authors' losses and gradients", () => {
    using heads = openHeads(name);
    using training = new MedusaTraining(kernels, heads, target.config);
    const losses = training.gradients(texts);
    expect(Math.abs(losses.reduce((sum, { classification }) => sum + classification, 0) - wanted.loss)).toBeLessThan(
      2e-4,
    );
    for (const [head, loss] of losses.entries()) {
      expect(Math.abs(loss.classification - wanted.per_head[`medusa${head}_loss`]!)).toBeLessThan(5e-5);
      expect(loss.agreement).toBeCloseTo(wanted.per_head[`medusa${head}_top1`]!, 6);
    }
    expect(training.evaluate(texts)).toEqual(losses);
    training.gradients(texts);
    const names = storedOf(`${name}.grad.`);
    expect(names.length).toBeGreaterThanOrEqual(8);
    for (const tensor of heads.tensors()) {
      if (!names.includes(tensor.name)) continue;
      const expected = floats(stored, `${name}.grad.${tensor.name}`);
      const got = rowMajor(kernels, { ...tensor, weight: training.parameters.gradient(tensor.weight)! });
      const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      expect(largestDifference(got, expected), tensor.name).toBeLessThan(1e-4 * largest);
    }
  });

  it.each(Object.entries(wanted.curves))("follows the authors' losses through ten updates: %s", (curveName, curve) => {
    using heads = openHeads(name);
    using training = new MedusaTraining(kernels, heads, target.config);
    const [beta1, beta2] = optimizer.betas;
    const adamW = new AdamW(training.parameters, { beta1, beta2, epsilon: optimizer.eps, weightDecay: 0 });
    for (const [step, expected] of curve.loss.entries()) {
      const losses = training.gradients(texts);
      // The losses of later steps carry the drift of the weights.
      expect(Math.abs(losses.reduce((sum, { classification }) => sum + classification, 0) - expected)).toBeLessThan(
        1e-3,
      );
      for (const [head, { classification }] of losses.entries())
        expect(Math.abs(classification - curve.per_head_loss[step]![head]!)).toBeLessThan(3e-4);
      if (step === curve.loss.length - 1) break;
      const norm = clipByNorm(training.parameters, curve.clip_global_norm ?? Number.POSITIVE_INFINITY);
      expect(Math.abs(norm / curve.grad_norm_before_clip[step]! - 1)).toBeLessThan(1e-4);
      adamW.update(optimizer.lr);
    }
    if (curveName !== 'plain') return;
    for (const tensor of heads.tensors().filter((of) => storedOf(`${name}.final.`).includes(of.name)))
      expect(
        largestDifference(rowMajor(kernels, tensor), floats(stored, `${name}.final.${tensor.name}`)),
        tensor.name,
      ).toBeLessThan(1e-4);
  });
});

it('leaves a shared LM head as it is, which the authors’ script trains and does not save', () => {
  using heads = openHeads('v2_trained');
  using training = new MedusaTraining(kernels, heads, target.config);
  training.gradients(texts);
  expect(training.parameters.gradient(heads.lmHead(0))).toBeUndefined();
  const norm = clipByNorm(training.parameters, Number.POSITIVE_INFINITY);
  expect(norm).toBeLessThan(cases.v2_trained!.grad_global_norm * 0.9); // theirs counts it
});
