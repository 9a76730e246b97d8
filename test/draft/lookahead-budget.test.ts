/** Lookahead's budget against made-up targets and machines: what a row costs and what comes next is known here, and so is what pays. */
import { afterAll, afterEach, beforeEach, describe, expect, it, type MockInstance, vi } from 'vitest';
import { MOST_NODES } from '../../src/draft/budget.ts';
import { FREE, type TreeCosts } from '../../src/draft/costs.ts';
import { LookaheadDrafter } from '../../src/draft/lookahead.ts';
import { LookaheadBudget } from '../../src/draft/lookahead-budget.ts';
import { DEFAULT_LOOKAHEAD, type LookaheadOptions } from '../../src/draft/lookahead-options.ts';
import { LookaheadWindow } from '../../src/draft/lookahead-window.ts';
import { NgramPool } from '../../src/draft/ngram-pool.ts';
import { PathTree } from '../../src/draft/path-tree.ts';
import { PoolGuesses } from '../../src/draft/pool-guesses.ts';
import { createDrafter } from '../../src/draft/registry.ts';
import { chainShape } from '../../src/draft/tree.ts';
import { WindowAccount } from '../../src/draft/window-account.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { ScratchTensor } from '../../src/tensor/tensor.ts';
import { costsFrom } from '../support/costs.ts';
import { xorshift } from '../support/random.ts';
import { TINY_CONFIG, tinyTarget } from '../support/tiny.ts';

const VOCABULARY = 640;
const CONTEXT = 8192;
const kernels = createKernels();
const target = tinyTarget(kernels, { config: { ...TINY_CONFIG, vocabSize: VOCABULARY } });
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

let plant: MockInstance<LookaheadWindow['plant']>;
beforeEach(() => {
  plant = vi.spyOn(LookaheadWindow.prototype, 'plant');
});
afterEach(() => void vi.restoreAllMocks());

/** The target's token after `token`, itself at `position` of the text. */
type Next = (token: number, position: number) => number;

/** Every n-gram is new to the text; the window finds those that are ahead. */
const counting: Next = (token) => (token + 1) % VOCABULARY;
/** Neither text nor window know anything. */
const noise: Next = (token, position) => Math.floor(xorshift(1 + 7919 * position + token)() * VOCABULARY);
/** All n-grams of the text have been there before. */
const periodic: Next = (_, position) => 3 * (position % 50);

/** Of rows that cost such a share of a forward. */
const machine =
  (perRow: number) =>
  (rows: number): number =>
    10 * (1 + perRow * (rows - 1));

const costsOf = (ms: (rows: number) => number): TreeCosts =>
  costsFrom({ target: Array.from({ length: MOST_NODES }, (_, i) => ({ rows: i + 1, ms: ms(i + 1) })), draft: FREE });

const lookahead = (ms: (rows: number) => number, options: LookaheadOptions = DEFAULT_LOOKAHEAD): LookaheadDrafter =>
  new LookaheadDrafter(target, options, CONTEXT, { costs: costsOf(ms) });

interface Round {
  readonly asked: boolean;
  /** Emitted. */
  readonly tokens: number;
  readonly nodes: number;
}

const logits = new ScratchTensor();

/** The rounds of a text, in the order of the loop. */
function decode(
  drafter: LookaheadDrafter,
  next: Next,
  ms: (rows: number) => number,
  prompt: readonly number[],
  count: number,
): Round[] {
  const rounds: Round[] = [];
  const features = new ScratchTensor();
  const path = new Int32Array(drafter.maxNodes);
  const text = [...prompt, next(prompt.at(-1)!, prompt.length)];
  drafter.resume(prompt, 0);
  drafter.observe(Int32Array.from(prompt), features, Int32Array.from(prompt.keys()), prompt.length);
  while (rounds.length < count) {
    const windows = plant.mock.calls.length;
    const { size, tokens, parents } = drafter.propose(text.at(-1)!, 1000);
    logits.reshape(size, VOCABULARY).data.fill(0);
    const places: number[] = [];
    const answers: number[] = [];
    for (let node = 0; node < size; node++) {
      places.push(node === 0 ? text.length : places[parents[node]!]! + 1);
      answers.push(next(tokens[node]!, places[node]!));
      logits.row(node)[answers[node]!] = 1;
    }
    let length = 1;
    for (let node = 1; node < size; node++) {
      const last = path[length - 1]!;
      if (parents[node] === last && tokens[node] === answers[last]) path[length++] = node;
    }
    const bonus = answers[path[length - 1]!]!;
    drafter.observeProposal(logits);
    drafter.observe(tokens, features, path, length);
    drafter.settle(path, length, bonus, ms(size));
    for (let i = 1; i < length; i++) text.push(tokens[path[i]!]!);
    text.push(bonus);
    rounds.push({ asked: plant.mock.calls.length > windows, tokens: length, nodes: size });
  }
  // Whatever was drafted, the text is the target's.
  for (let i = prompt.length; i < text.length; i++) expect(text[i]).toBe(next(text[i - 1]!, i));
  return rounds;
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
const tokensOf = (rounds: readonly Round[]): number => sum(rounds.map(({ tokens }) => tokens));
/** Over plain decoding. */
const speedup = (rounds: readonly Round[], ms: (rows: number) => number): number =>
  (tokensOf(rounds) * ms(1)) / sum(rounds.map(({ nodes }) => ms(nodes)));

/** Rounds between those with windows. */
function pausesOf(rounds: readonly Round[]): number[] {
  const asked = [...rounds.keys()].filter((i) => rounds[i]!.asked);
  return asked.flatMap((at, i) => (i > 0 && at - asked[i - 1]! > 1 ? [at - asked[i - 1]! - 1] : []));
}

/** The window starts with these, most of them ahead of the text, which counts on from the last. */
const AHEAD = [600, 60, 35, 12, 1];

describe('a window that pays', () => {
  it('is asked in every round where rows are free, and its n-grams stand', () => {
    const ms = machine(0);
    const rounds = decode(lookahead(ms), counting, ms, [300, 200, 100, 20, 1], 150);
    expect(rounds.every(({ asked }) => asked)).toBe(true);
    expect(rounds.slice(0, 15).every(({ tokens }) => tokens === 1)).toBe(true); // as far as the text was behind
    expect(rounds.slice(-30).every(({ tokens }) => tokens === 3)).toBe(true);
  });

  it('is asked on, through rounds in which it brings nothing', () => {
    const ms = machine(0.015);
    const rounds = decode(lookahead(ms), counting, ms, AHEAD, 48);
    expect(rounds.every(({ asked }) => asked)).toBe(true);
    expect(rounds.slice(0, 9).every(({ tokens }) => tokens === 1)).toBe(true);
    expect(speedup(rounds, ms)).toBeGreaterThan(1.5);
  });

  it('is asked by what it brings beside the n-grams of the text', () => {
    const ms = machine(0.015);
    const period = Array.from({ length: 100 }, (_, i) => periodic(0, i));
    const rounds = decode(lookahead(ms), periodic, ms, period, 400);
    expect(rounds.slice(-100).every(({ tokens }) => tokens === 3)).toBe(true);
    expect(rounds.filter(({ asked }) => asked).length).toBeLessThan(30);
  });

  it('counts with its own nodes that stand', () => {
    const ms = machine(0.015);
    // The target writes the same token in a place, whatever stands before it: Jacobi's iteration is right after one step.
    const ahead: Next = (_, position) => Math.floor(xorshift(position)() * VOCABULARY);
    const rounds = decode(lookahead(ms), ahead, ms, AHEAD, 100);
    expect(rounds.every(({ asked }) => asked)).toBe(true);
    expect(speedup(rounds, ms)).toBeGreaterThan(1.05);
  });
});

describe('a window that does not pay', () => {
  const perRow = 0.1;
  const ms = machine(perRow);

  it('has lost two tokens at most when it pauses, and pauses twice as long each time', () => {
    const rounds = decode(lookahead(ms), noise, ms, AHEAD, 6000);
    const trial = rounds.slice(
      0,
      rounds.findIndex(({ asked }) => !asked),
    );
    expect(trial.length).toBeGreaterThan(0);
    expect(sum(trial.map(({ nodes }) => perRow * (nodes - 1)))).toBeLessThan(2.5); // with what the text's guesses cost
    const pauses = pausesOf(rounds);
    // What window and n-grams lose differs a little from trial to trial; the account's own tests are exact.
    expect(pauses[0]).toBeGreaterThanOrEqual(32);
    for (const [i, pause] of pauses.slice(0, 4).entries()) expect(pause).toBeGreaterThan(40 * 2 ** i);
    expect(pauses.length).toBeGreaterThan(8);
    expect(Math.max(...pauses)).toBeLessThan(1000);
    const late = rounds.slice(2000);
    expect(late.filter(({ asked }) => asked).length / late.length).toBeLessThan(0.006);
    expect(speedup(late, ms)).toBeGreaterThan(0.99);
  });

  it('pauses on into the next text', () => {
    const drafter = lookahead(ms);
    const first = decode(drafter, noise, ms, AHEAD, 10);
    expect(first[0]!.asked).toBe(true);
    expect(first.at(-1)!.asked).toBe(false);
    const second = decode(drafter, noise, ms, [5, 6, 7], 100);
    expect(second.slice(0, 20).every(({ asked }) => !asked)).toBe(true);
    expect(second.some(({ asked }) => asked)).toBe(true);
  });

  it('leaves the n-grams of the text to be drafted', () => {
    const dear = machine(0.3);
    const period = Array.from({ length: 100 }, (_, i) => periodic(0, i));
    const rounds = decode(lookahead(dear), periodic, dear, period, 80);
    expect(rounds.slice(1).every(({ asked }) => !asked)).toBe(true);
    // By now the budget has tried, six times, whether two nodes cost less than was measured.
    expect(rounds.slice(-20).every(({ tokens, nodes }) => tokens === 3 && nodes === 3)).toBe(true);
  });

  it('is never asked where one round would lose more than may be lost', () => {
    const large = { window: 20, ngram: 4, guesses: 5 };
    expect(decode(lookahead(ms, large), noise, ms, AHEAD, 300).some(({ asked }) => asked)).toBe(false);
    // 180 rows, almost six times the largest forward that is measured, and so almost six times as long.
    const wide = { window: 60, ngram: 4, guesses: 5 };
    const flat = (rows: number): number => 10 * Math.max(1, rows / MOST_NODES);
    expect(decode(lookahead(flat, wide), noise, flat, AHEAD, 100).some(({ asked }) => asked)).toBe(false);
    expect(decode(lookahead(flat), noise, flat, AHEAD, 100).every(({ asked }) => asked)).toBe(true);
  });
});

it('without n-grams of the text, where those are not wanted, only the window brings any', () => {
  const dear = machine(0.3);
  const period = Array.from({ length: 100 }, (_, i) => periodic(0, i));
  const rounds = decode(lookahead(dear, { ...DEFAULT_LOOKAHEAD, fromText: false }), periodic, dear, period, 40);
  expect(tokensOf(rounds.slice(-20))).toBe(20);
});

it('is what a budget decides unless a tree was asked for', () => {
  const costs = costsOf(machine(0.1));
  const asked: unknown[] = [];
  const parts = {
    target,
    contextSize: CONTEXT,
    costs: (...of: unknown[]): TreeCosts => {
      asked.push(of);
      return costs;
    },
  };
  for (const tree of [undefined, { kind: 'auto', costs } as const, chainShape(3)]) {
    using drafter = createDrafter('lookahead', { ...parts, tree })!;
    expect(drafter.budget?.target.at(11)).toBe(tree?.kind === 'fixed' ? undefined : 20);
  }
  expect(asked).toEqual([['lookahead', undefined]]); // no forwards of its own
});

describe('the account', () => {
  /** How long the window is asked while every round of it loses so much, and then how long it pauses. */
  function trial(account: WindowAccount, cost: number): { readonly asked: number; readonly paused: number } {
    let asked = 0;
    for (; account.wants(cost); asked++) account.settle(-cost, true);
    let paused = 1;
    for (; !account.wants(cost); paused++) account.settle(0, false);
    account.settle(-cost, true); // the first of the next trial is counted here
    return { asked, paused };
  }

  it.each([0.05, 0.2, 0.9, 1.9])('loses as much as a settled share of the text: %f tokens a round', (cost) => {
    const account = new WindowAccount();
    const trials = Array.from({ length: 8 }, () => trial(account, cost));
    for (const [i, { asked, paused }] of trials.entries()) {
      const lost = cost * (asked + Number(i > 0));
      expect(lost).toBeLessThanOrEqual(2);
      expect(paused).toBeGreaterThanOrEqual(0.7 * 32 * 2 ** Math.min(i, 3) * lost); // losses fade
      expect(paused).toBeLessThanOrEqual(32 * 2 ** Math.min(i, 3) * lost + 2); // the round in which it stops, and rounding
    }
  });

  it('judges after 32 rounds, and pauses as shortly as at first where it was right in between', () => {
    const account = new WindowAccount();
    const first = trial(account, 0.02);
    expect(first.asked).toBe(32);
    expect(trial(account, 0.02).paused).toBeGreaterThan(1.8 * first.paused);
    for (let round = 0; round < 200; round++) account.settle(1, account.wants(0.02));
    while (account.wants(0.02)) account.settle(-0.02, true);
    let paused = 1;
    for (; !account.wants(0.02); paused++) account.settle(0, false);
    expect(paused).toBeLessThan(first.paused);
  });

  it('is not asked for a window that is merely dear, and forgets nothing meanwhile', () => {
    const first = trial(new WindowAccount(), 0.5);
    const account = new WindowAccount();
    account.settle(1, false);
    for (let round = 0; round < 5; round++) expect(account.wants(3.1)).toBe(false);
    expect(account.wants(2.9)).toBe(true); // with the token that was won
    account.settle(-1, true);
    expect(trial(account, 0.5).paused).toBeLessThanOrEqual(first.paused + 1);
  });

  it('may be won back in a pause', () => {
    const account = new WindowAccount();
    const { asked } = trial(account, 0.5);
    while (account.wants(0.5)) account.settle(-0.5, true);
    account.settle(3, false);
    while (!account.wants(0.5)) account.settle(0, false);
    let later = 0;
    for (; account.wants(0.5); later++) account.settle(-0.5, true);
    expect(later).toBeGreaterThan(asked + 2);
  });
});

describe('guesses of a pool', () => {
  const poolOf = (ngrams: readonly (readonly number[])[]): NgramPool => {
    const pool = new NgramPool(20, 3, 4);
    for (const ngram of ngrams) pool.insert(Int32Array.from(ngram), 0);
    return pool;
  };
  const collect = (ngrams: readonly (readonly number[])[], maxDepth = 9): PoolGuesses => {
    const guesses = new PoolGuesses(poolOf(ngrams), 3, 4);
    guesses.collect(1, maxDepth);
    return guesses;
  };
  const nodes = ({ tree: { size, tokens, parents } }: PoolGuesses): string[] =>
    Array.from({ length: size }, (_, i) => `${tokens[i]}<${parents[i]}`);

  it('are a tree, the newest first, as deep as they may be', () => {
    const ngrams = [[1, 2, 3], [1, 4, 5], [9, 9, 9], [1, 2, 6]]; // biome-ignore format: a table
    expect(nodes(collect(ngrams))).toEqual(['1<-1', '2<0', '6<1', '4<0', '5<3', '3<1']);
    expect(nodes(collect(ngrams, 1))).toEqual(['1<-1', '2<0', '4<0']);
    expect(nodes(collect(ngrams, 0))).toEqual(['1<-1']);
  });

  it('are believed the less the more there are, and the older they are', () => {
    const alone = collect([[1, 2, 3]]);
    const two = collect([[1, 2, 3], [1, 4, 5]]); // biome-ignore format: a table
    expect(alone.chance(1)).toBeCloseTo(1 / 2, 1);
    expect(two.chance(1)).toBeCloseTo(1 / 3, 1);
    expect(two.chance(3)).toBeCloseTo(1 / 12, 1);
    expect(alone.chance(1)).toBeGreaterThan(two.chance(1));
    expect(two.chance(1)).toBeGreaterThan(two.chance(3));
  });

  it('are counted where they could stand, drafted or not', () => {
    const guesses = collect([[1, 2, 3]]);
    const drafted = { size: 2, tokens: Int32Array.of(1, 2), parents: Int32Array.of(-1, 0) };
    const [first, second] = [guesses.chance(1), guesses.chance(2)];
    expect(guesses.learn(drafted, Int32Array.of(0), 1, 7)).toBe(0);
    expect(guesses.chance(1)).toBeLessThan(first);
    expect(guesses.chance(2)).toBe(second); // its parent fell
    for (let i = 0; i < 50; i++) expect(guesses.learn(drafted, Int32Array.of(0, 1), 2, 3)).toBe(1);
    expect(guesses.chance(1)).toBeGreaterThan(0.9);
    expect(guesses.chance(2)).toBeGreaterThan(0.9);
    const others = { size: 3, tokens: Int32Array.of(1, 4, 2), parents: Int32Array.of(-1, 0, 1) };
    expect(guesses.learn(others, Int32Array.of(0, 1, 2), 3, 3)).toBe(0);
  });

  const options = { window: 5, ngram: 3, guesses: 4 };
  const rooted = (): PathTree => {
    const tree = new PathTree(32);
    tree.start(1);
    return tree;
  };

  it('of two pools are one tree of the likeliest, in which a token stands once, as likely as the surer says', () => {
    const text = poolOf([[1, 2, 3], [1, 4, 5]]); // biome-ignore format: a table
    const window = poolOf([[1, 4, 8], [1, 6, 7]]); // biome-ignore format: a table
    const plantWith = (perRow: number): string[] => {
      const tree = rooted();
      new LookaheadBudget(costsOf(machine(perRow)), options, text, window).plantGuesses(tree, 0, 9);
      return Array.from({ length: tree.size }, (_, i) => `${tree.tokens[i]}<${tree.parents[i]}`);
    };
    expect(plantWith(0)).toEqual(['1<-1', '4<0', '5<1', '2<0', '3<3', '6<0', '7<5', '8<1']);
    expect(plantWith(0.2)).toEqual(['1<-1', '4<0', '6<0']);
    expect(plantWith(1)).toEqual(['1<-1']);
  });

  it('are believed by how they fare alone: rounds without any say nothing, nor do nodes of the window that stand', () => {
    const full = poolOf([[1, 2, 3]]);
    const budget = new LookaheadBudget(costsOf(machine(0.1)), options, full, poolOf([]));
    const tokensOf = (): number => budget.budget.tokensOf(3);
    /** A round: the window brings `7 8` beside what the pool guesses. */
    const round = (root: number, accepted: readonly number[]): void => {
      const tree = new PathTree(32);
      tree.start(root);
      budget.plantGuesses(tree, 0, 9);
      tree.child(tree.child(0, 7), 8);
      const path = [0];
      for (const token of accepted) path.push(tree.child(path.at(-1)!, token));
      budget.settle(tree, Int32Array.from(path), path.length, 9, machine(0.1)(tree.size));
    };
    for (let i = 0; i < 20; i++) round(1, i % 2 ? [2, 3] : []);
    const known = tokensOf();
    expect(known).toBeCloseTo(2, 1);
    for (let i = 0; i < 50; i++) round(5, [7, 8]); // nothing known after 5
    expect(tokensOf()).toBe(known);
    for (let i = 0; i < 50; i++) round(1, [7, 8]);
    expect(tokensOf()).toBeLessThan(1.6);
  });

  it("that fall are the window's loss where only it had them", () => {
    const [empty, full] = [poolOf([]), poolOf([[1, 2, 3]])];
    /** Whether a window of 1.9 tokens is wanted after a round in which two guesses fell, for 0.2. */
    const wantsWindow = (text: NgramPool, window: NgramPool): boolean => {
      const tree = rooted();
      const budget = new LookaheadBudget(costsOf(machine(0.1)), options, text, window);
      budget.plantGuesses(tree, 0, 9);
      expect(tree.size).toBe(3);
      budget.settle(tree, Int32Array.of(0), 1, 9, machine(0.1)(3));
      return budget.wantsWindow(1, 19);
    };
    expect(wantsWindow(full, empty)).toBe(true);
    expect(wantsWindow(empty, full)).toBe(false);
  });
});
