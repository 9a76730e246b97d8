/** A training run of one draft model. */
import { RequestError } from '../errors.ts';
import type { ModelConfig } from '../model/config.ts';
import { Llama } from '../model/llama.ts';
import type { TargetModel } from '../model/target.ts';
import type { TensorSource } from '../tensor/source.ts';
import { DraftTraining, type DraftTrainingOptions } from './draft.ts';
import type { TextFeatures } from './feature-store.ts';
import { initialModel } from './initial-model.ts';
import { type RunOptions, TrainingRun } from './run.ts';

export interface DraftShape {
  readonly hiddenSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly intermediateSize: number;
}

export interface DraftRunOptions extends RunOptions {
  readonly training: DraftTrainingOptions;
  readonly shape: DraftShape;
}

export class DraftRun extends TrainingRun {
  readonly model: Llama;

  /** @throws RequestError where the directory's checkpoint is of another run. */
  constructor(directory: string, target: TargetModel, features: TextFeatures, options: DraftRunOptions) {
    const config = draftConfig(target.config, options.shape);
    using source: TensorSource = initialModel(config, options.settings.seed);
    const model = new Llama(target.kernels, config, source, { dtype: 'f32' });
    super(directory, features, new DraftTraining(target, model, options.training), options);
    this.model = model;
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.model[Symbol.dispose]();
  }
}

/** @throws RequestError where the heads do not fit. */
export function checkShape({ hiddenSize, heads, kvHeads }: DraftShape): void {
  if (hiddenSize % (2 * heads) !== 0)
    throw new RequestError('heads', `must share the hidden size ${hiddenSize} in even parts, got ${heads}`);
  if (heads % kvHeads !== 0) throw new RequestError('kvHeads', `must divide the ${heads} query heads, got ${kvHeads}`);
}

/** A Llama with the target's vocabulary, its positions and its norm. */
function draftConfig(target: ModelConfig, shape: DraftShape): ModelConfig {
  checkShape(shape);
  const { vocabSize, contextLength, ropeTheta, rmsNormEps } = target;
  return {
    architecture: 'llama',
    ...shape,
    headDim: shape.hiddenSize / shape.heads,
    vocabSize,
    contextLength,
    ropeTheta,
    rmsNormEps,
    tiedEmbeddings: true,
    rotaryLayout: 'half',
  };
}
