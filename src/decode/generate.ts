/**
 * The loop. A round: the drafter proposes a tree below the last drawn token, the target looks at the whole tree in one forward, the
 * verifier keeps a path that is as good as the target's own and draws one token more, both caches keep that path.
 * Plain decoding is the drafter that proposes a tree of one node.
 *
 * Knows token ids only; nothing of text. Synchronous: it yields before every prefill chunk and after every round, and whoever drives it
 * decides whether to go on. What the caches hold of the prompt from the text before is not computed again.
 */
import type { DraftSampling } from '../draft/draft-laws.ts';
import { checkProposal, type Drafter } from '../draft/drafter.ts';
import type { DraftTree } from '../draft/tree.ts';
import { RequestError } from '../errors.ts';
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import type { KvCache, KvSequence } from '../model/kv-cache.ts';
import type { ForwardOutput, TargetModel } from '../model/target.ts';
import { Sampler, type SamplingOptions } from './sampler.ts';
import type { TypicalOptions } from './typical.ts';
import { createVerifier, type VerifierName } from './verifier.ts';
import { createVerdict, type Verdict } from './verify.ts';

export type StopReason = 'endToken' | 'maxTokens' | 'contextLimit';

export interface GenerateOptions extends SamplingOptions {
  /** New tokens at most; by default as many as the context holds. */
  readonly maxTokens?: number;
  /** Tokens of prompt and output together; by default as many as the model and the cache hold. */
  readonly contextSize?: number;
  /** Tokens that end the text; the one drawn is the last of the output. */
  readonly endTokens?: ReadonlySet<number>;
  /**
   * `match` (default) writes plain decoding's text for the same seed. `multi-round` draws guesses and accepts by chance: text of the same
   * law, but not the same text; `typical` is lossy: text of no law of the target's. At temperature 0 both are `match`.
   */
  readonly verify?: VerifierName;
  /** Of `typical`. */
  readonly typical?: TypicalOptions;
  /** Rows of a prefill forward. */
  readonly prefillChunk?: number;
  /** Sees the logits [V] that each emitted token was drawn from, before penalties; valid during the call. Positions count from the prompt's start. */
  readonly onLogits?: (position: number, logits: Float32Array) => void;
}

export interface RoundTimes {
  /** Milliseconds. */
  draft: number;
  verify: number;
  sample: number;
  commit: number;
}

export interface Round {
  readonly type: 'round';
  /** Emitted tokens, accepted drafts first, then the bonus token; cut at a stop. Valid until the next round. */
  readonly tokens: readonly number[];
  /** Accepted drafts among them. */
  readonly drafted: number;
  /** Nodes of the tree, root included; 0 for the token that prefill yields. */
  readonly treeSize: number;
  /** What was drafted and what of it stood, whether or not the text ended within; valid until the next round. Prefill's token has neither. */
  readonly tree: DraftTree | undefined;
  readonly verdict: Readonly<Verdict> | undefined;
  /** Tokens that the target's cache held before the round: all of the text but the last, the root, whose position this is. */
  readonly committed: number;
  readonly stopReason: StopReason | undefined;
  readonly times: Readonly<RoundTimes>;
}

export interface Prefill {
  readonly type: 'prefill';
  /** Tokens of the prompt that the caches held already. */
  readonly cached: number;
  /** Tokens done so far, those included. */
  readonly processed: number;
  readonly total: number;
}

export type GenerateEvent = Prefill | Round;

/**
 * Small enough that an abort is honoured within a tenth of a second on two cores (823 tokens/s were measured on one, 1,483 on two), large
 * enough to be limited by arithmetic: every chunk reads all weights once, which half as many rows feel by 6 %.
 */
const PREFILL_CHUNK = 128;

export function* generate(
  target: TargetModel,
  drafter: Drafter,
  cache: KvCache,
  prompt: readonly number[],
  options: GenerateOptions = {},
): Generator<GenerateEvent, void, void> {
  const sequence = cache.sequences[0]!;
  const { vocabSize } = target.config;
  const { contextSize, maxTokens, prefillChunk } = readLimits(target, drafter, sequence, prompt, options);
  const sampler = new Sampler(target.kernels, vocabSize, options);
  const batch = new ForwardBatch(Math.max(prefillChunk, drafter.maxNodes), drafter.maxNodes * drafter.maxNodes);
  const rows = Int32Array.from({ length: prefillChunk }, (_, i) => i);
  const text = new Int32Array(contextSize + drafter.maxNodes + 1); // prompt, then what was drawn, then the path being verified
  text.set(prompt);
  let length = prompt.length;
  const verifier = createVerifier(options.verify ?? 'match', sampler, vocabSize, text, prompt.length, options.typical);
  const verdict = createVerdict(drafter.maxNodes);
  const tokens: number[] = [];
  const times: RoundTimes = { draft: 0, verify: 0, sample: 0, commit: 0 };

  // Emits `count` tokens that stand in `text` from `length` on, up to the first that ends the text.
  let emitted = 0;
  const emit = (count: number): StopReason | undefined => {
    let stopReason: StopReason | undefined;
    let i = 0;
    while (i < count && stopReason === undefined) {
      const token = text[length++]!;
      tokens[i++] = token;
      emitted++;
      if (options.endTokens?.has(token)) stopReason = 'endToken';
      else if (emitted === maxTokens) stopReason = 'maxTokens';
      else if (length === contextSize) stopReason = 'contextLimit';
    }
    tokens.length = i;
    return stopReason;
  };

  const cached = keepSharedPrefix(sequence, drafter, prompt, verifier.draftSampling);
  let output!: ForwardOutput;
  for (let start = cached; start < prompt.length; start += prefillChunk) {
    yield { type: 'prefill', cached, processed: start, total: prompt.length };
    const end = Math.min(start + prefillChunk, prompt.length);
    batch.clear();
    for (let i = start, parent = COMMITTED; i < end; i++)
      parent = batch.append(sequence, text[i]!, parent, i === prompt.length - 1);
    output = target.forward(batch, cache);
    sequence.commitAll();
    drafter.observe(batch.tokens, output.features, rows, batch.rows);
  }
  text[length] = verifier.first(output.logits, length);
  options.onLogits?.(length, output.logits.row(0));
  let stopReason = emit(1);
  const undrafted = { drafted: 0, treeSize: 0, tree: undefined, verdict: undefined };
  yield { type: 'round', tokens, ...undrafted, committed: prompt.length, stopReason, times };

  while (stopReason === undefined) {
    const began = performance.now();
    // Nodes past the last token that may still be emitted could only be thrown away.
    const maxDepth = Math.min(maxTokens - emitted, contextSize - length) - 1;
    const tree = drafter.propose(text[length - 1]!, maxDepth);
    checkProposal(drafter, tree, text[length - 1]!, maxDepth, vocabSize);
    const drafted = performance.now();

    output = forwardTree(target, cache, batch, tree);
    const verified = performance.now();

    verifier.verify(tree, output.logits, length, verdict);
    text[length + verdict.pathLength - 1] = verdict.bonus;
    const sampled = performance.now();

    const accepted = verdict.pathLength - 1;
    const committed = length - 1;
    stopReason = emit(accepted + 1);
    // The root and the accepted drafts that were emitted are in the cache; the last emitted token never is.
    const kept = tokens.length;
    for (let i = 0; options.onLogits !== undefined && i < kept; i++)
      options.onLogits(length - kept + i, output.logits.row(verdict.path[i]!));
    sequence.commit(verdict.path, kept);
    drafter.observeProposal?.(output.logits);
    drafter.observe(batch.tokens, output.features, verdict.path, kept);
    drafter.settle?.(verdict.path, verdict.pathLength, verdict.bonus, verified - drafted);
    times.draft = drafted - began;
    times.verify = verified - drafted;
    times.sample = sampled - verified;
    times.commit = performance.now() - sampled;
    const drafts = Math.min(accepted, kept);
    yield { type: 'round', tokens, drafted: drafts, treeSize: tree.size, tree, verdict, committed, stopReason, times };
  }
}

/** What the request asks for, held against what the model, the cache and the drafter allow. */
function readLimits(
  target: TargetModel,
  drafter: Drafter,
  sequence: KvSequence,
  prompt: readonly number[],
  options: GenerateOptions,
): { readonly contextSize: number; readonly maxTokens: number; readonly prefillChunk: number } {
  const { contextLength, vocabSize } = target.config;
  // The nodes of one tree lie behind the committed rows.
  const room = Math.min(contextLength, sequence.capacity - drafter.maxNodes);
  const contextSize = options.contextSize ?? room;
  if (!Number.isInteger(contextSize) || contextSize > room)
    throw new RequestError('contextSize', `must be a whole number of at most ${room}, got ${contextSize}`);
  if (prompt.length === 0) throw new RequestError('prompt', 'must have at least one token');
  if (prompt.length >= contextSize)
    throw new RequestError('prompt', `${prompt.length} tokens leave no room in a context of ${contextSize}`);
  const stray = prompt.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabSize);
  if (stray !== undefined) throw new RequestError('prompt', `token ids are 0..${vocabSize - 1}, got ${stray}`);
  const maxTokens = options.maxTokens ?? contextSize;
  if (!Number.isInteger(maxTokens) || maxTokens < 1)
    throw new RequestError('maxTokens', `must be a whole number of at least 1, got ${maxTokens}`);
  const prefillChunk = options.prefillChunk ?? PREFILL_CHUNK;
  if (!Number.isInteger(prefillChunk) || prefillChunk < 1)
    throw new RequestError('prefillChunk', `must be a whole number of at least 1, got ${prefillChunk}`);
  return { contextSize, maxTokens, prefillChunk: Math.min(prefillChunk, prompt.length) };
}

/** Cuts both caches back to what they hold of the prompt, which is returned; never all of it, for the last token's logits are wanted. */
function keepSharedPrefix(
  sequence: KvSequence,
  drafter: Drafter,
  prompt: readonly number[],
  draftSampling: DraftSampling | undefined,
): number {
  const held = Math.min(sequence.sharedPrefix(prompt), prompt.length - 1);
  const kept = drafter.resume(prompt, held, draftSampling);
  if (!(kept >= 0 && kept <= held))
    throw new RangeError(`drafter "${drafter.name}": it may resume after 0..${held} tokens, got ${kept}`);
  sequence.truncate(kept);
  return kept;
}

/** One target forward over the whole tree: node i is row i. */
function forwardTree(target: TargetModel, cache: KvCache, batch: ForwardBatch, tree: DraftTree): ForwardOutput {
  batch.clear();
  const sequence = cache.sequences[0]!;
  for (let node = 0; node < tree.size; node++) {
    batch.append(sequence, tree.tokens[node]!, node === 0 ? COMMITTED : tree.parents[node]!, true);
  }
  return target.forward(batch, cache);
}
