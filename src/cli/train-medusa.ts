/** Medusa heads for a model, from nothing but the model, on the same text as every other drafter. */
import type { Command } from 'commander';
import { growMedusaTree } from '../draft/medusa-tree.ts';
import { DEFAULT_DRAFT_VOCABULARY } from '../train/draft-vocabulary.ts';
import { DEFAULT_LOSS_VOCABULARY } from '../train/loss-vocabulary.ts';
import { MEDUSA_ADAMW, MedusaRun, type MedusaRunOptions } from '../train/medusa-run.ts';
import { saveMedusa } from '../train/save.ts';
import { positiveNumber } from './common.ts';
import { type Course, type TrainingFlags, train, withTrainingOptions } from './training.ts';

interface Flags extends TrainingFlags {
  readonly heads: number;
  readonly layers: number;
  readonly draftVocab?: number;
  readonly lossVocab?: number;
}

/** Below the root, of the tree that is saved with the heads: as many as the authors'. */
const TREE_NODES = 63;

export function register(parent: Command): void {
  const command = parent
    .command('medusa')
    .description('Medusa heads; the same command goes on where it was interrupted');
  withTrainingOptions(command, { product: 'heads', learningRate: 1e-3 })
    .option('--heads <n>', 'tokens guessed beyond the next one', positiveNumber, 4)
    .option('--layers <n>', 'residual blocks of each head', positiveNumber, 1)
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
    .action((flags: Flags) => train(flags, course(flags)));
}

function course(flags: Flags): Course<MedusaRun> {
  return {
    command: 'medusa',
    product: 'heads',
    title: `Medusa heads for ${flags.model}`,
    begin(work, { target }, features, { settings, ...rest }) {
      const { heads, layers, draftVocab: draftVocabSize, lossVocab: lossVocabSize } = flags;
      const options: MedusaRunOptions = {
        settings: { ...settings, adamW: MEDUSA_ADAMW },
        heads,
        layers,
        draftVocabSize,
        lossVocabSize,
        ...rest,
      };
      return new MedusaRun(work, target, features, options);
    },
    facts: ({ coverage }) => ({ draftVocabularyCoverage: coverage }),
    card: (agreement) =>
      `Published Medusa layout, version 2: embedding and LM head are the target's. Of the tokens of held-back answers that the loss tells apart, the share that is the best guess, 2, 3, … places ahead: ${agreement.map((share) => share.toFixed(2)).join(', ')}. \`tree.json\` is a tree grown from their accuracies by rank.`,
    save(directory, run, { provenance, card }, { kernels }) {
      const accuracies = run.accuracies();
      const tree = growMedusaTree(accuracies, { nodes: TREE_NODES });
      const texts = { provenance: { ...provenance, accuracies }, card };
      saveMedusa(directory, kernels, run.heads, { base: flags.model, tree }, texts);
    },
  };
}
