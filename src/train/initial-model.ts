/** A Llama before training. */
import type { ModelConfig } from '../model/config.ts';
import { memorySource } from '../tensor/memory-source.ts';
import type { TensorSource } from '../tensor/source.ts';
import { InitialWeights } from './initial-weights.ts';

/** Normally distributed as Llama's own start; embedding and LM head are one matrix. */
export function initialModel(config: ModelConfig, seed: number): TensorSource {
  const { vocabSize, hiddenSize: d } = config;
  const weights = new InitialWeights(seed);
  const tensors = {
    'model.embed_tokens.weight': weights.matrix(vocabSize, d),
    'model.norm.weight': weights.norm(d),
  };
  for (let i = 0; i < config.layers; i++) {
    const prefix = `model.layers.${i}.`;
    const layer = { [`${prefix}input_layernorm.weight`]: weights.norm(d), ...weights.layer(prefix, config) };
    Object.assign(tensors, layer);
  }
  return memorySource('the random start', tensors);
}
