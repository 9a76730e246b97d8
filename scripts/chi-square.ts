/**
 * Whether multi-round verification leaves the target's law as it is, with the real head on the real model: after a fixed prefix one round
 * is drafted and verified for each of many seeds, and its tokens are counted against the law (Pearson's chi-square). The first token is
 * the root's, the second stands deeper in the tree: it is counted where the first was an accepted guess, given which one.
 *
 * Drafting and verification are run anew for every seed. The target's logits after a path of tokens are the same bits in every tree, so
 * those of common paths are kept. Verifiers that are wrong in the known ways must fail on the same trees.
 *
 *   npm run test:chi-square -- --draws 20000
 */
import { parseArgs } from 'node:util';
import { openHeadFiles } from '../src/checkpoint/head.ts';
import { chanceFrom, type TreeLaws } from '../src/decode/multi-round.ts';
import { Sampler, type SamplingOptions } from '../src/decode/sampler.ts';
import { createVerifier } from '../src/decode/verifier.ts';
import { createVerdict, type Verdict } from '../src/decode/verify.ts';
import { EagleDrafter } from '../src/draft/eagle.ts';
import { EagleHead } from '../src/draft/eagle-head.ts';
import { type DraftTree, shapeFromPaths } from '../src/draft/tree.ts';
import type { TreePolicy } from '../src/draft/tree-policy.ts';
import { DEFAULT_MODEL, DRAFT_DTYPE, type Engine, loadEngine, shipped } from '../src/engine.ts';
import { COMMITTED, ForwardBatch } from '../src/model/forward-batch.ts';
import type { KvCache } from '../src/model/kv-cache.ts';
import type { Tensor } from '../src/tensor/tensor.ts';
import { type ChiSquare, chiSquareTest, chiSquareTests } from '../test/support/chi-square.ts';
import { type Fault, faulty } from '../test/support/faulty-verifier.ts';
import { xorshift } from '../test/support/random.ts';
import { proposalsAfter } from '../test/support/repeated-proposal.ts';

const PREFIX = 'Once upon a time, in a village by the sea, there lived a';
/** Draft depth. Third tokens are not looked at, so what is drawn below depth 2 may have any law. */
const DEPTH = 2;
/** The likeliest of the root's children has none: an accepted leaf, after which the bonus is all there is, is half of what is tested. */
const DRAWN: TreePolicy = shapeFromPaths([[0], [1], [2], [3], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1]]);
const CHOSEN: TreePolicy = { kind: 'dynamic', depth: 1, topK: 4, total: 10 };
const TEMPERATURES = [0.4, 0.7, 1];
const TOP_PS = [1, 0.9];
/** Twenty-four tests: a right verifier fails one of them once in four thousand sets of seeds. */
const TOO_UNLIKELY = 1e-5;
/**
 * What must be seen of drawn trees, and in how many rounds: by how much each is seen depends on the head, the better it guesses, the less.
 * An unscaled q is nearly its own rest where q is broad: it is asked for at 0.4, where it is not (p 3e-296; 0.0005 of 40,000 rounds at
 * 0.7). At temperature 1 raw logits are the law.
 */
const FAULTS: readonly { readonly name: Fault; readonly temperature: number; readonly rounds: number }[] = [
  { name: 'q is not renormalised', temperature: 0.4, rounds: 10_000 },
  { name: 'the residual is not applied', temperature: 0.7, rounds: 4000 },
  { name: 'the bonus is drawn from raw logits', temperature: 0.7, rounds: 20_000 },
  { name: 'the residual is not applied', temperature: 1, rounds: 4000 },
];
/** Of wrong verifiers, for each of the right one: short runs stay short, and say that they cannot tell. */
const MOST_FAULTY_ROUNDS = 2;
/** Of either tree. */
const MOST_NODES = 10;
const CONTEXT = 64;
/** Of 0.2 MB each: the paths of nearly all rounds. */
const MOST_PATHS = 256;

/** A sampler of any seed: one for each of many would fill memory with its buffers. */
class ReseededSampler extends Sampler {
  current = 0;
  override get seed(): number {
    return this.current;
  }
}

/** The target's logits after the prefix and the path down to each node of a tree, whatever tree it is. */
class PathLogits implements Tensor {
  readonly data = new Float32Array(0);
  readonly cols: number;
  readonly #engine: Engine;
  readonly #cache: KvCache;
  readonly #batch = new ForwardBatch(DEPTH + 1);
  readonly #root: number;
  readonly #known = new Map<string, Float32Array>();
  #tree!: DraftTree;

  constructor(engine: Engine, cache: KvCache, root: number) {
    this.cols = engine.target.config.vocabSize;
    this.#engine = engine;
    this.#cache = cache;
    this.#root = root;
  }

  get rows(): number {
    return this.#tree.size;
  }

  of(tree: DraftTree): this {
    this.#tree = tree;
    return this;
  }

  row(node: number): Float32Array {
    return this.after(pathOf(this.#tree, node));
  }

  after(path: readonly number[]): Float32Array {
    if (path.length >= DEPTH) return this.after([]); // of a third token, which is not looked at
    const key = path.join();
    const known = this.#known.get(key);
    if (known !== undefined) {
      this.#known.delete(key); // and put behind all others: the first is the one that was not asked for longest
      this.#known.set(key, known);
      return known;
    }
    this.#batch.clear();
    const sequence = this.#cache.sequences[0]!;
    let parent = COMMITTED;
    for (const token of [this.#root, ...path]) parent = this.#batch.append(sequence, token, parent, true);
    const logits = this.#engine.target.forward(this.#batch, this.#cache).logits.row(path.length).slice();
    sequence.rollback();
    this.#known.set(key, logits);
    if (this.#known.size > MOST_PATHS) this.#known.delete(this.#known.keys().next().value!);
    return logits;
  }
}

/** Tokens from below the root down to a node. */
function pathOf({ tokens, parents }: DraftTree, node: number): number[] {
  const path: number[] = [];
  for (let at = node; at > 0; at = parents[at]!) path.unshift(tokens[at]!);
  return path;
}

/** What rounds have emitted. */
class Counts {
  readonly #vocabSize: number;
  readonly #first: Float64Array; // [V]
  readonly #second = new Map<number, number[]>(); // tokens, by the accepted guess before them
  #emitted = 0;
  rounds = 0;

  constructor(vocabSize: number) {
    this.#vocabSize = vocabSize;
    this.#first = new Float64Array(vocabSize);
  }

  add(tree: DraftTree, { path, pathLength, bonus }: Verdict): void {
    const at = (index: number): number => (index < pathLength ? tree.tokens[path[index]!]! : bonus);
    this.rounds++;
    this.#emitted += pathLength;
    this.#first[at(1)]!++;
    if (pathLength < 2) return;
    const after = this.#second.get(at(1));
    if (after === undefined) this.#second.set(at(1), [at(2)]);
    else after.push(at(2));
  }

  /** Second tokens. */
  get deeper(): number {
    return [...this.#second.values()].reduce((sum, { length }) => sum + length, 0);
  }

  get acceptanceLength(): number {
    return this.#emitted / this.rounds;
  }

  test(lawAfter: (path: readonly number[]) => Float32Array): { readonly first: ChiSquare; readonly second: ChiSquare } {
    return { first: chiSquareTest(this.#first, lawAfter([])), second: chiSquareTests(this.#secondCounts(lawAfter)) };
  }

  /** One at a time: there are thousands, of a vocabulary each. */
  *#secondCounts(lawAfter: (path: readonly number[]) => Float32Array) {
    const counts = new Float64Array(this.#vocabSize);
    for (const [token, after] of this.#second) {
      for (const next of after) counts[next]!++;
      yield { counts, probabilities: lawAfter([token]) };
      for (const next of after) counts[next] = 0;
    }
  }
}

const { values: flags } = parseArgs({
  options: { draws: { type: 'string', default: '20000' }, dtype: { type: 'string', default: 'q8' } },
});
const draws = Number(flags.draws);
if (!Number.isInteger(draws) || draws < 1)
  throw new RangeError(`--draws: a whole number of at least 1, got ${flags.draws}`);

// Most of the work is TypeScript, and forwards are of a row or two: a second thread would mostly wait.
using engine = await loadEngine({ dtype: flags.dtype as 'q8', treeSize: 1, contextSize: CONTEXT, threads: 1 });
const { target, kernels } = engine;
const { vocabSize } = target.config;
const prefix = engine.encode(PREFIX);
let failed = false;

for (const [name, policy] of [
  ['drawn', DRAWN],
  ['dynamic', CHOSEN],
] as const) {
  using files = openHeadFiles(shipped('eagle', DEFAULT_MODEL)!);
  const head = new EagleHead(target, files.config, files.source, { dtype: DRAFT_DTYPE });
  using drafter = new EagleDrafter(target, head, policy, CONTEXT);
  using cache = target.createCache(1, CONTEXT);
  const propose = proposalsAfter(target, cache, drafter, prefix);
  const logits = new PathLogits(engine, cache, prefix.at(-1)!);
  for (const temperature of TEMPERATURES) run(name, temperature, propose, logits);
}
process.exitCode = failed ? 1 : 0;

function run(
  name: 'drawn' | 'dynamic',
  temperature: number,
  propose: ReturnType<typeof proposalsAfter>,
  logits: PathLogits,
): void {
  const began = performance.now();
  const text = new Int32Array(CONTEXT);
  text.set(prefix);
  const runs = TOP_PS.map((topP) => {
    const law: SamplingOptions = { temperature, topP };
    const sampler = new ReseededSampler(kernels, vocabSize, law);
    const verifier = createVerifier('multi-round', sampler, vocabSize, text, prefix.length);
    return { law, sampler, verifier, counts: new Counts(vocabSize) };
  });
  const verdict = createVerdict(MOST_NODES);
  const faults = name === 'drawn' ? createFaults(temperature, logits) : [];
  const faultyRounds = Math.min(Math.max(...faults.map(({ rounds }) => rounds)), MOST_FAULTY_ROUNDS * draws);
  for (let seed = 0; seed < Math.max(draws, faultyRounds); seed++) {
    for (const { sampler } of runs) sampler.current = seed;
    // Top-p is the target's: the guesses are the same with and without it.
    const tree = propose(runs[0]!.verifier.draftSampling, DEPTH);
    for (const { verifier, counts } of seed < draws ? runs : []) {
      verifier.verify(tree, logits.of(tree), prefix.length, verdict);
      counts.add(tree, verdict);
    }
    for (const fault of faults) if (seed < Math.min(fault.rounds, faultyRounds)) fault.verify(tree);
  }
  for (const { law, counts } of runs)
    report(`${name} tree, temperature ${temperature}, top-p ${law.topP}`, counts, lawsOf(law, logits), 'likely');
  for (const { name, counts, rounds } of faults)
    report(`  ${name}`, counts, lawsOf({ temperature }, logits), counts.rounds < rounds ? undefined : 'unlikely');
  process.stdout.write(`  ${((performance.now() - began) / 1000).toFixed(0)} s\n`);
}

/** The target's law after a path. */
function lawsOf(options: SamplingOptions, logits: PathLogits): (path: readonly number[]) => Float32Array {
  const sampler = new Sampler(kernels, vocabSize, options);
  const context = { tokens: new Int32Array(0), length: 0, promptLength: 0 };
  return (path) =>
    sampler.law({ data: logits.data, rows: 1, cols: vocabSize, row: () => logits.after(path) }, 0, context);
}

/** Wrong verifiers of the same trees, without top-p. */
function createFaults(temperature: number, logits: PathLogits) {
  const lawAfter = lawsOf({ temperature }, logits);
  const chance = chanceFrom(xorshift(1), vocabSize);
  const verdict = createVerdict(MOST_NODES);
  return FAULTS.filter((fault) => fault.temperature === temperature).map(({ name, rounds }) => {
    const counts = new Counts(vocabSize);
    const wrong = faulty(name, temperature);
    const verify = (tree: DraftTree): void => {
      const laws: TreeLaws = {
        target: (node) => lawAfter(pathOf(tree, node)),
        draft: (node) => tree.laws?.draft(node),
        drawing: (child) => tree.laws!.drawing(child),
      };
      wrong(tree, laws, chance, verdict);
      counts.add(tree, verdict);
    };
    return { name, rounds, counts, verify };
  });
}

/** @param expected of the counts, if the law is right; undefined where there are too few rounds to say. */
function report(
  what: string,
  counts: Counts,
  lawAfter: (path: readonly number[]) => Float32Array,
  expected: 'likely' | 'unlikely' | undefined,
): void {
  const { first, second } = counts.test(lawAfter);
  const show = ({ statistic, degrees, p }: ChiSquare): string =>
    `chi-square ${statistic.toFixed(1)} of ${degrees}, p ${p.toPrecision(2)}`;
  const found = Math.min(first.p, second.p) >= TOO_UNLIKELY ? 'likely' : 'unlikely';
  const wrong = expected !== undefined && found !== expected;
  failed ||= wrong;
  const verdict = wrong ? 'WRONG' : expected === undefined ? 'too few rounds to tell' : 'as it should be';
  process.stdout.write(
    `${what}: first token ${show(first)}; second (${counts.deeper} of ${counts.rounds} rounds) ${show(second)}; acceptance length ${counts.acceptanceLength.toFixed(2)}: ${verdict}\n`,
  );
}
