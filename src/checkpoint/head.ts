/** The two files of a draft head's directory. Knows nothing of the target they should fit: `draft/` checks that. */
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { HeadConfig } from '../draft/head-config.ts';
import { CheckpointError } from '../errors.ts';
import type { TensorSource } from '../tensor/source.ts';
import { readHeadConfig } from './config.ts';
import { readJsonIfPresent } from './file.ts';
import { renamedSource } from './renamed-source.ts';
import { openSafetensors } from './safetensors.ts';
import { openTorch } from './torch.ts';

/** Configs are about 1 kB. */
const MAX_CONFIG_BYTES = 4 * 2 ** 20;

/** The files a head's weights may be in. The first that is there is read: safetensors cannot hold a program. */
const WEIGHT_FILES = [
  { file: 'model.safetensors', format: 'safetensors', open: openSafetensors },
  { file: 'pytorch_model.bin', format: 'torch', open: openTorch },
] as const;

export type HeadFormat = (typeof WEIGHT_FILES)[number]['format'];
type HeadSource = TensorSource & { readonly fileBytes: number };

export interface HeadFiles extends Disposable {
  readonly config: HeadConfig;
  readonly format: HeadFormat;
  /** Names have no `model.` in front, whatever the file says. */
  readonly source: HeadSource;
}

/** Opens and checks both headers; weights are read later. Dispose to close the file. */
export function openHeadFiles(directory: string): HeadFiles {
  const configPath = join(directory, 'config.json');
  const json = readJsonIfPresent(configPath, MAX_CONFIG_BYTES);
  if (json === undefined) {
    const rule = 'must exist: a head is a directory with config.json and model.safetensors or pytorch_model.bin';
    throw new CheckpointError(configPath, 'file', rule);
  }
  const config = readHeadConfig(json, configPath);
  const weights = findWeights(directory);
  if (weights === undefined) {
    const rule = `must hold ${WEIGHT_FILES.map(({ file }) => file).join(' or ')}`;
    throw new CheckpointError(directory, 'directory', rule);
  }
  const source = openWeights(directory, weights);
  return { config, format: weights.format, source, [Symbol.dispose]: () => source[Symbol.dispose]() };
}

/** Whether a directory holds a head rather than a model: only a head has a matrix `fc` over embedding and feature. */
export function isHeadDirectory(path: string): boolean {
  if (!existsSync(path) || !statSync(path).isDirectory()) return false;
  const weights = findWeights(path);
  if (weights === undefined) return false;
  using source = openWeights(path, weights);
  return source.entries.has('fc.weight');
}

type WeightFile = (typeof WEIGHT_FILES)[number];

function findWeights(directory: string): WeightFile | undefined {
  return WEIGHT_FILES.find(({ file }) => existsSync(join(directory, file)));
}

function openWeights(directory: string, { file, open }: WeightFile): HeadSource {
  const source: HeadSource = open(join(directory, file));
  try {
    return withoutModelPrefix(source);
  } catch (error) {
    source[Symbol.dispose]();
    throw error;
  }
}

/** Some trainers save the head as the `model` of a wrapper. */
function withoutModelPrefix(source: HeadSource): HeadSource {
  const renamed = renamedSource(source, 'model.', (original) => original.replace(/^model\./, ''));
  return { ...renamed, fileBytes: source.fileBytes };
}
