/** The budget against made-up texts and machines: what a forward takes and how often a guess stands is known here, and so is what is best. */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { MOST_NODES, TreeBudget } from '../../src/draft/budget.ts';
import { BudgetGrower } from '../../src/draft/budget-grower.ts';
import { Calibration } from '../../src/draft/calibration.ts';
import { type CostCurve, FREE, PLAIN_LOOK, type TreeCosts } from '../../src/draft/costs.ts';
import { DynamicGrower } from '../../src/draft/grow.ts';
import type { TreeGrower } from '../../src/draft/tree-grower.ts';
import { costsFrom } from '../support/costs.ts';
import { xorshift } from '../support/random.ts';

let clock = 0;
beforeEach(() => {
  clock = 0;
  vi.spyOn(performance, 'now').mockImplementation(() => clock);
});
afterEach(() => void vi.restoreAllMocks());

interface World {
  readonly targetMs: (rows: number) => number;
  readonly headMs: (rows: number) => number;
  /** Chance that a guess stands, by what the head said and the round. */
  readonly stands: (said: number, round: number) => number;
}

/** A head that is sure at one node and unsure at the next: the best guess's probability, half of the rest to the second, and so on. */
const bestGuess = (random: () => number): number => 0.15 + 0.8 * random() ** 2;

const ROOT = Int32Array.of(0);

const curveOf = (ms: (rows: number) => number): CostCurve =>
  Array.from({ length: MOST_NODES }, (_, i) => ({ rows: i + 1, ms: ms(i + 1) }));
const costsOf = ({ targetMs, headMs }: World): TreeCosts =>
  costsFrom({ target: curveOf(targetMs), draft: curveOf(headMs) });

interface Outcome {
  readonly tokens: number;
  readonly ms: number;
  readonly rounds: number;
  /** Mean nodes. */
  readonly size: number;
}

/** Decodes `rounds` rounds. The target's token after a node is the guess of a rank, or another token, -1. */
function decode(grower: TreeGrower, world: World, rounds: number, from = 0): Outcome {
  const random = xorshift(7 + from);
  const K = grower.branching;
  const guesses = {
    tokens: new Int32Array(grower.maxRows * K),
    logProbabilities: new Float64Array(grower.maxRows * K),
  };
  const path = new Int32Array(MOST_NODES * 4);
  const began = clock;
  let tokens = 0;
  let nodes = 0;
  let pending = 1;
  let name = 1; // every guess has a token of its own
  for (let round = from; round < from + rounds; round++) {
    const rightAfter = new Map<number, number>(); // the target's token after a token that was looked at, if it was guessed
    const guess = (parents: Int32Array, rows: number): void => {
      for (let row = 0; row < rows; row++) {
        let left = 1;
        let best = bestGuess(random);
        let u = random();
        for (let rank = 0; rank < K; rank++) {
          const said = left * best;
          left -= said;
          best = 0.5;
          const token = name++;
          guesses.tokens[row * K + rank] = token;
          guesses.logProbabilities[row * K + rank] = Math.log(said);
          u -= world.stands(said, round);
          if (u < 0) {
            rightAfter.set(parents[row]!, token);
            u = Number.POSITIVE_INFINITY;
          }
        }
      }
    };
    if (grower.start(0, 0, 64, pending)) {
      clock += world.headMs(pending);
      guess(ROOT, 1);
      pending = 0;
      for (let rows = grower.grow(guesses); rows > 0; rows = grower.grow(guesses)) {
        clock += world.headMs(rows);
        guess(grower.levelTokens, rows);
      }
    }
    const tree = grower.finish();
    let length = 1;
    let bonus = rightAfter.get(0);
    for (let node = 1; node < tree.size; node++) {
      if (tree.parents[node] !== path[length - 1] || tree.tokens[node] !== bonus) continue;
      path[length++] = node;
      bonus = rightAfter.get(tree.tokens[node]!);
    }
    const ms = world.targetMs(tree.size);
    clock += ms;
    grower.settle?.(path, length, bonus ?? -1, ms);
    tokens += length;
    nodes += tree.size;
    pending += length;
    if (pending > 64) pending -= 63;
  }
  return { tokens, ms: clock - began, rounds, size: nodes / rounds };
}

const rate = ({ tokens, ms }: Outcome): number => tokens / ms;
const auto = (world: World): BudgetGrower => new BudgetGrower(new TreeBudget(costsOf(world)), 1000);

/** Memory-bound up to `flat` rows, then each costs `perRow` more; the head a tenth of one row. */
const machine = (flat: number, perRow: number, head = 0.6): Pick<World, 'targetMs' | 'headMs'> => ({
  targetMs: (rows) => 6 + perRow * Math.max(0, rows - flat),
  headMs: (rows) => head + 0.05 * rows,
});
const honest = (said: number): number => said;

describe.each([
  ['rows are free up to 16', machine(16, 0.4)],
  ['rows are free up to 4', machine(4, 1)],
  ['every row costs', machine(1, 0.5)],
  ['a head that costs half a row', machine(8, 0.5, 3)],
])('%s', (_, costs) => {
  const fixed = [
    [0, 1, 2], [0, 2, 3], [0, 4, 5], [1, 1, 3], [1, 2, 4], [1, 3, 6], [2, 2, 6], [2, 3, 8], [3, 2, 6], [3, 3, 10], [4, 4, 16], [6, 4, 24], [5, 8, 32],
  ] as const; // biome-ignore format: a table

  it.each([
    ['an honest head', honest],
    ['a head that is half as often right as it says', (said: number) => said / 2],
    [
      'a head that exaggerates: more often right than it says where it is sure, less where it is not',
      (said: number) => said * (1 + 0.4 * (said - 0.35)),
    ],
  ])('%s: as fast as the best of many trees that are not chosen anew every round', (_, stands) => {
    const world = { ...costs, stands };
    const plain = 1 / world.targetMs(1);
    const best = Math.max(
      plain,
      ...fixed.map(([depth, topK, total]) =>
        rate(decode(new DynamicGrower({ kind: 'dynamic', depth, topK, total }), world, 1500)),
      ),
    );
    expect(rate(decode(auto(world), world, 1500)) / best).toBeGreaterThan(0.97);
  });
});

describe('what is expected is what comes', () => {
  it.each<[string, World['stands']]>([
    ['an honest head', honest],
    ['a head that is half as often right as it says', (said) => said / 2],
    ['a head that is right more often than it says', (said) => Math.min(1, said * 1.05)],
    ['a head that is never right', () => 0],
    ['texts of two kinds, in turn', (said, round) => said * (round % 400 < 200 ? 1 : 0.25)],
    ['a text on which drafting does not pay, after one on which it does', (said, round) => (round < 300 ? said : 0)],
  ])('%s', (_, stands) => {
    for (const costs of [machine(16, 0.4), machine(4, 1), machine(1, 0.5), machine(8, 0.5, 3)]) {
      const world = { ...costs, stands };
      const grower = auto(world);
      const came = rate(decode(grower, world, 1200)) * world.targetMs(1);
      expect(Math.abs(grower.budget.expectedSpeedup / came - 1)).toBeLessThan(0.03);
    }
  });

  it('on a machine that is a third slower than it was when it was measured, where plain decoding says so too, as in `tune`', () => {
    const world = { ...machine(4, 1), stands: honest };
    const slow: World = {
      ...world,
      targetMs: (rows) => (4 / 3) * world.targetMs(rows),
      headMs: (rows) => (4 / 3) * world.headMs(rows),
    };
    const grower = auto(world);
    const came = { tokens: 0, ms: 0 };
    for (let text = 0; text < 8; text++) {
      for (let round = 0; round < 60; round++) grower.budget.target.learn(1, slow.targetMs(1));
      const { tokens, ms } = decode(grower, slow, 60, 60 * text);
      came.tokens += tokens;
      came.ms += ms;
    }
    const speedup = (came.tokens / came.ms) * slow.targetMs(1);
    expect(Math.abs(grower.budget.expectedSpeedup / speedup - 1)).toBeLessThan(0.03);
  });

  it('in tokens too, of trees of the size that is always chosen', () => {
    const world: World = {
      targetMs: (rows) => (rows <= 8 ? 6 : 600),
      headMs: () => 0.01,
      stands: (said) => said / 2,
    };
    const grower = auto(world);
    const { tokens, rounds, size } = decode(grower, world, 1200);
    // 2 looks at plain decoding: what was measured at load is believed a quarter as long as what the first shows.
    const looks = 2 * PLAIN_LOOK;
    expect(size).toBe((8 * (rounds - looks) + looks) / rounds);
    expect(grower.budget.tokensOf(8)).toBeCloseTo((tokens - looks) / (rounds - looks), 6);
    expect(grower.budget.tokensOf(1)).toBe(1);
    expect(grower.budget.tokensOf(2)).toBeLessThan(grower.budget.tokensOf(8));
  });

  it('of rounds with candidates, whoever guessed them, and of no others', () => {
    const budget = new TreeBudget(costsFrom({ target: curveOf(() => 10), draft: [{ rows: 1, ms: 1 }] }));
    const found = (): number => budget.treeSize(Float64Array.of(0.5), Int32Array.of(0), 1);
    budget.settle(1, 1, 10, 0); // asked, and nothing found
    expect([budget.draftMs, budget.tokensOf(2)]).toEqual([0, 1]);
    found();
    budget.settle(2, 2, 10, 1);
    budget.settle(1, 1, 10, 0);
    found();
    budget.settle(1, 2, 10, undefined); // while the drafter pauses, a guess of another source
    budget.settle(1, 1, 10, undefined);
    expect(budget.draftMs).toBe(0.5);
    expect(budget.tokensOf(2)).toBeCloseTo(1.5, 12);
  });

  it('nothing, before anything was decoded', () => {
    expect(auto({ ...machine(4, 1), stands: honest }).budget.expectedSpeedup).toBe(1);
  });
});

it('finds out that sizes it never used cost less than a busy moment at load said', () => {
  const targetMs = (rows: number): number => 16 + 0.5 * rows;
  const world: World = { targetMs, headMs: () => 1, stands: (said) => said };
  const dear = curveOf((rows) => targetMs(rows) * (rows > 2 ? 1.7 : 1));
  const informed = auto(world);
  const misled = new BudgetGrower(new TreeBudget(costsFrom({ target: dear, draft: curveOf(world.headMs) })), 1000);
  decode(informed, world, 500);
  const early = decode(misled, world, 60);
  decode(misled, world, 440);
  const [best, late] = [informed, misled].map((grower) => decode(grower, world, 500, 500)) as [Outcome, Outcome];
  expect(early.size).toBeLessThan(0.5 * best.size);
  expect(rate(late)).toBeGreaterThan(0.95 * rate(best));
});

it('follows the text: large trees where guesses stand, small ones where they do not', () => {
  const world = { ...machine(1, 0.4), stands: (said: number, round: number) => said * (round < 400 ? 1 : 0.35) };
  const grower = auto(world);
  const good = decode(grower, world, 400);
  const bad = decode(grower, world, 400, 400);
  expect(good.size).toBeGreaterThan(1.3 * bad.size);
});

describe('a head that is never right, and sure of it', () => {
  const world = { ...machine(4, 1), stands: () => 0 };

  it('costs three percent at most', () => {
    const { tokens, ms } = decode(auto(world), world, 1000);
    expect(tokens).toBe(1000);
    expect(ms / (1000 * world.targetMs(1))).toBeLessThan(1.03);
  });

  it('is asked again now and then, and used as soon as it is right', () => {
    const changing = { ...world, stands: (said: number, round: number) => (round < 1000 ? 0 : said) };
    const grower = auto(changing);
    decode(grower, changing, 1000);
    decode(grower, changing, 400, 1000); // one of the longest pauses, and what it takes to believe it again
    const later = decode(grower, changing, 400, 1400);
    expect(rate(later) * changing.targetMs(1)).toBeGreaterThan(1.2);
  });
});

it('never pauses drafts that cost nothing', () => {
  const budget = new TreeBudget(costsFrom({ target: [{ rows: 1, ms: 10 }], draft: [{ rows: 1, ms: 0 }] }));
  for (let round = 0; round < 100; round++) {
    expect(budget.wantsDrafts()).toBe(true);
    budget.settle(1, 4, 15, 0); // four rows for one token
  }
  const paid = new TreeBudget(costsFrom({ target: [{ rows: 1, ms: 10 }], draft: [{ rows: 1, ms: 1 }] }));
  let pauses = 0;
  for (let round = 0; round < 100; round++) {
    const wanted = paid.wantsDrafts();
    pauses += Number(!wanted);
    paid.settle(1, wanted ? 4 : 1, wanted ? 15 : 10, wanted ? 1 : undefined);
  }
  expect(pauses).toBeGreaterThan(50);
});

it('looks at plain decoding now and then, which it is compared to', () => {
  const world = { ...machine(16, 0.4), stands: honest };
  const costs = costsOf(world);
  const grower = new BudgetGrower(new TreeBudget(costs), 1000);
  decode(grower, world, 2000);
  expect(costs.target.sincePlain).toBeLessThanOrEqual(1024);
  const other = new BudgetGrower(new TreeBudget(costs), 1000); // has the same target: need not look again
  const began = costs.target.sincePlain;
  const { size } = decode(other, world, 1000 - began, 2000);
  expect(size).toBeGreaterThan(4);
  expect(costs.target.sincePlain).toBe(1000);
});

it('looks the sooner, the less drafting gains', () => {
  const lookAfter = (tokens: number): number => {
    const costs = costsFrom({ target: curveOf(() => 10), draft: [{ rows: 1, ms: 1 }] });
    const budget = new TreeBudget(costs);
    for (let i = 0; i < PLAIN_LOOK; i++) budget.settle(1, 1, 10, undefined); // plain decoding has been seen
    for (let round = 1; round < 2000; round++) {
      if (!budget.wantsDrafts()) return round;
      budget.settle(tokens, 4, 10, 1);
    }
    return Number.POSITIVE_INFINITY;
  };
  const after = [1.15, 1.3, 3].map(lookAfter);
  expect(after[0]).toBeLessThan(128);
  expect(after[1]).toBeGreaterThan(2 * after[0]!);
  expect(after[2]).toBe(1026);
});

it('counts on as much of what trees promise as came of it', () => {
  const sizeAfter = (accepted: number): number => {
    const costs = costsFrom({ target: curveOf((rows) => 5 + 0.5 * rows), draft: FREE });
    const budget = new TreeBudget(costs);
    const reach = Float64Array.from({ length: 20 }, (_, i) => 0.9 * 0.8 ** i);
    const order = Int32Array.from(reach.keys());
    let size = 0;
    for (let round = 0; round < 200; round++) {
      size = budget.treeSize(reach, order, reach.length);
      budget.settle(1 + accepted, size, costs.target.at(size), 0);
    }
    return size;
  };
  expect(sizeAfter(0.5)).toBeLessThan(sizeAfter(1.5));
  expect(sizeAfter(0.5)).toBeGreaterThan(1);
});

it('drafts less behind a long context, where rows cost more', () => {
  const sizeBehind = (context: number): number => {
    const target = curveOf((rows) => 5 + 0.1 * rows).map((point) => ({ ...point, contextMs: point.rows }));
    const budget = new TreeBudget(costsFrom({ target, draft: [{ rows: 1, ms: 0.1 }] }));
    budget.begin(context);
    const reach = Float64Array.from({ length: 20 }, (_, i) => 0.6 * 0.7 ** i);
    return budget.treeSize(reach, Int32Array.from(reach.keys()), reach.length);
  };
  expect(sizeBehind(0)).toBeGreaterThan(sizeBehind(500));
  expect(sizeBehind(500)).toBeGreaterThan(sizeBehind(4000));
  expect(sizeBehind(4000)).toBeGreaterThan(1); // the plain forward's attention costs more there too
});

it('decodes plainly where the head costs as much as the target', () => {
  const world: World = { targetMs: () => 6, headMs: () => 12, stands: (said) => said };
  const { tokens, ms } = decode(auto(world), world, 1000);
  expect((tokens / ms) * 6).toBeGreaterThan(0.97);
});

it('the tree is the best of all sizes at the price of time', () => {
  const random = xorshift(3);
  for (let round = 0; round < 200; round++) {
    const steps = Array.from({ length: MOST_NODES }, () => 5 * random());
    const ms = (rows: number): number => 10 + steps.slice(0, rows).reduce((sum, step) => sum + step, 0);
    const budget = new TreeBudget(costsFrom({ target: curveOf(ms), draft: [{ rows: 1, ms: 1 }] }));
    const reach = Float64Array.from({ length: 20 }, () => random() ** 3)
      .sort()
      .reverse();
    const order = Int32Array.from(reach.keys());
    const worth = (nodes: number): number =>
      reach.subarray(0, nodes - 1).reduce((sum, chance) => sum + chance, 0) - budget.price * budget.target.at(nodes);
    const all = Array.from({ length: 21 }, (_, i) => worth(i + 1));
    expect(worth(budget.treeSize(reach, order, reach.length))).toBeCloseTo(Math.max(...all), 10);
  }
});

it('no tree is deeper than allowed, and none is larger than its candidates', () => {
  const world = { ...machine(32, 0), stands: (said: number) => said };
  for (const maxDepth of [0, 1, 2, 5]) {
    const grower = auto(world);
    const guesses = {
      tokens: new Int32Array(64).fill(1),
      logProbabilities: new Float64Array(64).fill(Math.log(0.12)),
    };
    if (grower.start(0, 0, maxDepth, 1)) while (grower.grow(guesses) > 0);
    const { size, parents } = grower.finish();
    const depths = [0];
    for (let node = 1; node < size; node++) depths.push(depths[parents[node]!]! + 1);
    expect(Math.max(...depths)).toBeLessThanOrEqual(maxDepth);
    expect(size === 1).toBe(maxDepth === 0);
  }
});

describe('calibration', () => {
  it('begins with what the head says', () => {
    const calibration = new Calibration();
    for (const p of [0.9, 0.5, 0.1, 0.01]) expect(calibration.probability(Math.log(p), 1) / p).toBeCloseTo(1, 0);
    expect(calibration.probability(0, 1)).toBeLessThan(1);
    for (const p of [-Infinity, Number.NaN, -1e9]) expect(calibration.probability(p, 1)).toBeLessThan(0.001);
  });

  it('ends with what was counted, at each depth', () => {
    const calibration = new Calibration();
    const random = xorshift(5);
    for (let i = 0; i < 2000; i++) {
      calibration.learn(Math.log(0.5), 1, random() < 0.8);
      calibration.learn(Math.log(0.5), 2 + (i % 3), random() < 0.2);
    }
    expect(Math.abs(calibration.probability(Math.log(0.5), 1) - 0.8)).toBeLessThan(0.12);
    expect(Math.abs(calibration.probability(Math.log(0.5), 2) - 0.2)).toBeLessThan(0.12);
    expect(calibration.report(1)).toHaveLength(1);
  });

  it('forgets', () => {
    const calibration = new Calibration();
    for (let i = 0; i < 1000; i++) calibration.learn(-0.1, 1, false);
    for (let i = 0; i < 100; i++) calibration.learn(-0.1, 1, true);
    expect(calibration.probability(-0.1, 1)).toBeGreaterThan(0.6);
  });
});

it('pauses for what is expected of drafts, not for ten rounds of bad luck', () => {
  const budget = new TreeBudget(costsFrom({ target: curveOf(() => 10), draft: [{ rows: 1, ms: 2 }] }));
  const roundsUntilPause = (comes: (round: number) => boolean): number => {
    budget.beginText();
    for (let i = 0; i < PLAIN_LOOK; i++) budget.settle(1, 1, 10, undefined); // no look at plain decoding for a while
    for (let round = 0; round < 500; round++) {
      if (!budget.wantsDrafts()) return round;
      budget.treeSize(Float64Array.of(0.3), Int32Array.of(0), 1);
      budget.learnDraft(1, 2);
      budget.settle(comes(round) ? 2 : 1, 2, 10, 2);
    }
    return 500;
  };
  expect(roundsUntilPause((round) => round >= 10 && round % 3 === 0)).toBeGreaterThan(40); // 0.3 for 0.2 of a round
  expect(roundsUntilPause(() => false)).toBeLessThan(40);
});
