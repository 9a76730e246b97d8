import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CostCache, type CostKey, fingerprint, KnownCosts } from '../../src/draft/cost-cache.ts';
import { type CostCurve, costAt, ForwardCost, PLAIN_LOOK } from '../../src/draft/costs.ts';
import { xorshift } from '../support/random.ts';

it('costs lie on lines between what was measured; beyond, rows cost what they did on average', () => {
  const curve = [
    { rows: 1, ms: 10 },
    { rows: 5, ms: 12 },
    { rows: 9, ms: 20 },
  ];
  expect([1, 3, 5, 6, 9, 11].map((rows) => costAt(curve, rows))).toEqual([10, 11, 12, 14, 20, (20 * 11) / 9]);
  expect(costAt([{ rows: 4, ms: 8 }], 9)).toBe(18);
  expect(costAt([{ rows: 4, ms: 8 }], 1)).toBe(8);
});

describe('a curve that learns', () => {
  const flat = [
    { rows: 1, ms: 10 },
    { rows: 32, ms: 10 },
  ];

  it('begins as measured', () => {
    const cost = new ForwardCost(flat);
    expect(cost.curve()).toEqual(
      Array.from({ length: 32 }, (_, i) => ({ rows: i + 1, ms: 10, contextMs: 0, ...(i === 0 && { steadyMs: 10 }) })),
    );
    expect(cost.at(320)).toBe(100); // as `costAt`
    expect(cost.forwards).toBe(0);
  });

  it('follows a machine that gets slower, for sizes that are never used too', () => {
    const cost = new ForwardCost(flat);
    for (let i = 0; i < 200; i++) cost.learn(4, 20);
    expect(cost.at(4)).toBeCloseTo(20, 3);
    expect(cost.at(30) / 20).toBeGreaterThan(0.6);
    expect(cost.at(30) / 20).toBeLessThan(1);
  });

  it('finds a shape that was measured wrong, through noise', () => {
    const truth = (rows: number): number => (rows <= 4 ? 10 : 10 + 2 * (rows - 4));
    const cost = new ForwardCost(flat);
    const random = xorshift(1);
    for (let i = 0; i < 4000; i++) {
      const rows = 1 + Math.floor(random() * 12);
      cost.learn(rows, truth(rows) * (0.95 + 0.1 * random()));
    }
    for (let rows = 1; rows <= 12; rows++) expect(Math.abs(cost.at(rows) / truth(rows) - 1)).toBeLessThan(0.12);
  });

  it('takes one interrupted forward for little, once it has seen some', () => {
    const cost = new ForwardCost(flat);
    for (let i = 0; i < 32; i++) cost.learn(4, 10);
    cost.learn(4, 10_000);
    expect(cost.at(4)).toBeLessThan(11.5);
    for (let i = 0; i < 8; i++) cost.learn(4, 10);
    expect(cost.at(4)).toBeLessThan(10.6);
    cost.learn(4, 0);
    expect(cost.at(4)).toBeGreaterThan(9.3);
  });

  it('soon believes the first forwards more than a measurement at a busy moment', () => {
    const cost = new ForwardCost(flat);
    for (let i = 0; i < 8; i++) cost.learn(2, 6);
    expect(cost.at(2)).toBeLessThan(7);
    expect(cost.at(8)).toBeLessThan(9);
  });

  it('tells what context adds from what rows cost', () => {
    const attention = [
      { rows: 1, ms: 10, contextMs: 1 },
      { rows: 9, ms: 12, contextMs: 5 },
    ];
    const cost = new ForwardCost(attention);
    expect([cost.at(1), cost.at(1, 2000), cost.at(5, 2000), cost.at(9, 500)]).toEqual([10, 12, 17, 14.5]);
    expect(cost.at(64, 1000)).toBeCloseTo(2 * cost.at(32, 1000), 9);
    expect(cost.plain(2000)).toBe(12);
    // A text with a long prompt, then one with none: neither teaches that the machine has another speed.
    for (let i = 0; i < 100; i++) expect(cost.learn(5, 11 + 3 * 4, 4000)).toBeCloseTo(23, 9);
    expect(cost.at(1)).toBeCloseTo(10, 9);
    for (let i = 0; i < 400; i++) cost.learn(5, 2 * 23, 4000);
    expect(cost.at(5)).toBeCloseTo(22, 1);
    expect(cost.at(5, 4000)).toBeCloseTo(46, 1);
  });

  it('knows plain decoding apart, by forwards over one row that follow their like', () => {
    const cost = new ForwardCost([{ rows: 1, ms: 10, steadyMs: 9 }]);
    expect([cost.at(1), cost.plain()]).toEqual([10, 9]);
    for (let i = 0; i < 20; i++) {
      cost.learn(4, 40); // as measured: every row costs
      cost.learn(1, 10);
    }
    expect([cost.at(1), cost.plain()]).toEqual([10, 9]);
    expect(cost.sincePlain).toBe(4 * 40); // never yet
    for (let i = 0; i < 40; i++) cost.learn(1, i < 2 ? 10 : 8);
    expect(cost.plain()).toBeCloseTo(8, 1);
    expect(cost.at(1)).toBeGreaterThan(9);
    expect(cost.sincePlain).toBe(0);
    cost.learn(2, 20);
    expect(cost.sincePlain).toBe(1);
  });

  it('believes the mean of looks at plain decoding, whatever was believed before, and knows a slower machine from slower trees', () => {
    const cost = new ForwardCost([{ rows: 1, ms: 20, steadyMs: 20 }]);
    const draft = (): void => {
      for (let i = 0; i < 100; i++) cost.learn(4, 80); // as measured
    };
    const look = (ms: number): void => {
      for (let i = 0; i < PLAIN_LOOK; i++) cost.learn(1, i < PLAIN_LOOK / 2 ? 20 : ms);
    };
    draft();
    look(10);
    expect(cost.plain()).toBeLessThan(12);
    expect(cost.at(4)).toBeCloseTo(80, 9);
    draft();
    look(20); // a slow moment
    expect(cost.plain()).toBeLessThan(16);
    for (let turn = 0; turn < 8; turn++) {
      draft();
      look(10);
    }
    expect(cost.plain()).toBeCloseTo(10, 0);
    for (let i = 0; i < 200; i++) cost.learn(1, 20);
    expect(cost.plain()).toBeCloseTo(20, 1);
    expect(cost.at(4)).toBeGreaterThan(150);
  });

  it('gets over a measurement that was wrong altogether', () => {
    const truth = (rows: number): number => 8 + 2 * rows;
    const cost = new ForwardCost(flat);
    const sizes = Array.from({ length: 32 }, (_, i) => i + 1);
    const tokens = (rows: number): number => rows ** 0.5;
    const best = Math.max(...sizes.map((rows) => tokens(rows) / truth(rows)));
    let reached = 0;
    for (let round = 0; round < 400; round++) {
      // As the budget would: whatever seems to pay most.
      const seems = (rows: number): number => tokens(rows) / cost.at(rows);
      const chosen = sizes.reduce((a, b) => (seems(b) > seems(a) ? b : a));
      cost.learn(chosen, truth(chosen));
      reached = tokens(chosen) / truth(chosen);
    }
    expect(reached).toBeGreaterThan(0.9 * best);
  });
});

describe('costs of an earlier load', () => {
  const machine = { cpu: 'c', isa: 'avx2', threads: 2, dtype: 'q8', model: 'm', version: '0', addon: 'a' };
  const key: CostKey = { ...machine, forwards: 'target' };
  const curve: CostCurve = [
    { rows: 1, ms: 1 },
    { rows: 4, ms: 2.5 },
  ];
  let directory: string;
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'eaglet-costs-'));
  });
  afterEach(() => rmSync(directory, { recursive: true, force: true }));

  it('are those of the files as they are, whatever else lies beside them', () => {
    const file = join(directory, 'model.safetensors');
    writeFileSync(file, 'one');
    mkdirSync(join(directory, 'more'));
    const print = fingerprint(directory);
    symlinkSync(join(directory, 'nowhere'), join(directory, '.#lock'));
    symlinkSync('loop', join(directory, 'loop'));
    expect(fingerprint(directory)).toBe(print);
    writeFileSync(file, 'another');
    expect(fingerprint(directory)).not.toBe(print);
    expect(fingerprint(file)).toMatch(/ 7 /);
  });

  it('are found again, under all of their key only', () => {
    const cache = new CostCache(join(directory, 'costs'), key);
    expect(cache.read()).toBeUndefined();
    cache.write(curve);
    expect(cache.read()).toEqual(curve);
    expect(readdirSync(join(directory, 'costs'))).toHaveLength(1); // no part left behind
    for (const other of [
      { threads: 1 },
      { dtype: 'q4' },
      { model: 'n' },
      { forwards: 'g' },
      { isa: 'x' },
      { cpu: 'd' },
      { version: '1' },
      { addon: 'b' },
    ])
      expect(new CostCache(join(directory, 'costs'), { ...key, ...other }).read()).toBeUndefined();
  });

  it.each([
    ['no JSON', '{'],
    ['another key', JSON.stringify({ format: 3, key: { ...key, threads: 3 }, curve })],
    ['the first format, of two curves', JSON.stringify({ key, costs: { target: curve, draft: curve } })],
    ['the format before, without context', JSON.stringify({ format: 2, key, curve })],
    ['a format to come', JSON.stringify({ format: 4, key, curve })],
    ['no points', JSON.stringify({ format: 3, key, curve: [] })],
    ['rows that do not ascend', JSON.stringify({ format: 3, key, curve: [...curve].reverse() })],
    ['time that runs backwards', JSON.stringify({ format: 3, key, curve: [{ rows: 1, ms: -1 }] })],
    ['text for a number', JSON.stringify({ format: 3, key, curve: [{ rows: 1, ms: '1' }] })],
  ])('%s is as good as nothing', (_, text) => {
    const cache = new CostCache(directory, key);
    cache.write(curve);
    writeFileSync(cache.file, text);
    expect(cache.read()).toBeUndefined();
  });

  describe('and of this one', () => {
    const neverMeasured = (): CostCurve => expect.unreachable('known already');
    const open = (remeasure = false): KnownCosts => new KnownCosts(directory, machine, remeasure);
    const slow = (): CostCurve => [{ rows: 1, ms: 80 }];

    it('are one curve for all who ask for the same forwards, measured once', () => {
      const costs = open();
      const target = costs.of('target', () => curve);
      expect(costs.of('target', neverMeasured)).toBe(target);
      const head = costs.of('head', slow);
      expect(head).not.toBe(target);
      expect([target.at(1), head.at(1)]).toEqual([1, 80]);
      expect(open().of('head', neverMeasured).at(1)).toBe(80);
      expect(
        open(true)
          .of('head', () => curve)
          .at(1),
      ).toBe(1);
      expect(open().of('head', neverMeasured).at(1)).toBe(1);
    });

    it('are kept once they have learned from 64 forwards, each curve by itself', () => {
      const decode = (forwards: number): void => {
        using costs = open();
        for (let i = 0; i < forwards; i++) costs.of('target', slow).learn(1, 10);
        costs.of('head', slow).learn(1, 10);
      };
      const kept = (forwards: string): number => open().of(forwards, neverMeasured).at(1);
      decode(63);
      expect([kept('target'), kept('head')]).toEqual([80, 80]);
      decode(64);
      expect(kept('target')).toBeLessThan(40); // measured at a busy moment; plain forwards say what those between larger ones take by halves only
      expect(kept('head')).toBe(80);
    });
  });

  it('are done without where nothing can be written', () => {
    writeFileSync(join(directory, 'file'), '');
    const cache = new CostCache(join(directory, 'file'), key);
    expect(() => cache.write(curve)).not.toThrow();
    expect(cache.read()).toBeUndefined();
  });
});
