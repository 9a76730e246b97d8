import { type CostCurve, ForwardCost, type TreeCosts } from '../../src/draft/costs.ts';

/** Costs of one's own, which nobody else refines. */
export const costsFrom = (curves: { readonly target: CostCurve; readonly draft: CostCurve }): TreeCosts => ({
  target: new ForwardCost(curves.target),
  draft: new ForwardCost(curves.draft),
});
