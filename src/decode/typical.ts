/**
 * Typical acceptance (Medusa, arXiv:2401.10774 §2.3.1): LOSSY. A guess stands where the target finds it not untypical: its probability
 * exceeds min(ε, δ · e^(-H)), H the entropy of the target's law there. More guesses stand than under an exact verifier, and the text is
 * neither plain decoding's nor of its law; nothing is drawn, the temperature only says how much counts as typical.
 *
 * The authors' code scores the padding of short candidates too, and so may accept guesses that nobody made; here a path ends where its
 * nodes end.
 */
import type { Law } from '../draft/draft-laws.ts';
import type { DraftTree } from '../draft/tree.ts';
import { RequestError } from '../errors.ts';
import { sumOf } from './law.ts';
import type { Verdict } from './verify.ts';

export interface TypicalOptions {
  /** ε: what is as likely as this always stands; 0.09 by default. */
  readonly epsilon?: number;
  /** δ: of e^(-H), one over the number of tokens that the law hesitates between; 0.3 by default. */
  readonly delta?: number;
}

/** The authors', of `medusa_generate`; its helper functions have the two swapped. */
export const TYPICAL_DEFAULTS: Required<TypicalOptions> = { epsilon: 0.09, delta: 0.3 };

/** With the authors' for those that are missing. @throws RequestError for options that say nothing. */
export function readTypical(options: TypicalOptions = {}): Required<TypicalOptions> {
  const read = { ...TYPICAL_DEFAULTS, ...options };
  for (const [name, value] of Object.entries(read))
    if (!(value >= 0 && value <= 1)) throw new RequestError(`typical.${name}`, `must be in 0..1, got ${value}`);
  return read;
}

/** @throws RangeError for anything but ε,δ. */
export function parseTypical(text: string): Required<TypicalOptions> {
  const [epsilon, delta, ...more] = text.split(',').map((part) => (part.trim() === '' ? Number.NaN : Number(part)));
  const isShare = (value: number | undefined): value is number => value !== undefined && value >= 0 && value <= 1;
  if (more.length > 0 || !isShare(epsilon) || !isShare(delta))
    throw new RangeError(`typical: expected epsilon,delta, each in 0..1, such as 0.09,0.3, got "${text}"`);
  return { epsilon, delta };
}

/** The authors' guard against ln 0. */
const EPSILON = 1e-5;

/** The probability that a token must exceed, of a law of any mass. */
export function typicalThreshold(law: Law, mass: number, { epsilon, delta }: Required<TypicalOptions>): number {
  let entropy = 0;
  for (let token = 0; token < law.length; token++) {
    const p = law[token]! / mass;
    if (p > 0) entropy -= p * Math.log(p + EPSILON);
  }
  return Math.min(epsilon, delta * Math.exp(-entropy));
}

/** What is asked of the target, after a node of the given depth. */
export interface TypicalTarget {
  /** The law, temperature and the rest applied; valid until the next call. */
  law(node: number, depth: number): Law;
  likeliest(node: number, depth: number): number;
}

export class TypicalVerifier {
  readonly #options: Required<TypicalOptions>;
  // Of each node of the tree.
  #depths = new Int32Array(0); // NOT_ACCEPTED where it or a node above it does not stand
  #logLikelihoods = new Float64Array(0); // of the path down to it

  constructor(options: Required<TypicalOptions>) {
    this.#options = options;
  }

  /** The longest path that stands, of several the likeliest, then the last; after it the target's likeliest token. */
  verify(tree: DraftTree, target: TypicalTarget, verdict: Verdict): void {
    this.#startTree(tree.size);
    const depths = this.#depths;
    const logLikelihoods = this.#logLikelihoods;
    let best = 0;
    for (let node = 0; node < tree.size; node++) {
      const depth = depths[node]!;
      if (depth === NOT_ACCEPTED) continue;
      const better = depth - depths[best]! || logLikelihoods[node]! - logLikelihoods[best]!;
      if (better >= 0) best = node;
      this.#acceptChildren(tree, target, node, depth);
    }
    verdict.pathLength = depths[best]! + 1;
    for (let node = best, depth = depths[best]!; depth >= 0; node = tree.parents[node]!) verdict.path[depth--] = node;
    verdict.bonus = target.likeliest(best, depths[best]!);
  }

  #startTree(size: number): void {
    if (this.#depths.length < size) {
      this.#depths = new Int32Array(size);
      this.#logLikelihoods = new Float64Array(size);
    }
    this.#depths.fill(NOT_ACCEPTED, 0, size);
    this.#depths[0] = 0;
    this.#logLikelihoods[0] = 0;
  }

  /** Parents come before their children, so a node is settled when it is reached. */
  #acceptChildren(tree: DraftTree, target: TypicalTarget, parent: number, depth: number): void {
    let law: Law | undefined; // asked for at the first child: leaves need none
    let mass = 0;
    let threshold = 0;
    for (let child = parent + 1; child < tree.size; child++) {
      if (tree.parents[child] !== parent) continue;
      if (law === undefined) {
        law = target.law(parent, depth);
        mass = sumOf(law, 0, law.length);
        threshold = typicalThreshold(law, mass, this.#options);
      }
      const p = law[tree.tokens[child]!]! / mass;
      if (!(p > threshold)) continue;
      this.#depths[child] = depth + 1;
      this.#logLikelihoods[child] = this.#logLikelihoods[parent]! + Math.log(p);
    }
  }
}

const NOT_ACCEPTED = -1;
