/** A whole training run of the named kind on a tiny model, in the directory that is named: a process for `killed.test.ts` to kill. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { createKernels } from '../../src/kernels/choose.ts';
import { computeFeatures } from '../../src/train/compute-features.ts';
import { DraftRun } from '../../src/train/draft-run.ts';
import { EagleRun } from '../../src/train/eagle-run.ts';
import { FeatureStore } from '../../src/train/feature-store.ts';
import type { RunOptions, TrainingRun } from '../../src/train/run.ts';
import type { EncodedText } from '../../src/train/unroll.ts';
import { randomInteger, xorshift } from '../support/random.ts';
import { tinyTarget } from '../support/tiny.ts';

const [directory, kind] = process.argv.slice(2) as [string, string];
const target = tinyTarget(createKernels({ threads: 1 }));
const { hiddenSize, vocabSize } = target.config;
const random = xorshift(21);
const texts: EncodedText[] = Array.from({ length: 40 }, () => {
  const ids = Int32Array.from({ length: randomInteger(random, 8, 40) }, () => randomInteger(random, 0, vocabSize));
  return { ids, mask: new Uint8Array(ids.length).fill(1, 3) };
});

mkdirSync(join(directory, 'features'), { recursive: true });
const store = new FeatureStore(join(directory, 'features'), { model: 'tiny', dtype: 'f32', hiddenSize });
for (const tokens of computeFeatures(target, store, texts)) process.stdout.write(`features ${tokens}\n`);
const options: RunOptions = {
  settings: { epochs: 3, tokensPerBatch: 100, learningRate: 1e-3, warmup: 4, clipNorm: 0.5, seed: 1 },
  promptEpochs: 1,
  heldBackEvery: 10,
  evaluateEvery: 7,
};
const RUNS: Readonly<Record<string, () => TrainingRun>> = {
  eagle: () =>
    new EagleRun(directory, target, store, {
      ...options,
      training: { steps: 2, unrollFromEpoch: 1, stepDecay: 0.8, noise: 0.1 },
      draftVocabSize: 48,
      intermediateSize: 48,
      start: 'identity',
    }),
  draft: () =>
    new DraftRun(directory, target, store, {
      ...options,
      training: { textShare: 0.2 },
      shape: { hiddenSize: 24, layers: 2, heads: 3, kvHeads: 1, intermediateSize: 40 },
    }),
};
const run = RUNS[kind]!();
while (run.trainer.step < run.trainer.totalSteps) {
  run.advance();
  if (run.trainer.step % 3 === 0) run.save();
  process.stdout.write(`update ${run.trainer.step}\n`);
}
run.save();
process.stdout.write('done\n');
