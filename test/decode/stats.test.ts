/** What is counted, worked out by hand. */
import { afterAll, describe, expect, it } from 'vitest';
import { type GenerateOptions, generate, type Round } from '../../src/decode/generate.ts';
import { type GenerationStats, StatsCollector, speedupOver } from '../../src/decode/stats.ts';
import { NoDrafter } from '../../src/draft/none.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { type Script, ScriptedDrafter } from '../support/drafters.ts';
import { tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
const target = tinyTarget(kernels);
afterAll(() => {
  target[Symbol.dispose]();
  kernels.dispose();
});

const PROMPT = [3, 14, 15, 92, 65];
/** A text whose tokens 0..11 all differ, so that any of them can be the end token. */
const LAW = { temperature: 1, seed: 46 } satisfies GenerateOptions;

/** Every event counted as 10 ms. @param kept of a round's tokens, what the engine lets through. */
function collect(
  drafter: NoDrafter | ScriptedDrafter,
  options: GenerateOptions,
  kept: (round: Round) => number = (round) => round.tokens.length,
): { readonly stats: GenerationStats; readonly ids: number[] } {
  using cache = target.createCache(1, 224);
  const collector = new StatsCollector(PROMPT.length);
  const ids: number[] = [];
  for (const event of generate(target, drafter, cache, PROMPT, { ...LAW, ...options })) {
    if (event.type === 'prefill') collector.prefill(event, 10);
    else {
      ids.push(...event.tokens);
      collector.round(event, kept(event), 10);
    }
  }
  return { stats: collector.stats(), ids };
}

const text = collect(new NoDrafter(), { maxTokens: 12 }).ids;
const wrong = [...Array(96).keys()].find((token) => !text.includes(token))!;

describe('a generation of five rounds', () => {
  it('has a text of tokens that differ', () => {
    expect(new Set(text).size).toBe(12);
  });

  // By the index of the root in the text. Right tokens are accepted, `wrong` never is.
  const trees: Readonly<Record<number, ReturnType<Script>>> = {
    // Two of a path of three stand, beside them a rejected sibling: emits 1, 2 and the bonus 3.
    0: [
      [0, text[1]!],
      [0, wrong],
      [1, text[2]!],
      [3, wrong],
    ],
    // Nothing stands: emits the bonus 4.
    3: [[0, wrong]],
    // Nothing drafted: emits 5.
    4: [],
    // A right leaf, below which nothing could be tested: emits 6 and the bonus 7.
    5: [[0, text[6]!]],
    // All four would stand, and the second of them ends the text: emits 8 and 9.
    7: [
      [0, text[8]!],
      [1, text[9]!],
      [2, text[10]!],
      [3, text[11]!],
    ],
  };
  const script: Script = ({ position }) => trees[position - PROMPT.length]!;
  const endTokens = new Set([text[9]!]);

  it('counts what was verified and accepted at each depth, and nothing behind the end', () => {
    const { stats, ids } = collect(new ScriptedDrafter(script), { endTokens });
    expect(ids).toEqual(text.slice(0, 10));
    expect(stats).toMatchObject({
      newTokens: 10,
      rounds: 5,
      acceptanceLength: 9 / 5,
      treeSize: 15 / 5,
      promptTokens: 5,
      cachedTokens: 0,
      acceptanceByDepth: [
        { verified: 4, accepted: 3, rate: 3 / 4 },
        { verified: 2, accepted: 2, rate: 1 },
        { verified: 1, accepted: 0, rate: 0 },
      ],
      counters: {
        num_drafts: 4,
        num_draft_tokens: 10,
        num_accepted_tokens: 5,
        num_accepted_tokens_per_pos: [3, 2, 0],
      },
    });
  });

  it('a stop string that ends the text within a path leaves out what is behind it', () => {
    // The engine lets through one token of the last round, whose second the loop emitted still.
    const kept = ({ committed, tokens }: Round): number => (committed - PROMPT.length === 7 ? 1 : tokens.length);
    const { stats } = collect(new ScriptedDrafter(script), { endTokens }, kept);
    expect(stats.newTokens).toBe(9);
    expect(stats.counters).toMatchObject({ num_accepted_tokens: 4, num_accepted_tokens_per_pos: [3, 1, 0] });
    expect(stats.acceptanceByDepth.map(({ verified }) => verified)).toEqual([4, 1, 1]);
  });

  it('the phases are parts of the decoding time', () => {
    const { stats } = collect(new ScriptedDrafter(script), { endTokens });
    expect(stats).toMatchObject({ prefillMs: 20, decodeMs: 50, tokensPerSecond: 9 / 0.05 });
    const phases = [stats.draftMs, stats.verifyMs, stats.sampleMs, stats.commitMs];
    for (const ms of phases) expect(ms).toBeGreaterThan(0);
  });

  it('one round that drafts nothing is not enough to know what plain decoding takes', () => {
    const { stats } = collect(new ScriptedDrafter(script), { endTokens });
    expect(stats.plainRoundMs).toBeUndefined();
    expect(stats.estimatedSpeedup).toBeUndefined();
  });
});

describe('the estimated speedup', () => {
  const verdict = { path: Int32Array.of(0), pathLength: 1, bonus: 1 };
  /** As many tokens as the target was asked for, in `milliseconds`, 2 of them spent on drafting. */
  const round = (nodes: number, tokens: number): Round => ({
    type: 'round',
    tokens: Array<number>(tokens).fill(1),
    drafted: 0,
    treeSize: nodes,
    tree: { size: nodes, tokens: new Int32Array(nodes), parents: new Int32Array(nodes).fill(0).fill(-1, 0, 1) },
    verdict,
    committed: 4,
    stopReason: undefined,
    times: { draft: 2, verify: 0, sample: 0, commit: 0 },
  });
  const collector = (rounds: readonly (readonly [nodes: number, tokens: number, ms: number])[]): StatsCollector => {
    const stats = new StatsCollector(5);
    stats.round({ ...round(0, 1), tree: undefined, verdict: undefined }, 1, 100);
    for (const [nodes, tokens, ms] of rounds) stats.round(round(nodes, tokens), tokens, ms);
    return stats;
  };
  const drafted = Array<[number, number, number]>(10).fill([4, 2, 10]);

  it('is the plain time of the same tokens over the time taken, from a cost that is known', () => {
    expect(collector(drafted).stats(8)).toMatchObject({ plainRoundMs: 8, estimatedSpeedup: (20 * 8) / 100 });
  });

  it('rests on the text’s own plain rounds where there are enough, without the time of their drafter', () => {
    const plain = (count: number, ms: number) => Array<[number, number, number]>(count).fill([1, 1, ms]);
    // Eight in a row are as slow as a change of sizes makes them, and count for nothing.
    const own = [...drafted, ...plain(8, 12), ...plain(4, 9)];
    expect(collector(own).stats(8)).toMatchObject({ plainRoundMs: 7, estimatedSpeedup: (32 * 7) / 232 });
    expect(collector(own.slice(0, -1)).stats(8).plainRoundMs).toBe(8);
    const scattered = Array.from({ length: 30 }, () => [drafted[0]!, ...plain(1, 12)]).flat();
    expect(collector(scattered).stats(8).plainRoundMs).toBe(8);
    expect(collector(plain(4, 9)).stats(8).plainRoundMs).toBe(7);
  });

  it('adds to a forward’s cost what drawing a token and a round’s commit take', () => {
    const times = { draft: 2, verify: 5, sample: 1, commit: 0.5 };
    const stats = new StatsCollector(5);
    stats.round({ ...round(0, 1), tree: undefined, verdict: undefined }, 1, 100);
    for (let i = 0; i < 3; i++) stats.round({ ...round(4, 2), times }, 2, 10);
    expect(stats.stats(8).plainRoundMs).toBe(8 + 3 / 6 + 0.5);
  });

  it('is 1 for plain decoding', () => {
    const { stats } = collect(new NoDrafter(), { maxTokens: 12 });
    expect(stats.acceptanceByDepth).toEqual([]);
    expect(stats.counters.num_drafts).toBe(0);
    expect(stats.estimatedSpeedup).toBeCloseTo(1, 1);
    expect(speedupOver(stats.plainRoundMs!, stats)).toBe(stats.estimatedSpeedup);
  });

  it('is nothing where nothing was decoded', () => {
    expect(new StatsCollector(5).stats(8).estimatedSpeedup).toBeUndefined();
    expect(collector([]).stats(8)).toMatchObject({ acceptanceLength: 1, treeSize: 1, tokensPerSecond: 0 });
  });
});
