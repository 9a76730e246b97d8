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
import type { DraftLaws, Law } from '../draft/draft-laws.ts';
import type { DraftTree } from '../draft/tree.ts';
import { CumulativeDraw, sumOf } from './law.ts';
import type { Verdict } from './verify.ts';

/** A law is read before the next one is asked for, so they may share a buffer. */
export interface TreeLaws extends DraftLaws {
  /** The target's law after a node of the given depth, temperature, top-p and the rest applied: for trials and the bonus alike. */
  target(node: number, depth: number): Law;
}

/** What is left to chance. */
export interface Chance {
  /** True with probability a. */
  accepts(a: number, child: number): boolean;
  draw(law: Law): number;
}

/** One uniform number of [0, 1) per trial, in order of trial, then one for the bonus. */
export function chanceFrom(uniform: () => number, vocabSize: number): Chance {
  const cumulative = new CumulativeDraw(vocabSize);
  return {
    accepts: (a) => uniform() < a, // strict, so that a = 0 never accepts
    draw: (law) => cumulative.draw(law, uniform()),
  };
}

/**
 * Holds what one node's trials need; nothing is kept from one tree to the next. Laws stand as they come, with their mass beside them: over
 * a vocabulary, dividing would cost as much as all the rest. A mass is summed anew where something was taken out: a difference would keep
 * no digits of a small rest.
 */
export class MultiRoundVerifier {
  #owed: Float64Array; // [V] P, the law still to be emitted at this node
  #owedMass = 0;
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
    let node = this.#acceptedChild(tree, laws, chance, 0, 0);
    while (node >= 0) {
      const depth = verdict.pathLength;
      verdict.path[verdict.pathLength++] = node;
      node = this.#acceptedChild(tree, laws, chance, node, depth);
    }
    verdict.bonus = chance.draw(this.#owed);
  }

  /** The first child that stands, or -1, which leaves the bonus token's law in `#owed`. */
  #acceptedChild(tree: DraftTree, laws: TreeLaws, chance: Chance, parent: number, depth: number): number {
    load(this.#owed, laws.target(parent, depth), 'target', parent);
    this.#owedMass = sumOf(this.#owed, 0, this.#owed.length);
    if (!isMass(this.#owedMass)) throw new RangeError(`multi-round: the target law after node ${parent} has no mass`);
    let urn: Float64Array | undefined; // filled at the first child: leaves need no draft law
    let urnMass = 0;
    for (let child = parent + 1; child < tree.size; child++) {
      if (tree.parents[child] !== parent) continue;
      if (urn === undefined) {
        urn = this.#fillUrn(laws.draft(parent), parent);
        urnMass = sumOf(urn, 0, urn.length);
      }
      const token = tree.tokens[child]!;
      const drawing = laws.drawing(child);
      // A token that the urn lacks was not drawn from it, whatever is said (top-p may leave fewer tokens than children): it was chosen.
      const drawn = drawing !== 'point-mass' && isMass(urnMass) && urn[token]! > 0;
      const a = Math.min(1, this.#owed[token]! / this.#owedMass / (drawn ? urn[token]! / urnMass : 1));
      if (chance.accepts(a, child)) return child;
      if (drawn) this.#rejectDrawn(urn, urnMass);
      else this.#rejectChosen(token);
      if (drawing !== 'independent' && urn[token] !== 0) {
        urn[token] = 0;
        urnMass = sumOf(urn, 0, urn.length);
      }
    }
    return -1;
  }

  #fillUrn(law: Law | undefined, node: number): Float64Array {
    if (law === undefined) this.#urn.fill(0);
    else load(this.#urn, law, 'draft', node);
    return this.#urn;
  }

  /** P becomes norm(max(P - q_i, 0)); only by rounding can that be nothing, where P and q_i are as good as equal: then P stays. */
  #rejectDrawn(urn: Float64Array, urnMass: number): void {
    const owed = this.#owed;
    const residual = this.#residual;
    const scale = this.#owedMass / urnMass;
    let mass = 0;
    for (let token = 0; token < owed.length; token++) {
      const rest = Math.max(owed[token]! - urn[token]! * scale, 0);
      residual[token] = rest;
      mass += rest;
    }
    if (!isMass(mass)) return;
    this.#owed = residual;
    this.#residual = owed;
    this.#owedMass = mass;
  }

  /** The same with all of q_i on one token. */
  #rejectChosen(token: number): void {
    const owed = this.#owed;
    const weight = owed[token]!;
    owed[token] = 0;
    const mass = sumOf(owed, 0, owed.length);
    if (isMass(mass)) this.#owedMass = mass;
    else owed[token] = weight;
  }
}

function load(into: Float64Array, law: Law, name: string, node: number): void {
  if (law.length !== into.length)
    throw new RangeError(
      `multi-round: the ${name} law after node ${node} must have ${into.length} tokens, got ${law.length}`,
    );
  into.set(law);
}

/** Not zero, and no NaN. */
const isMass = (mass: number): boolean => mass > 0 && mass < Infinity;
