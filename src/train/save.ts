/** What was trained as a directory in its published layout: `config.json`, weights as f16 safetensors, and where they come from. */
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { syncDirectory, writeAtomically } from '../checkpoint/file.ts';
import { type TensorToWrite, writeSafetensors } from '../checkpoint/safetensors.ts';
import type { EagleHead } from '../draft/eagle-head.ts';
import type { HeadConfig } from '../draft/head-config.ts';
import type { MedusaHeads } from '../draft/medusa-heads.ts';
import { RequestError } from '../errors.ts';
import { floatToHalf } from '../kernels/half.ts';
import type { Kernels } from '../kernels/kernels.ts';
import type { ModelConfig } from '../model/config.ts';
import type { WeightTensor } from '../model/layers.ts';
import type { Llama } from '../model/llama.ts';
import { draftOffsets } from './initial-head.ts';
import { rowMajor } from './matrices.ts';

export interface SavedTexts {
  /** `provenance.json`: target and its hash, data, settings, figures, command. */
  readonly provenance: Readonly<Record<string, unknown>>;
  /** `README.md`: a short model card; undefined writes none. */
  readonly card: string | undefined;
}

/** @throws RequestError where the directory exists: a head is never written over. */
export function saveHead(directory: string, kernels: Kernels, head: EagleHead, texts: SavedTexts): void {
  const { config, targetIds } = head;
  const tensors = head.tensors().map((tensor) => inHalves(kernels, tensor));
  if (targetIds !== undefined) tensors.push(draftMap(targetIds));
  const published = {
    ...publishedConfig(config),
    num_hidden_layers: 1,
    ...(targetIds !== undefined && { draft_vocab_size: targetIds.length }),
    bias: tensors.some(({ name }) => name === 'fc.bias'),
  };
  saveDirectory(directory, published, tensors, texts);
}

/**
 * Heads that share the target's LM head, in the authors' version 2, and `tree.json`, a tree for them.
 * @param base the target, as the user called it. @param tree paths of child ranks. @throws RequestError where the directory exists.
 */
export function saveMedusa(
  directory: string,
  kernels: Kernels,
  heads: MedusaHeads,
  { base, tree }: { readonly base: string; readonly tree: readonly (readonly number[])[] },
  texts: SavedTexts,
): void {
  const { config, targetIds } = heads;
  const tensors = heads.tensors().map((tensor) => inHalves(kernels, tensor));
  if (targetIds !== undefined) tensors.push(draftMap(targetIds));
  const published = {
    medusa_num_heads: config.heads,
    medusa_num_layers: config.layers,
    base_model_name_or_path: base,
    version: '2',
    ...(targetIds !== undefined && { draft_vocab_size: targetIds.length }),
  };
  const others = { 'tree.json': `${JSON.stringify(tree)}\n` };
  saveDirectory(directory, published, tensors, texts, { weights: 'medusa_lm_head.safetensors', others });
}

/** A whole model, but for its tokenizer. @throws RequestError where the directory exists. */
export function saveModel(directory: string, model: Llama, texts: SavedTexts): void {
  const { config, kernels } = model;
  const published = {
    ...publishedConfig(config),
    num_hidden_layers: config.layers,
    head_dim: config.headDim,
    max_position_embeddings: config.contextLength,
    tie_word_embeddings: config.tiedEmbeddings,
  };
  const tensors = model.tensors().map((tensor) => inHalves(kernels, tensor));
  saveDirectory(directory, published, tensors, texts);
}

/** @throws RequestError where there is something at `directory` already. */
export function requireAbsent(directory: string): void {
  if (existsSync(directory))
    throw new RequestError(directory, 'must not exist yet: what was trained is never written over');
}

/** What a head and a model have in common. */
function publishedConfig(config: HeadConfig | ModelConfig): Readonly<Record<string, unknown>> {
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_attention_heads: config.heads,
    num_key_value_heads: config.kvHeads,
    hidden_act: 'silu',
    rms_norm_eps: config.rmsNormEps,
    rope_theta: config.ropeTheta,
    vocab_size: config.vocabSize,
    torch_dtype: 'float16',
    use_cache: true,
  };
}

/** The draft vocabulary as files have it (EAGLE-3). @param targetIds [Vd], ascending. */
export function draftMap(targetIds: Int32Array): TensorToWrite {
  const offsets = draftOffsets(targetIds);
  return { name: 'd2t', type: 'I64', shape: [targetIds.length], data: new Uint8Array(offsets.buffer) };
}

function inHalves(kernels: Kernels, tensor: WeightTensor): TensorToWrite {
  const { name, weight, rows } = tensor;
  const halves = Uint16Array.from(rowMajor(kernels, tensor), floatToHalf);
  const shape = weight instanceof Float32Array ? [rows] : [rows, weight.cols];
  return { name, type: 'F16', shape, data: new Uint8Array(halves.buffer) };
}

/** The directory, whole or not at all. @throws RequestError where it exists. */
export function saveDirectory(
  directory: string,
  config: Readonly<Record<string, unknown>>,
  tensors: readonly TensorToWrite[],
  { provenance, card }: SavedTexts,
  {
    weights = 'model.safetensors',
    others = {},
  }: { readonly weights?: string; readonly others?: Readonly<Record<string, string>> } = {},
): void {
  requireAbsent(directory);
  // Beside its place until it is whole.
  const making = join(dirname(directory), `.${basename(directory)}.${process.pid}.tmp`);
  try {
    rmSync(making, { recursive: true, force: true });
    mkdirSync(making, { recursive: true });
    const write = (file: string, text: string) => writeAtomically(join(making, file), [Buffer.from(text)]);
    writeSafetensors(join(making, weights), tensors);
    write('config.json', `${JSON.stringify(config, undefined, 2)}\n`);
    write('provenance.json', `${JSON.stringify(provenance, undefined, 2)}\n`);
    if (card !== undefined) write('README.md', card);
    for (const [file, text] of Object.entries(others)) write(file, text);
    renameSync(making, directory);
    syncDirectory(dirname(directory));
  } catch (error) {
    rmSync(making, { recursive: true, force: true });
    throw error;
  }
}
