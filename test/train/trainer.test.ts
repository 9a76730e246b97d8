/** The loop: it learns, and a run that was killed ends where one that was not ends, bit for bit. */
import { mkdtempSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { openHeadFiles } from '../../src/checkpoint/head.ts';
import { FeatureReader } from '../../src/decode/features.ts';
import { EagleHead } from '../../src/draft/eagle-head.ts';
import { RequestError } from '../../src/errors.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { epochBatches } from '../../src/train/batches.ts';
import { coverage, draftVocabulary } from '../../src/train/draft-vocabulary.ts';
import { EagleTraining } from '../../src/train/eagle.ts';
import { FeatureStore, requireSpace } from '../../src/train/feature-store.ts';
import { initialHead } from '../../src/train/initial-head.ts';
import { LiveFeatures } from '../../src/train/live-features.ts';
import { rowMajor } from '../../src/train/matrices.ts';
import { saveHead } from '../../src/train/save.ts';
import { learningRate } from '../../src/train/schedule.ts';
import { Trainer, type TrainReport, type TrainSettings } from '../../src/train/trainer.ts';
import type { EncodedText } from '../../src/train/unroll.ts';
import { randomInteger, xorshift } from '../support/random.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { tinyHeadParts, tinyTarget } from '../support/tiny.ts';

const scratch = temporaryDirectory();
const newDirectory = (): string => mkdtempSync(join(scratch, 'store-'));

const kernels = createKernels();
const target = tinyTarget(kernels);
const { hiddenSize, vocabSize } = target.config;
afterAll(() => target[Symbol.dispose]());

const FEATURES = { model: 'tiny', dtype: 'f32', hiddenSize };

/** Texts of a little language: each token is followed by one of two. */
function texts(count: number): EncodedText[] {
  const random = xorshift(11);
  return Array.from({ length: count }, () => {
    const ids = new Int32Array(randomInteger(random, 5, 30));
    ids[0] = randomInteger(random, 0, vocabSize);
    for (let i = 1; i < ids.length; i++) ids[i] = (ids[i - 1]! * 5 + randomInteger(random, 0, 2)) % vocabSize;
    return { ids, mask: new Uint8Array(ids.length).fill(1, 2) };
  });
}

function fill(store: FeatureStore, all: readonly EncodedText[]): void {
  using reader = new FeatureReader(target, 32);
  for (const text of all) store.append(text, reader.read(text.ids).data);
}

const SETTINGS: TrainSettings = {
  epochs: 3,
  tokensPerBatch: 90,
  learningRate: 3e-3,
  warmup: 3,
  clipNorm: 0.5,
  seed: 7,
};

function createHead(): EagleHead {
  const { config } = tinyHeadParts(target, { draftVocabSize: 48 });
  const ids = draftVocabulary(texts(20), 48, vocabSize);
  return new EagleHead(target, config, initialHead('identity', config, ids, 1), { dtype: 'f32' });
}

/** A run over the store with a head of its own; `use` drives it. */
function withTrainer<T>(store: FeatureStore, use: (trainer: Trainer, head: EagleHead) => T, settings = SETTINGS): T {
  using head = createHead();
  using training = new EagleTraining(kernels, head, { steps: 2, unrollFromEpoch: 0, stepDecay: 0.8, noise: 0.1 });
  const trainable = {
    parameters: training.parameters,
    gradients: (batch: readonly number[], seed: number, epoch: number) =>
      training.gradients(
        batch.map((index) => store.read(index)),
        seed,
        epoch,
      ),
  };
  const lengths = Array.from({ length: store.texts }, (_, index) => store.text(index).ids.length);
  return use(new Trainer(trainable, lengths, settings), head);
}

const weightsOf = (head: EagleHead): number[] => head.tensors().flatMap((tensor) => [...rowMajor(kernels, tensor)]);

function run(trainer: Trainer, until = trainer.totalSteps): TrainReport[] {
  const reports: TrainReport[] = [];
  while (trainer.step < until) reports.push(trainer.advance());
  return reports;
}

describe('a training run', () => {
  const path = temporaryDirectory();
  const store = new FeatureStore(path, FEATURES);
  fill(store, texts(20));
  afterAll(() => store[Symbol.dispose]());

  it('makes the losses smaller', () => {
    const reports = withTrainer(store, (trainer) => run(trainer), { ...SETTINGS, epochs: 12 });
    const mean = (part: readonly TrainReport[]): number =>
      part.reduce((sum, { losses }) => sum + losses[0]!.classification, 0) / part.length;
    expect(mean(reports.slice(-5))).toBeLessThan(0.9 * mean(reports.slice(0, 5)));
    expect(reports.at(-1)!.losses).toHaveLength(2);
  });

  it.each([1, 4, 9])('that was killed after %i updates goes on to the same bits', (killed) => {
    const checkpoint = join(path, `killed-${killed}.safetensors`);
    const whole = withTrainer(store, (trainer, head) => ({ reports: run(trainer), weights: weightsOf(head) }));
    withTrainer(store, (trainer) => {
      run(trainer, killed);
      trainer.save(checkpoint);
      run(trainer, killed + 2); // lost
    });
    const resumed = withTrainer(store, (trainer, head) => {
      trainer.restore(checkpoint);
      expect(trainer.step).toBe(killed);
      return { reports: run(trainer), weights: weightsOf(head) };
    });
    expect(resumed.reports).toEqual(whole.reports.slice(killed));
    expect(resumed.weights).toEqual(whole.weights);
  });

  it('refuses a checkpoint of other settings, and leaves the weights alone', () => {
    const checkpoint = join(path, 'other.safetensors');
    withTrainer(store, (trainer) => trainer.save(checkpoint));
    withTrainer(
      store,
      (trainer, head) => {
        const before = weightsOf(head);
        expect(() => trainer.restore(checkpoint)).toThrow(RequestError);
        expect(() => trainer.restore(checkpoint)).toThrow(
          'is of a run with learningRate 0.003, got 0.001; seed 7, got 8: give the same, or another directory',
        );
        expect(weightsOf(head)).toEqual(before);
      },
      { ...SETTINGS, learningRate: 1e-3, seed: 8 },
    );
  });

  it('saves a head that loads, in f16, and never over another', () => {
    const out = join(path, 'head');
    withTrainer(store, (trainer, head) => {
      run(trainer, 2);
      saveHead(out, kernels, head, { provenance: { steps: 2 }, card: '# A head\n' });
      using files = openHeadFiles(out);
      using loaded = new EagleHead(target, files.config, files.source, { dtype: 'f32' });
      expect([...loaded.targetIds!]).toEqual([...head.targetIds!]);
      const trained = weightsOf(head);
      const read = weightsOf(loaded);
      expect(read).toHaveLength(trained.length);
      // f16 has 11 significant bits.
      for (const [i, value] of trained.entries())
        expect(Math.abs(read[i]! - value)).toBeLessThanOrEqual(Math.abs(value) * 2 ** -11 + 2 ** -25);
      expect(JSON.parse(readFileSync(join(out, 'provenance.json'), 'utf8'))).toEqual({ steps: 2 });
      expect(() => saveHead(out, kernels, head, { provenance: {}, card: '' })).toThrow(/must not exist/);
    });
  });
});

describe('feature store', () => {
  const all = texts(3);

  function stored(use: (directory: string) => void): void {
    const directory = newDirectory();
    {
      using store = new FeatureStore(directory, FEATURES);
      fill(store, all);
    }
    use(directory);
  }

  const contents = (directory: string): number[][] => {
    using store = new FeatureStore(directory, FEATURES);
    return Array.from({ length: store.texts }, (_, index) => {
      const { ids, mask, features } = store.read(index);
      return [...ids, ...mask, ...features];
    });
  };

  it('gives back what it was given, features to f16', () => {
    stored((directory) => {
      using store = new FeatureStore(directory, FEATURES);
      using reader = new FeatureReader(target, 32);
      expect(store.tokens).toBe(all.reduce((sum, { ids }) => sum + ids.length, 0));
      for (const [index, text] of all.entries()) {
        const read = store.read(index);
        expect([...read.ids]).toEqual([...text.ids]);
        expect([...read.mask]).toEqual([...text.mask]);
        const { data } = reader.read(text.ids);
        for (const [i, value] of read.features.entries())
          expect(Math.abs(value - data[i]!)).toBeLessThanOrEqual(Math.abs(data[i]!) * 2 ** -11 + 2 ** -25);
      }
    });
  });

  it.each([
    [
      'a line written by half',
      (directory: string) => writeFileSync(join(directory, 'texts.jsonl'), '{"ids":[1,', { flag: 'a' }),
      3,
    ],
    [
      'features without a line',
      (directory: string) => writeFileSync(join(directory, 'features.f16'), 'xxxx', { flag: 'a' }),
      3,
    ],
    [
      'a line without features',
      (directory: string) => truncateSync(join(directory, 'features.f16'), 2 * hiddenSize * 20),
      1,
    ],
  ])('drops %s and goes on', (_, damage, kept) => {
    stored((directory) => {
      const before = contents(directory);
      damage(directory);
      const after = contents(directory);
      expect(after.length).toBeLessThanOrEqual(kept);
      expect(after).toEqual(before.slice(0, after.length));
      {
        using store = new FeatureStore(directory, FEATURES);
        fill(store, all.slice(after.length));
      }
      expect(contents(directory)).toEqual(before);
    });
  });

  it('tells what it holds', () => {
    stored((directory) => {
      using store = new FeatureStore(directory, FEATURES);
      const other = { ids: Int32Array.of(1, 2, 3), mask: new Uint8Array(3) };
      expect([...all, other].map((text) => store.has(text))).toEqual([true, true, true, false]);
      fill(store, [...all, other]);
      expect(store.has(other)).toBe(true);
      expect(store.has({ ids: other.ids.slice(0, 2), mask: other.mask.slice(0, 2) })).toBe(false);
    });
  });

  it('is read beside its writer, as far as it is written, and left as it is', () => {
    stored((directory) => {
      const whole = contents(directory);
      for (const [name, half] of [
        ['texts.jsonl', '{"ids":[1,'],
        ['features.f16', 'xxxx'],
      ] as const)
        writeFileSync(join(directory, name), half, { flag: 'a' });
      const bytes = ['texts.jsonl', 'features.f16'].map((name) => readFileSync(join(directory, name)));
      using store = new FeatureStore(directory, FEATURES, 'read');
      expect(store.texts).toBe(3);
      expect([...store.read(2).ids, ...store.read(2).mask, ...store.read(2).features]).toEqual(whole[2]);
      expect(['texts.jsonl', 'features.f16'].map((name) => readFileSync(join(directory, name)))).toEqual(bytes);
    });
  });

  it('cannot be read where there is none', () => {
    const directory = newDirectory();
    expect(() => new FeatureStore(directory, FEATURES, 'read')).toThrow(/must be a store of features, got ENOENT/);
    expect(readdirSync(directory)).toEqual([]);
  });

  it('is as good as features that are computed whenever they are read', () => {
    stored((directory) => {
      using store = new FeatureStore(directory, FEATURES);
      using live = new LiveFeatures(target, all);
      expect([live.texts, live.tokens]).toEqual([store.texts, store.tokens]);
      for (const index of all.keys()) {
        const { features, ...text } = live.read(index);
        const kept = store.read(index);
        expect(text).toEqual({ ids: kept.ids, mask: kept.mask });
        for (const [i, value] of kept.features.entries())
          expect(Math.abs(value - features[i]!)).toBeLessThanOrEqual(Math.abs(value) * 2 ** -10 + 2 ** -24);
      }
    });
  });

  it('refuses features of another model', () => {
    stored((directory) => {
      expect(() => new FeatureStore(directory, { ...FEATURES, dtype: 'q8' })).toThrow(/another directory/);
    });
  });

  it('says before anything is written when the disk has no room', () => {
    const directory = newDirectory();
    expect(() => requireSpace(directory, 1e18)).toThrow(/1000000000.00 GB/);
    requireSpace(directory, 1);
  });
});

it('batches hold every text once an epoch, in another order each', () => {
  const lengths = Array.from({ length: 50 }, (_, i) => 1 + ((i * 7) % 40));
  const epochs = [0, 1].map((epoch) => epochBatches(lengths, 64, 3, epoch));
  for (const batches of epochs) {
    expect(batches.flat().toSorted((a, b) => a - b)).toEqual([...lengths.keys()]);
    for (const batch of batches) expect(batch.reduce((sum, index) => sum + lengths[index]!, 0)).toBeLessThanOrEqual(64);
  }
  expect(epochs[0]).not.toEqual(epochs[1]);
  expect(epochBatches(lengths, 64, 3, 1)).toEqual(epochs[1]);
  expect(epochBatches([100, 1], 64, 3, 0).map((batch) => batch.length)).toEqual([1, 1]);
});

it('a draft vocabulary holds the most frequent tokens, then the lowest ids', () => {
  const text = { ids: Int32Array.of(9, 9, 9, 4, 4, 7), mask: Uint8Array.of(0, 1, 1, 1, 1, 1) };
  expect([...draftVocabulary([text], 2, 16)]).toEqual([4, 9]);
  expect([...draftVocabulary([text], 5, 16)]).toEqual([0, 1, 4, 7, 9]);
  expect(coverage([text], Int32Array.of(4, 9))).toBe(4 / 5);
});

it('a token is covered by the draft vocabulary, or by what stands earlier in its own text, the prompt too', () => {
  const text = (ids: readonly number[], mask: readonly number[]): EncodedText => ({
    ids: Int32Array.from(ids),
    mask: Uint8Array.from(mask),
  });
  const prompted = text([7, 5, 5, 7, 8, 8], [0, 0, 1, 1, 1, 1]);
  // 5 and 7 stand in the prompt, the first 8 nowhere, the second after it.
  expect(coverage([prompted], Int32Array.of(0))).toBe(3 / 4);
  expect(coverage([prompted], Int32Array.of(8))).toBe(1);
  expect(coverage([prompted, text([8, 7], [1, 1])], Int32Array.of(0))).toBe(3 / 6); // no text helps another
  expect(coverage([prompted], undefined)).toBe(1);
});

it('the learning rate rises, then falls to a floor', () => {
  const schedule = { peak: 1, warmup: 4, total: 24, floor: 0.1 };
  const rates = Array.from({ length: 25 }, (_, step) => learningRate(schedule, step));
  expect(rates.slice(0, 4)).toEqual([0.25, 0.5, 0.75, 1]);
  expect(rates[14]).toBeCloseTo(0.55);
  expect(rates[24]).toBeCloseTo(0.1);
  for (let i = 5; i < 25; i++) expect(rates[i]).toBeLessThan(rates[i - 1]!);
});
