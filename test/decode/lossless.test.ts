/** Any drafter, any options: the text is plain decoding's, token for token, and it stops where plain decoding stops. */
import { createHash } from 'node:crypto';
import { afterAll, describe, expect, it } from 'vitest';
import { type GenerateOptions, generate, type Round, type StopReason } from '../../src/decode/generate.ts';
import type { Drafter } from '../../src/draft/drafter.ts';
import { EagleDrafter } from '../../src/draft/eagle.ts';
import { EagleHead } from '../../src/draft/eagle-head.ts';
import type { DynamicTree } from '../../src/draft/grow.ts';
import { NoDrafter } from '../../src/draft/none.ts';
import { chainShape, type DraftTree, staticShape } from '../../src/draft/tree.ts';
import type { TreePolicy } from '../../src/draft/tree-policy.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { KV_TILE, type KvLayer } from '../../src/kernels/kernels.ts';
import { COMMITTED, ForwardBatch } from '../../src/model/forward-batch.ts';
import type { KvCache } from '../../src/model/kv-cache.ts';
import type { TargetModel } from '../../src/model/target.ts';
import type { Tensor } from '../../src/tensor/tensor.ts';
import { CorrectedDrafter, type Script, ScriptedDrafter } from '../support/drafters.ts';
import { randomInteger, xorshift } from '../support/random.ts';
import { memorySource, tinyHead, tinyHeadParts, tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
const target = tinyTarget(kernels);
const quantised = tinyTarget(kernels, { dtype: 'q8' });
const { vocabSize } = target.config;
afterAll(() => {
  target[Symbol.dispose]();
  quantised[Symbol.dispose]();
  kernels.dispose();
});

const CAPACITY = 224;

function promptOf(length: number): number[] {
  const random = xorshift(length);
  return Array.from({ length }, () => randomInteger(random, 0, vocabSize));
}

interface Run {
  readonly ids: number[];
  readonly stopReason: StopReason | undefined;
  readonly drafted: number;
}

function run(
  model: TargetModel,
  drafter: Drafter,
  cache: KvCache,
  prompt: readonly number[],
  options: GenerateOptions,
  afterRound: (round: Round) => void = () => {},
): Run {
  const ids: number[] = [];
  let stopReason: StopReason | undefined;
  let drafted = 0;
  for (const event of generate(model, drafter, cache, prompt, options)) {
    if (event.type !== 'round') continue;
    ids.push(...event.tokens);
    stopReason = event.stopReason;
    drafted += event.drafted;
    afterRound(event);
  }
  return { ids, stopReason, drafted };
}

function plain(model: TargetModel, prompt: readonly number[], options: GenerateOptions): Run {
  using cache = model.createCache(1, CAPACITY);
  return run(model, new NoDrafter(), cache, prompt, options);
}

/** A head whose every `period`-th forward returns nothing but NaN. */
class PoisonedHead extends EagleHead {
  readonly #period: number;
  #calls = 0;

  constructor(model: TargetModel, period: number) {
    const { config, tensors } = tinyHeadParts(model);
    super(model, config, memorySource('tiny-head', tensors), { dtype: 'f32' });
    this.#period = period;
  }

  override forward(batch: ForwardBatch, features: Tensor, cache: KvCache): Tensor {
    const predicted = super.forward(batch, features, cache);
    if (this.#calls++ % this.#period === 0) predicted.data.fill(Number.NaN);
    return predicted;
  }
}

const DYNAMIC: DynamicTree = { kind: 'dynamic', depth: 4, topK: 4, total: 20 };

const eagle = (model: TargetModel, head: EagleHead, tree: TreePolicy = staticShape()): EagleDrafter =>
  new EagleDrafter(model, head, tree, CAPACITY - (tree.kind === 'fixed' ? tree.size : tree.total));

/** A drafter that is told the plain text it will be held against. */
type Make = (model: TargetModel, text: readonly number[]) => Drafter;

const scripted =
  (script: (text: readonly number[]) => Script): Make =>
  (_, text) =>
    new ScriptedDrafter(script(text));

const chainOf = (length: number, tokenAt: (i: number) => number | undefined): (readonly [number, number])[] => {
  const nodes: (readonly [number, number])[] = [];
  for (let i = 1; i <= length; i++) {
    const token = tokenAt(i);
    if (token === undefined) break;
    nodes.push([i - 1, token]);
  }
  return nodes;
};

const DRAFTERS: Readonly<Record<string, Make>> = {
  'random head': (model) => eagle(model, tinyHead(model)),
  'random head, chain': (model) => eagle(model, tinyHead(model), chainShape(4)),
  'random head, draft vocabulary': (model) => eagle(model, tinyHead(model, { draftVocabSize: 24 }), staticShape(8)),
  'random head, tree of one node': (model) => eagle(model, tinyHead(model), staticShape(1)),
  'random head, dynamic tree': (model) => eagle(model, tinyHead(model), DYNAMIC),
  'random head, dynamic tree, draft vocabulary': (model) =>
    eagle(model, tinyHead(model, { draftVocabSize: 24 }), { ...DYNAMIC, topK: 24, total: 60 }),
  'head of NaN': (model) => eagle(model, new PoisonedHead(model, 1)),
  'head with NaN now and then': (model) => eagle(model, new PoisonedHead(model, 3)),
  'dynamic tree, head with NaN now and then': (model) => eagle(model, new PoisonedHead(model, 3), DYNAMIC),
  'dynamic tree, head put right': (model, text) => new CorrectedDrafter(eagle(model, tinyHead(model), DYNAMIC), text),
  'head put right': (model, text) => new CorrectedDrafter(eagle(model, tinyHead(model)), text),
  'always right': scripted(
    (text) =>
      ({ position, maxDepth }) =>
        chainOf(Math.min(5, maxDepth), (i) => text[position + i]),
  ),
  'always wrong': scripted(
    (text) =>
      ({ position, maxDepth }) =>
        chainOf(Math.min(5, maxDepth), (i) => ((text[position + i] ?? 0) + 1) % vocabSize),
  ),
  'repeats itself': scripted(
    (text) =>
      ({ position, maxDepth }) =>
        maxDepth < 2
          ? []
          : [0, 0, 0, 1, 1, 2, 2, 3].map((parent) => [parent, text[position + (parent === 0 ? 1 : 2)] ?? 0] as const),
  ),
  'proposes nothing': scripted(() => () => []),
  'sometimes right': scripted((text) => {
    const random = xorshift(3);
    return ({ position, maxDepth }) => {
      const depths = [0];
      const nodes: (readonly [number, number])[] = [];
      while (nodes.length < 12 && maxDepth > 0) {
        const parent = randomInteger(random, 0, depths.length);
        if (depths[parent]! === maxDepth) continue;
        depths.push(depths[parent]! + 1);
        const right = text[position + depths.at(-1)!];
        nodes.push([parent, random() < 0.6 && right !== undefined ? right : randomInteger(random, 0, vocabSize)]);
      }
      return nodes;
    };
  }),
};

const PENALTIES: readonly GenerateOptions[] = [
  {},
  { repeatPenalty: 1.3 },
  { frequencyPenalty: 0.7, presencePenalty: 0.4 },
  {
    repeatPenalty: 1.1,
    frequencyPenalty: -0.2,
    logitBias: new Map([
      [3, Number.NEGATIVE_INFINITY],
      [5, 4],
    ]),
  },
];
const LAWS: readonly GenerateOptions[] = [
  { temperature: 0 },
  ...[0.7, 1.5].flatMap((temperature) =>
    [0, 7].flatMap((topK) =>
      [1, 0.8].flatMap((topP) => [0, 0.1].map((minP) => ({ temperature, topK, topP, minP, seed: 11 }))),
    ),
  ),
];

describe.each(Object.entries(DRAFTERS))('%s', (_, make) => {
  it.each([
    ['f32', target],
    ['q8', quantised],
  ] as const)('leaves the text as it is, greedy and drawn, %s', (_, model) => {
    const prompt = promptOf(9);
    for (const options of [{}, { temperature: 1, seed: 5 }, { temperature: 0.8, topP: 0.9, seed: -3 }]) {
      const wanted = plain(model, prompt, { ...options, maxTokens: 60 });
      using drafter = make(model, [...prompt, ...wanted.ids]);
      using cache = model.createCache(1, CAPACITY);
      const got = run(model, drafter, cache, prompt, { ...options, maxTokens: 60 });
      expect(got.ids).toEqual(wanted.ids);
      expect(got.stopReason).toBe('maxTokens');
    }
  });

  it.each([1, 2, 63, 64, 65, 129])('begins after a prompt of %i tokens', (length) => {
    const prompt = promptOf(length);
    const wanted = plain(target, prompt, { maxTokens: 20, prefillChunk: 1 });
    using drafter = make(target, [...prompt, ...wanted.ids]);
    using cache = target.createCache(1, CAPACITY);
    for (const prefillChunk of [64, 7]) {
      expect(run(target, drafter, cache, prompt, { maxTokens: 20, prefillChunk }).ids).toEqual(wanted.ids);
    }
  });

  it('stops where plain decoding stops, for the same reason, and both caches are as long as the text', () => {
    const prompt = promptOf(5);
    const whole = plain(target, prompt, { maxTokens: 40 }).ids;
    using drafter = make(target, [...prompt, ...whole]);
    using cache = target.createCache(1, CAPACITY);
    const reasons = new Set<StopReason | undefined>();
    for (let k = 1; k <= 14; k++) {
      for (const limit of [
        { maxTokens: k },
        { contextSize: prompt.length + k },
        { endTokens: new Set([whole[k - 1]!]), maxTokens: 30 },
      ]) {
        const wanted = plain(target, prompt, limit);
        const got = run(target, drafter, cache, prompt, limit);
        expect({ ids: got.ids, stopReason: got.stopReason }).toEqual({
          ids: wanted.ids,
          stopReason: wanted.stopReason,
        });
        reasons.add(got.stopReason);
        expect(cache.sequences[0]!.length).toBe(prompt.length + got.ids.length - 1);
        expect(cache.sequences[0]!.provisional).toBe(0);
        expect(nextLogits(target, cache, got.ids.at(-1)!)).toEqual(logitsOf(target, [...prompt, ...got.ids]));
      }
    }
    expect([...reasons].sort()).toEqual(['contextLimit', 'endToken', 'maxTokens']);
  });
});

describe.each(['head put right', 'dynamic tree, head put right', 'sometimes right'] as const)('%s', (name) => {
  it('follows every combination of penalties, bias, top-k, top-p and min-p', () => {
    const prompt = promptOf(12);
    for (const penalty of PENALTIES) {
      for (const law of LAWS) {
        const options = { ...penalty, ...law, maxTokens: 24 };
        const wanted = plain(target, prompt, options);
        using drafter = DRAFTERS[name]!(target, [...prompt, ...wanted.ids]);
        using cache = target.createCache(1, CAPACITY);
        const got = run(target, drafter, cache, prompt, options);
        expect(got.ids).toEqual(wanted.ids);
        expect(got.drafted).toBeGreaterThan(3); // that paths were accepted at all
      }
    }
  });
});

describe('caches', () => {
  it.each([
    ['f32', target],
    ['q8', quantised],
  ] as const)('rejected drafts leave no rows in either cache, %s', (_, model) => {
    const prompt = promptOf(70);
    const options = { temperature: 1, seed: 2, maxTokens: 60 };
    const text = [...prompt, ...plain(model, prompt, options).ids];

    // What both caches hold when the text is simply read.
    using fresh = eagle(model, tinyHead(model));
    using freshCache = model.createCache(1, CAPACITY);
    observeText(model, freshCache, fresh, text);
    fresh.propose(text.at(-1)!, 1);
    const wanted = { target: rowsOf(freshCache), head: rowsOf(fresh.cache) };

    const inner = eagle(model, tinyHead(model));
    using drafter = new CorrectedDrafter(inner, text);
    using cache = model.createCache(1, CAPACITY);
    let rejecting = 0;
    const got = run(model, drafter, cache, prompt, options, (round) => {
      rejecting += Number(round.treeSize - 1 > round.drafted);
      const rows = rowsOf(cache);
      expect(rows).toEqual(wanted.target.slice(0, rows.length));
      const headRows = rowsOf(inner.cache);
      expect(headRows).toEqual(wanted.head.slice(0, headRows.length));
    });
    expect(rejecting).toBeGreaterThan(5);
    expect(got.drafted).toBeGreaterThan(20);
    // The last emitted token is in neither cache; the head catches up with the rest when it is asked again.
    expect(rowsOf(cache)).toHaveLength(text.length - 1);
    inner.propose(text.at(-1)!, 4);
    expect(rowsOf(inner.cache)).toEqual(wanted.head);
  });

  it('a cut path leaves the head where a fresh one would be', () => {
    const prompt = promptOf(6);
    const text = [...prompt, ...plain(target, prompt, { maxTokens: 30 }).ids];
    for (let k = 1; k <= 12; k++) {
      const inner = eagle(target, tinyHead(target));
      using drafter = new CorrectedDrafter(inner, text);
      using cache = target.createCache(1, CAPACITY);
      run(target, drafter, cache, prompt, { maxTokens: k });
      const end = prompt.length + k;
      const got = nodesOf(inner.propose(text[end - 1]!, 4));
      using fresh = eagle(target, tinyHead(target));
      using freshCache = target.createCache(1, CAPACITY);
      observeText(target, freshCache, fresh, text.slice(0, end));
      expect(got).toEqual(nodesOf(fresh.propose(text[end - 1]!, 4)));
    }
  });
});

describe('a drafter that breaks the rules is named, before the target sees anything', () => {
  const wrong: readonly [string, Script, RegExp][] = [
    [
      'a token past the vocabulary',
      () => [[0, vocabSize]],
      /drafter "scripted": node 1 must be a token of 0\.\.95, got 96/,
    ],
    [
      'a negative token',
      () => [
        [0, 3],
        [1, -1],
      ],
      /drafter "scripted": node 2 must be a token of 0\.\.95, got -1/,
    ],
    [
      'a parent that comes later',
      () => [
        [2, 3],
        [0, 4],
      ],
      /drafter "scripted": node 1's parent must come before it, got 2/,
    ],
    ['a second root', () => [[-1, 3]], /drafter "scripted": node 1's parent must come before it, got -1/],
    ['a node past the limit', ({ maxDepth }) => chainOf(maxDepth + 1, () => 1), /must be at most 4 deep, got 5/],
    ['too many nodes', () => Array.from({ length: 16 }, () => [0, 1] as const), /a tree has 1\.\.16 nodes, got 17/],
  ];

  it.each(wrong)('%s', (_, script, message) => {
    using drafter = new ScriptedDrafter(script);
    using cache = target.createCache(1, CAPACITY);
    let rounds = 0;
    expect(() => run(target, drafter, cache, promptOf(3), { maxTokens: 6 }, () => rounds++)).toThrow(message);
    expect(rounds).toBe(1); // prefill's
    expect(cache.sequences[0]!.length).toBe(3);
    // The cache serves the next request.
    expect(run(target, new NoDrafter(), cache, promptOf(3), { maxTokens: 6 }).ids).toHaveLength(6);
  });
});

const nodesOf = ({ size, tokens }: DraftTree): number[] => [...tokens.subarray(0, size)];

/** Reads `text` but for its last token into the cache, and lets the drafter see it. */
function observeText(model: TargetModel, cache: KvCache, drafter: Drafter, text: readonly number[]): void {
  const batch = new ForwardBatch(text.length);
  const rows = Int32Array.from({ length: text.length }, (_, i) => i);
  for (let i = 0, parent = COMMITTED; i + 1 < text.length; i++)
    parent = batch.append(cache.sequences[0]!, text[i]!, parent, false);
  const { features } = model.forward(batch, cache);
  cache.sequences[0]!.commitAll();
  drafter.observe(batch.tokens, features, rows, batch.rows);
}

/** Logits after one more token; the cache is left as it was. */
function nextLogits(model: TargetModel, cache: KvCache, token: number): Float32Array {
  const batch = new ForwardBatch(1);
  batch.append(cache.sequences[0]!, token, COMMITTED, true);
  const { logits } = model.forward(batch, cache);
  cache.sequences[0]!.rollback();
  return logits.row(0).slice();
}

function logitsOf(model: TargetModel, text: readonly number[]): Float32Array {
  using cache = model.createCache(1, CAPACITY);
  observeText(model, cache, new NoDrafter(), text);
  return nextLogits(model, cache, text.at(-1)!);
}

/** The committed rows, each a digest of its bits in all layers: a whole row would make a failure unreadable. */
function rowsOf(cache: KvCache): string[] {
  return Array.from({ length: cache.sequences[0]!.length }, (_, row) =>
    createHash('sha256')
      .update(cache.layers.map((layer) => keyBits(layer, row) + valueBits(layer, row)).join())
      .digest('hex')
      .slice(0, 12),
  );
}

function keyBits({ keys, kvHeads, headDim }: KvLayer, slot: number): string {
  const row = keys.slice(0, kvHeads * headDim);
  const tile = Math.floor(slot / KV_TILE) * kvHeads * headDim * KV_TILE;
  for (let i = 0; i < row.length; i++) row[i] = keys[tile + i * KV_TILE + (slot % KV_TILE)]!;
  return Buffer.from(row.buffer, row.byteOffset, row.byteLength).toString('hex');
}

function valueBits({ values, kvHeads, headDim }: KvLayer, slot: number): string {
  const row = values.slice(slot * kvHeads * headDim, (slot + 1) * kvHeads * headDim);
  return Buffer.from(row.buffer, row.byteOffset, row.byteLength).toString('hex');
}
