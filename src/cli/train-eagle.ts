/** An EAGLE head for a model, from nothing but the model: its own text, its features, the training, and the head as a directory. */
import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { readJsonIfPresent } from '../checkpoint/file.ts';
import { DEFAULT_DRAFT_VOCABULARY } from '../train/draft-vocabulary.ts';
import { EagleRun, type EagleRunOptions } from '../train/eagle-run.ts';
import { INITIAL_HEADS } from '../train/initial-head.ts';
import { DEFAULT_LOSS_VOCABULARY } from '../train/loss-vocabulary.ts';
import { saveHead } from '../train/save.ts';
import { positiveNumber, realFromZero, wholeNumber } from './common.ts';
import { type Course, type TrainingFlags, train, withTrainingOptions } from './training.ts';

interface Flags extends TrainingFlags {
  readonly steps: number;
  readonly unrollFrom: number;
  readonly stepDecay: number;
  readonly noise: number;
  readonly classification: number;
  readonly draftVocab?: number;
  readonly lossVocab?: number;
  readonly intermediateSize?: number;
  readonly start: string;
}

/** That of the head that ships, six stages one in another, has some kilobytes. */
const MAX_PROVENANCE_BYTES = 2 ** 20;

export function register(parent: Command): void {
  const command = parent
    .command('eagle')
    .description('an EAGLE head; the same command goes on where it was interrupted');
  withTrainingOptions(command, { product: 'head', learningRate: 1e-3 })
    .option(
      '--steps <n>',
      'steps that the head is unrolled on its own features; 1 is EAGLE-1’s training',
      positiveNumber,
      3,
    )
    .option('--unroll-from <epoch>', 'the epochs before it train one step only, which costs less', wholeNumber, 0)
    .option('--step-decay <x>', 'weight of a step beside the one before', realFromZero, 0.8)
    .option('--noise <x>', 'uniform, on the features, ±', realFromZero, 0.1)
    .option('--classification <x>', 'weight of the cross-entropy beside the regression', realFromZero, 0.1)
    .option(
      '--draft-vocab <n>',
      `tokens that may be guessed beside those of the text (default: ${DEFAULT_DRAFT_VOCABULARY}, or all)`,
      positiveNumber,
    )
    .option(
      '--loss-vocab <n>',
      `tokens that the loss tells apart (default: ${DEFAULT_LOSS_VOCABULARY}, or all)`,
      positiveNumber,
    )
    .option('--intermediate-size <n>', 'of the head’s feed-forward layer (default: the target’s)', positiveNumber)
    .option(
      '--start <how>',
      `the head before training: ${INITIAL_HEADS.join(', ')}, or a directory to go on from`,
      'identity',
    )
    .action((flags: Flags) => train(flags, course(flags)));
}

function course(flags: Flags): Course<EagleRun> {
  const startedFrom = provenanceOf(flags.start);
  return {
    command: 'eagle',
    product: 'head',
    title: `EAGLE head for ${flags.model}`,
    begin(work, { target }, features, { settings, ...rest }) {
      const { steps, unrollFrom, stepDecay, noise, classification, intermediateSize, start } = flags;
      const options: EagleRunOptions = {
        settings,
        training: { steps, unrollFromEpoch: unrollFrom, stepDecay, noise, loss: { regression: 1, classification } },
        start: INITIAL_HEADS.find((name) => name === start) ?? { directory: resolve(start) },
        draftVocabSize: flags.draftVocab,
        lossVocabSize: flags.lossVocab,
        intermediateSize,
        ...rest,
      };
      return new EagleRun(work, target, features, options);
    },
    facts: ({ coverage }) => ({ draftVocabularyCoverage: coverage, startedFrom }),
    card: (agreement) =>
      `Published EAGLE-1 layout; embedding and LM head are the target's. Agreement with the target's best token on held-back text, after 0, 1, … of its own features: ${agreement.map((share) => share.toFixed(2)).join(', ')}.`,
    save: (directory, { head }, texts, { kernels }) => saveHead(directory, kernels, head, texts),
  };
}

/** What a head to go on from says of itself, if it is one and does. */
function provenanceOf(directory: string): unknown {
  return readJsonIfPresent(join(directory, 'provenance.json'), MAX_PROVENANCE_BYTES);
}
