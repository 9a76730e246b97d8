/** What a generation cost and gained: one object for the library, the command line and JSON alike. */
import { STEADY_AFTER } from '../draft/costs.ts';
import type { Prefill, Round } from './generate.ts';

export interface GenerationStats {
  readonly newTokens: number;
  /** Rounds after prefill; each is one forward of the target. */
  readonly rounds: number;
  /** Tokens emitted per round, bonus included (tau); plain decoding has 1. */
  readonly acceptanceLength: number;
  /** From depth 1 on, as deep as anything was verified. */
  readonly acceptanceByDepth: readonly DepthAcceptance[];
  /** Mean nodes per tree, root included. */
  readonly treeSize: number;
  readonly promptTokens: number;
  /** Of the prompt: not computed again, for the text before began alike. */
  readonly cachedTokens: number;
  /** Milliseconds. Draft, verify, sample and commit are parts of decoding. */
  readonly prefillMs: number;
  readonly decodeMs: number;
  readonly draftMs: number;
  readonly verifyMs: number;
  readonly sampleMs: number;
  readonly commitMs: number;
  /** Of decoding: tokens after the first, per second. */
  readonly tokensPerSecond: number;
  /** Of a round that drafts nothing, which is what plain decoding takes for a token; undefined where that is not known. */
  readonly plainRoundMs: number | undefined;
  /** Over plain decoding: the time it would have taken for the same tokens, over the time taken. Undefined where `plainRoundMs` is. */
  readonly estimatedSpeedup: number | undefined;
  readonly counters: DraftCounters;
}

/** How often the target looked at a child of a node at depth - 1 that stood, and how often a child was accepted. */
export interface DepthAcceptance {
  readonly verified: number;
  readonly accepted: number;
  /** accepted / verified. */
  readonly rate: number;
}

/**
 * Sums to derive rates from, under the suffixes of vLLM's `spec_decode_` metrics. What a stop cut off counts nowhere, for it never became
 * text.
 */
export interface DraftCounters {
  /** Rounds in which anything was drafted. */
  readonly num_drafts: number;
  /** Nodes below the root, over all trees: of siblings at most one can be accepted. */
  readonly num_draft_tokens: number;
  readonly num_accepted_tokens: number;
  /** The first entry is depth 1. */
  readonly num_accepted_tokens_per_pos: readonly number[];
}

/** One plain round among its like is as quick as another to about a tenth, so the mean of four is right to a twentieth. */
const ENOUGH_PLAIN_ROUNDS = 4;

/** Takes a generation's events as they come. Allocates where the text goes deeper than ever before, and for the result. */
export class StatsCollector {
  readonly #promptTokens: number;
  #cachedTokens = 0;
  #newTokens = 0;
  #rounds = 0;
  #nodes = 0;
  #drafts = 0;
  #singles = 0; // rounds that drafted nothing since the last that did
  #plainRounds = 0; // those that are as quick as plain decoding's
  readonly #ms = { prefill: 0, decode: 0, draft: 0, verify: 0, sample: 0, commit: 0, plain: 0 };
  readonly #verified: number[] = []; // by depth - 1
  readonly #accepted: number[] = [];

  constructor(promptTokens: number) {
    this.#promptTokens = promptTokens;
  }

  /** @param milliseconds since the event before: time spent computing, not in the consumer. */
  prefill({ cached }: Prefill, milliseconds: number): void {
    this.#cachedTokens = cached;
    this.#ms.prefill += milliseconds;
  }

  /** @param kept tokens of the round that became output: a stop string may end the text within it. */
  round(round: Round, kept: number, milliseconds: number): void {
    const ms = this.#ms;
    this.#newTokens += kept;
    if (round.tree === undefined) {
      ms.prefill += milliseconds; // the token that prefill yields
      return;
    }
    const { treeSize, times } = round;
    this.#rounds++;
    this.#nodes += treeSize;
    ms.decode += milliseconds;
    ms.draft += times.draft;
    ms.verify += times.verify;
    ms.sample += times.sample;
    ms.commit += times.commit;
    if (treeSize > 1) {
      this.#drafts++;
      this.#singles = 0;
      this.#countDepths(round, kept);
    } else if (++this.#singles > STEADY_AFTER) {
      this.#plainRounds++;
      ms.plain += milliseconds - times.draft;
    }
  }

  /** Walks the path as verification did, as far as its tokens were kept. */
  #countDepths({ tree, verdict }: Round, kept: number): void {
    const { path, pathLength } = verdict!;
    for (let depth = 1; depth <= pathLength && depth <= kept; depth++) {
      const accepted = depth < pathLength;
      if (!accepted && !hasChild(tree!.parents, tree!.size, path[depth - 1]!)) return;
      if (this.#verified.length < depth) {
        this.#verified.push(0);
        this.#accepted.push(0);
      }
      this.#verified[depth - 1]!++;
      if (accepted) this.#accepted[depth - 1]!++;
    }
  }

  /** Whoever drafts thinks about it in rounds without drafts too, which plain decoding does not. */
  #plainRoundMs(plainForwardMs: number | undefined): number | undefined {
    const ms = this.#ms;
    const rounds = this.#rounds;
    if (this.#drafts === 0 && rounds >= ENOUGH_PLAIN_ROUNDS) return (ms.decode - ms.draft) / rounds;
    if (this.#plainRounds >= ENOUGH_PLAIN_ROUNDS) return ms.plain / this.#plainRounds;
    if (plainForwardMs === undefined || rounds === 0) return undefined;
    // Verification draws a token for each that it emits.
    return plainForwardMs + ms.sample / (this.#newTokens - 1) + ms.commit / rounds;
  }

  /** @param plainForwardMs of the target in plain decoding, where it is known: for a text that had too few plain rounds of its own to tell. */
  stats(plainForwardMs?: number): GenerationStats {
    const ms = this.#ms;
    const decoded = this.#newTokens - 1;
    const rounds = this.#rounds;
    const timed = { decodeMs: ms.decode, newTokens: this.#newTokens };
    const plainMs = this.#plainRoundMs(plainForwardMs);
    const acceptanceByDepth = this.#verified.map((verified, i) => {
      const accepted = this.#accepted[i]!;
      return { verified, accepted, rate: accepted / verified };
    });
    const acceptedByDepth = [...this.#accepted];
    return {
      newTokens: this.#newTokens,
      rounds,
      acceptanceLength: rounds === 0 ? 1 : decoded / rounds,
      acceptanceByDepth,
      treeSize: rounds === 0 ? 1 : this.#nodes / rounds,
      promptTokens: this.#promptTokens,
      cachedTokens: this.#cachedTokens,
      prefillMs: ms.prefill,
      decodeMs: ms.decode,
      draftMs: ms.draft,
      verifyMs: ms.verify,
      sampleMs: ms.sample,
      commitMs: ms.commit,
      tokensPerSecond: rounds === 0 ? 0 : (decoded / ms.decode) * 1000,
      plainRoundMs: plainMs,
      estimatedSpeedup: rounds === 0 || plainMs === undefined ? undefined : speedupOver(plainMs, timed),
      counters: {
        num_drafts: this.#drafts,
        num_draft_tokens: this.#nodes - rounds,
        num_accepted_tokens: acceptedByDepth.reduce((sum, accepted) => sum + accepted, 0),
        num_accepted_tokens_per_pos: acceptedByDepth,
      },
    };
  }
}

/** @param plainRoundMs what plain decoding takes for a token; prefill, and the token it yields, are the same for both. */
export function speedupOver(
  plainRoundMs: number,
  { newTokens, decodeMs }: Pick<GenerationStats, 'newTokens' | 'decodeMs'>,
): number {
  return ((newTokens - 1) * plainRoundMs) / decodeMs;
}

function hasChild(parents: Int32Array, size: number, node: number): boolean {
  for (let child = node + 1; child < size; child++) if (parents[child] === node) return true;
  return false;
}
