/** How guesses shall come about, and how they did: multi-round verification has to know of every drawn token which law it was drawn from. */

/** Weights of tokens, [V]: any positive multiple of the probabilities is the same law. */
export type Law = Float32Array | Float64Array;

/**
 * How a child came from its node's draft law q, as from an urn:
 * - `without-replacement`: drawn from what is left in the urn, and taken out;
 * - `independent`: drawn from what is left, and put back (a chain; i.i.d. siblings, equal ones included);
 * - `point-mass`: chosen, not drawn, by any rule that does not look at the chance of verification (EAGLE-2's top k), and taken out.
 */
export type Drawing = 'without-replacement' | 'independent' | 'point-mass';

/** Of one tree; valid as long as it is. */
export interface DraftLaws {
  /** The law q that the node's children were drawn from, over the target's tokens; undefined if none was drawn. Valid until the next call. */
  draft(node: number): Law | undefined;
  drawing(child: number): Drawing;
}

/** How guesses shall come about, at a temperature above 0. */
export type DraftSampling = UrnSampling | RaceSampling;

/** Drawn from the drafter's law, by numbers of their own: what multi-round verification weighs against the target's law. */
export interface UrnSampling {
  readonly kind: 'urn';
  /** Of the logits that guesses are drawn from. */
  readonly inverseTemperature: number;
  /** The `index`-th draw below the root at `position` of the text: a token of this law. */
  draw(law: Law, position: number, index: number): number;
  /** What serves where a tree's nodes are chosen. */
  readonly instead?: RaceSampling;
}

/** By the very numbers that the target will draw with: what is found out early where laws are alike. */
export interface RaceSampling {
  readonly kind: 'race';
  /** Of the target's logits. */
  readonly inverseTemperature: number;
  /** Of the race (`Kernels.race`) for the token at `position` of the text, whose labels are the target's tokens; valid until the next call. */
  key(position: number): Int32Array; // [2]
}
