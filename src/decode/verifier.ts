/**
 * The two verifiers as the loop sees them: of a tree and the target's logits after its nodes, what stands. Both write text of the target's
 * law; `match` also the very text of plain decoding for the same seed.
 */
import type { DraftLaws, DraftSampling } from '../draft/draft-laws.ts';
import type { DraftTree } from '../draft/tree.ts';
import { RequestError } from '../errors.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { CumulativeDraw } from './law.ts';
import { chanceFrom, MultiRoundVerifier, type TreeLaws } from './multi-round.ts';
import { uniformIn } from './rng.ts';
import { inverseOf, type Sampler, type TokenContext } from './sampler.ts';
import { type Verdict, verifyMatch } from './verify.ts';

export const VERIFIERS = ['match', 'multi-round'] as const;
export type VerifierName = (typeof VERIFIERS)[number];

export interface Verifier {
  /** How guesses should be drawn; undefined where chosen ones serve. */
  readonly draftSampling: DraftSampling | undefined;
  /** @param logits [tree.size, V]. @param length of the text, root included. */
  verify(tree: DraftTree, logits: Tensor, length: number, verdict: Verdict): void;
}

/**
 * @param text the prompt and what was drawn, with room behind it for a path of a tree, which is written there as it is looked at.
 * @throws RequestError for a name that is none.
 */
export function createVerifier(
  name: VerifierName,
  sampler: Sampler,
  vocabSize: number,
  text: Int32Array,
  promptLength: number,
): Verifier {
  if (!VERIFIERS.includes(name))
    throw new RequestError('verify', `must be one of ${VERIFIERS.join(', ')}, got "${String(name)}"`);
  const context = new TreeContext(text, promptLength);
  const match = matching(sampler, context);
  // At temperature 0 the likeliest token has all of the law, and a trial is a comparison.
  const multiRound =
    name === 'match' || sampler.temperature === 0 ? undefined : multiRoundTrials(sampler, context, vocabSize);
  return {
    draftSampling: multiRound && samplingLike(sampler, vocabSize),
    verify(tree, logits, length, verdict) {
      context.start(tree, logits, length);
      // Of chosen guesses, a draw equals one as often as the trials of their point masses would accept it, and the rest of the law is left
      // to the bonus either way (multi-round.ts).
      if (multiRound === undefined || tree.laws === undefined) match(tree, verdict);
      else multiRound(tree, tree.laws, verdict);
    },
  };
}

/** What stands before a token that is drawn after a node: the text, then the path down to the node. */
class TreeContext implements TokenContext {
  readonly tokens: Int32Array;
  readonly promptLength: number;
  tree!: DraftTree;
  logits!: Tensor;
  /** Of the text, root included. */
  textLength = 0;
  length = 0;

  constructor(tokens: Int32Array, promptLength: number) {
    this.tokens = tokens;
    this.promptLength = promptLength;
  }

  start(tree: DraftTree, logits: Tensor, textLength: number): void {
    this.tree = tree;
    this.logits = logits;
    this.textLength = textLength;
  }

  /** The node's ancestors were asked for before it. */
  after(node: number, depth: number): this {
    this.length = this.textLength + depth;
    if (depth > 0) this.tokens[this.length - 1] = this.tree.tokens[node]!;
    return this;
  }
}

function matching(sampler: Sampler, context: TreeContext): (tree: DraftTree, verdict: Verdict) => void {
  const chooseAfter = (node: number, depth: number): number =>
    sampler.choose(context.logits, node, context.after(node, depth), context.length);
  return (tree, verdict) => verifyMatch(tree, chooseAfter, verdict);
}

function multiRoundTrials(
  sampler: Sampler,
  context: TreeContext,
  vocabSize: number,
): (tree: DraftTree, drafts: DraftLaws, verdict: Verdict) => void {
  const verifier = new MultiRoundVerifier(vocabSize);
  let drafts: DraftLaws;
  const laws: TreeLaws = {
    target: (node, depth) => sampler.law(context.logits, node, context.after(node, depth)),
    draft: (node) => drafts.draft(node),
    drawing: (child) => drafts.drawing(child),
  };
  let trial = 0;
  const chance = chanceFrom(() => uniformIn('trials', sampler.seed, context.textLength, trial++), vocabSize);
  return (tree, ofTree, verdict) => {
    drafts = ofTree;
    trial = 0;
    verifier.verify(tree, laws, chance, verdict);
  };
}

/** Guesses at the temperature of the target's own draws, by numbers of their own. */
function samplingLike(sampler: Sampler, vocabSize: number): DraftSampling {
  const cumulative = new CumulativeDraw(vocabSize);
  return {
    inverseTemperature: inverseOf(sampler.temperature),
    draw: (law, position, index) => cumulative.draw(law, uniformIn('drafts', sampler.seed, position, index)),
  };
}
