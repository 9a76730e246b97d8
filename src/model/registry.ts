/** Architectures: one file and one line each. */
import type { Kernels } from '../kernels/kernels.ts';
import type { TensorSource } from '../tensor/source.ts';
import type { ModelConfig } from './config.ts';
import { type LoadOptions, loadLlama } from './llama.ts';
import type { TargetModel } from './target.ts';

type Load = (kernels: Kernels, config: ModelConfig, source: TensorSource, options: LoadOptions) => TargetModel;

const ARCHITECTURES = { llama: loadLlama } as const satisfies { [A in ModelConfig['architecture']]: Load };

export function loadTarget(
  kernels: Kernels,
  config: ModelConfig,
  source: TensorSource,
  options: LoadOptions,
): TargetModel {
  return ARCHITECTURES[config.architecture](kernels, config, source, options);
}
