/**
 * Whether a head knows its target, at a glance: a head made for other features than it is fed (another layer's, before the norm, another
 * model's) loads without complaint and merely guesses badly. So it is given what it has in decoding, true features of text that the
 * target itself writes, and its best guess is held against the target's next token (teacher forcing: nothing rests on its own guesses).
 *
 * Two yardsticks need no experience with heads. Guessing the text's most common token every time takes no head. And fed the features of
 * other positions, a head still sees the tokens: what it then gets right owes nothing to features, which are what EAGLE is about
 * (arXiv:2401.15077, §3.1).
 */
import { GuessesAlong, knownTo } from '../draft/best-guesses.ts';
import type { EagleHead } from '../draft/eagle-head.ts';
import { NoDrafter } from '../draft/none.ts';
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import type { TargetModel } from '../model/target.ts';
import { copyRow, ScratchTensor, type Tensor } from '../tensor/tensor.ts';
import { FeatureReader } from './features.ts';
import { generate } from './generate.ts';

export const AGREEMENT_VERDICTS = ['random', 'weak', 'plausible'] as const;
export type AgreementVerdict = (typeof AGREEMENT_VERDICTS)[number];

export interface Agreement {
  /** Next tokens guessed. */
  readonly positions: number;
  /** Of these, guessed right. Shares of 1, like all that follow. */
  readonly share: number;
  /** The same with features of other positions of the same text. */
  readonly shuffledFeatures: number;
  /** Positions whose token is the one that the text has most often. */
  readonly commonestToken: number;
  /** Positions whose token may be guessed at all: one of the draft vocabulary, or of the text before it. */
  readonly inDraftVocabulary: number;
  /**
   * `random`: no better than naming the commonest token. `weak`: better, but not better than with features of other positions. Better is
   * beyond two standard errors, so that chance makes one claim in forty.
   */
  readonly verdict: AgreementVerdict;
}

const CHUNK = 64;

/**
 * @param prompts token ids; the target goes on from each greedily, and only what it writes counts.
 * @param newTokens of each continuation, at most.
 */
export function measureAgreement(
  target: TargetModel,
  head: EagleHead,
  prompts: readonly (readonly number[])[],
  newTokens: number,
  endTokens: ReadonlySet<number> = new Set(),
): Agreement {
  const counts = new Map<number, number>();
  const { targetIds } = head;
  const draftVocabulary = targetIds && new Set(targetIds);
  let positions = 0;
  let right = 0;
  let rightShuffled = 0;
  let inDraftVocabulary = 0;
  for (const prompt of prompts) {
    const text = [...prompt, ...continueGreedily(target, prompt, newTokens, endTokens)];
    using reader = new FeatureReader(target, text.length);
    const features = reader.read(text);
    using along = new GuessesAlong(target, head, text);
    // Row i has eaten feature i and token i + 1.
    const known = Int32Array.from({ length: text.length - 1 }, (_, row) => knownTo(row + 1));
    const guesses = along.best(predict(head, text, features, 0), known);
    const shuffled = along.best(predict(head, text, features, text.length >> 1), known);
    for (let i = Math.max(0, prompt.length - 2); i + 2 < text.length; i++) {
      const next = text[i + 2]!;
      positions++;
      if (guesses[i] === next) right++;
      if (shuffled[i] === next) rightShuffled++;
      if ((draftVocabulary?.has(next) ?? true) || text.indexOf(next) < i + 2) inDraftVocabulary++;
      counts.set(next, (counts.get(next) ?? 0) + 1);
    }
  }
  if (positions === 0) throw new RangeError('agreement: the target wrote nothing to guess');
  const share = right / positions;
  const shuffledFeatures = rightShuffled / positions;
  const commonestToken = Math.max(...counts.values()) / positions;
  return {
    positions,
    share,
    shuffledFeatures,
    commonestToken,
    inDraftVocabulary: inDraftVocabulary / positions,
    verdict: judgeAgreement({ positions, share, commonestToken, shuffledFeatures }),
  };
}

export function judgeAgreement({
  positions,
  share,
  commonestToken,
  shuffledFeatures,
}: Pick<Agreement, 'positions' | 'share' | 'commonestToken' | 'shuffledFeatures'>): AgreementVerdict {
  if (!isBetter(share, commonestToken, positions)) return 'random';
  return isBetter(share, shuffledFeatures, positions) ? 'plausible' : 'weak';
}

/** By more than two standard errors of the difference of two shares. */
function isBetter(share: number, than: number, positions: number): boolean {
  const variance = (share * (1 - share) + than * (1 - than)) / positions;
  return share - than > 2 * Math.sqrt(variance);
}

function continueGreedily(
  target: TargetModel,
  prompt: readonly number[],
  maxTokens: number,
  endTokens: ReadonlySet<number>,
): number[] {
  using cache = target.createCache(1, prompt.length + maxTokens + 1);
  using drafter = new NoDrafter();
  const ids: number[] = [];
  for (const event of generate(target, drafter, cache, prompt, { maxTokens, endTokens }))
    if (event.type === 'round') ids.push(...event.tokens);
  return ids;
}

/** What the head makes of (feature i, token i + 1), for i < text - 1; features are taken `shift` positions on, round and round. */
function predict(head: EagleHead, text: readonly number[], features: Tensor, shift: number): Tensor {
  const count = text.length - 1;
  using cache = head.createCache(text.length);
  const sequence = cache.sequences[0]!;
  const batch = new ForwardBatch(CHUNK);
  const input = new ScratchTensor();
  const predicted = new ScratchTensor().reshape(count, features.cols);
  for (let start = 0; start < count; start += CHUNK) {
    batch.clear();
    const rows = Math.min(CHUNK, count - start);
    input.reshape(rows, features.cols);
    for (let row = 0, parent = COMMITTED; row < rows; row++) {
      parent = batch.append(sequence, text[start + row + 1]!, parent, false);
      copyRow(input, row, features, (start + row + shift) % count);
    }
    const { data } = head.forward(batch, input, cache);
    predicted.data.set(data.subarray(0, rows * features.cols), start * features.cols);
    sequence.commitAll();
  }
  return predicted;
}
