/** A training run whatever learns: which texts it is shown, what counts in them, and what is left of a process that was killed. */
import { mkdtempSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { createKernels } from '../../src/kernels/choose.ts';
import type { TextFeatures } from '../../src/train/feature-store.ts';
import { Parameters } from '../../src/train/parameters.ts';
import { type Learner, type RunOptions, splitTexts, TrainingRun } from '../../src/train/run.ts';
import { TrainingLog } from '../../src/train/training-log.ts';
import type { EncodedText, TrainingText } from '../../src/train/unroll.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';

const scratch = temporaryDirectory();
const newDirectory = (): string => mkdtempSync(join(scratch, 'run-'));
const kernels = createKernels();

const OPTIONS: RunOptions = {
  settings: { epochs: 3, tokensPerBatch: 12, learningRate: 1e-3, warmup: 1, clipNorm: 0.5, seed: 3 },
  promptEpochs: 1,
  heldBackEvery: 4,
  evaluateEvery: 2,
};

/** Of six tokens that tell which text it is, the last two the assistant's. */
const texts: readonly EncodedText[] = Array.from({ length: 10 }, (_, index) => ({
  ids: new Int32Array(6).fill(index),
  mask: Uint8Array.of(0, 0, 0, 0, 1, 1),
}));

const featuresOf = (these: readonly EncodedText[]): TextFeatures => ({
  texts: these.length,
  tokens: these.reduce((sum, { ids }) => sum + ids.length, 0),
  text: (index) => these[index]!,
  read: (index) => ({ ...these[index]!, features: new Float32Array() }),
});

interface Seen {
  readonly text: number;
  readonly counts: number;
  /** Undefined where it was judged by. */
  readonly epoch?: number;
}

/** Learns nothing, and says what it was shown. Every token but a text's first has a row. */
function recorder(): Learner & { readonly seen: Seen[] } {
  const seen: Seen[] = [];
  const show = (shown: readonly TrainingText[], epoch?: number) => {
    const rows = shown.map(({ ids, mask }) => {
      const counts = mask.reduce((sum, one) => sum + one, 0);
      seen.push({ text: ids[0]!, counts, ...(epoch !== undefined && { epoch }) });
      return ids.length > 1 ? counts : 0;
    });
    return [{ classification: 1, agreement: 0, rows: rows.reduce((sum, one) => sum + one, 0) }];
  };
  return {
    seen,
    parameters: new Parameters(kernels, [{ name: 'w', weight: new Float32Array(4) }]),
    gradients: (shown, _, epoch) => show(shown, epoch),
    evaluate: (shown) => show(shown),
    [Symbol.dispose]: () => {},
  };
}

function runOver(these: readonly EncodedText[]): readonly Seen[] {
  const learner = recorder();
  using run = new TrainingRun(newDirectory(), featuresOf(these), learner, OPTIONS);
  while (run.trainer.step < run.trainer.totalSteps) run.advance();
  return learner.seen;
}

describe('a training run', () => {
  const seen = runOver(texts);

  it('learns from the texts that are not held back, in every epoch', () => {
    expect(splitTexts(featuresOf(texts), 4)).toEqual({ trained: [0, 1, 2, 4, 5, 6, 8, 9], heldBack: [3, 7] });
    for (const epoch of [0, 1, 2]) {
      const learned = seen.filter((shown) => shown.epoch === epoch).map(({ text }) => text);
      expect(learned.sort()).toEqual([0, 1, 2, 4, 5, 6, 8, 9]);
    }
    expect(new Set(seen.filter(({ epoch }) => epoch === undefined).map(({ text }) => text))).toEqual(new Set([3, 7]));
  });

  it('counts prompts in the first epochs, later and in judging answers alone', () => {
    for (const { counts, epoch } of seen) expect(counts).toBe(epoch === 0 ? 6 : 2);
  });

  it.each([
    ['no text', texts.map(({ ids }) => ({ ids: ids.slice(0, 1), mask: Uint8Array.of(1) }))],
    ['no text held back', texts.map((text, i) => (i % 4 === 3 ? { ...text, mask: new Uint8Array(6) } : text))],
    [
      'no text that is learned from',
      texts.map((text, i) => (i % 4 === 3 ? text : { ids: text.ids.slice(0, 1), mask: Uint8Array.of(1) })),
    ],
  ])('ends where %s holds a token that counts', (_, these) => {
    expect(() => runOver(these)).toThrow(/^texts: .*must hold tokens that count, none/);
  });

  it('removes what a killed process had begun to write, and nothing else', () => {
    const directory = newDirectory();
    const others = ['checkpoint.safetensors.tmp', 'other.123-0a1b2c3d4e5f.tmp', 'log.jsonl'];
    const left = ['checkpoint.safetensors.123-0a1b2c3d4e5f.tmp', 'log.jsonl.9-ffffffffffff.tmp'];
    for (const name of [...others, ...left]) writeFileSync(join(directory, name), '');
    {
      using run = new TrainingRun(directory, featuresOf(texts), recorder(), OPTIONS);
      run.advance();
    }
    expect(readdirSync(directory).sort()).toEqual(others.sort());
  });

  it('names the log that cannot be written', () => {
    const path = join(newDirectory(), 'log.jsonl');
    const log = new TrainingLog(path, 0);
    log[Symbol.dispose](); // its file is closed
    const entry = { step: 1, tokens: 1, losses: [{ classification: 1, rows: 1, agreement: 1 }] };
    expect(() => log.append(entry)).toThrow(`${path}: cannot be written: EBADF`);
    expect(() => new TrainingLog(join(scratch, 'nowhere', 'log.jsonl'), 0)).toThrow(/log\.jsonl: cannot be written: /);
  });
});
