/** Training runs of an EAGLE head: what the head may guess is one thing, what the loss tells apart another. */
import { mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { openHeadFiles } from '../../src/checkpoint/head.ts';
import { EagleHead } from '../../src/draft/eagle-head.ts';
import { RequestError } from '../../src/errors.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { EagleRun, type EagleRunOptions } from '../../src/train/eagle-run.ts';
import { LiveFeatures } from '../../src/train/live-features.ts';
import { LossVocabulary } from '../../src/train/loss-vocabulary.ts';
import { rowMajor } from '../../src/train/matrices.ts';
import { orderedTexts } from '../../src/train/ordered-texts.ts';
import { saveHead } from '../../src/train/save.ts';
import type { EncodedText } from '../../src/train/unroll.ts';
import { randomInteger, xorshift } from '../support/random.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { tinyTarget } from '../support/tiny.ts';

const scratch = temporaryDirectory();
const newDirectory = (): string => mkdtempSync(join(scratch, 'run-'));
const kernels = createKernels();
const target = tinyTarget(kernels);
const { vocabSize } = target.config;
afterAll(() => target[Symbol.dispose]());

const random = xorshift(31);
/** Low ids are the more frequent. */
const texts: readonly EncodedText[] = Array.from({ length: 12 }, () => ({
  ids: Int32Array.from({ length: 24 }, () =>
    Math.min(randomInteger(random, 0, vocabSize), randomInteger(random, 0, vocabSize)),
  ),
  mask: new Uint8Array(24).fill(1, 2),
}));

const OPTIONS: EagleRunOptions = {
  settings: { epochs: 2, tokensPerBatch: 120, learningRate: 3e-3, warmup: 1, clipNorm: 0.5, seed: 7 },
  training: { steps: 2, unrollFromEpoch: 0, stepDecay: 0.8, noise: 0.1, loss: { regression: 1, classification: 1 } },
  start: 'identity',
  draftVocabSize: 8,
  intermediateSize: 48,
  promptEpochs: 0,
  heldBackEvery: 4,
  evaluateEvery: 100,
};

const begin = (directory: string, options: Partial<EagleRunOptions> = {}): EagleRun =>
  new EagleRun(directory, target, new LiveFeatures(target, texts), { ...OPTIONS, ...options });

function train(run: EagleRun): number[][] {
  while (run.trainer.step < run.trainer.totalSteps) run.advance();
  return run.head.tensors().map((tensor) => [...rowMajor(kernels, tensor)]);
}

describe('noise', () => {
  it('is on what is learned from, and not on what is judged', () => {
    const { training } = OPTIONS;
    using noisy = begin(newDirectory());
    using clean = begin(newDirectory(), { training: { ...training, noise: 0 } });
    expect(noisy.evaluate()).toEqual(clean.evaluate());
    const [noisyLosses, cleanLosses] = [noisy, clean].map((run) => run.advance()[0]!.losses);
    expect(noisyLosses).not.toEqual(cleanLosses);
    using again = begin(newDirectory());
    expect(again.advance()[0]!.losses).toEqual(noisyLosses);
  });
});

describe('the loss vocabulary', () => {
  it('holds the most frequent tokens, or all', () => {
    const text = { ids: Int32Array.of(9, 9, 4, 9, 4, 7), mask: new Uint8Array(6) };
    using cut = new LossVocabulary(target, [text], 2);
    expect([...cut.targetIds!]).toEqual([4, 9]);
    expect([cut.size, cut.lmHead.dtype]).toEqual([2, 'f32']);
    const rows = (ids: readonly number[], lmHead = target.lmHead): number[] => {
      const out = new Float32Array(ids.length * lmHead.cols);
      kernels.gatherRows(out, lmHead.cols, lmHead, Int32Array.from(ids), ids.length);
      return [...out];
    };
    expect(rows([0, 1], cut.lmHead)).toEqual(rows([4, 9]));
    using all = new LossVocabulary(target, [text]);
    expect([all.targetIds, all.lmHead, all.size]).toEqual([undefined, target.lmHead, vocabSize]);
  });

  it('decides what is learned; the draft vocabulary decides what the head may guess', () => {
    using small = begin(newDirectory(), { lossVocabSize: 40 });
    using whole = begin(newDirectory(), { lossVocabSize: 40, draftVocabSize: vocabSize });
    using narrow = begin(newDirectory(), { lossVocabSize: 8 });
    const weights = train(small);
    expect(train(whole)).toEqual(weights);
    expect(train(narrow)).not.toEqual(weights);
    expect(small.evaluate()).toEqual(whole.evaluate());

    const out = join(scratch, 'head');
    saveHead(out, kernels, small.head, { provenance: {}, card: undefined });
    using files = openHeadFiles(out);
    using saved = new EagleHead(target, files.config, files.source, { dtype: 'f32' });
    expect(files.config.draftVocabSize).toBe(8);
    expect(saved.targetIds).toEqual(small.head.targetIds);
    expect(saved.lmHead.rows).toBe(8);

    // It goes on with its own draft vocabulary, and a loss vocabulary that is counted anew.
    const { draftVocabSize: _, intermediateSize: __, ...further } = OPTIONS;
    const start = { directory: out };
    const features = new LiveFeatures(target, texts);
    using again = new EagleRun(newDirectory(), target, features, { ...further, start, lossVocabSize: 20 });
    expect(again.head.targetIds).toEqual(small.head.targetIds);
    expect(again.options).toMatchObject({ draftVocabSize: 8, lossVocabSize: 20 });
    again.advance();
  });

  it('goes on from the weights of a head, wherever it lies, and from no others', () => {
    const scratch = newDirectory();
    using first = begin(newDirectory());
    const save = (name: string): { readonly directory: string } => {
      saveHead(join(scratch, name), kernels, first.head, { provenance: {}, card: undefined });
      return { directory: join(scratch, name) };
    };
    const [start, same] = [save('head'), save('copy')];
    first.advance();
    const other = save('other');
    const work = newDirectory();
    {
      using run = begin(work, { start });
      run.advance();
      run.save();
      expect(run.options).toMatchObject({ start: { weightsSha256: expect.stringMatching(/^[0-9a-f]{64}$/) } });
      expect(JSON.stringify(run.options)).not.toContain(scratch);
    }
    expect(() => begin(work, { start: other })).toThrow(/is of a run with .*weightsSha256/);
    using run = begin(work, { start: same });
    expect([run.resumed, run.trainer.step]).toEqual([true, 1]);
  });

  it('goes on with the texts and the target that it began with, and with no others', () => {
    const work = newDirectory();
    const from = { sha256: 'one', dtype: 'q8' };
    {
      using run = begin(work, { target: from });
      run.advance();
      run.save();
    }
    expect(() => begin(work, { target: { ...from, sha256: 'another' } })).toThrow(
      /is of a run with target\.sha256 "one", got "another": /,
    );
    expect(() => begin(work, { target: { ...from, dtype: 'f32' } })).toThrow(
      /is of a run with target\.dtype "q8", got "f32": /,
    );
    const changed = texts.map((text, i) => (i > 0 ? text : { ...text, mask: text.mask.map((counts) => 1 - counts) }));
    const features = new LiveFeatures(target, changed);
    expect(() => new EagleRun(work, target, features, { ...OPTIONS, target: from })).toThrow(/textsSha256/);
    using run = begin(work, { target: from });
    expect(run.resumed).toBe(true);
  });

  it('goes on with the same texts in another order', () => {
    const work = newDirectory();
    const from = (these: readonly EncodedText[]): EagleRun =>
      new EagleRun(work, target, orderedTexts(new LiveFeatures(target, these)), OPTIONS);
    {
      using run = from(texts);
      run.advance();
      run.save();
    }
    using run = from(texts.toReversed());
    expect(run.resumed).toBe(true);
  });

  it('is all tokens of a small target unless said', () => {
    using run = begin(newDirectory());
    expect(run.options).toMatchObject({ draftVocabSize: 8, lossVocabSize: vocabSize });
    using same = begin(newDirectory(), { lossVocabSize: vocabSize });
    expect(train(same)).toEqual(train(run));
  });

  it.each([
    [{ lossVocabSize: 41 }, /is of a run with lossVocabSize 40, got 41: /],
    [{ lossVocabSize: undefined }, /is of a run with lossVocabSize 40, got 96: /],
    [{ lossVocabSize: 40, draftVocabSize: 9 }, /is of a run with draftVocabSize 8, got 9: /],
  ])('%o does not go on from a run with another', (other, message) => {
    const directory = newDirectory();
    {
      using run = begin(directory, { lossVocabSize: 40 });
      run.advance();
      run.save();
    }
    expect(() => begin(directory, other)).toThrow(message);
    using same = begin(directory, { lossVocabSize: 40 });
    expect([same.resumed, same.trainer.step]).toEqual([true, 1]);
  });

  it.each([
    [
      { lossVocabSize: vocabSize + 1 },
      `lossVocabSize: must be at most the target's ${vocabSize}, got ${vocabSize + 1}`,
    ],
    [{ draftVocabSize: vocabSize + 1 }, `draftVocabSize: must be at most the target's ${vocabSize}`],
  ])('%o is refused', (wrong, message) => {
    expect(() => begin(newDirectory(), wrong)).toThrow(RequestError);
    expect(() => begin(newDirectory(), wrong)).toThrow(message);
  });
});
