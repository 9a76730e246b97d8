/** A draft model for a target, from nothing but the target: a small Llama with its vocabulary, distilled from its text. */
import { type Command, InvalidArgumentError } from 'commander';
import type { Llama } from '../model/llama.ts';
import { checkShape, DraftRun, type DraftShape } from '../train/draft-run.ts';
import { saveModel } from '../train/save.ts';
import { positiveNumber, realNumber } from './common.ts';
import { type Course, type TrainingFlags, train, withTrainingOptions } from './training.ts';

interface Flags extends TrainingFlags {
  readonly hiddenSize: number;
  readonly layers: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly intermediateSize?: number;
  readonly textShare: number;
}

/** With SmolLM2's 49,152 tokens 9.9 MB as f16, nearly all of it the embeddings. */
const HIDDEN_SIZE = 96;
/** From random weights: four times what a head learns at ends lower (docs/log.md). */
const LEARNING_RATE = 4e-3;
/** Of a query head, by default. */
const HEAD_DIM = 32;

export function register(parent: Command): void {
  const command = parent
    .command('draft')
    .description('a small model of its own that drafts; the same command goes on where it was interrupted');
  withTrainingOptions(command, { product: 'draft model', learningRate: LEARNING_RATE })
    .option('--hidden-size <n>', 'times the vocabulary, it is nearly all of the size', positiveNumber, HIDDEN_SIZE)
    .option('--layers <n>', 'decoder layers', positiveNumber, 2)
    .option('--heads <n>', `query heads (default: one for each ${HEAD_DIM} of the hidden size)`, positiveNumber)
    .option('--kv-heads <n>', 'key and value heads (default: as many)', positiveNumber)
    .option('--intermediate-size <n>', 'of the feed-forward layers (default: 8/3 of the hidden size)', positiveNumber)
    .option('--text-share <x>', 'of the text’s own next token in what is learned, below 1', share, 0)
    .action((flags: Flags) => {
      const shape = shapeOf(flags);
      checkShape(shape); // refused before anything is loaded
      return train(flags, course(flags, shape));
    });
}

function shapeOf({ hiddenSize, layers, heads, kvHeads, intermediateSize }: Flags): DraftShape {
  const queryHeads = heads ?? Math.max(1, Math.round(hiddenSize / HEAD_DIM));
  return {
    hiddenSize,
    layers,
    heads: queryHeads,
    kvHeads: kvHeads ?? queryHeads,
    intermediateSize: intermediateSize ?? Math.ceil((hiddenSize * 8) / 3 / 32) * 32, // Llama's proportion, in whole blocks
  };
}

function share(text: string): number {
  const value = realNumber(text);
  if (value < 0 || value >= 1) throw new InvalidArgumentError(`expected a number from 0 to below 1, got ${value}`);
  return value;
}

function course(flags: Flags, shape: DraftShape): Course<DraftRun> {
  return {
    command: 'draft',
    product: 'draft model',
    title: `Draft model for ${flags.model}`,
    begin: (work, { target }, features, options) =>
      new DraftRun(work, target, features, { ...options, training: { textShare: flags.textShare }, shape }),
    facts: ({ model }) => ({ tokenizer: 'of the target, whose vocabulary this model has', weights: weightsOf(model) }),
    card: ([agreement]) =>
      `A Llama of ${shape.layers} layers and hidden size ${shape.hiddenSize} in the published layout, to draft for its target by speculative sampling. It has no tokenizer of its own: token ids are the target's. Agreement with the target's best token on held-back text: ${agreement!.toFixed(2)}.`,
    save: (directory, { model }, texts) => saveModel(directory, model, texts),
  };
}

/** Numbers in its file. */
function weightsOf(model: Llama): number {
  return model
    .tensors()
    .reduce((sum, { weight, rows }) => sum + rows * (weight instanceof Float32Array ? 1 : weight.cols), 0);
}
