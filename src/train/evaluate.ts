/**
 * How often a chain draft is right (n-α, arXiv:2401.15077 §4.2): the head's best guess against the target's best token, along a text that
 * exists, where the head's input holds n of its own predicted features.
 */
import { bestColumns, GuessesAlong, knownTo } from '../draft/best-guesses.ts';
import type { EagleHead } from '../draft/eagle-head.ts';
import type { TargetModel } from '../model/target.ts';
import { EagerOps } from '../tensor/ops.ts';
import { copyRow, ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import { stackFeatures, type TrainingText, unroll } from './unroll.ts';

export interface ChainAcceptance {
  /** Guesses held against the target's best token. */
  readonly guesses: number;
  readonly accepted: number;
}

/**
 * 0-α to (steps - 1)-α of the text's counting tokens.
 *
 * Row i of step j has eaten token i + 1 + j of the text, is to guess token i + 2 + j, and may guess the draft vocabulary and tokens 0 to
 * i + 1 + j. In decoding token i + 1 is the root, and the j behind it were guesses: whatever a chain comes to, it could guess. So a row
 * counts where all of them count, from the root to the token guessed: the guesses that decoding makes in an answer. (In training a row
 * counts where token i + j does, as in the authors' data sets: at both ends of an answer these are others.)
 */
export function chainAcceptance(
  target: TargetModel,
  head: EagleHead,
  text: TrainingText,
  steps: number,
): ChainAcceptance[] {
  const { kernels } = target;
  const d = target.config.hiddenSize;
  const plan = unroll([text], steps);
  using cache = head.createCache(plan.slots);
  using along = new GuessesAlong(target, head, text.ids);
  const ops = new EagerOps(kernels);
  const truth = stackFeatures(new ScratchTensor(), [text], d);
  const wanted = bestColumns(target, truth, target.lmHead);
  const input = new ScratchTensor();
  let features: Tensor = truth;
  return plan.steps.map((step, j) => {
    input.reshape(step.rows, d);
    for (let row = 0; row < step.rows; row++) copyRow(input, row, features, step.source[row]!);
    features = head.forward(step, input, cache, ops);
    // A row at position i + j has eaten the token one ahead.
    const known = step.positions.map((position) => knownTo(position + 1));
    const guesses = along.best(features, known);
    let accepted = 0;
    let counted = 0;
    for (let row = 0; row < step.rows; row++) {
      const root = step.targets[row]! - j;
      if (root + 1 + j >= text.ids.length || text.mask.subarray(root, root + 2 + j).includes(0)) continue;
      counted++;
      if (guesses[row] === wanted[step.targets[row]!]) accepted++;
    }
    return { guesses: counted, accepted };
  });
}
