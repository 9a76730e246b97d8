/** Tests of the tests: multi-round verification with what can be got wrong in it. */
import type { Chance, TreeLaws } from '../../src/decode/multi-round.ts';
import type { Verdict } from '../../src/decode/verify.ts';
import type { Drawing } from '../../src/draft/draft-laws.ts';
import type { DraftTree } from '../../src/draft/tree.ts';
import { normalised } from './enumerate.ts';

export type Verify = (tree: DraftTree, laws: TreeLaws, chance: Chance, verdict: Verdict) => void;

export type Fault =
  | 'none'
  | 'q is not renormalised'
  | 'equal siblings are skipped'
  | 'the bonus is drawn from raw logits'
  | 'the residual is not applied'
  | 'the bonus is drawn from the fresh law';

/**
 * Multi-round verification once more, with new arrays at each step, and with what can be got wrong in it.
 * @param temperature that made the target's law of its logits.
 */
export function faulty(fault: Fault, temperature: number): Verify {
  return (tree, laws, chance, verdict) => {
    let node = 0;
    verdict.path[0] = 0;
    verdict.pathLength = 1;
    for (;;) {
      const fresh = normalised(laws.target(node, verdict.pathLength - 1));
      let q: Float64Array | undefined;
      const tried: number[] = [];
      let owed = fresh;
      let accepted = -1;
      for (let child = node + 1; child < tree.size && accepted < 0; child++) {
        if (tree.parents[child] !== node) continue;
        const token = tree.tokens[child]!;
        if (fault === 'equal siblings are skipped' && tried.includes(token)) continue;
        q ??= normalised(laws.draft(node) ?? new Float64Array(fresh.length));
        const law = childLaw(q, tried, token, laws.drawing(child));
        if (chance.accepts(Math.min(1, owed[token]! / law[token]!), child)) accepted = child;
        else if (fault !== 'the residual is not applied') owed = residual(owed, law);
        tried.push(token);
      }
      if (accepted < 0) {
        // EAGLE-1's code did so where nothing had been rejected.
        if (fault === 'the bonus is drawn from raw logits' && tried.length === 0)
          owed = fresh.map((share) => share ** temperature);
        if (fault === 'the bonus is drawn from the fresh law') owed = fresh;
        verdict.bonus = chance.draw(owed);
        return;
      }
      verdict.path[verdict.pathLength++] = accepted;
      node = accepted;
    }
  };

  function childLaw(q: Float64Array, tried: readonly number[], token: number, drawing: Drawing): Float64Array {
    if (drawing === 'point-mass') return new Float64Array(q.length).fill(1, token, token + 1);
    if (drawing === 'independent' || tried.length === 0) return q;
    const left = without(q, tried);
    return fault === 'q is not renormalised' ? left : normalised(left);
  }
}

function residual(owed: Float64Array, law: Float64Array): Float64Array {
  const left = new Float64Array(owed.length);
  for (let token = 0; token < left.length; token++) left[token] = Math.max(owed[token]! - law[token]!, 0);
  return normalised(left);
}

export function without(law: Float64Array, taken: readonly number[]): Float64Array {
  const left = law.slice();
  for (const token of taken) left[token] = 0;
  return left;
}
