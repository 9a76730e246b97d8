/** What a generation cost and gained. */
import type { Prefill, Round } from './generate.ts';

export interface GenerationStats {
  newTokens: number;
  /** Rounds after prefill; each is one forward of the target. */
  rounds: number;
  /** Accepted drafts. */
  acceptedTokens: number;
  /** Tokens emitted per round, bonus included (tau); plain decoding has 1. */
  acceptanceLength: number;
  /** Mean nodes per tree, root included. */
  treeSize: number;
  promptTokens: number;
  /** Of the prompt: not computed again, for the text before began alike. */
  cachedTokens: number;
  /** Milliseconds. */
  prefillMs: number;
  decodeMs: number;
  draftMs: number;
  verifyMs: number;
  sampleMs: number;
  commitMs: number;
  /** Of decoding: tokens after the first, per second. */
  tokensPerSecond: number;
}

export class StatsCollector {
  #nodes = 0;
  #first = true;
  readonly stats: GenerationStats = {
    newTokens: 0,
    rounds: 0,
    acceptedTokens: 0,
    acceptanceLength: 1,
    treeSize: 1,
    promptTokens: 0,
    cachedTokens: 0,
    prefillMs: 0,
    decodeMs: 0,
    draftMs: 0,
    verifyMs: 0,
    sampleMs: 0,
    commitMs: 0,
    tokensPerSecond: 0,
  };

  constructor(promptTokens: number) {
    this.stats.promptTokens = promptTokens;
  }

  /** @param milliseconds since the event before: time spent computing, not in the consumer. */
  prefill({ cached }: Prefill, milliseconds: number): void {
    this.stats.cachedTokens = cached;
    this.stats.prefillMs += milliseconds;
  }

  /** @param kept tokens of the round that became output: a stop string may end the text within it. */
  round(round: Round, kept: number, milliseconds: number): void {
    const { stats } = this;
    stats.newTokens += kept;
    if (this.#first) {
      this.#first = false;
      stats.prefillMs += milliseconds;
      return;
    }
    stats.rounds++;
    stats.acceptedTokens += Math.min(round.drafted, kept);
    this.#nodes += round.treeSize;
    stats.decodeMs += milliseconds;
    stats.draftMs += round.times.draft;
    stats.verifyMs += round.times.verify;
    stats.sampleMs += round.times.sample;
    stats.commitMs += round.times.commit;
    stats.acceptanceLength = (stats.newTokens - 1) / stats.rounds;
    stats.treeSize = this.#nodes / stats.rounds;
    stats.tokensPerSecond = ((stats.newTokens - 1) / stats.decodeMs) * 1000;
  }
}
