/** EAGLE-2's dynamic tree: the selection alone, then with a head, against what the authors' code did. */
import { readFileSync } from 'node:fs';
import * as fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { openCheckpoint } from '../../src/checkpoint/checkpoint.ts';
import { readHeadConfig } from '../../src/checkpoint/config.ts';
import { openSafetensors } from '../../src/checkpoint/safetensors.ts';
import { generate } from '../../src/decode/generate.ts';
import { EagleDrafter } from '../../src/draft/eagle.ts';
import { EagleHead } from '../../src/draft/eagle-head.ts';
import { DynamicGrower, type DynamicTree } from '../../src/draft/grow.ts';
import { type DraftTree, shapeFromPaths } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { COMMITTED, ForwardBatch } from '../../src/model/forward-batch.ts';
import { loadTarget } from '../../src/model/registry.ts';
import { ScratchTensor, type Tensor } from '../../src/tensor/tensor.ts';
import { randomInteger, xorshift } from '../support/random.ts';

const golden = new URL('../golden/eagle-tiny/', import.meta.url).pathname;
const kernels = createKernels();
const checkpoint = await openCheckpoint(`${golden}target`);
const target = loadTarget(kernels, checkpoint.config, checkpoint.source, { dtype: 'f32' });
afterAll(() => target[Symbol.dispose]());

function openHead(name: string): EagleHead {
  const file = `${golden}${name}/config.json`;
  const config = readHeadConfig(JSON.parse(readFileSync(file, 'utf8')), file);
  return new EagleHead(target, config, openSafetensors(`${golden}${name}/model.safetensors`), { dtype: 'f32' });
}

interface DynamicRound {
  readonly committed_len: number;
  readonly draft_tokens: number[];
  readonly tree_position_ids: number[];
  readonly parents: number[];
  readonly best_path: number[];
  readonly accepted_tokens: number[];
  readonly candidates?: {
    readonly scores: number[];
    readonly tokens: number[];
    readonly frontier_block_index: number[][];
  };
}

interface DynamicRun {
  readonly config: { readonly total_token: number; readonly depth: number; readonly top_k: number };
  readonly emitted: number[];
  readonly rounds: DynamicRound[];
}

const record = JSON.parse(readFileSync(`${golden}eagle2-dynamic.json`, 'utf8')) as {
  prompts: { prompt: number[]; plain_greedy: number[]; runs: DynamicRun[] }[];
};
const runs = record.prompts.flatMap(({ prompt, plain_greedy, runs }, index) =>
  runs.map((run) => ({
    name: `prompt ${index}, ${Object.values(run.config).join('/')}`,
    prompt,
    plain_greedy,
    ...run,
  })),
);

const policyOf = ({ total_token, depth, top_k }: DynamicRun['config']): DynamicTree => ({
  kind: 'dynamic',
  depth,
  topK: top_k,
  total: total_token,
});

interface TreeCopy {
  readonly tokens: number[];
  readonly parents: number[];
}

function copyTree({ size, tokens, parents }: DraftTree): TreeCopy {
  return { tokens: [...tokens.subarray(0, size)], parents: [...parents.subarray(0, size)] };
}

function depthsOf(parents: readonly number[]): number[] {
  const depths: number[] = [];
  for (const parent of parents) depths.push(parent < 0 ? 0 : depths[parent]! + 1);
  return depths;
}

describe('selection alone', () => {
  it.each(runs)("keeps the authors' nodes from the authors' scores, $name", ({ config, rounds }) => {
    const { top_k: k, depth } = config;
    const grower = new DynamicGrower(policyOf(config));
    for (const { candidates, draft_tokens, parents } of rounds) {
      if (candidates === undefined) continue;
      const { scores, tokens, frontier_block_index } = candidates;
      grower.start(draft_tokens[0]!, 0, depth + 1);
      const level = (first: number, rows: number, parentScores: readonly number[]) => ({
        tokens: Int32Array.from(tokens.slice(first, first + rows * k)),
        logProbabilities: Float64Array.from({ length: rows * k }, (_, i) => {
          return scores[first + i]! - parentScores[Math.floor(i / k)]!;
        }),
      });
      let rows = grower.grow(level(0, 1, [0]));
      let frontier = Array.from({ length: k }, (_, i) => i);
      for (let step = 0; step < depth; step++) {
        expect(rows).toBe(k);
        expect([...grower.levelTokens]).toEqual(frontier.map((candidate) => tokens[candidate]));
        const first = k + step * k * k;
        rows = grower.grow(
          level(
            first,
            k,
            frontier.map((candidate) => scores[candidate]!),
          ),
        );
        frontier = frontier_block_index[step]!.map((index) => first + index);
        if (step + 1 < depth)
          expect([...grower.levelParents]).toEqual(frontier_block_index[step]!.map((i) => Math.floor(i / k)));
      }
      expect(rows).toBe(0);
      expect(copyTree(grower.finish())).toEqual({ tokens: draft_tokens, parents });
    }
  });

  it('is what a plain sort of all candidates gives, ties, overflow and NaN included, never deeper than asked', () => {
    void fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 5 }),
        fc.integer({ min: 0, max: 4 }),
        fc.integer({ min: 1, max: 6 }),
        fc.integer({ min: 1, max: 2 ** 31 - 1 }),
        (topK, depth, maxDepth, seed) => {
          const random = xorshift(seed);
          const total = randomInteger(random, 1, topK + depth * topK * topK + 2);
          const grower = new DynamicGrower({ kind: 'dynamic', depth, topK, total });
          const values = [0, -0.5, -1, -1, -2, -8, -Infinity, Number.NaN, 1e-9];
          for (let round = 0; round < 2; round++) {
            // Names instead of tokens: every candidate has its own.
            const all: { token: number; parent: number; score: number; depth: number }[] = [];
            let frontier = [{ token: 0, score: 0, depth: 0 }];
            grower.start(0, 0, maxDepth);
            for (let level = 0; ; level++) {
              const found: typeof all = [];
              const logProbabilities = new Float64Array(frontier.length * topK);
              const tokens = new Int32Array(frontier.length * topK);
              for (const [row, parent] of frontier.entries()) {
                for (let rank = 0; rank < topK; rank++) {
                  const value = values[randomInteger(random, 0, values.length)]!;
                  logProbabilities[row * topK + rank] = value;
                  const token = all.length + found.length + 1;
                  tokens[row * topK + rank] = token;
                  const score = Number.isNaN(value) ? -Infinity : parent.score + Math.min(0, value);
                  found.push({ token, parent: parent.token, score, depth: parent.depth + 1 });
                }
              }
              all.push(...found);
              const rows = grower.grow({ tokens, logProbabilities });
              if (level === Math.min(depth, maxDepth - 1)) {
                expect(rows).toBe(0);
                break;
              }
              frontier = byScore(found).slice(0, topK);
              expect(rows).toBe(topK);
              expect([...grower.levelTokens]).toEqual(frontier.map(({ token }) => token));
            }
            const kept = byScore(all)
              .slice(0, total - 1)
              .sort((a, b) => a.token - b.token);
            const tokens = [0, ...kept.map(({ token }) => token)];
            const tree = copyTree(grower.finish());
            expect(tree.tokens).toEqual(tokens);
            expect(tree.parents).toEqual([-1, ...kept.map(({ parent }) => tokens.indexOf(parent))]);
            expect(tree.parents.every((parent, node) => parent < node && (node === 0 || parent >= 0))).toBe(true);
            expect(Math.max(...depthsOf(tree.parents))).toBeLessThanOrEqual(maxDepth);
          }
        },
      ),
      { seed: 1, numRuns: 300 },
    );
  });

  it.each([
    [{ depth: -1, topK: 4, total: 4 }, "a dynamic tree's depth is a whole number of 0..1022, got -1"],
    [{ depth: 2, topK: 0, total: 4 }, "a dynamic tree's topk is a whole number of 1..128, got 0"],
    [{ depth: 2, topK: 4, total: 0 }, "a dynamic tree's total is a whole number of 1..1024, got 0"],
    [{ depth: 2, topK: 4, total: 2.5 }, "a dynamic tree's total is a whole number of 1..1024, got 2.5"],
    [{ depth: 1, topK: 2, total: 8 }, 'depth 1 and topk 2 find 6 nodes below the root, got total 8'],
    [{ depth: 1000, topK: 100, total: 8 }, 'depth 1000 and topk 100 find 10000100 nodes, at most 262144'],
  ])('%o is refused', (settings, message) => {
    expect(() => new DynamicGrower({ kind: 'dynamic', ...settings })).toThrow(new RangeError(`tree: ${message}`));
  });
});

describe('with a head', () => {
  it.each(runs)("proposes, accepts and emits what the authors' code does, $name", (run) => {
    const { prompt, config, emitted, rounds, plain_greedy } = run;
    using drafter = new EagleDrafter(target, openHead('eagle1-head'), policyOf(config), 256);
    using cache = target.createCache(1, 256 + config.total_token);
    const trees: TreeCopy[] = [];
    const committed: number[] = [];
    const propose = drafter.propose.bind(drafter);
    drafter.propose = (root, maxDepth) => {
      committed.push(cache.sequences[0]!.length);
      const tree = propose(root, maxDepth);
      trees.push(copyTree(tree));
      return tree;
    };
    const ids: number[] = [];
    const paths: number[][] = [];
    // Room to spare behind the last recorded round, so that no limit trims a tree.
    for (const event of generate(target, drafter, cache, prompt, { maxTokens: emitted.length + 16 })) {
      if (event.type !== 'round') continue;
      ids.push(...event.tokens);
      if (event.treeSize === 0) continue;
      const { tokens, parents } = trees.at(-1)!;
      const path = [0];
      for (const token of event.tokens.slice(0, event.drafted)) {
        path.push(tokens.findIndex((other, node) => other === token && parents[node] === path.at(-1)));
      }
      paths.push(path);
    }
    const n = rounds.length;
    expect(trees.slice(0, n)).toEqual(rounds.map(({ draft_tokens, parents }) => ({ tokens: draft_tokens, parents })));
    expect(trees.slice(0, n).map(({ parents }) => depthsOf(parents))).toEqual(
      rounds.map((round) => round.tree_position_ids),
    );
    expect(committed.slice(0, n)).toEqual(rounds.map((round) => round.committed_len));
    expect(paths.slice(0, n)).toEqual(rounds.map((round) => round.best_path));
    expect(ids.slice(0, emitted.length)).toEqual(emitted);
    expect(ids.slice(0, 64)).toEqual(plain_greedy);
  });

  it('knows the record in full', () => {
    expect(runs.map(({ config }) => config.total_token).sort()).toEqual([24, 24, 24, 24, 24, 24, 60, 60]);
    expect(runs.reduce((sum, { rounds }) => sum + rounds.length, 0)).toBe(117 + 31);
  });
});

/** The record has dynamic trees without bias only: with it, the authors' greedy chains, and the definition, computed without any cache. */
describe.each([
  ['eagle1-head', 'eagle1'],
  ['eagle1-head-bias', 'eagle1-bias'],
])('%s', (folder, prefix) => {
  const readIds = (name: string): number[] => {
    using stored = openSafetensors(`${golden}head-forward.safetensors`);
    const bytes = stored.read(name).slice();
    return [...new BigInt64Array(bytes.buffer)].map(Number);
  };

  /** The target's features of `text`, to the drafter; the last token stays as root. */
  function observe(drafter: EagleDrafter, text: readonly number[]): ScratchTensor {
    const batch = new ForwardBatch(64);
    using cache = target.createCache(1, 64);
    for (let i = 0, parent = COMMITTED; i < text.length - 1; i++) {
      parent = batch.append(cache.sequences[0]!, text[i]!, parent, false);
    }
    const { features } = target.forward(batch, cache);
    const copy = new ScratchTensor().reshape(batch.rows, features.cols);
    copy.data.set(features.data.subarray(0, batch.rows * features.cols));
    drafter.observe(
      batch.tokens,
      features,
      Int32Array.from({ length: batch.rows }, (_, i) => i),
      batch.rows,
    );
    return copy;
  }

  it.each([0, 1, 2])("one guess after each node is the authors' greedy chain, sequence %i", (index) => {
    const text = readIds(`seq${index}.input_ids`);
    using drafter = new EagleDrafter(target, openHead(folder), { kind: 'dynamic', depth: 3, topK: 1, total: 5 }, 64);
    observe(drafter, text);
    const tree = copyTree(drafter.propose(text.at(-1)!, 10));
    expect(tree.tokens).toEqual([text.at(-1)!, ...readIds(`seq${index}.${prefix}.chain_tokens`)]);
    expect(tree.parents).toEqual([-1, 0, 1, 2, 3]);
  });

  it.each([0, 1, 2])('grows the tree that the definition gives, whole rows at a time, sequence %i', (index) => {
    const text = readIds(`seq${index}.input_ids`);
    const settings = { kind: 'dynamic', depth: 4, topK: 6, total: 24 } as const;
    using drafter = new EagleDrafter(target, openHead(folder), settings, 64);
    using head = openHead(folder);
    const features = observe(drafter, text);
    for (const maxDepth of [10, 3, 1]) {
      drafter.resume([], 0);
      observe(drafter, text);
      const tree = drafter.propose(text.at(-1)!, maxDepth);
      const { scores, ...defined } = definition(head, features, text, settings, maxDepth);
      expect(copyTree(tree)).toEqual(defined);
      expectScores(tree, scores);
    }
  });

  it('a fixed shape knows the same log-probabilities', () => {
    const text = readIds('seq0.input_ids');
    using dynamic = new EagleDrafter(target, openHead(folder), { kind: 'dynamic', depth: 2, topK: 3, total: 22 }, 64);
    // Looked at: the three guesses after the root, then some of the nine below them.
    const paths = [[0], [1], [2], [0, 0], [0, 2], [1, 1], [2, 0]];
    using fixed = new EagleDrafter(target, openHead(folder), shapeFromPaths(paths), 64);
    observe(dynamic, text);
    observe(fixed, text);
    const known = new Map<string, number>();
    const all = dynamic.propose(text.at(-1)!, 10);
    for (let node = 1; node < all.size; node++) known.set(pathTo(all, node), all.logProbabilities![node]!);
    const tree = fixed.propose(text.at(-1)!, 10);
    expect(tree.size).toBe(paths.length + 1);
    for (let node = 1; node < tree.size; node++)
      expect(tree.logProbabilities![node]).toBeCloseTo(known.get(pathTo(tree, node))!, 5);
  });
});

const pathTo = ({ tokens, parents }: DraftTree, node: number): string =>
  node === 0 ? '' : `${pathTo({ size: 0, tokens, parents }, parents[node]!)}/${tokens[node]}`;

/** Log-probabilities along every path add up to these. */
function expectScores({ size, parents, logProbabilities }: DraftTree, scores: readonly number[]): void {
  const sums = [0];
  expect(logProbabilities![0]).toBe(0);
  for (let node = 1; node < size; node++) sums.push(sums[parents[node]!]! + logProbabilities![node]!);
  expect(sums.length).toBe(scores.length);
  for (const [node, sum] of sums.entries()) expect(sum).toBeCloseTo(scores[node]!, 4);
}

/** A candidate: its path's tokens, log-probability, and the feature predicted at its parent. */
interface Candidate {
  readonly path: readonly number[];
  readonly score: number;
  readonly features: readonly Float32Array[]; // at the root, then along the path down to the parent
}

const byScore = <T extends { readonly score: number }>(list: readonly T[]): T[] =>
  // A stable sort keeps ties in order; infinities have no difference.
  [...list].sort((a, b) => (a.score === b.score ? 0 : b.score - a.score));

/** EAGLE-2 by its definition: every candidate's whole text through the head anew. */
function definition(
  head: EagleHead,
  features: Tensor,
  text: readonly number[],
  { depth, topK, total }: DynamicTree,
  maxDepth: number,
): TreeCopy & { readonly scores: readonly number[] } {
  const childrenOf = (parent: Candidate): Candidate[] => {
    const inputs = [...text.slice(1), ...parent.path];
    const batch = new ForwardBatch(64);
    using cache = head.createCache(64);
    const rows = new ScratchTensor().reshape(inputs.length, features.cols);
    for (let i = 0, above = COMMITTED; i < inputs.length; i++) {
      above = batch.append(cache.sequences[0]!, inputs[i]!, above, i === inputs.length - 1);
      rows.data.set(i < features.rows ? features.row(i) : parent.features[i - features.rows]!, i * features.cols);
    }
    const predicted = head.forward(batch, rows, cache);
    const feature = predicted.row(inputs.length - 1).slice();
    const logits = [...head.logits(batch, predicted).row(0)];
    const logSum = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
    const best = byScore(logits.map((score, token) => ({ token, score }))).slice(0, topK);
    return best.map(({ token, score }) => ({
      path: [...parent.path, token],
      score: parent.score + score - logSum,
      features: [...parent.features, feature],
    }));
  };
  let level = childrenOf({ path: [], score: 0, features: [] });
  const all = [...level];
  for (let step = 0; step < Math.min(depth, maxDepth - 1); step++) {
    level = byScore(level).slice(0, topK).flatMap(childrenOf);
    all.push(...level);
  }
  const kept = new Set(byScore(all).slice(0, total - 1));
  const chosen = all.filter((candidate) => kept.has(candidate));
  const nodes = chosen.map(({ path }) => path);
  const nodeOf = new Map([['', 0], ...nodes.map((path, i) => [path.join(), i + 1] as const)]);
  return {
    tokens: [text.at(-1)!, ...nodes.map((path) => path.at(-1)!)],
    parents: [-1, ...nodes.map((path) => nodeOf.get(path.slice(0, -1).join())!)],
    scores: [0, ...chosen.map(({ score }) => score)],
  };
}
