/**
 * The rows of a head's training step, for whole texts side by side. Row i of a text of n tokens eats (feature i, token i + 1) and shall
 * predict feature i + 1. Unrolled, step j eats what step j - 1 predicted and token i + 1 + j, at position i + j, and shall predict feature
 * i + 1 + j. It looks at what decoding would show it there: the rows of step 0 up to its own, made of true features, and behind them its
 * own rows of steps 1 to j (EAGLE-3, arXiv:2503.01840, §3.2, figure 6).
 */
import type { AttentionLayout } from '../kernels/kernels.ts';
import type { ForwardRows } from '../model/forward-batch.ts';
import { wholeTiles } from '../model/kv-cache.ts';
import type { ScratchTensor, Tensor } from '../tensor/tensor.ts';

export interface EncodedText {
  readonly ids: Int32Array; // [n]
  /** 1 where the loss counts: row i counts where token i does, as in the authors' data sets. */
  readonly mask: Uint8Array; // [n]
}

/** Of all texts. */
export function countTokens(texts: readonly EncodedText[]): number {
  return texts.reduce((sum, { ids }) => sum + ids.length, 0);
}

/** A text whose features are known. */
export interface TrainingText extends EncodedText {
  /** The target's, after the final norm. */
  readonly features: Float32Array; // [n, d]
}

/** All texts' features below each other: [tokens of all, d]. */
export function stackFeatures(into: ScratchTensor, texts: readonly TrainingText[], d: number): Tensor {
  into.reshape(countTokens(texts), d);
  let at = 0;
  for (const { features } of texts) {
    into.data.set(features, at);
    at += features.length;
  }
  return into;
}

export interface UnrolledStep extends ForwardRows {
  /** Row of the step before whose prediction is this row's feature; at step 0 the row of the true features. */
  readonly source: Int32Array; // [rows]
  /** Row of the true features to be predicted. */
  readonly targets: Int32Array; // [rows]
  readonly mask: Float32Array; // [rows]
}

export interface Unrolled {
  readonly steps: readonly UnrolledStep[];
  /** Slots of the head's cache that the steps use. */
  readonly slots: number;
}

/** Row i of a text that has rows at step j has them at all steps before. */
interface PlannedRow {
  readonly base: number; // first slot of the text
  readonly truth: number; // row of the text's first feature
  readonly text: TrainingText;
  readonly index: number; // i
  readonly slots: number[]; // of its rows from step 1 on
}

/**
 * @param count steps. From the second on a row is there only where its loss, or that of a later step, counts.
 */
export function unroll(texts: readonly TrainingText[], count: number): Unrolled {
  const steps: UnrolledStep[] = [];
  let slots = 0;
  let truth = 0;
  let rows: PlannedRow[] = [];
  for (const text of texts) {
    const n = text.ids.length;
    for (let index = 0; index + 1 < n; index++) rows.push({ base: slots, truth, text, index, slots: [] });
    slots = wholeTiles(slots + Math.max(n - 1, 0));
    truth += n;
  }
  let sources = Int32Array.from(rows, (row) => row.truth + row.index);
  for (let j = 0; j < count; j++) {
    if (j > 0) {
      const kept = Int32Array.from(rows.keys()).filter((row) => countsFrom(rows[row]!, j, count));
      sources = kept;
      rows = Array.from(kept, (row) => rows[row]!);
      for (const row of rows) row.slots.push(slots++);
    }
    steps.push(planStep(rows, sources, j));
  }
  return { steps, slots: wholeTiles(slots) };
}

function planStep(rows: readonly PlannedRow[], source: Int32Array, j: number): UnrolledStep {
  const layout: AttentionLayout = {
    rows: rows.length,
    base: Int32Array.from(rows, ({ base }) => base),
    prefix: Int32Array.from(rows, ({ index }) => index + 1),
    slots: Int32Array.from(rows, ({ base, index, slots }) => slots[j - 1] ?? base + index),
    extrasStart: Int32Array.from({ length: rows.length + 1 }, (_, row) => row * j),
    extras: Int32Array.from(rows.flatMap(({ slots }) => slots)),
  };
  return {
    rows: rows.length,
    tokens: Int32Array.from(rows, ({ text, index }) => text.ids[index + 1 + j]!),
    positions: Int32Array.from(rows, ({ index }) => index + j),
    layout,
    source,
    targets: Int32Array.from(rows, ({ truth, index }) => truth + index + 1 + j),
    mask: Float32Array.from(rows, ({ text, index }) => text.mask[index + j]!),
  };
}

/** Whether the row has a target, and one that counts, at step j or later. */
function countsFrom({ text, index }: PlannedRow, j: number, count: number): boolean {
  for (let k = j; k < count && index + 1 + k < text.ids.length; k++) if (text.mask[index + k] !== 0) return true;
  return false;
}
