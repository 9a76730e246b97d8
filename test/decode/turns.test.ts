/** A text that begins like the one before goes on from both caches, and is what it would be without them. */
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { type GenerateEvent, type GenerateOptions, generate } from '../../src/decode/generate.ts';
import type { Drafter } from '../../src/draft/drafter.ts';
import { EagleDrafter } from '../../src/draft/eagle.ts';
import { HybridDrafter } from '../../src/draft/hybrid.ts';
import { NoDrafter } from '../../src/draft/none.ts';
import { staticShape } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import type { KvCache } from '../../src/model/kv-cache.ts';
import { randomInteger, xorshift } from '../support/random.ts';
import { registered, TREES } from '../support/registered.ts';
import { tinyHead, tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
const target = tinyTarget(kernels);
const { vocabSize } = target.config;
const forward = target.forward.bind(target);
afterEach(() => vi.restoreAllMocks());
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

const CAPACITY = 240;
const CONTEXT = 200;
const fixed = (nodes: number): EagleDrafter => new EagleDrafter(target, tinyHead(target), staticShape(nodes), CONTEXT);
const dynamic = (): EagleDrafter => new EagleDrafter(target, tinyHead(target), TREES.dynamic!, CONTEXT);
const DRAFTERS: Readonly<Record<string, () => Drafter>> = Object.fromEntries(
  registered(target).map(({ label, make }) => [label, () => make(target, CONTEXT)]),
);

function tokensOf(length: number, seed = length): number[] {
  const random = xorshift(seed);
  return Array.from({ length }, () => randomInteger(random, 0, vocabSize));
}

interface Run {
  readonly ids: readonly number[];
  /** The logits that each token was drawn from, bit for bit. */
  readonly logits: readonly string[];
  /** What was drafted: a head with other rows in its cache would guess otherwise. Not of a budget's trees: it goes by the clock. */
  readonly trees: readonly string[];
  readonly cached: number;
  /** Of the target, before the first token. */
  readonly prefillRows: number;
}

type Until = (event: GenerateEvent, ids: readonly number[]) => boolean;

function run(
  drafter: Drafter,
  cache: KvCache,
  prompt: readonly number[],
  options: GenerateOptions = {},
  until: Until = () => false,
): Run {
  let rows = 0;
  vi.spyOn(target, 'forward').mockImplementation((batch, ...rest) => {
    rows += batch.rows;
    return forward(batch, ...rest);
  });
  const trees: string[] = [];
  const propose = drafter.propose.bind(drafter);
  vi.spyOn(drafter, 'propose').mockImplementation((root, maxDepth) => {
    const tree = propose(root, maxDepth);
    if (drafter.budget === undefined) trees.push(tree.tokens.subarray(0, tree.size).join());
    return tree;
  });
  const ids: number[] = [];
  const logits: string[] = [];
  let cached = Number.NaN;
  let prefillRows = 0;
  const onLogits = (_: number, row: Float32Array): void => {
    logits.push(Buffer.from(row.slice().buffer).toString('base64'));
  };
  try {
    for (const event of generate(target, drafter, cache, prompt, { maxTokens: 16, ...options, onLogits })) {
      if (event.type === 'prefill') cached = event.cached;
      else if (ids.length === 0) prefillRows = rows;
      if (event.type === 'round') ids.push(...event.tokens);
      if (until(event, ids)) break;
    }
  } finally {
    vi.restoreAllMocks();
  }
  return { ids, logits, trees, cached, prefillRows };
}

function fresh(name: string, prompt: readonly number[], options: GenerateOptions = {}): Run {
  using drafter = DRAFTERS[name]!();
  using cache = target.createCache(1, CAPACITY);
  const made = run(drafter, cache, prompt, options);
  expect(made.cached).toBe(0);
  expect(made.prefillRows).toBe(prompt.length);
  return made;
}

/** The prompt goes on from the caches, and everything is as without them; returns the tokens that were not computed again. */
function expectContinued(
  name: string,
  drafter: Drafter,
  cache: KvCache,
  prompt: readonly number[],
  options: GenerateOptions = {},
): number {
  const { cached, prefillRows, ...got } = run(drafter, cache, prompt, options);
  const { ids, logits, trees } = fresh(name, prompt, options);
  expect(got).toEqual({ ids, logits, trees });
  expect(prefillRows).toBe(prompt.length - cached);
  return cached;
}

const OPTIONS: readonly GenerateOptions[] = [
  {},
  { temperature: 1, seed: 5, repeatPenalty: 1.2 },
  { temperature: 2, seed: 5, verify: 'multi-round' },
];
/** The head's last row has eaten a token of the old text: where the texts part within what it has seen, one row more is computed. */
const parted = (drafter: Drafter, shared: number): number =>
  (drafter instanceof EagleDrafter || drafter instanceof HybridDrafter) && drafter.maxNodes > 1 ? shared - 1 : shared;

describe.each(Object.entries(DRAFTERS))('%s', (name, make) => {
  it.each(OPTIONS)('a further turn computes only what is new, %o', (options) => {
    using drafter = make();
    using cache = target.createCache(1, CAPACITY);
    let text = tokensOf(70);
    let committed = 0;
    for (let turn = 0; turn < 4; turn++) {
      expect(expectContinued(name, drafter, cache, text, options)).toBe(committed);
      const { ids } = fresh(name, text, options);
      committed = text.length + ids.length - 1; // the last token drawn is in no cache
      text = [...text, ...ids, ...tokensOf(7, turn + 1)];
    }
  });

  it('an edited text is used up to the first difference', () => {
    const before = tokensOf(90);
    for (const at of [1, 2, 63, 64, 65, 80]) {
      using drafter = make();
      using cache = target.createCache(1, CAPACITY);
      run(drafter, cache, before);
      const edited = [...before.slice(0, at), (before[at]! + 1) % vocabSize, ...tokensOf(9)];
      expect(expectContinued(name, drafter, cache, edited)).toBe(parted(drafter, at));
    }
  });

  it('another text altogether is computed from its start', () => {
    using drafter = make();
    using cache = target.createCache(1, CAPACITY);
    run(drafter, cache, [1, ...tokensOf(30)]);
    expect(expectContinued(name, drafter, cache, [2, ...tokensOf(30)])).toBe(0);
  });

  it('the same text, and the beginning of it, compute their last token once more', () => {
    using drafter = make();
    using cache = target.createCache(1, CAPACITY);
    const text = tokensOf(70);
    run(drafter, cache, text);
    expect(expectContinued(name, drafter, cache, text)).toBe(parted(drafter, 69));
    expect(expectContinued(name, drafter, cache, text.slice(0, 41))).toBe(parted(drafter, 40));
    expect(expectContinued(name, drafter, cache, text.slice(0, 2))).toBe(parted(drafter, 1));
    expect(expectContinued(name, drafter, cache, text.slice(0, 1))).toBe(0);
  });

  it('goes on after an abort in the prompt', () => {
    for (const chunks of [0, 1, 2, 3]) {
      using drafter = make();
      using cache = target.createCache(1, CAPACITY);
      const text = tokensOf(150);
      const stop: Until = (event) => event.type === 'prefill' && event.processed === chunks * 40;
      run(drafter, cache, text, { prefillChunk: 40 }, stop);
      expect(expectContinued(name, drafter, cache, text)).toBe(chunks * 40);
    }
  });

  it('goes on after an abort in the answer, and from wherever a stop string cuts it', () => {
    const text = tokensOf(20);
    const { ids } = fresh(name, text);
    for (let length = 1; length <= 8; length++) {
      using drafter = make();
      using cache = target.createCache(1, CAPACITY);
      run(drafter, cache, text, {}, (_, soFar) => soFar.length >= length);
      const cut = [...text, ...ids.slice(0, length), ...tokensOf(5, 99)];
      const cached = expectContinued(name, drafter, cache, cut);
      expect(cached).toBeGreaterThanOrEqual(parted(drafter, text.length + length - 1));
    }
  });

  it('goes on after an error, wherever it came from', () => {
    const text = tokensOf(100);
    const next = [...text, ...fresh(name, text).ids, ...tokensOf(5)];
    for (let call = 1; call <= 6; call++) {
      using drafter = make();
      using cache = target.createCache(1, CAPACITY);
      // The call-th forward appends its rows and fails.
      let calls = 0;
      vi.spyOn(target, 'forward').mockImplementation((...args) => {
        const output = forward(...args);
        if (++calls === call) throw new Error('a broken forward');
        return output;
      });
      expect(() => [...generate(target, drafter, cache, text, { maxTokens: 16 })]).toThrow('a broken forward');
      vi.restoreAllMocks();
      expect(expectContinued(name, drafter, cache, next)).toBeGreaterThanOrEqual(call === 1 ? 0 : 63);
    }
  });
});

it('goes on after an error within the head', () => {
  const text = tokensOf(150);
  for (let call = 1; call <= 6; call++) {
    const head = tinyHead(target);
    using drafter = new EagleDrafter(target, head, staticShape(12), CONTEXT);
    using cache = target.createCache(1, CAPACITY);
    const compute = head.forward.bind(head);
    let calls = 0;
    vi.spyOn(head, 'forward').mockImplementation((...args) => {
      const output = compute(...args);
      if (++calls === call) throw new Error('a broken head');
      return output;
    });
    expect(() => [...generate(target, drafter, cache, text, { maxTokens: 16 })]).toThrow('a broken head');
    vi.restoreAllMocks();
    expectContinued('eagle, static', drafter, cache, [...text, ...tokensOf(5)]);
  }
});

it('a drafter that was not there has its rows made up for; one that was goes on', () => {
  using none = new NoDrafter();
  using drafter = fixed(12);
  using cache = target.createCache(1, CAPACITY);
  let text = tokensOf(30);
  const turn = (name: string): number => {
    const cached = expectContinued(name, name === 'none' ? none : drafter, cache, text);
    text = [...text, ...fresh(name, text).ids, ...tokensOf(4, text.length)];
    return cached;
  };
  expect(turn('none')).toBe(0);
  expect(turn('eagle, static')).toBe(0); // the head has no features: all rows are computed again
  expect(turn('eagle, static')).toBe(65);
  expect(turn('none')).toBe(85);
  expect(turn('none')).toBe(105);
  expect(turn('eagle, static')).toBe(85); // as far as it was when it was asked last
  expect(turn('eagle, static')).toBe(145);
});

it('a drafter that has seen another text goes on only from what is the same in both', () => {
  using none = new NoDrafter();
  using drafter = fixed(12);
  using cache = target.createCache(1, CAPACITY);
  const start = tokensOf(40);
  run(drafter, cache, [...start, 1, ...tokensOf(60)]);
  const text = [...start, 2, ...tokensOf(50)];
  expect(expectContinued('none', none, cache, text)).toBe(40);
  expect(expectContinued('eagle, static', drafter, cache, [...text, 3])).toBe(39);
});

it('whatever is asked in whatever order', () => {
  const random = xorshift(7);
  using none = new NoDrafter();
  using drafter = fixed(12);
  using other = dynamic();
  using cache = target.createCache(1, CAPACITY);
  const drafters: readonly (readonly [string, Drafter])[] = [
    ['none', none],
    ['eagle, static', drafter],
    ['eagle, dynamic', other],
  ];
  let text = tokensOf(10);
  let saved = 0;
  for (let turn = 0; turn < 150; turn++) {
    const [name, asked] = drafters[randomInteger(random, 0, drafters.length)]!;
    const options = {
      temperature: randomInteger(random, 0, 2),
      seed: turn,
      verify: turn % 3 === 0 ? ('multi-round' as const) : ('match' as const),
      prefillChunk: 1 + randomInteger(random, 0, 70),
    };
    const length = randomInteger(random, 1, 20);
    const { ids, logits, trees, cached } = run(asked, cache, text, options, (event, soFar) =>
      event.type === 'prefill' ? random() < 0.05 : soFar.length >= length,
    );
    saved += cached;
    const wanted = fresh(name, text, options);
    expect(ids).toEqual(wanted.ids.slice(0, ids.length));
    expect(logits).toEqual(wanted.logits.slice(0, logits.length));
    expect(trees).toEqual(wanted.trees.slice(0, trees.length));
    const kept = randomInteger(random, 0, 3) === 0 ? randomInteger(random, 1, text.length + 1) : text.length;
    text = [...text.slice(0, kept), ...ids, ...tokensOf(randomInteger(random, 0, 40), turn)];
    if (text.length > 180) text = text.slice(0, randomInteger(random, 1, 180));
  }
  expect(saved).toBeGreaterThan(150 * 20);
});

it('a drafter that keeps more than the target holds is named', () => {
  const drafter = new NoDrafter();
  vi.spyOn(drafter, 'resume').mockReturnValue(3);
  using cache = target.createCache(1, CAPACITY);
  expect(() => generate(target, drafter, cache, tokensOf(9)).next()).toThrow(
    'drafter "none": it may resume after 0..0 tokens, got 3',
  );
});
