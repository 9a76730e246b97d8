/**
 * The loop. A round: the drafter proposes a tree below the last drawn token, the target looks at the whole tree in one forward, match
 * verification keeps the path that the target would have written itself and draws one token more, both caches keep that path.
 * Plain decoding is the drafter that proposes a tree of one node.
 *
 * Knows token ids only; nothing of text. Synchronous: it yields after every prefill chunk and every round, and whoever drives it decides
 * whether to go on.
 */
import type { Drafter } from '../draft/drafter.ts';
import type { DraftTree } from '../draft/tree.ts';
import { RequestError } from '../errors.ts';
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import type { KvCache } from '../model/kv-cache.ts';
import type { ForwardOutput, TargetModel } from '../model/target.ts';
import { Sampler, type SamplingOptions } from './sampler.ts';
import { createVerdict, verifyMatch } from './verify.ts';

export type StopReason = 'endToken' | 'maxTokens' | 'contextLimit';

export interface GenerateOptions extends SamplingOptions {
  /** New tokens at most; by default as many as the context holds. */
  readonly maxTokens?: number;
  /** Tokens that end the text; the one drawn is the last of the output. */
  readonly endTokens?: ReadonlySet<number>;
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
  readonly stopReason: StopReason | undefined;
  readonly times: Readonly<RoundTimes>;
}

export type GenerateEvent = { readonly type: 'prefill'; readonly processed: number; readonly total: number } | Round;

/** Small enough that an abort is honoured within a tenth of a second on one core, large enough to be limited by arithmetic. */
const PREFILL_CHUNK = 64;

export function* generate(
  target: TargetModel,
  drafter: Drafter,
  cache: KvCache,
  prompt: readonly number[],
  options: GenerateOptions = {},
): Generator<GenerateEvent, void, void> {
  const { contextLength, vocabSize } = target.config;
  const sequence = cache.sequences[0]!;
  const contextSize = Math.min(contextLength, sequence.capacity - drafter.maxNodes);
  if (prompt.length === 0) throw new RequestError('prompt', 'must have at least one token');
  if (prompt.length >= contextSize)
    throw new RequestError('prompt', `${prompt.length} tokens leave no room in a context of ${contextSize}`);
  const stray = prompt.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabSize);
  if (stray !== undefined) throw new RequestError('prompt', `token ids are 0..${vocabSize - 1}, got ${stray}`);
  const maxTokens = options.maxTokens ?? contextSize;
  if (!Number.isInteger(maxTokens) || maxTokens < 1)
    throw new RequestError('maxTokens', `must be at least 1, got ${maxTokens}`);

  const sampler = new Sampler(target.kernels, vocabSize, options);
  const chunk = options.prefillChunk ?? PREFILL_CHUNK;
  const batch = new ForwardBatch(Math.max(chunk, drafter.maxNodes), drafter.maxNodes * drafter.maxNodes);
  const rows = Int32Array.from({ length: batch.maxRows }, (_, i) => i);
  const text = new Int32Array(contextSize + drafter.maxNodes + 1); // prompt, then what was drawn
  text.set(prompt);
  let length = prompt.length;
  const context = { length, promptLength: prompt.length, at: (index: number) => text[index]! };
  const verdict = createVerdict(drafter.maxNodes);
  const tokens: number[] = [];
  const times: RoundTimes = { draft: 0, verify: 0, sample: 0, commit: 0 };

  // Emits `count` tokens that stand in `text` from `length` on, up to the first that ends the text.
  let emitted = 0;
  const emit = (count: number): StopReason | undefined => {
    tokens.length = 0;
    for (let i = 0; i < count; i++) {
      const token = text[length++]!;
      tokens.push(token);
      emitted++;
      if (options.endTokens?.has(token)) return 'endToken';
      if (emitted === maxTokens) return 'maxTokens';
      if (length === contextSize) return 'contextLimit';
    }
    return undefined;
  };

  sequence.truncate(0);
  drafter.reset();
  let output: ForwardOutput | undefined;
  for (let start = 0; start < prompt.length; start += chunk) {
    const end = Math.min(start + chunk, prompt.length);
    batch.clear();
    for (let i = start, parent = COMMITTED; i < end; i++)
      parent = batch.append(sequence, text[i]!, parent, i === prompt.length - 1);
    output = target.forward(batch, cache);
    sequence.commitAll();
    drafter.observe(batch.tokens, output.features, rows, batch.rows);
    if (end < prompt.length) yield { type: 'prefill', processed: end, total: prompt.length };
  }
  text[length] = sampler.choose(output!.logits.data, 0, context, length);
  options.onLogits?.(length, output!.logits.data.subarray(0, vocabSize));
  let stopReason = emit(1);
  yield { type: 'round', tokens, drafted: 0, treeSize: 0, stopReason, times };

  while (stopReason === undefined) {
    const began = performance.now();
    // Nodes past the last token that may still be emitted could only be thrown away.
    const maxDepth = Math.min(maxTokens - emitted, contextSize - length) - 1;
    const tree = drafter.propose(text[length - 1]!, maxDepth);
    const drafted = performance.now();

    const { logits, features } = forwardTree(target, cache, batch, tree);
    const verified = performance.now();

    verifyMatch(
      tree,
      (node, depth) => {
        if (node > 0) text[length + depth - 1] = tree.tokens[node]!;
        context.length = length + depth;
        return sampler.choose(logits.data, node, context, length + depth);
      },
      verdict,
    );
    text[length + verdict.pathLength - 1] = verdict.bonus;
    const sampled = performance.now();

    const accepted = verdict.pathLength - 1;
    stopReason = emit(accepted + 1);
    // The root and the accepted drafts that were emitted are in the cache; the last emitted token never is.
    const kept = tokens.length;
    for (let i = 0; options.onLogits !== undefined && i < kept; i++) {
      const row = verdict.path[i]! * vocabSize;
      options.onLogits(length - kept + i, logits.data.subarray(row, row + vocabSize));
    }
    sequence.commit(verdict.path, kept);
    drafter.observe(batch.tokens, features, verdict.path, kept);
    times.draft = drafted - began;
    times.verify = verified - drafted;
    times.sample = sampled - verified;
    times.commit = performance.now() - sampled;
    yield { type: 'round', tokens, drafted: Math.min(accepted, kept), treeSize: tree.size, stopReason, times };
  }
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
