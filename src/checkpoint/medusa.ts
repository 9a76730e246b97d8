/**
 * The files of Medusa heads, in both published layouts and within a merged model. Knows nothing of the target they should fit: `draft/`
 * checks that.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { MedusaConfig } from '../draft/medusa-config.ts';
import { CheckpointError } from '../errors.ts';
import type { TensorSource } from '../tensor/source.ts';
import { readMedusaConfig } from './config.ts';
import { readJsonIfPresent } from './file.ts';
import type { HeadFormat } from './head.ts';
import { renamedSource } from './renamed-source.ts';
import { openSafetensors, openSafetensorsDirectory } from './safetensors.ts';
import { openTorch } from './torch.ts';

/** Configs are about 1 kB. */
const MAX_CONFIG_BYTES = 4 * 2 ** 20;

/** The files that heads may be in: their own, or those of a model that was trained with them. The first that is there is read. */
const WEIGHT_FILES: readonly {
  readonly file: string;
  readonly format: HeadFormat;
  readonly open: (path: string, directory: string) => TensorSource & { readonly fileBytes: number };
}[] = [
  { file: 'medusa_lm_head.safetensors', format: 'safetensors', open: openSafetensors },
  { file: 'medusa_lm_head.pt', format: 'torch', open: openTorch },
  { file: 'model.safetensors', format: 'safetensors', open: openSafetensors },
  {
    file: 'model.safetensors.index.json',
    format: 'safetensors',
    open: (_, directory) => openSafetensorsDirectory(directory),
  },
  { file: 'pytorch_model.bin', format: 'torch', open: openTorch },
];

export interface MedusaFiles extends Disposable {
  readonly config: MedusaConfig;
  readonly format: HeadFormat;
  /** Of the file, or all shards of it. */
  readonly fileBytes: number;
  /** Whether the file holds more than the heads: a model that was trained with them. */
  readonly merged: boolean;
  /** The heads' tensors alone, without `medusa_head.` in front, whatever the file says. */
  readonly source: TensorSource;
}

/** Opens and checks the headers; weights are read later. Dispose to close the file. */
export function openMedusaFiles(directory: string): MedusaFiles {
  const configPath = join(directory, 'config.json');
  const json = readJsonIfPresent(configPath, MAX_CONFIG_BYTES);
  if (json === undefined) {
    const rule = 'must exist: Medusa heads are a directory with config.json and medusa_lm_head.safetensors or .pt';
    throw new CheckpointError(configPath, 'file', rule);
  }
  const config = readMedusaConfig(json, configPath);
  const weights = WEIGHT_FILES.find(({ file }) => existsSync(join(directory, file)));
  if (weights === undefined) {
    const rule = `must hold ${WEIGHT_FILES.map(({ file }) => file).join(' or ')}`;
    throw new CheckpointError(directory, 'directory', rule);
  }
  const opened = weights.open(join(directory, weights.file), directory);
  try {
    const source = headsOf(opened);
    return {
      config,
      format: weights.format,
      fileBytes: opened.fileBytes,
      merged: opened.entries.size > source.entries.size,
      source,
      [Symbol.dispose]: () => source[Symbol.dispose](),
    };
  } catch (error) {
    opened[Symbol.dispose]();
    throw error;
  }
}

/** Whether a directory holds Medusa heads, their config or their file: what else is missing, opening says. */
export function isMedusaDirectory(path: string): boolean {
  const own = WEIGHT_FILES.some(({ file }) => file.startsWith('medusa') && existsSync(join(path, file)));
  if (own) return true;
  const json = readJsonIfPresent(join(path, 'config.json'), MAX_CONFIG_BYTES);
  return typeof json === 'object' && json !== null && Object.hasOwn(json, 'medusa_num_heads');
}

/** A merged model has the heads beside its own tensors. */
function headsOf(source: TensorSource): TensorSource {
  return renamedSource(
    source,
    'medusa_head.',
    (original) => /^(?:medusa_head\.)?(\d+\.\d+\..*|d2t)$/.exec(original)?.[1],
  );
}
