/**
 * How often a chain draft is right (n-α, arXiv:2401.15077 §4.2): the head's best guess against the target's best token, along a text that
 * exists, where the head's input holds n of its own predicted features.
 */
import type { EagleHead } from '../draft/eagle-head.ts';
import type { PackedMatrix } from '../kernels/kernels.ts';
import type { TargetModel } from '../model/target.ts';
import { EagerOps } from '../tensor/ops.ts';
import { copyRow, ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import { stackFeatures, type TrainingText, unroll } from './unroll.ts';

export interface ChainAcceptance {
  /** Guesses held against the target's best token. */
  readonly guesses: number;
  readonly accepted: number;
}

/** Rows whose logits over the whole vocabulary are in memory at once. */
const CHUNK = 64;

/** 0-α to (steps - 1)-α of the text's counting tokens. */
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
  const ops = new EagerOps(kernels);
  const truth = stackFeatures(new ScratchTensor(), [text], d);
  const wanted = bestTokens(target, truth, target.lmHead);
  const input = new ScratchTensor();
  let features: Tensor = truth;
  return plan.steps.map((step) => {
    input.reshape(step.rows, d);
    for (let row = 0; row < step.rows; row++) copyRow(input, row, features, step.source[row]!);
    features = head.forward(step, input, cache, ops);
    const guesses = bestGuesses(target, head, features);
    let accepted = 0;
    let counted = 0;
    for (let row = 0; row < step.rows; row++) {
      if (step.mask[row] === 0) continue;
      counted++;
      if (guesses[row] === wanted[step.targets[row]!]) accepted++;
    }
    return { guesses: counted, accepted };
  });
}

/** The target's own best token after each feature. */
function bestTokens(target: TargetModel, features: Tensor, lmHead: PackedMatrix): Int32Array {
  const { kernels } = target;
  const best = new Int32Array(features.rows);
  const logits = new ScratchTensor();
  for (let first = 0; first < features.rows; first += CHUNK) {
    const rows = Math.min(CHUNK, features.rows - first);
    const { data } = logits.reshape(rows, lmHead.rows);
    kernels.matmul(data, features.data.subarray(first * features.cols), lmHead, rows, null);
    kernels.argmax(best.subarray(first, first + rows), data, rows, lmHead.rows);
  }
  return best;
}

/** The head's, in the target's ids. */
function bestGuesses(target: TargetModel, head: EagleHead, features: Tensor): Int32Array {
  const draft = bestTokens(target, features, head.lmHead);
  const { targetIds } = head;
  return targetIds === undefined ? draft : draft.map((id) => targetIds[id]!);
}
