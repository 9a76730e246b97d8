import { afterAll, describe, expect, it } from 'vitest';
import { TreeBudget } from '../../src/draft/budget.ts';
import { BudgetGrower, ROOT } from '../../src/draft/budget-grower.ts';
import type { TreeCosts } from '../../src/draft/costs.ts';
import { EagleDrafter } from '../../src/draft/eagle.ts';
import { HybridDrafter } from '../../src/draft/hybrid.ts';
import type { DraftTree } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { ScratchTensor } from '../../src/tensor/tensor.ts';
import { costsFrom } from '../support/costs.ts';
import { TINY_CONFIG, tinyHead, tinyTarget } from '../support/tiny.ts';

const { vocabSize, hiddenSize } = TINY_CONFIG;
/** Rows that hardly cost anything: whatever has a chance is drafted. */
const cheap = (): TreeCosts =>
  costsFrom({
    target: [
      { rows: 1, ms: 10 },
      { rows: 32, ms: 10.1 },
    ],
    draft: [{ rows: 1, ms: 0.01 }],
  });

/** Tokens of the path down to each node. */
const pathsOf = ({ size, tokens, parents }: DraftTree): string[] => {
  const paths: number[][] = [[]];
  for (let node = 1; node < size; node++) paths.push([...paths[parents[node]!]!, tokens[node]!]);
  return paths.map((path) => path.join(' '));
};

describe('a grafted guess', () => {
  const guesses = {
    tokens: Int32Array.of(5, 6, 7, 8, 9),
    logProbabilities: Float64Array.of(0.3, 0.2, 0.1, 0.1, 0.1).map(Math.log),
  };
  const grow = (grafter: (grower: BudgetGrower) => void): { grower: BudgetGrower; tree: DraftTree } => {
    const grower = new BudgetGrower(new TreeBudget(cheap()), vocabSize, { grafter });
    grower.start(1, 0, 6, 1);
    for (let rows = grower.grow(guesses); rows > 0; ) rows = 0;
    return { grower, tree: grower.finish() };
  };

  it("is one node with the head's guess of the same token, as likely as the surer says", () => {
    const reaches: number[] = [];
    const { tree } = grow((grower) => {
      const sure = grower.graft(ROOT, 6, Math.log(0.9))!;
      const unsure = grower.graft(ROOT, 5, Math.log(0.01))!;
      reaches.push(grower.reach(sure), grower.reach(unsure));
    });
    expect(pathsOf(tree).filter((path) => path === '6')).toHaveLength(1);
    expect(pathsOf(tree).filter((path) => path === '5')).toHaveLength(1);
    expect(reaches[0]).toBeGreaterThan(0.7);
    expect(reaches[1]).toBeGreaterThan(0.2); // the head's 0.3
  });

  it('is a node of its own elsewhere, below whatever it hangs', () => {
    const { tree } = grow((grower) => {
      const below = grower.graft(ROOT, 20, Math.log(0.9))!;
      grower.graft(grower.graft(below, 21, Math.log(0.9))!, 22, Math.log(0.9));
    });
    expect(pathsOf(tree)).toContain('20 21 22');
  });

  it('is left out beyond the deepest node allowed, and after so many', () => {
    const refused: boolean[] = [];
    grow((grower) => {
      let parent = ROOT;
      for (let depth = 1; depth <= 6; depth++) parent = grower.graft(parent, 20, Math.log(0.9))!;
      refused.push(grower.graft(parent, 20, Math.log(0.9)) === undefined);
      for (let i = 0; i < 60; i++) grower.graft(ROOT, 30 + i, Math.log(0.9));
      refused.push(grower.graft(ROOT, 29, Math.log(0.9)) === undefined);
    });
    expect(refused).toEqual([true, true]);
  });

  it.each([
    ['always stands, is believed', 20, (first: number, last: number) => last > first && last > 0.9],
    ['never stands, is not', 21, (first: number, last: number) => last < first && last < 0.1],
  ])('that %s', (_, bonus, holds) => {
    const reaches: number[] = [];
    const grower = new BudgetGrower(new TreeBudget(cheap()), vocabSize, {
      grafter: (self) => void reaches.push(self.reach(self.graft(ROOT, 20, Math.log(0.7))!)),
    });
    for (let round = 0; round < 50; round++) {
      grower.start(1, 0, 6, 0); // no head
      const { size } = grower.finish();
      const stands = size > 1 && bonus === 20;
      grower.settle(Int32Array.of(0, 1), stands ? 2 : 1, stands ? 3 : bonus, 10);
    }
    expect(holds(reaches[0]!, reaches.at(-1)!), `${reaches[0]} to ${reaches.at(-1)}`).toBe(true);
  });
});

describe('hybrid drafting', () => {
  const kernels = createKernels({ threads: 1 });
  const target = tinyTarget(kernels);
  afterAll(() => {
    target[Symbol.dispose]();
    kernels.dispose();
  });

  it('has the passage that came after the same words, and guesses of the head', () => {
    const drafter = new HybridDrafter(
      vocabSize,
      100,
      (grafter) => new EagleDrafter(target, tinyHead(target), { kind: 'auto', costs: cheap(), grafter }, 100),
    );
    const passage = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
    const text = [...passage, 40, 11, 12];
    const features = new ScratchTensor();
    features.reshape(text.length - 1, hiddenSize).data.fill(0.1);
    const held = drafter.resume(text, 0);
    expect(held).toBe(0);
    const tokens = Int32Array.from(text.slice(0, -1));
    drafter.observe(tokens, features, Int32Array.from(tokens.keys()), tokens.length);
    const paths = pathsOf(drafter.propose(12, 50));
    expect(paths).toContain('13');
    expect(paths).toContain('13 14 15 16');
    expect(paths.filter((path) => !path.startsWith('13') && path !== '').length).toBeGreaterThan(0);
    expect(new Set(paths).size).toBe(paths.length);
    drafter[Symbol.dispose]();
  });
});
