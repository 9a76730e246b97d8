/** The two files of a draft head's directory. Knows nothing of the target they should fit: `draft/` checks that. */
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { HeadConfig } from '../draft/head-config.ts';
import { CheckpointError } from '../errors.ts';
import { readHeadConfig } from './config.ts';
import { readJsonIfPresent } from './file.ts';
import { openSafetensors, type SafetensorsFile } from './safetensors.ts';

/** Configs are about 1 kB. */
const MAX_CONFIG_BYTES = 4 * 2 ** 20;

export interface HeadFiles extends Disposable {
  readonly config: HeadConfig;
  readonly source: SafetensorsFile;
}

/** Opens and checks both headers; weights are read later. Dispose to close the file. */
export function openHeadFiles(directory: string): HeadFiles {
  const configPath = join(directory, 'config.json');
  const json = readJsonIfPresent(configPath, MAX_CONFIG_BYTES);
  if (json === undefined) {
    const rule = 'must exist: a head is a directory with config.json and model.safetensors';
    throw new CheckpointError(configPath, 'file', rule);
  }
  const config = readHeadConfig(json, configPath);
  const source = openSafetensors(join(directory, 'model.safetensors'));
  return { config, source, [Symbol.dispose]: () => source[Symbol.dispose]() };
}

/** Whether a directory holds a head rather than a model: only a head has a matrix `fc` over embedding and feature. */
export function isHeadDirectory(path: string): boolean {
  const file = join(path, 'model.safetensors');
  if (!existsSync(path) || !statSync(path).isDirectory() || !existsSync(file)) return false;
  using source = openSafetensors(file);
  return source.entries.has('fc.weight');
}
