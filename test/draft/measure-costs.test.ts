import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { MOST_ROWS } from '../../src/draft/costs.ts';
import { eagleForwards } from '../../src/draft/eagle.ts';
import { DRAFT_ROWS, measureCosts, measureDraft, measureTarget, TARGET_ROWS } from '../../src/draft/measure-costs.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import type { TargetModel } from '../../src/model/target.ts';
import { tinyHead, tinyTarget } from '../support/tiny.ts';

const ascending = (sizes: readonly number[]): number[] => [...sizes].sort((a, b) => a - b);

/** The clock of a machine on which forwards take what is said, and nothing else takes any time. */
class Machine {
  now = 0;
  forwards = 0;
  #previousRows = 0;

  constructor() {
    vi.spyOn(performance, 'now').mockImplementation(() => this.now);
  }

  /** Milliseconds of a forward over so many rows, by whether the one before had one row as well; and of each row's look at a token of context in a layer. */
  run(target: TargetModel, forwardMs: (rows: number, steady: boolean) => number, tokenMs: number): void {
    vi.spyOn(target, 'forward').mockImplementation(({ rows }) => {
      this.forwards++;
      this.now += forwardMs(rows, rows === 1 && this.#previousRows === 1);
      this.#previousRows = rows;
      return undefined as never; // nobody looks
    });
    vi.spyOn(target.kernels, 'attention').mockImplementation((_out, _qkv, _stride, _heads, _kv, { rows, prefix }) => {
      for (let row = 0; row < rows; row++) this.now += tokenMs * prefix[row]!;
    });
  }
}

const kernels = createKernels({ threads: 1 });
afterEach(() => vi.restoreAllMocks());
afterAll(() => kernels.dispose());

describe('costs measured at load', () => {
  it('are what forwards take, on a machine that always takes the same', () => {
    using target = tinyTarget(kernels);
    const machine = new Machine();
    machine.run(target, (rows, steady) => (steady ? 1.75 : 2 + 0.125 * rows), 2e-5);
    const curve = measureTarget(target);
    expect(curve.map(({ rows }) => rows)).toEqual(ascending(TARGET_ROWS));
    for (const { rows, ms, contextMs } of curve) {
      expect(ms).toBeCloseTo(2 + 0.125 * rows, 9);
      expect(contextMs).toBeCloseTo(1000 * 2e-5 * rows * target.config.layers, 9);
    }
    expect(curve[0]!.steadyMs).toBeCloseTo(1.75, 9);
    expect(machine.now).toBeLessThan(300);
  });

  it('leave out the sizes that would end too late, the least useful first', () => {
    using target = tinyTarget(kernels);
    const machine = new Machine();
    machine.run(target, (rows) => 14 + rows, 1e-5);
    const curve = measureTarget(target);
    expect(curve.map(({ rows }) => rows)).toEqual([1, 2, 3, 4, 8, 16]);
    for (const { rows, ms } of curve) expect(ms).toBeCloseTo(14 + rows, 9);
    expect(machine.now).toBeLessThan(250);
  });

  it('are those of two sizes where a forward takes longer than all were to take', () => {
    using target = tinyTarget(kernels);
    const machine = new Machine();
    machine.run(target, (rows) => 200 + rows, 2e-5);
    const curve = measureTarget(target);
    expect(curve.map(({ rows, ms }) => [rows, ms])).toEqual([
      [1, 201],
      [8, 208],
    ]);
    expect(machine.forwards).toBe(4); // plain decoding's, a first one that nobody counts, and two
  });

  it('are those of the quickest forward of a size, and no more than those of a larger one', () => {
    using target = tinyTarget(kernels);
    let twos = 0;
    const disturbed = (rows: number): boolean => (rows === 2 ? ++twos !== 2 : rows === 3 || rows === 4);
    new Machine().run(target, (rows) => 2 + 0.125 * rows + (disturbed(rows) ? 1 : 0), 2e-5);
    const byRows = new Map(measureTarget(target).map(({ rows, ms }) => [rows, ms]));
    expect(byRows.get(2)).toBeCloseTo(2.25, 9);
    expect(byRows.get(3)).toBeCloseTo(2.75, 9); // as six rows
    expect(byRows.get(4)).toBeCloseTo(2.75, 9);
    expect(byRows.get(8)).toBeCloseTo(3, 9);
  });

  it('of a real head are found for every size, and are none where nothing is asked', () => {
    using target = tinyTarget(kernels);
    using head = tinyHead(target);
    const curve = measureDraft(() => eagleForwards(target, head, 4));
    expect(curve[0]!.ms).toBeGreaterThan(0);
    expect(ascending(DRAFT_ROWS)).toEqual(expect.arrayContaining(curve.map(({ rows }) => rows)));
    const free = measureCosts(target, undefined).draft;
    expect(free.at(1) + free.at(MOST_ROWS)).toBeLessThan(1e-9);
  });
});
