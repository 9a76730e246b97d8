/** The authors' typical acceptance, decision by decision (goldens' README); whole texts: test/draft/medusa.test.ts. */
import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { openSafetensors } from '../../src/checkpoint/safetensors.ts';
import { type GenerateOptions, generate } from '../../src/decode/generate.ts';
import { Sampler, type SamplingOptions } from '../../src/decode/sampler.ts';
import { parseTypical, TYPICAL_DEFAULTS, type TypicalOptions, typicalThreshold } from '../../src/decode/typical.ts';
import { createVerifier, KEEPS, type VerifierName } from '../../src/decode/verifier.ts';
import { createVerdict, type Verdict } from '../../src/decode/verify.ts';
import { NoDrafter } from '../../src/draft/none.ts';
import type { DraftTree } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { ScratchTensor } from '../../src/tensor/tensor.ts';
import { ScriptedDrafter } from '../support/drafters.ts';
import { tinyTarget } from '../support/tiny.ts';

const kernels = createKernels();
const golden = new URL('../golden/medusa-tiny/', import.meta.url).pathname;

interface CandidateSet {
  readonly temperature: number;
  readonly epsilon: number;
  readonly delta: number;
  /** The root first. */
  readonly candidates: readonly (readonly number[])[];
  /** Entry j scores token j + 1. */
  readonly logits: readonly (readonly (readonly number[])[])[];
  readonly mask: readonly (readonly number[])[];
  readonly best_candidate: number;
  readonly accept_length: number;
  readonly greedy_best_candidate: number;
  readonly greedy_accept_length: number;
}
const { single, candidate_sets, padding_defect } = JSON.parse(readFileSync(`${golden}typical.json`, 'utf8')) as {
  readonly single: {
    readonly cases: readonly {
      readonly row: number;
      readonly temperature: number;
      readonly epsilon: number;
      readonly delta: number;
      readonly threshold: number;
      readonly tokens: readonly number[];
      readonly accepted: readonly number[];
    }[];
  };
  readonly candidate_sets: readonly CandidateSet[];
  readonly padding_defect: Pick<CandidateSet, 'candidates' | 'logits'> & {
    readonly real_lengths: readonly number[];
    readonly official_accept_length: number;
  };
};

describe('a token', () => {
  using stored = openSafetensors(`${golden}typical-rows.safetensors`);
  const rows = new Float32Array(stored.read('rows').slice().buffer);
  const V = rows.length / 8;

  it.each(single.cases.map((entry) => [entry.row, entry.temperature, entry.epsilon, entry.delta, entry] as const))(
    'is accepted if it is typical: row %i, temperature %f, epsilon %f, delta %f',
    (row, temperature, epsilon, delta, { tokens, accepted, threshold: wanted }) => {
      const law = new Float32Array(V);
      kernels.softmax(law, rows.subarray(row * V, (row + 1) * V), 1, V, 1 / temperature);
      const threshold = typicalThreshold(law, 1, { epsilon, delta });
      expect(Math.abs(threshold / wanted - 1)).toBeLessThan(1e-5);
      expect(tokens.map((token) => Number(law[token]! > threshold))).toEqual(accepted);
      // A law's mass is no part of it.
      const scaled = typicalThreshold(
        law.map((p) => p * 4),
        4,
        { epsilon, delta },
      );
      expect(scaled).toBe(threshold);
    },
  );
});

interface Scored {
  readonly tree: DraftTree;
  readonly logits: ScratchTensor;
}

/** Candidates as the tree that they are rows of: shared beginnings are one node. */
function treeOf(candidates: CandidateSet['candidates'], logits: CandidateSet['logits']): Scored {
  const V = logits[0]![0]!.length;
  const tokens = [candidates[0]![0]!];
  const parents = [-1];
  const nodeOf = new Map([['', 0]]);
  const scores = new ScratchTensor().reshape(candidates.flat().length, V);
  for (let depth = 0; depth < Math.max(...candidates.map(({ length }) => length)); depth++) {
    for (const [row, candidate] of candidates.entries()) {
      if (depth >= candidate.length) continue;
      const key = candidate.slice(1, depth + 1).join();
      if (!nodeOf.has(key)) {
        nodeOf.set(key, tokens.length);
        parents.push(nodeOf.get(candidate.slice(1, depth).join())!);
        tokens.push(candidate[depth]!);
      }
      const at = nodeOf.get(key)! * V;
      scores.data.set(logits[row]![depth]!, at);
    }
  }
  return {
    tree: { size: tokens.length, tokens: Int32Array.from(tokens), parents: Int32Array.from(parents) },
    logits: scores,
  };
}

function verify(
  name: VerifierName,
  { tree, logits }: Scored,
  options: SamplingOptions,
  typical?: TypicalOptions,
): Verdict & { readonly tokens: number[] } {
  const sampler = new Sampler(kernels, logits.cols, options);
  const text = new Int32Array(64);
  text[0] = tree.tokens[0]!;
  const verifier = createVerifier(name, sampler, logits.cols, text, 1, typical);
  const verdict = createVerdict(tree.size);
  verifier.verify(tree, logits, 1, verdict);
  return { ...verdict, tokens: [...verdict.path.subarray(0, verdict.pathLength)].map((node) => tree.tokens[node]!) };
}

describe('candidates', () => {
  it.each([...candidate_sets.entries()])('of set %i are accepted as far as the authors do', (_, set) => {
    const { candidates, logits, temperature, epsilon, delta } = set;
    const scored = treeOf(candidates, logits);
    const typical = verify('typical', scored, { temperature }, { epsilon, delta });
    expect(typical.tokens).toEqual(candidates[set.best_candidate]!.slice(0, set.accept_length + 1));
    for (const name of ['typical', 'match'] as const) {
      const greedy = verify(name, scored, {}, { epsilon, delta });
      expect(greedy.tokens).toEqual(candidates[set.greedy_best_candidate]!.slice(0, set.greedy_accept_length + 1));
    }
  });

  it('that are short end where they end: what the authors pad them with is accepted by nobody', () => {
    const real = padding_defect.candidates.map((candidate, row) =>
      candidate.slice(0, padding_defect.real_lengths[row]),
    );
    const scored = treeOf(real, padding_defect.logits);
    expect(padding_defect.official_accept_length).toBe(2);
    for (const verdict of [verify('match', scored, {}), verify('typical', scored, { temperature: 0.7 })]) {
      expect(verdict.tokens).toEqual([5, 3]);
      expect(verdict.bonus).toBe(0); // which is the target's own token there, not a guess
    }
  });

  const even = (V: number): number[] => new Array<number>(V).fill(0);

  it('that are as long and as likely: the later stands', () => {
    // All eight tokens are as likely: 1/8 > min(ε, δ / 8).
    const scored = treeOf([[1, 2], [1, 3]], [[even(8), even(8)], [even(8), even(8)]]); // biome-ignore format: rows
    expect(verify('typical', scored, { temperature: 1 }).tokens).toEqual([1, 3]);
  });

  it('must exceed the threshold: as much is not enough', () => {
    const scored = treeOf([[1, 2]], [[even(8), even(8)]]);
    expect(verify('typical', scored, { temperature: 1 }, { epsilon: 1 / 8, delta: 1 }).pathLength).toBe(1);
    expect(verify('typical', scored, { temperature: 1 }, { epsilon: 0.124, delta: 1 }).pathLength).toBe(2);
  });

  it('are judged by the law after penalties and top-k, each below its own path', () => {
    // Without penalty every child of the root stands; a token that is in its own path already is made untypical.
    const flat = even(8).map((_, token) => (token < 4 ? 2 : 0));
    const scored = treeOf([[1, 2, 3], [1, 3, 3], [1, 3, 2]], new Array(3).fill([flat, flat, flat])); // biome-ignore format: rows
    const options = { temperature: 1, presencePenalty: 20 };
    expect(verify('typical', scored, { temperature: 1 }).tokens).toEqual([1, 3, 2]);
    const penalised = verify('typical', scored, options);
    expect(penalised.pathLength).toBe(3);
    expect(penalised.tokens[1]).not.toBe(penalised.tokens[2]);
    expect([2, 3]).not.toContain(penalised.bonus);
    // Two tokens are kept, each with half of the law.
    expect(verify('typical', scored, { temperature: 1, topK: 2 }, { epsilon: 0.4, delta: 1 }).pathLength).toBe(1);
  });
});

describe('as an option', () => {
  const target = tinyTarget(kernels);
  afterAll(() => target[Symbol.dispose]());
  const write = (drafter: NoDrafter | ScriptedDrafter, options: GenerateOptions): number[] => {
    using cache = target.createCache(1, 64);
    const tokens: number[] = [];
    for (const event of generate(target, drafter, cache, [5, 6, 7], { maxTokens: 12, ...options }))
      if (event.type === 'round') tokens.push(...event.tokens);
    return tokens;
  };

  it('is lossy, and says so', () => {
    expect(KEEPS).toEqual({ match: 'text', 'multi-round': 'law', typical: 'nothing' });
    expect(TYPICAL_DEFAULTS).toEqual({ epsilon: 0.09, delta: 0.3 }); // not swapped, as in the authors' helpers
    // Whatever is guessed is good enough.
    const parrot = new ScriptedDrafter(({ maxDepth }) => (maxDepth > 0 ? [[0, 9]] : []));
    const options = { temperature: 1, typical: { epsilon: 0, delta: 0 } };
    const tokens = write(parrot, { ...options, verify: 'typical' });
    expect(tokens.filter((token) => token === 9).length).toBeGreaterThan(4);
    expect(tokens).not.toEqual(write(new NoDrafter(), options));
  });

  it('draws nothing: with no guesses it is greedy at any temperature', () => {
    const greedy = write(new NoDrafter(), {});
    for (const seed of [1, 2])
      expect(write(new NoDrafter(), { verify: 'typical', temperature: 2, seed })).toEqual(greedy);
  });

  it('is never taken unasked', () => {
    const drawn = { temperature: 1.3, seed: 4 };
    expect(write(new NoDrafter(), drawn)).toEqual(write(new NoDrafter(), { ...drawn, verify: 'match' }));
    expect(write(new NoDrafter(), drawn)).not.toEqual(write(new NoDrafter(), { ...drawn, verify: 'typical' }));
  });

  it.each([
    [{ epsilon: 1.5 }, 'typical.epsilon: must be in 0..1, got 1.5'],
    [{ delta: Number.NaN }, 'typical.delta: must be in 0..1, got NaN'],
  ])('%o is refused, and not only where it is used', (typical, message) => {
    for (const temperature of [1, 0])
      expect(() => write(new NoDrafter(), { verify: 'typical', temperature, typical })).toThrow(message);
  });

  it('is read from a command line', () => {
    expect(parseTypical('0.25,1')).toEqual({ epsilon: 0.25, delta: 1 });
    for (const text of ['', '0.1', '0.1,', ',0.3', '0.1,0.3,0', '1.1,0.3', '0.1,-0.3', 'a,b', 'NaN,0.3'])
      expect(() => parseTypical(text)).toThrow(
        `typical: expected epsilon,delta, each in 0..1, such as 0.09,0.3, got "${text}"`,
      );
  });
});
