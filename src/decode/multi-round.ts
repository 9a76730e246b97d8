/**
 * Multi-round speculative sampling over a draft tree (EAGLE, arXiv:2401.15077, appendix A.2, algorithm 1; with one child it is
 * Leviathan et al., arXiv:2211.17192, algorithm 1). Knows trees, laws and chance, nothing of models or of how laws are processed.
 *
 * Why it is exact. Let P be the law still owed at a node and q_i the law its i-th child was drawn from, given the siblings before it.
 * The trial emits x with probability q_i(x) * min(1, P(x) / q_i(x)) = min(P, q_i)(x). What P still lacks is max(P - q_i, 0); its mass
 * is just the probability that the trial rejects, so norm(max(P - q_i, 0)) is owed then, and the two sum to P. From the last child back
 * to the first, whatever is emitted at the node has the law P, given any siblings before: in the end the target's. The next node is
 * owed its fresh law, because nothing that was decided here depends on what was drawn there.
 *
 * So it is exact only if q_i is the law that x_i was drawn from: children in the order of their draws, none left out for what it is.
 */
import type { DraftTree } from '../draft/tree.ts';
import type { Verdict } from './verify.ts';

/**
 * How a child came from its node's draft law q, as from an urn:
 * - `without-replacement`: drawn from what is left in the urn, and taken out;
 * - `independent`: drawn from what is left, and put back (a chain; i.i.d. siblings, equal ones included);
 * - `point-mass`: chosen, not drawn, by any rule that does not look at the chance of verification (EAGLE-2's top k), and taken out.
 */
export type Drawing = 'without-replacement' | 'independent' | 'point-mass';

/** Probabilities of tokens, [V]; any positive multiple of them is the same law. */
export type Law = Float32Array | Float64Array;

/** A law is read before the next one is asked for, so they may share a buffer. */
export interface TreeLaws {
  /** The target's law after a node, temperature, top-p and the rest applied: for trials and the bonus alike. */
  target(node: number): Law;
  /** The law q that the node's children were drawn from, over the target's tokens; undefined if none was drawn. */
  draft(node: number): Law | undefined;
  drawing(child: number): Drawing;
}

/** What is left to chance. */
export interface Chance {
  /** True with probability a. */
  accepts(a: number, child: number): boolean;
  /** A token of this law, which sums to 1. */
  draw(law: Float64Array): number;
}

/** One uniform number of [0, 1) per trial, in order of trial, then one for the bonus. */
export function chanceFrom(uniform: () => number): Chance {
  return {
    accepts: (a) => uniform() < a, // strict, so that a = 0 never accepts
    draw: (law) => inverseCumulative(law, uniform()),
  };
}

/** Holds what one node's trials need; nothing is kept from one tree to the next. */
export class MultiRoundVerifier {
  #owed: Float64Array; // [V] P, the law still to be emitted at this node
  #residual: Float64Array; // [V] swapped with #owed on rejection
  readonly #urn: Float64Array; // [V] q_i, what is left of the draft law

  constructor(vocabSize: number) {
    this.#owed = new Float64Array(vocabSize);
    this.#residual = new Float64Array(vocabSize);
    this.#urn = new Float64Array(vocabSize);
  }

  /** Siblings are tried in order of their nodes, which must be the order of their draws. */
  verify(tree: DraftTree, laws: TreeLaws, chance: Chance, verdict: Verdict): void {
    verdict.path[0] = 0;
    verdict.pathLength = 1;
    let node = this.#acceptedChild(tree, laws, chance, 0);
    while (node >= 0) {
      verdict.path[verdict.pathLength++] = node;
      node = this.#acceptedChild(tree, laws, chance, node);
    }
    verdict.bonus = chance.draw(this.#owed);
  }

  /** The first child that stands, or -1, which leaves the bonus token's law in `#owed`. */
  #acceptedChild(tree: DraftTree, laws: TreeLaws, chance: Chance, parent: number): number {
    load(this.#owed, laws.target(parent), 'target', parent);
    if (!normalise(this.#owed)) throw new RangeError(`multi-round: the target law after node ${parent} has no mass`);
    let urn: Float64Array | undefined; // filled at the first child: leaves need no draft law
    for (let child = parent + 1; child < tree.size; child++) {
      if (tree.parents[child] !== parent) continue;
      urn ??= this.#fillUrn(laws.draft(parent), parent);
      const token = tree.tokens[child]!;
      const drawing = laws.drawing(child);
      // A token that the urn lacks was not drawn from it, whatever is said (top-p may leave fewer tokens than children): it was chosen.
      const drawn = drawing !== 'point-mass' && normalise(urn) && urn[token]! > 0;
      const a = Math.min(1, this.#owed[token]! / (drawn ? urn[token]! : 1));
      if (chance.accepts(a, child)) return child;
      if (drawn) this.#rejectDrawn(urn);
      else this.#rejectChosen(token);
      if (drawing !== 'independent') urn[token] = 0;
    }
    return -1;
  }

  #fillUrn(law: Law | undefined, node: number): Float64Array {
    if (law === undefined) this.#urn.fill(0);
    else load(this.#urn, law, 'draft', node);
    return this.#urn;
  }

  /** P becomes norm(max(P - q_i, 0)). */
  #rejectDrawn(urn: Float64Array): void {
    const owed = this.#owed;
    const residual = this.#residual;
    for (let token = 0; token < owed.length; token++) residual[token] = Math.max(owed[token]! - urn[token]!, 0);
    this.#oweResidual();
  }

  /** The same with all of q_i on one token. */
  #rejectChosen(token: number): void {
    this.#residual.set(this.#owed);
    this.#residual[token] = 0;
    this.#oweResidual();
  }

  /** Only by rounding can a rejection leave nothing, where P and q_i are as good as equal: then P stays. */
  #oweResidual(): void {
    if (!normalise(this.#residual)) return;
    const owed = this.#owed;
    this.#owed = this.#residual;
    this.#residual = owed;
  }
}

function load(into: Float64Array, law: Law, name: string, node: number): void {
  if (law.length !== into.length)
    throw new RangeError(
      `multi-round: the ${name} law after node ${node} must have ${into.length} tokens, got ${law.length}`,
    );
  into.set(law);
}

/** False, and nothing changed, if there is no mass to scale. */
function normalise(law: Float64Array): boolean {
  let mass = 0;
  for (let token = 0; token < law.length; token++) mass += law[token]!;
  if (!(mass > 0 && mass < Infinity)) return false; // NaN, too
  if (mass !== 1) for (let token = 0; token < law.length; token++) law[token] = law[token]! / mass;
  return true;
}

/** The first token whose cumulative probability, in order of ids, exceeds u; should rounding leave none, the last one that has any. */
function inverseCumulative(law: Float64Array, u: number): number {
  let cumulative = 0;
  let last = 0;
  for (let token = 0; token < law.length; token++) {
    if (law[token] === 0) continue;
    last = token;
    cumulative += law[token]!;
    if (cumulative > u) break;
  }
  return last;
}
