/** A trained head as a directory in the published layout: `config.json`, `model.safetensors` (f16), and where it comes from. */
import { existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { syncDirectory } from '../checkpoint/file.ts';
import { type TensorToWrite, writeSafetensors } from '../checkpoint/safetensors.ts';
import type { EagleHead } from '../draft/eagle-head.ts';
import { RequestError } from '../errors.ts';
import { floatToHalf } from '../kernels/half.ts';
import type { Kernels } from '../kernels/kernels.ts';
import { draftOffsets } from './initial-head.ts';
import { rowMajor } from './matrices.ts';

export interface HeadTexts {
  /** `provenance.json`: target and its hash, data, settings, figures, command. */
  readonly provenance: Readonly<Record<string, unknown>>;
  /** `README.md`: a short model card. */
  readonly card: string;
}

/** @throws RequestError where the directory exists: a head is never written over. */
export function saveHead(directory: string, kernels: Kernels, head: EagleHead, texts: HeadTexts): void {
  requireAbsent(directory);
  const { config, targetIds } = head;
  const tensors = head.tensors().map((tensor): TensorToWrite => {
    const { weight, rows } = tensor;
    const halves = Uint16Array.from(rowMajor(kernels, tensor), floatToHalf);
    const shape = weight instanceof Float32Array ? [rows] : [rows, weight.cols];
    return { name: tensor.name, type: 'F16', shape, data: new Uint8Array(halves.buffer) };
  });
  if (targetIds !== undefined) {
    const offsets = draftOffsets(targetIds);
    tensors.push({ name: 'd2t', type: 'I64', shape: [targetIds.length], data: new Uint8Array(offsets.buffer) });
  }
  const published = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_attention_heads: config.heads,
    num_key_value_heads: config.kvHeads,
    num_hidden_layers: 1,
    hidden_act: 'silu',
    rms_norm_eps: config.rmsNormEps,
    rope_theta: config.ropeTheta,
    vocab_size: config.vocabSize,
    ...(targetIds !== undefined && { draft_vocab_size: targetIds.length }),
    bias: tensors.some(({ name }) => name === 'fc.bias'),
    torch_dtype: 'float16',
    use_cache: true,
  };
  // Beside its place until it is whole.
  const making = join(dirname(directory), `.${basename(directory)}.${process.pid}.tmp`);
  try {
    rmSync(making, { recursive: true, force: true });
    mkdirSync(making, { recursive: true });
    const write = (file: string, text: string) => writeFileSync(join(making, file), text);
    writeSafetensors(join(making, 'model.safetensors'), tensors);
    write('config.json', `${JSON.stringify(published, undefined, 2)}\n`);
    write('provenance.json', `${JSON.stringify(texts.provenance, undefined, 2)}\n`);
    write('README.md', texts.card);
    renameSync(making, directory);
    syncDirectory(dirname(directory));
  } catch (error) {
    rmSync(making, { recursive: true, force: true });
    throw error;
  }
}

/** @throws RequestError where there is something at `directory` already. */
export function requireAbsent(directory: string): void {
  if (existsSync(directory)) throw new RequestError(directory, 'must not exist yet: a head is never written over');
}
