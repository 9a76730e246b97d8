/** What may be guessed in a text: the draft vocabulary, and the text's own tokens with the LM head's rows for them. */
import { afterAll, describe, expect, it } from 'vitest';
import { generate } from '../../src/decode/generate.ts';
import { EagleDrafter } from '../../src/draft/eagle.ts';
import { cutLmHead } from '../../src/draft/head-vocabulary.ts';
import { TextVocabulary } from '../../src/draft/text-vocabulary.ts';
import { staticShape } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { WEIGHT_DTYPES, type WeightDtype } from '../../src/kernels/kernels.ts';
import { tinyHead, tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
const target = tinyTarget(kernels);
const { vocabSize, hiddenSize } = target.config;
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

const CORE = Int32Array.of(3, 7, 8, 20, 41);

function withVocabulary(body: (vocabulary: TextVocabulary) => void, textTokens = vocabSize, dtype: WeightDtype = 'q8') {
  const buffers: ArrayBuffer[] = [];
  using vocabulary = new TextVocabulary(target, CORE, cutLmHead(target, CORE, dtype, buffers), textTokens);
  for (const buffer of buffers) kernels.release(buffer); // it has its own copy
  body(vocabulary);
}

const idsOf = ({ targetIds, size }: TextVocabulary): number[] => [...targetIds.subarray(0, size)];

describe('the tokens', () => {
  it('are those of the draft vocabulary, then those of the text in its order, each once', () =>
    withVocabulary((vocabulary) => {
      expect(idsOf(vocabulary)).toEqual([...CORE]);
      for (const token of [9, 3, 60, 9, 5]) vocabulary.add(token);
      expect(idsOf(vocabulary)).toEqual([...CORE, 9, 60, 5]);
    }));

  it('are all of the target’s in the end, and no more', () =>
    withVocabulary((vocabulary) => {
      for (let token = 0; token < vocabSize; token++) vocabulary.add(token);
      expect(idsOf(vocabulary).sort((a, b) => a - b)).toEqual(Array.from({ length: vocabSize }, (_, id) => id));
      expect(vocabulary.lmHead.rows).toBe(vocabSize);
    }));

  it('are as many of the text as there is room for', () =>
    withVocabulary((vocabulary) => {
      for (const token of [9, 60, 5, 6]) vocabulary.add(token);
      expect(idsOf(vocabulary)).toEqual([...CORE, 9, 60]);
    }, 2));

  it('follow from the text alone, whatever was there before', () =>
    withVocabulary((vocabulary) => {
      const text = [9, 60, 5, 6];
      for (const token of text) vocabulary.add(token);
      vocabulary.resume([9, 3, 60, 9, 5, 6, 33], 6); // goes on
      expect(idsOf(vocabulary)).toEqual([...CORE, 9, 60, 5, 6]);
      vocabulary.resume([9, 60, 33], 2); // cut in the middle
      expect(idsOf(vocabulary)).toEqual([...CORE, 9, 60]);
      vocabulary.add(5);
      vocabulary.resume([9, 5, 60, 34], 4); // the same tokens in another order, and one more
      expect(idsOf(vocabulary)).toEqual([...CORE, 9, 5, 60, 34]);
      vocabulary.resume([3, 50], 2); // another
      expect(idsOf(vocabulary)).toEqual([...CORE, 50]);
      vocabulary.resume([50], 0); // nothing held
      expect(idsOf(vocabulary)).toEqual([...CORE]);
    }));
});

// More than two tiles of 16, in steps of one, some and many; a part of them again after another text.
describe.each(WEIGHT_DTYPES)('the LM head in %s', (dtype) => {
  it('has the rows of a cut of the same tokens, whatever came before', () =>
    withVocabulary(
      (vocabulary) => {
        const expectCut = (): void => {
          const buffers: ArrayBuffer[] = [];
          const cut = cutLmHead(target, vocabulary.targetIds.slice(0, vocabulary.size), dtype, buffers);
          const logits = [cut, vocabulary.lmHead].map((head) => {
            const out = new Float32Array(head.rows);
            const feature = Float32Array.from({ length: hiddenSize }, (_, i) => Math.sin(i * 1.7));
            kernels.matmul(out, feature, head, 1, null);
            return [...out];
          });
          expect(logits[1]).toEqual(logits[0]);
          for (const buffer of buffers) kernels.release(buffer);
        };
        expectCut();
        for (const upTo of [1, 2, 12, 48]) {
          for (let token = 0; token < upTo; token++) vocabulary.add((token * 5 + 1) % vocabSize);
          expectCut();
        }
        vocabulary.resume([1, 6, 11, 10], 4);
        expectCut();
        for (let token = 30; token > 0; token--) vocabulary.add(token);
        expectCut();
      },
      vocabSize,
      dtype,
    ));
});

it('a head proposes tokens of the text that its draft vocabulary lacks, and none that neither has', () => {
  const head = tinyHead(target, { draftVocabSize: 12 });
  const core = new Set(head.targetIds);
  using drafter = new EagleDrafter(target, head, staticShape(12), 128);
  using cache = target.createCache(1, 160);
  const prompt = Array.from({ length: 20 }, (_, i) => (i * 3 + 1) % vocabSize);
  const seen = new Set(prompt);
  let ofText = 0;
  const propose = drafter.propose.bind(drafter);
  drafter.propose = (root, maxDepth) => {
    seen.add(root);
    const tree = propose(root, maxDepth);
    for (const token of tree.tokens.subarray(1, tree.size)) {
      expect(core.has(token) || seen.has(token)).toBe(true);
      if (!core.has(token)) ofText++;
    }
    return tree;
  };
  for (const event of generate(target, drafter, cache, prompt, { maxTokens: 40 }))
    if (event.type === 'round') for (const token of event.tokens) seen.add(token);
  expect(ofText).toBeGreaterThan(0);
});
