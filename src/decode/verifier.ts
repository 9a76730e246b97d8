/**
 * The verifiers as the loop sees them: of a tree and the target's logits after its nodes, what stands. Two write text of the target's
 * law, `match` also the very text of plain decoding for the same seed; `typical` is lossy, and only there for comparison.
 */
import type { DraftLaws, DraftSampling, RaceSampling, UrnSampling } from '../draft/draft-laws.ts';
import type { DraftTree } from '../draft/tree.ts';
import { RequestError } from '../errors.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { CumulativeDraw } from './law.ts';
import { chanceFrom, MultiRoundVerifier, type TreeLaws } from './multi-round.ts';
import { raceKey, uniformIn } from './rng.ts';
import { inverseOf, type Sampler, type TokenContext } from './sampler.ts';
import { readTypical, type TypicalOptions, type TypicalTarget, TypicalVerifier } from './typical.ts';
import { type Verdict, verifyMatch } from './verify.ts';

/** What each keeps of plain decoding, at a temperature above 0: its text for the same seed, its law, or neither. At 0 all keep the text. */
export const KEEPS = { match: 'text', 'multi-round': 'law', typical: 'nothing' } as const;
export type VerifierName = keyof typeof KEEPS;
export const VERIFIERS = Object.keys(KEEPS) as readonly VerifierName[];

export interface Verifier {
  /** How guesses should come about; undefined where the likeliest serve. */
  readonly draftSampling: DraftSampling | undefined;
  /** The token after the prompt. @param logits [1, V]. @param length of the prompt. */
  first(logits: Tensor, length: number): number;
  /** @param logits [tree.size, V]. @param length of the text, root included. */
  verify(tree: DraftTree, logits: Tensor, length: number, verdict: Verdict): void;
}

/**
 * @param text the prompt and what was drawn, with room behind it for a path of a tree, which is written there as it is looked at.
 * @throws RequestError for a name that is none, or options of `typical` that say nothing.
 */
export function createVerifier(
  name: VerifierName,
  sampler: Sampler,
  vocabSize: number,
  text: Int32Array,
  promptLength: number,
  typical?: TypicalOptions,
): Verifier {
  if (!VERIFIERS.includes(name))
    throw new RequestError('verify', `must be one of ${VERIFIERS.join(', ')}, got "${String(name)}"`);
  const typicalOptions = readTypical(typical);
  const context = new TreeContext(text, promptLength);
  const choose = (node: number, depth: number): number =>
    sampler.choose(context.logits, node, context.after(node, depth), context.length);
  const match: TreeVerifier = (tree, verdict) => verifyMatch(tree, choose, verdict);
  // At temperature 0 the likeliest token has all of the law, and a trial is a comparison.
  const used = sampler.temperature === 0 ? 'match' : name;
  switch (used) {
    case 'match':
      return asVerifier(context, match, choose, sampler.temperature === 0 ? undefined : racingLike(sampler));
    case 'multi-round': {
      const multiRound = multiRoundTrials(sampler, context, vocabSize);
      // Of chosen guesses, a draw equals one as often as the trials of their point masses would accept it, and the rest of the law is left
      // to the bonus either way (multi-round.ts).
      const verifyTree: TreeVerifier = (tree, verdict) =>
        tree.laws === undefined ? match(tree, verdict) : multiRound(tree, tree.laws, verdict);
      return asVerifier(context, verifyTree, choose, samplingLike(sampler, vocabSize));
    }
    case 'typical': {
      const verifier = new TypicalVerifier(typicalOptions);
      const ofTarget: TypicalTarget = {
        law: (node, depth) => sampler.law(context.logits, node, context.below(node, depth)),
        likeliest: (node, depth) => sampler.likeliest(context.logits, node, context.below(node, depth)),
      };
      return asVerifier(context, (tree, verdict) => verifier.verify(tree, ofTarget, verdict), ofTarget.likeliest);
    }
    default:
      return used satisfies never;
  }
}

/** @param choose the target's token after a node of the given depth. */
function asVerifier(
  context: TreeContext,
  verifyTree: TreeVerifier,
  choose: (node: number, depth: number) => number,
  draftSampling?: DraftSampling,
): Verifier {
  return {
    draftSampling,
    first(logits, length) {
      context.start(ROOT, logits, length);
      return choose(0, 0);
    },
    verify(tree, logits, length, verdict) {
      context.start(tree, logits, length);
      verifyTree(tree, verdict);
    },
  };
}

type TreeVerifier = (tree: DraftTree, verdict: Verdict) => void;

/** Stands for the prompt's last token, below which nothing was drafted. */
const ROOT: DraftTree = { size: 1, tokens: new Int32Array(1), parents: Int32Array.of(-1) };

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

  /** As `after`, whatever was asked for before. */
  below(node: number, depth: number): this {
    if (depth > 1) this.below(this.tree.parents[node]!, depth - 1);
    return this.after(node, depth);
  }
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
function samplingLike(sampler: Sampler, vocabSize: number): UrnSampling {
  const cumulative = new CumulativeDraw(vocabSize);
  return {
    kind: 'urn',
    inverseTemperature: inverseOf(sampler.temperature),
    draw: (law, position, index) => cumulative.draw(law, uniformIn('drafts', sampler.seed, position, index)),
    instead: racingLike(sampler),
  };
}

/** Guesses by the target's own numbers. */
function racingLike(sampler: Sampler): RaceSampling {
  const key = new Int32Array(2);
  return {
    kind: 'race',
    inverseTemperature: inverseOf(sampler.temperature),
    key: (position) => raceKey(sampler.seed, position, key),
  };
}
