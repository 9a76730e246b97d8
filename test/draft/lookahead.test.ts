/** Lookahead against what the authors' code did (test/golden/lookahead-tiny), and where it shall differ from it. */
import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { openCheckpoint } from '../../src/checkpoint/checkpoint.ts';
import { generate } from '../../src/decode/generate.ts';
import { createVerdict, verifyMatch } from '../../src/decode/verify.ts';
import { FREE } from '../../src/draft/costs.ts';
import { LookaheadDrafter } from '../../src/draft/lookahead.ts';
import {
  checkLookahead,
  type LookaheadOptions,
  lookaheadNodes,
  parseLookahead,
} from '../../src/draft/lookahead-options.ts';
import { NgramPool } from '../../src/draft/ngram-pool.ts';
import { createDrafter } from '../../src/draft/registry.ts';
import type { DraftTree } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { COMMITTED, ForwardBatch } from '../../src/model/forward-batch.ts';
import { loadTarget } from '../../src/model/registry.ts';
import { costsFrom } from '../support/costs.ts';
import { randomInteger, xorshift } from '../support/random.ts';

const golden = new URL('../golden/', import.meta.url).pathname;
const kernels = createKernels();
const checkpoint = await openCheckpoint(`${golden}medusa-tiny/target`);
const target = loadTarget(kernels, checkpoint.config, checkpoint.source, { dtype: 'f32' });
const { vocabSize } = target.config;
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

const CONTEXT = 256;

/** Under a budget; what forwards really take is learnt on the way. */
const FREE_ROWS = costsFrom({ target: [1, 32].map((rows) => ({ rows, ms: 10 })), draft: FREE });
const DEAR_ROWS = costsFrom({ target: [{ rows: 1, ms: 1 }], draft: FREE });

/** [key, its continuation]. */
type Ngram = readonly [number, readonly number[]];

/** Rows: the new tokens of the text, the levels, the guesses. */
interface Step {
  readonly phase: 'prefill' | 'fill' | 'full';
  readonly levels_before: readonly (readonly number[] | null)[];
  readonly guesses: readonly (readonly number[])[];
  readonly tokens: readonly number[];
  readonly position_ids: readonly number[];
  readonly out_argmax: number;
  /** After the last filled level. */
  readonly window_argmax: readonly number[];
  readonly guess_argmax: readonly (readonly number[])[];
  readonly pool_inserted?: readonly Ngram[];
  readonly pool_appended_after_step?: readonly Ngram[];
  readonly hit_guess?: number;
  readonly accepted_guess_tokens: number;
  readonly emitted: readonly number[];
}

interface Run {
  readonly prompt_id: string;
  readonly prompt: readonly number[];
  readonly initial_level0: readonly number[];
  readonly plain_greedy_64: readonly number[];
  readonly steps: readonly Step[];
  readonly final_pool: readonly (readonly [number, readonly (readonly number[])[]])[];
  readonly pool_from_prompt?: Run['final_pool'];
}

interface Recording {
  readonly config: { readonly LEVEL: number; readonly WINDOW_SIZE: number; readonly GUESS_SET_SIZE: number };
  readonly runs: readonly Run[];
}

const read = (name: string): unknown => JSON.parse(readFileSync(`${golden}lookahead-tiny/${name}.json`, 'utf8'));

const { steps: MASKS } = read('step-masks') as {
  readonly steps: readonly {
    readonly config: readonly [ngram: number, window: number, guesses: number];
    readonly prompt_id: string;
    readonly step: number;
    readonly visible: readonly (readonly number[])[];
  }[];
};

function optionsOf({ config }: Recording): LookaheadOptions {
  return { window: config.WINDOW_SIZE, ngram: config.LEVEL, guesses: config.GUESS_SET_SIZE };
}

const RECORDINGS = ['greedy-n5-w7-g7', 'greedy-n3-w5-g5'].map((name) => {
  const recording = read(name) as Recording;
  return { name, options: optionsOf(recording), runs: recording.runs };
});
const CASES = RECORDINGS.flatMap(({ name, options, runs }) =>
  runs.map((run) => ({ name, options, run, prompt: run.prompt_id })),
);

/** What one step of ours came to. */
interface Replayed {
  readonly tree: DraftTree;
  /** Nodes of the guesses, root included: the first of the tree. */
  readonly guessNodes: number;
  readonly positions: readonly number[];
  /** The target's token after each node. */
  readonly argmax: readonly number[];
  readonly guesses: readonly (readonly number[])[];
  /** N-grams that went into the pool: of the text, before the tree was made, and of the window, after it was verified. */
  readonly fromText: readonly Ngram[];
  readonly fromWindow: readonly Ngram[];
  readonly accepted: number;
  readonly emitted: readonly number[];
  readonly pool: NgramPool;
}

/**
 * The authors' loop around our drafter: a step looks at the prompt's last token already, the window's tokens cannot stand, and a step
 * emits N - 1 tokens at most.
 * @param step sees each step before its tokens are committed; ends the loop by returning false.
 */
function replay(
  options: LookaheadOptions,
  { prompt, initial_level0 }: Run,
  step: (replayed: Replayed, text: readonly number[]) => boolean,
): LookaheadDrafter {
  const drafter = new LookaheadDrafter(target, options, CONTEXT, { firstTokens: initial_level0 });
  const inserted = recordInsertions(drafter.pool, options.ngram);
  using cache = target.createCache(1, CONTEXT + drafter.maxNodes);
  const sequence = cache.sequences[0]!;
  const batch = new ForwardBatch(Math.max(prompt.length, drafter.maxNodes), drafter.maxNodes ** 2);
  for (let i = 0, parent = COMMITTED; i + 1 < prompt.length; i++)
    parent = batch.append(sequence, prompt[i]!, parent, true);
  const { features } = target.forward(batch, cache);
  sequence.commitAll();
  drafter.observe(
    batch.tokens,
    features,
    Int32Array.from(prompt, (_, i) => i),
    prompt.length - 1,
  );
  const text = [...prompt];
  const verdict = createVerdict(drafter.maxNodes);
  for (let going = true; going; ) {
    const root = text.at(-1)!;
    const tree = drafter.propose(root, 64);
    const fromText = inserted.splice(0);
    const guesses = poolOf(drafter.pool, root, options.ngram);
    batch.clear();
    for (let node = 0; node < tree.size; node++)
      batch.append(sequence, tree.tokens[node]!, node === 0 ? COMMITTED : tree.parents[node]!, true);
    const output = target.forward(batch, cache);
    const argmax = new Int32Array(tree.size);
    kernels.argmax(argmax, output.logits.data, tree.size, vocabSize);
    const guessNodes = countNodes(guesses);
    const { tokens, parents } = tree;
    verifyMatch({ size: guessNodes, tokens, parents }, (node) => argmax[node]!, verdict);
    const drafts = [...verdict.path.subarray(1, verdict.pathLength)].map((node) => tokens[node]!);
    const emitted = [...drafts, verdict.bonus].slice(0, options.ngram - 1);
    drafter.observeProposal(output.logits);
    const fromWindow = inserted.splice(0);
    const positions = [...batch.positions.subarray(0, tree.size)];
    const accepted = Math.min(drafts.length, options.ngram - 2);
    const { pool } = drafter;
    going = step(
      { tree, guessNodes, positions, argmax: [...argmax], guesses, fromText, fromWindow, accepted, emitted, pool },
      text,
    );
    sequence.commit(verdict.path, emitted.length);
    drafter.observe(batch.tokens, output.features, verdict.path, emitted.length);
    text.push(...emitted);
  }
  return drafter;
}

/** Root included: guesses that begin alike share nodes. */
function countNodes(guesses: readonly (readonly number[])[]): number {
  return 1 + new Set(guesses.flatMap((guess) => guess.map((_, i) => guess.slice(0, i + 1).join()))).size;
}

function recordInsertions(pool: NgramPool, ngram: number): Ngram[] {
  const inserted: Ngram[] = [];
  const insert = pool.insert.bind(pool);
  pool.insert = (tokens, at) => {
    inserted.push([tokens[at]!, [...tokens.subarray(at + 1, at + ngram)]]);
    insert(tokens, at);
  };
  return inserted;
}

function poolOf(pool: NgramPool, key: number, ngram: number): number[][] {
  return Array.from({ length: pool.count(key) }, (_, rank) =>
    Array.from({ length: ngram - 1 }, (_, i) => pool.token(key, rank, i)),
  );
}

function wholePool(pool: NgramPool, ngram: number): Run['final_pool'] {
  return Array.from({ length: vocabSize }, (_, key) => [key, poolOf(pool, key, ngram)] as const).filter(
    ([, continuations]) => continuations.length > 0,
  );
}

/** By the rules of the goldens' README: the rows that each row sees, itself the last. */
function visibleRows({ tokens, levels_before, guesses }: Step): number[][] {
  const levels = levels_before.filter((level) => level !== null);
  const window = levels.reduce((sum, level) => sum + level.length, 0);
  const fresh = tokens.length - window - guesses.flat().length; // new tokens of the text
  const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);
  const visible = range(0, fresh + levels[0]!.length).map((row) => range(0, row + 1)); // one plain sequence
  for (let level = 1, first = visible.length; level < levels.length; level++) {
    for (let column = 0; column < levels[level]!.length; column++) {
      const own = range(0, level).map((above) => first + above * levels[1]!.length + column);
      visible.push([...range(0, fresh + column), ...own]);
    }
  }
  for (const guess of guesses) {
    const first = visible.length;
    for (let i = 0; i < guess.length; i++) visible.push([...range(0, fresh), ...range(first, first + i + 1)]);
  }
  return visible;
}

/** The node of every row from the text's last token on. */
function nodesOf({ tokens }: Step, visible: readonly (readonly number[])[], fresh: number, tree: DraftTree): number[] {
  return visible.slice(fresh - 1).map((rows) => {
    let node = 0;
    for (const row of rows.slice(fresh)) {
      const children = childrenOf(tree, node).filter((child) => tree.tokens[child] === tokens[row]);
      expect(children).toHaveLength(1);
      node = children[0]!;
    }
    return node;
  });
}

function childrenOf({ size, parents }: DraftTree, parent: number): number[] {
  return [...parents.subarray(0, size).keys()].filter((node) => parents[node] === parent);
}

describe.each(CASES)('$name, $prompt', ({ options, run }) => {
  it("levels, rows, positions, visibility, guesses, pool and tokens are the authors', step by step", () => {
    const { ngram } = options;
    let at = 0;
    const drafter = replay(options, run, (ours, text) => {
      const step = run.steps[at]!;
      const fresh = at === 0 ? text.length : 1;
      const visible = visibleRows(step);
      const mask = MASKS.find(
        ({ config: [n, w], prompt_id, step: index }) =>
          n === ngram && w === options.window && prompt_id === run.prompt_id && index === at,
      );
      if (mask !== undefined) expect(visible).toEqual(mask.visible);
      // Every row of theirs is a node of ours that sees the same tokens, and there are no other nodes.
      const nodes = nodesOf(step, visible, fresh, ours.tree);
      expect(new Set(nodes).size).toBe(ours.tree.size);
      expect(nodes.map((node) => ours.positions[node])).toEqual(step.position_ids.slice(fresh - 1));
      // What the target says there.
      const said = nodes.map((node) => ours.argmax[node]!);
      const guessRows = step.guesses.flat().length;
      const guessed = said.length - guessRows;
      expect(said[0]).toBe(step.out_argmax);
      expect(said.slice(guessed - step.window_argmax.length, guessed)).toEqual(step.window_argmax);
      expect(said.slice(guessed)).toEqual(step.guess_argmax.flat());
      // Guesses come first, and only they.
      expect([...new Set(nodes.slice(guessed))].every((node) => node < ours.guessNodes)).toBe(true);
      if (step.phase === 'full') expect(ours.guesses).toEqual(step.guesses);
      expect(ours.fromText).toEqual([]);
      expect(ours.fromWindow).toEqual(step.pool_inserted ?? []);
      expect(ours.accepted).toBe(step.accepted_guess_tokens);
      if (step.hit_guess !== undefined)
        expect(ours.emitted.slice(0, ours.accepted)).toEqual(
          step.guesses[step.hit_guess]!.slice(0, step.accepted_guess_tokens),
        );
      expect(ours.emitted).toEqual(step.emitted);
      return ++at < run.steps.length;
    });
    expect(wholePool(drafter.pool, ngram)).toEqual(run.final_pool);
  });
});

interface Decoded {
  readonly tokens: readonly number[];
  /** Accepted nodes that no guess had. */
  readonly fromWindow: number;
  readonly nodes: number;
}

/** The rounds of our own loop. */
function decode(drafter: LookaheadDrafter, ngram: number, prompt: readonly number[], maxTokens: number): Decoded[] {
  const rounds: Decoded[] = [];
  let guessNodes = 0;
  const propose = drafter.propose.bind(drafter);
  drafter.propose = (root, maxDepth) => {
    const tree = propose(root, maxDepth);
    guessNodes = countNodes(poolOf(drafter.pool, root, ngram));
    return tree;
  };
  using cache = target.createCache(1, CONTEXT + drafter.maxNodes);
  for (const event of generate(target, drafter, cache, prompt, { maxTokens })) {
    if (event.type !== 'round') continue;
    const { tokens, treeSize, verdict } = event;
    const path = verdict === undefined ? [] : [...verdict.path.subarray(0, verdict.pathLength)];
    rounds.push({ tokens: [...tokens], fromWindow: path.filter((node) => node >= guessNodes).length, nodes: treeSize });
  }
  return rounds;
}

describe.each(RECORDINGS)('our own loop, $name', ({ options, runs }) => {
  const { ngram } = options;
  const decoded = runs.map(({ prompt, initial_level0 }) => {
    using drafter = new LookaheadDrafter(target, options, CONTEXT, { firstTokens: initial_level0 });
    return decode(drafter, ngram, prompt, 80);
  });

  it('writes the plain text', () => {
    for (const [i, { plain_greedy_64 }] of runs.entries())
      expect(decoded[i]!.flatMap(({ tokens }) => tokens).slice(0, 64)).toEqual(plain_greedy_64);
  });

  it('gives a guess that stands as a whole its bonus', () => {
    const longest = (steps: readonly (readonly number[])[]): number => Math.max(...steps.map(({ length }) => length));
    expect(longest(runs.flatMap(({ steps }) => steps.map(({ emitted }) => emitted)))).toBe(ngram - 1);
    expect(longest(decoded.flat().map(({ tokens }) => tokens))).toBe(ngram);
  });

  it("accepts tokens of the window where they are the target's", () => {
    expect(decoded.flat().some(({ fromWindow }) => fromWindow > 0)).toBe(true);
  });

  it('leaves the window out where the end of the text is nearer than it is deep', () => {
    const deep = options.window + ngram - 3;
    for (const rounds of decoded) {
      let left = 80;
      for (const { tokens, nodes } of rounds) {
        const window = left < 80 && left - 1 >= deep; // prefill's token has no tree
        if (window) expect(nodes).toBeGreaterThanOrEqual(options.window + ngram - 2);
        else expect(nodes).toBeLessThanOrEqual(1 + options.guesses * (ngram - 1));
        left -= tokens.length;
      }
    }
  });
});

describe('n-grams of the text', () => {
  const recording = read('greedy-n5-w7-g7-pool-from-prompt') as Recording;
  const options = { ...optionsOf(recording), fromText: true };
  const { ngram } = options;
  const ngramsOf = (text: readonly number[], first: number): Ngram[] =>
    text.slice(first, 1 - ngram).map((key, i) => [key, text.slice(first + i + 1, first + i + ngram)]);

  it.each(recording.runs)("are the authors', up to the step where theirs go wrong, $prompt_id", (run) => {
    const wrong = run.steps.findIndex(({ emitted }) => emitted.length > 1);
    let at = 0;
    replay(options, run, (ours) => {
      const step = run.steps[at]!;
      if (at === 0) expect(wholePool(ours.pool, ngram)).toEqual([...run.pool_from_prompt!].sort(([a], [b]) => a - b));
      else expect(ours.fromText).toEqual(run.steps[at - 1]!.pool_appended_after_step);
      if (step.phase === 'full') expect(ours.guesses).toEqual(step.guesses);
      expect(ours.fromWindow).toEqual(step.pool_inserted ?? []);
      expect(ours.emitted).toEqual(step.emitted);
      return at++ < wrong;
    });
    expect(at).toBeGreaterThan(5);
  });

  it.each(recording.runs)('all stand in the text, each once and in order, $prompt_id', (run) => {
    const theirs = run.steps.flatMap(({ pool_appended_after_step }) => pool_appended_after_step ?? []);
    const whole = [...run.prompt, ...run.plain_greedy_64];
    const known = new Set(ngramsOf(whole, 0).map(String));
    // The first fifty end within the text that is known here.
    expect(theirs.slice(0, 50).every((entry) => known.has(String(entry)))).toBe(false); // the defect
    const inserted: Ngram[] = [];
    let text: readonly number[] = [];
    replay(options, run, (ours, before) => {
      inserted.push(...ours.fromText);
      text = [...before];
      return text.length < run.prompt.length + 60;
    });
    expect(text).toEqual(whole.slice(0, text.length));
    expect(inserted).toEqual(ngramsOf(text, 0));
  });
});

describe('the pool', () => {
  it('keeps the continuations seen last, the newest at the end, each once', () => {
    const [ngram, most, keys] = [3, 4, 5];
    const pool = new NgramPool(keys, ngram, most);
    const random = xorshift(5);
    const tokens = new Int32Array(40);
    for (const text of [0, 1]) {
      const model = new Map<number, string[]>();
      for (let i = 0; i < 400; i++) {
        const at = randomInteger(random, 0, tokens.length - ngram + 1);
        for (let j = 0; j < ngram; j++) tokens[at + j] = randomInteger(random, 0, keys);
        pool.insert(tokens, at);
        const [key, ...continuation] = tokens.subarray(at, at + ngram);
        const others = (model.get(key!) ?? []).filter((known) => known !== String(continuation));
        model.set(key!, [...others, String(continuation)].slice(-most));
        for (let token = 0; token < keys; token++)
          expect(poolOf(pool, token, ngram).map(String), `text ${text}`).toEqual(model.get(token) ?? []);
      }
      pool.clear();
    }
  });
});

describe('settings', () => {
  it.each(
    [1, 2, 5].flatMap((window) => [2, 3, 7].flatMap((ngram) => [1, 3].map((guesses) => ({ window, ngram, guesses })))),
  )('of any size leave the text as it is, within the nodes that were promised: %o', (options) => {
    const [run] = RECORDINGS[0]!.runs;
    let largest = 1; // by adding up levels
    for (let levels = 1; levels < options.ngram; levels++)
      largest = Math.max(largest, levels * (options.window + options.ngram - 1 - levels));
    expect(lookaheadNodes(options)).toBe(largest + options.guesses * (options.ngram - 1));
    const forms = [{}, { costs: FREE_ROWS }, { costs: DEAR_ROWS }].flatMap((parts) =>
      [false, true].map((fromText) => ({ parts, fromText })),
    );
    for (const { parts, fromText } of forms) {
      using drafter = new LookaheadDrafter(target, { ...options, fromText }, CONTEXT, parts);
      const rounds = decode(drafter, options.ngram, run!.prompt, 64);
      expect(rounds.flatMap(({ tokens }) => tokens)).toEqual(run!.plain_greedy_64);
    }
  });

  it('a text is drafted the same whatever was written before it', () => {
    const { options, runs } = RECORDINGS[1]!;
    using drafter = new LookaheadDrafter(target, { ...options, fromText: true }, CONTEXT);
    const first = decode(drafter, options.ngram, runs[0]!.prompt, 40);
    expect(decode(drafter, options.ngram, runs[1]!.prompt, 40)).not.toEqual(first);
    expect(decode(drafter, options.ngram, runs[0]!.prompt, 40)).toEqual(first);
  });

  const wrong: readonly [string, LookaheadOptions, string][] = [
    ['no window', { window: 0, ngram: 3, guesses: 5 }, 'lookahead: window is a whole number of 1..1024, got 0'],
    ['half a column', { window: 1.5, ngram: 3, guesses: 5 }, 'lookahead: window is a whole number of 1..1024, got 1.5'],
    ['one token', { window: 5, ngram: 1, guesses: 5 }, 'lookahead: ngram is a whole number of 2..1024, got 1'],
    ['no guesses', { window: 5, ngram: 3, guesses: 0 }, 'lookahead: guesses is a whole number of 1..1024, got 0'],
    ['NaN', { window: 5, ngram: 3, guesses: Number.NaN }, 'lookahead: guesses is a whole number of 1..1024, got NaN'],
    [
      'more than a tree holds',
      { window: 60, ngram: 12, guesses: 60 },
      'lookahead: a window of 60 and 60 guesses of 12-grams make trees of 1320 nodes, at most 1024',
    ],
  ];
  it.each(wrong)('%s is refused', (_, options, message) => {
    expect(() => checkLookahead(options)).toThrow(new RangeError(message));
    expect(() => new LookaheadDrafter(target, options, CONTEXT)).toThrow(new RangeError(message));
  });

  it('a window that the context cannot hold is refused where it was asked for', () => {
    const lookahead = { window: 20, ngram: 5, guesses: 2 };
    const make = (contextSize: number): void => {
      using _ = createDrafter('lookahead', { target, contextSize, lookahead });
    };
    make(25);
    expect(() => make(24)).toThrow(
      new RangeError('lookahead: a window of 20 and 2 guesses of 5-grams need a context of 25 tokens, got 24'),
    );
    using byDefault = createDrafter('lookahead', { target, contextSize: 3 })!;
    using cache = target.createCache(1, 3 + byDefault.maxNodes);
    const text = [...generate(target, byDefault, cache, [1], { contextSize: 3 })];
    expect(text.at(-1)).toMatchObject({ stopReason: 'contextLimit' });
  });

  it('as text', () => {
    expect(parseLookahead('5,3,7')).toEqual({ window: 5, ngram: 3, guesses: 7 });
    for (const text of ['', '5,3', '5,3,7,1', '5;3;7', '-5,3,7', '5,3,x', '5,3,7 '])
      expect(() => parseLookahead(text)).toThrow(
        new RangeError(`lookahead: expected window,ngram,guesses such as 5,3,5, got "${text}"`),
      );
    expect(() => parseLookahead('5,1,7')).toThrow('lookahead: ngram is a whole number of 2..1024, got 1');
  });
});
