/**
 * What every drafter keeps, whichever way it guesses and however wrong it is: with match verification the text is plain decoding's, token
 * for token, with multi-round verification it is of the same law; it stops where plain decoding stops; rejected guesses leave nothing
 * behind. A drafter is held against it by its line in the registry. (The engine's part, stop strings and aborts: test/engine/lossless.test.ts.)
 */
import { createHash } from 'node:crypto';
import { afterAll, describe, expect, it } from 'vitest';
import { type GenerateOptions, generate, type Round, type StopReason } from '../../src/decode/generate.ts';
import { FREE, type TreeCosts } from '../../src/draft/costs.ts';
import type { Drafter } from '../../src/draft/drafter.ts';
import { EagleDrafter } from '../../src/draft/eagle.ts';
import { EagleHead } from '../../src/draft/eagle-head.ts';
import type { DynamicTree } from '../../src/draft/grow.ts';
import { LookaheadDrafter } from '../../src/draft/lookahead.ts';
import { MedusaDrafter } from '../../src/draft/medusa.ts';
import { NoDrafter } from '../../src/draft/none.ts';
import { type DraftTree, MAX_TREE_NODES, shapeFromPaths, staticShape } from '../../src/draft/tree.ts';
import type { TreePolicy } from '../../src/draft/tree-policy.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { KV_TILE, type KvLayer } from '../../src/kernels/kernels.ts';
import { COMMITTED, ForwardBatch } from '../../src/model/forward-batch.ts';
import type { KvCache } from '../../src/model/kv-cache.ts';
import type { TargetModel } from '../../src/model/target.ts';
import { memorySource } from '../../src/tensor/memory-source.ts';
import type { Tensor } from '../../src/tensor/tensor.ts';
import { chiSquareTest } from '../support/chi-square.ts';
import { costsFrom } from '../support/costs.ts';
import { CorrectedDrafter, type Script, ScriptedDrafter } from '../support/drafters.ts';
import { randomInteger, xorshift } from '../support/random.ts';
import { registered } from '../support/registered.ts';
import { lawsAfter, sequencesOf } from '../support/sequences.ts';
import { TINY_CONFIG, tinyHead, tinyHeadParts, tinyMedusa, tinyTarget } from '../support/tiny.ts';

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
/** Tokens of prompt and answer: the largest tree fits behind them. */
const CONTEXT = 190;
const REGISTERED = registered(target);

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

const freeRows = (): TreeCosts =>
  costsFrom({
    target: [
      { rows: 1, ms: 10 },
      { rows: 32, ms: 10 },
    ],
    draft: FREE,
  });

const DYNAMIC: DynamicTree = { kind: 'dynamic', depth: 4, topK: 4, total: 20 };

const eagle = (model: TargetModel, head: EagleHead, tree: TreePolicy = staticShape()): EagleDrafter =>
  new EagleDrafter(model, head, tree, CONTEXT);

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
  ...Object.fromEntries(REGISTERED.map(({ label, make }): [string, Make] => [label, (model) => make(model, CONTEXT)])),
  'random head, draft vocabulary': (model) => eagle(model, tinyHead(model, { draftVocabSize: 24 }), staticShape(8)),
  'random head, dynamic tree, draft vocabulary': (model) =>
    eagle(model, tinyHead(model, { draftVocabSize: 24 }), { ...DYNAMIC, topK: 24, total: 60 }),
  'lookahead, deeper, with the n-grams of the text': (model) =>
    new LookaheadDrafter(model, { window: 4, ngram: 5, guesses: 3, fromText: true }, CONTEXT),
  'lookahead, deeper, rows free': (model) =>
    new LookaheadDrafter(model, { window: 4, ngram: 5, guesses: 3 }, CONTEXT, { costs: freeRows() }),
  'Medusa heads, draft vocabulary': (model) =>
    new MedusaDrafter(model, tinyMedusa(model, { draftVocabSize: 24 }), staticShape(8), CONTEXT),
  'Medusa heads of two blocks with LM heads of their own, dynamic tree, draft vocabulary': (model) =>
    new MedusaDrafter(model, tinyMedusa(model, { layers: 2, own: true, draftVocabSize: 24 }), DYNAMIC, CONTEXT),
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
    for (const prefillChunk of [64, 7, 2 ** 40]) {
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

/** Few tokens and a hot law, so that every short text is likely enough to be counted. */
const few = tinyTarget(kernels, { config: { ...TINY_CONFIG, vocabSize: 6 } });
afterAll(() => few[Symbol.dispose]());

describe('multi-round verification', () => {
  const LENGTH = 4;
  const RUNS = 1500;
  const prompt = [1, 4, 2, 2, 5];
  const ALL: Readonly<Record<string, Make>> = {
    ...Object.fromEntries(
      REGISTERED.map(({ label, make }): [string, Make] => [label, (model) => make(model, CONTEXT)]),
    ),
    'draft vocabulary': (model) => eagle(model, tinyHead(model, { draftVocabSize: 5 }), staticShape(8)),
    'Medusa heads, draft vocabulary': (model) =>
      new MedusaDrafter(model, tinyMedusa(model, { draftVocabSize: 5 }), staticShape(8), CONTEXT),
    'head of NaN': (model) => eagle(model, new PoisonedHead(model, 1), staticShape(8)),
    'head with NaN now and then': (model) => eagle(model, new PoisonedHead(model, 3), staticShape(8)),
  };

  // Chi-square at 1e-5: of the dozen and more pairs here, one in ten thousand times a right one would fail, were the seeds not fixed.
  it.each(Object.entries(ALL))('writes texts of the target law: %s', (_, make) => {
    for (const law of [
      { temperature: 7 },
      { temperature: 4, topP: 0.9, repeatPenalty: 1.2, logitBias: new Map([[2, -3]]) },
    ]) {
      const { codes, codeOf, extended } = sequencesOf(few.config.vocabSize, LENGTH);
      const laws = lawsAfter(few, prompt, LENGTH - 1, law);
      const probabilities = new Float64Array(codes);
      const spread = (code: number, probability: number, length: number): void => {
        if (length === LENGTH) {
          probabilities[code] = probability;
          return;
        }
        const mass = laws[code]!.reduce((sum, weight) => sum + weight, 0);
        for (const [token, weight] of laws[code]!.entries())
          if (weight > 0) spread(extended(code, token), (probability * weight) / mass, length + 1);
      };
      spread(0, 1, 0);
      const counts = new Float64Array(codes);
      using drafter = make(few, prompt);
      using cache = few.createCache(1, CAPACITY);
      for (let seed = 0; seed < RUNS; seed++) {
        const { ids } = run(few, drafter, cache, prompt, { ...law, seed, verify: 'multi-round', maxTokens: LENGTH });
        counts[codeOf(ids)]!++;
      }
      const test = chiSquareTest(counts, probabilities);
      expect(test.degrees).toBeGreaterThan(50);
      expect(test.p).toBeGreaterThan(1e-5);
    }
  });

  // The head that is poisoned now and then counts its calls over all texts.
  const { 'head with NaN now and then': _, ...REPEATABLE } = ALL;

  it.each(Object.entries(REPEATABLE))(
    'is the same again for the same seed, and greedy at temperature 0: %s',
    (_, make) => {
      using drafter = make(target, []);
      using cache = target.createCache(1, CAPACITY);
      const write = (options: GenerateOptions): Run =>
        run(target, drafter, cache, promptOf(9), { verify: 'multi-round', maxTokens: 40, ...options });
      const first = write({ temperature: 3, seed: 1 });
      expect(first.stopReason).toBe('maxTokens');
      expect(write({ temperature: 3, seed: 2 }).ids).not.toEqual(first.ids);
      // How much of it was drafted is a budget's affair, and so the clock's.
      expect(write({ temperature: 3, seed: 1 }).ids).toEqual(first.ids);
      expect(write({}).ids).toEqual(plain(target, promptOf(9), { maxTokens: 40 }).ids);
      // An end token ends the text where it stands, within a tree or not, and both caches with it.
      const end = first.ids[20]!;
      const ended = write({ temperature: 3, seed: 1, endTokens: new Set([end]) });
      expect(ended.ids).toEqual(first.ids.slice(0, first.ids.indexOf(end) + 1));
      expect(ended.stopReason).toBe('endToken');
      expect(cache.sequences[0]!.length).toBe(9 + ended.ids.length - 1);
      expect(cache.sequences[0]!.provisional).toBe(0);
    },
  );

  it('a law of another vocabulary is named, and the cache serves the next request', () => {
    using drafter = new ScriptedDrafter(() => [[0, 1]], {
      draft: () => new Float32Array(5).fill(1),
      drawing: () => 'without-replacement',
    });
    using cache = target.createCache(1, CAPACITY);
    const options = { temperature: 1, verify: 'multi-round', maxTokens: 6 } as const;
    expect(() => run(target, drafter, cache, promptOf(3), options)).toThrow(
      `multi-round: the draft law after node 0 must have ${vocabSize} tokens, got 5`,
    );
    expect(run(target, new NoDrafter(), cache, promptOf(3), options).ids).toEqual(
      plain(target, promptOf(3), { temperature: 1, maxTokens: 6 }).ids,
    );
  });

  it('another name is refused', () => {
    using cache = target.createCache(1, CAPACITY);
    const options = { verify: 'maybe' as 'match' };
    expect(() => run(target, new NoDrafter(), cache, promptOf(3), options)).toThrow(
      'verify: must be one of match, multi-round, typical, got "maybe"',
    );
  });
});

it.each(['match', 'multi-round'] as const)('a tree of a thousand nodes, most of them rejected: %s', (verify) => {
  const wide = Array.from({ length: 31 }, (_, i) => [i]);
  const shape = shapeFromPaths([...wide, ...wide.flatMap(([i]) => Array.from({ length: 32 }, (_, j) => [i!, j]))]);
  expect(shape.size).toBe(MAX_TREE_NODES);
  const prompt = promptOf(9);
  using drafter = eagle(target, tinyHead(target), shape);
  using cache = target.createCache(1, CONTEXT + MAX_TREE_NODES);
  for (const options of [{}, { temperature: 1, seed: 4 }]) {
    const wanted = plain(target, prompt, { ...options, maxTokens: 16 });
    const got = run(target, drafter, cache, prompt, { ...options, verify, maxTokens: 16 });
    if (verify === 'match' || options.temperature === undefined) expect(got.ids).toEqual(wanted.ids);
    expect(got.drafted).toBeGreaterThan(0);
    expect(nextLogits(target, cache, got.ids.at(-1)!)).toEqual(logitsOf(target, [...prompt, ...got.ids]));
  }
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

/** The drafter's own, where it has one. */
const cacheOf = (drafter: Drafter): KvCache | undefined => (drafter as { readonly cache?: KvCache }).cache;

describe.each(REGISTERED)('caches, $label', ({ make }) => {
  it.each([
    ['f32', target],
    ['q8', quantised],
  ] as const)('rejected drafts leave no rows in either cache, %s', (_, model) => {
    const prompt = promptOf(70);
    const options = { temperature: 1, seed: 2, maxTokens: 60 };
    const text = [...prompt, ...plain(model, prompt, options).ids];
    const root = text.at(-1)!;

    // What both caches hold when the text is simply read.
    using fresh = make(model, CONTEXT);
    using freshCache = model.createCache(1, CAPACITY);
    observeText(model, freshCache, fresh, text);
    fresh.propose(root, 1);
    const headRows = (drafter: Drafter): string[] => {
      const own = cacheOf(drafter);
      return own === undefined ? [] : rowsOf(own);
    };
    const wanted = { target: rowsOf(freshCache), head: headRows(fresh) };

    const inner = make(model, CONTEXT);
    using drafter = new CorrectedDrafter(inner, text);
    using cache = model.createCache(1, CAPACITY);
    let rejecting = 0;
    const got = run(model, drafter, cache, prompt, options, (round) => {
      rejecting += Number(round.treeSize - 1 > round.drafted);
      const rows = rowsOf(cache);
      expect(rows).toEqual(wanted.target.slice(0, rows.length));
      const own = headRows(inner);
      expect(own).toEqual(wanted.head.slice(0, own.length));
    });
    const always = inner.budget === undefined; // a budget may well find that drafting does not pay
    if (inner.maxNodes > 1 && always) expect(got.drafted).toBeGreaterThan(20);
    if (inner.maxNodes > 5 && always) expect(rejecting).toBeGreaterThan(5);
    // The last emitted token is in neither cache; the head catches up with the rest when it is asked again.
    expect(rowsOf(cache)).toHaveLength(text.length - 1);
    inner.propose(root, 4);
    const own = headRows(inner);
    expect(own).toEqual(always ? wanted.head : wanted.head.slice(0, own.length));
  });

  it('a cut path leaves the head where a fresh one would be', () => {
    const prompt = promptOf(6);
    const text = [...prompt, ...plain(target, prompt, { maxTokens: 30 }).ids];
    for (let k = 1; k <= 12; k++) {
      const inner = make(target, CONTEXT);
      using drafter = new CorrectedDrafter(inner, text);
      // It has learned, the fresh one has not.
      if (inner.budget !== undefined || inner.observeProposal !== undefined) return;
      using cache = target.createCache(1, CAPACITY);
      run(target, drafter, cache, prompt, { maxTokens: k });
      const end = prompt.length + k;
      const got = nodesOf(inner.propose(text[end - 1]!, 4));
      using fresh = make(target, CONTEXT);
      using freshCache = target.createCache(1, CAPACITY);
      observeText(target, freshCache, fresh, text.slice(0, end));
      expect(got).toEqual(nodesOf(fresh.propose(text[end - 1]!, 4)));
    }
  });
});

/** Keeps what it is shown, in the order of calls: trees of its own, logits after their nodes, numbers of rows that were committed. */
class AskingDrafter extends ScriptedDrafter {
  readonly seen: (DraftTree | Float32Array[] | number)[] = [];

  override propose(root: number, maxDepth: number): DraftTree {
    const tree = super.propose(root, maxDepth);
    this.seen.push(tree);
    return tree;
  }

  observeProposal(logits: Tensor): void {
    this.seen.push(Array.from({ length: logits.rows }, (_, row) => logits.row(row).slice()));
  }

  override observe(tokens: Int32Array, features: Tensor, rows: Int32Array, count: number): void {
    super.observe(tokens, features, rows, count);
    this.seen.push(count);
  }
}

it("every round shows the drafter the target's logits after all its nodes, those that fell too", () => {
  const prompt = promptOf(5);
  const options = { temperature: 1, seed: 6, maxTokens: 14 };
  const text = [...prompt, ...plain(target, prompt, options).ids];
  using drafter = new AskingDrafter(({ position, maxDepth }) => {
    const [right, next] = text.slice(position + 1);
    if (right === undefined || next === undefined || maxDepth < 2) return [];
    const wrong = (right + 1) % vocabSize;
    return [
      [0, wrong],
      [0, right],
      [1, 7],
      [2, next],
      [2, wrong],
    ];
  });
  using cache = target.createCache(1, CAPACITY);
  expect(run(target, drafter, cache, prompt, options).drafted).toBeGreaterThan(5);
  let length = drafter.seen.shift() as number; // of the text but for the root: prefill's
  expect(length).toBe(prompt.length);
  while (drafter.seen.length > 0) {
    const [tree, logits, kept] = drafter.seen.splice(0, 3) as [DraftTree, Float32Array[], number];
    const paths = [text.slice(0, length + 1)];
    for (let node = 1; node < tree.size; node++) paths.push([...paths[tree.parents[node]!]!, tree.tokens[node]!]);
    expect(logits).toEqual(paths.map((path) => logitsOf(target, path)));
    length += kept;
  }
  expect(length).toBe(text.length - 1);
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
