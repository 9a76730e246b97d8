/** Opens a model from a path, whatever its format. Knows the formats' readers; knows nothing of forward passes or tokenizing. */
import { statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { CheckpointError } from '../errors.ts';
import type { ModelConfig } from '../model/config.ts';
import type { TensorSource } from '../tensor/source.ts';
import { readModelConfig } from './config.ts';
import { describe, readJsonIfPresent, readTextIfPresent } from './file.ts';
import { type GgufTokenizerData, openGguf } from './gguf.ts';
import { openSafetensors, openSafetensorsDirectory } from './safetensors.ts';

/** Configs are about 1 kB, tokenizer configs up to 200 kB for their added tokens. */
const MAX_CONFIG_BYTES = 4 * 2 ** 20;
/** The largest tokenizers in use (Gemma 3, 262k tokens) are 33 MB. */
const MAX_TOKENIZER_BYTES = 64 * 2 ** 20;
/** Templates in use are up to 30 kB. */
const MAX_TEMPLATE_BYTES = 2 ** 20;

/** What is needed to build a tokenizer, as the format has it. The JSON is unchecked. */
export type CheckpointTokenizer =
  | { readonly kind: 'gguf'; readonly data: GgufTokenizerData }
  | {
      readonly kind: 'json';
      readonly tokenizerJson: unknown;
      readonly tokenizerConfig: unknown;
      readonly chatTemplate?: string;
    };

export interface Checkpoint extends Disposable {
  readonly path: string;
  readonly format: 'gguf' | 'safetensors';
  readonly config: ModelConfig;
  readonly source: TensorSource;
  /** Undefined for a model without one: token ids in, token ids out. */
  readonly tokenizer: CheckpointTokenizer | undefined;
  /** Of the weight files together. */
  readonly fileBytes: number;
}

/** A `.gguf` file, a directory with `config.json` and safetensors, or a `.safetensors` file with `config.json` beside it. */
export async function openCheckpoint(path: string): Promise<Checkpoint> {
  if (isDirectory(path)) return openSafetensorsCheckpoint(path, path);
  const lower = path.toLowerCase();
  if (lower.endsWith('.gguf')) return openGgufCheckpoint(path);
  if (lower.endsWith('.safetensors')) return openSafetensorsCheckpoint(path, dirname(path));
  throw new CheckpointError(path, 'file', 'must be a .gguf file, a .safetensors file, or a directory with config.json');
}

async function openGgufCheckpoint(path: string): Promise<Checkpoint> {
  const { config, source, tokenizer, fileBytes } = await openGguf(path);
  return {
    path,
    format: 'gguf',
    config,
    source,
    tokenizer: tokenizer && { kind: 'gguf', data: tokenizer },
    fileBytes,
    [Symbol.dispose]: () => source[Symbol.dispose](),
  };
}

function openSafetensorsCheckpoint(path: string, directory: string): Checkpoint {
  const configPath = join(directory, 'config.json');
  const json = readJsonIfPresent(configPath, MAX_CONFIG_BYTES);
  if (json === undefined) throw new CheckpointError(configPath, 'file', 'must exist beside the weights');
  const config = readModelConfig(json, configPath);
  const tokenizer = readTokenizerFiles(directory);
  const source = path === directory ? openSafetensorsDirectory(directory) : openSafetensors(path);
  return {
    path,
    format: 'safetensors',
    config,
    source,
    tokenizer,
    fileBytes: source.fileBytes,
    [Symbol.dispose]: () => source[Symbol.dispose](),
  };
}

function readTokenizerFiles(directory: string): CheckpointTokenizer | undefined {
  const tokenizerJson = readJsonIfPresent(join(directory, 'tokenizer.json'), MAX_TOKENIZER_BYTES);
  if (tokenizerJson === undefined) return undefined;
  const tokenizerConfig = readJsonIfPresent(join(directory, 'tokenizer_config.json'), MAX_CONFIG_BYTES) ?? {};
  const chatTemplate =
    readTextIfPresent(join(directory, 'chat_template.jinja'), MAX_TEMPLATE_BYTES) ?? templateIn(tokenizerConfig);
  return { kind: 'json', tokenizerJson, tokenizerConfig, ...(chatTemplate === undefined ? {} : { chatTemplate }) };
}

/** `chat_template` is one template, or a list of named ones of which "default" is for chat. */
function templateIn(tokenizerConfig: unknown): string | undefined {
  if (typeof tokenizerConfig !== 'object' || tokenizerConfig === null) return undefined;
  const template: unknown = 'chat_template' in tokenizerConfig ? tokenizerConfig.chat_template : undefined;
  if (typeof template === 'string') return template;
  if (!Array.isArray(template)) return undefined;
  const named = template as readonly { readonly name?: unknown; readonly template?: unknown }[];
  const chosen = named.find((item) => item?.name === 'default')?.template;
  return typeof chosen === 'string' ? chosen : undefined;
}

function isDirectory(path: string): boolean {
  try {
    return statSync(path).isDirectory();
  } catch (cause) {
    throw new CheckpointError(path, 'path', `must exist, got ${describe(cause)}`, { cause });
  }
}
