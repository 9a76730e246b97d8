/** The authors' own code on a tiny model, both layouts of heads: logits, trees, candidates, paths, text (goldens' README). */
import { copyFileSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { openCheckpoint } from '../../src/checkpoint/checkpoint.ts';
import { openMedusaFiles } from '../../src/checkpoint/medusa.ts';
import { openSafetensors, type TensorToWrite, writeSafetensors } from '../../src/checkpoint/safetensors.ts';
import { FeatureReader } from '../../src/decode/features.ts';
import { type GenerateOptions, generate } from '../../src/decode/generate.ts';
import type { Law } from '../../src/draft/draft-laws.ts';
import { MedusaDrafter } from '../../src/draft/medusa.ts';
import { MedusaHeads } from '../../src/draft/medusa-heads.ts';
import { medusaShape } from '../../src/draft/medusa-tree.ts';
import { depthOf, shapeFromPaths, staticShape, type TreeShape } from '../../src/draft/tree.ts';
import { createKernels } from '../../src/kernels/choose.ts';
import { loadTarget } from '../../src/model/registry.ts';
import { ScratchTensor } from '../../src/tensor/tensor.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { tinyMedusa, tinyTarget } from '../support/tiny.ts';

const golden = new URL('../golden/medusa-tiny/', import.meta.url).pathname;
const scratch = temporaryDirectory();
const kernels = createKernels();
const checkpoint = await openCheckpoint(`${golden}target`);
const target = loadTarget(kernels, checkpoint.config, checkpoint.source, { dtype: 'f32' });
afterAll(() => target[Symbol.dispose]());

function openHeads(directory: string): MedusaHeads {
  using files = openMedusaFiles(directory);
  return new MedusaHeads(target, files.config, files.source, { dtype: 'f32' });
}

const floats = (bytes: Uint8Array): Float32Array => new Float32Array(bytes.slice().buffer);
const read = (file: string): unknown => JSON.parse(readFileSync(golden + file, 'utf8'));

function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let largest = 0;
  for (let i = 0; i < a.length; i++) largest = Math.max(largest, Math.abs(a[i]! - b[i]!));
  return largest;
}

describe.each([
  ['heads-v01', 'v01', false],
  ['heads-v2', 'v2', true],
] as const)('%s', (directory, name, shared) => {
  it("computes the authors' logits", () => {
    using heads = openHeads(golden + directory);
    using stored = openSafetensors(`${golden}head-logits.safetensors`);
    using reader = new FeatureReader(target, 64);
    const ids = new BigInt64Array(stored.read('seq0.input_ids').slice().buffer);
    const features = reader.read(Int32Array.from(ids, Number));
    const n = ids.length;
    const V = target.config.vocabSize;
    expect(heads.config).toMatchObject({ heads: 4, layers: 1 });
    expect(heads.sharedLmHead).toBe(shared);
    expect(
      largestDifference(floats(stored.read('seq0.hidden')), features.data.subarray(0, n * features.cols)),
    ).toBeLessThan(1e-5);
    const wanted = floats(stored.read(`seq0.${name}_head_logits`)); // [4, n, V]
    const feature = new ScratchTensor().reshape(1, features.cols);
    for (let row = 0; row < n; row++) {
      feature.data.set(features.row(row));
      const logits = heads.logits(feature, 4);
      for (let head = 0; head < 4; head++) {
        const at = (head * n + row) * V;
        // Both are float32; the README's own check against float64 finds 1.2e-5.
        expect(largestDifference(wanted.subarray(at, at + V), logits.row(head))).toBeLessThan(5e-5);
      }
      // As many heads as are asked for, and what they say does not depend on it.
      const first = heads.logits(feature, 1);
      expect(first.rows).toBe(1);
      expect(largestDifference(wanted.subarray(row * V, (row + 1) * V), first.row(0))).toBeLessThan(5e-5);
    }
  });
});

interface Step {
  readonly tree_tokens: readonly number[];
  readonly path_nodes: readonly number[];
  readonly emitted: readonly number[];
  readonly candidates?: readonly (readonly number[])[];
}
interface Run {
  readonly prompt_id: string;
  readonly prompt: number[];
  readonly plain_greedy: readonly number[];
  readonly steps: readonly Step[];
}

/** What our own loop makes of the prompt, in the authors' terms: they emit the root with the step that verifies it. */
function replay(
  heads: MedusaHeads,
  tree: TreeShape,
  run: Pick<Run, 'prompt' | 'steps'>,
  options: GenerateOptions,
): Step[] {
  using drafter = new MedusaDrafter(target, heads, tree, 64);
  using cache = target.createCache(1, 256);
  const total = run.steps.reduce((sum, { emitted }) => sum + emitted.length, 0);
  const steps: Step[] = [];
  // Room to spare behind the last recorded step, so that no limit trims a tree.
  for (const event of generate(target, drafter, cache, run.prompt, { ...options, maxTokens: total + 16 })) {
    if (event.type !== 'round' || event.tree === undefined || event.verdict === undefined) continue;
    const { tokens, size } = event.tree;
    const path = [...event.verdict.path.subarray(0, event.verdict.pathLength)];
    steps.push({
      tree_tokens: [...tokens.subarray(0, size)],
      path_nodes: path,
      emitted: path.map((node) => tokens[node]!),
    });
  }
  return steps.slice(0, run.steps.length);
}

const stepsOf = (run: Pick<Run, 'steps'>): Step[] =>
  run.steps.map(({ tree_tokens, path_nodes, emitted }) => ({ tree_tokens, path_nodes, emitted }));

describe.each([
  ['greedy-v01.json', 'heads-v01'],
  ['greedy-v2.json', 'heads-v2'],
])('%s', (file, directory) => {
  const { runs } = read(file) as { readonly runs: readonly Run[] };

  it.each(runs.map((run) => [run.prompt_id, run] as const))(
    "proposes, accepts and emits what the authors' code does, prompt %s",
    (_, run) => {
      const steps = replay(openHeads(golden + directory), medusaShape('mc_sim_7b_63'), run, {});
      expect(steps).toEqual(stepsOf(run));
      expect(steps.flatMap(({ emitted }) => emitted)).toEqual(run.plain_greedy);
    },
  );

  it("holds the authors' candidates: their rows are the leaves, the last first", () => {
    const { retrieve_indices: rows } = (
      read('medusa-buffers.json') as { trees: Record<string, { retrieve_indices: number[][] }> }
    ).trees.mc_sim_7b_63!;
    const { parents } = medusaShape('mc_sim_7b_63');
    const pathTo = (node: number): number[] => (node === 0 ? [0] : [...pathTo(parents[node]!), node]);
    const leaves = [...parents.keys()].filter((node) => !parents.includes(node)).reverse();
    expect(leaves.map(pathTo)).toEqual(rows.map((row) => row.filter((node) => node >= 0)));
    for (const { candidates, tree_tokens: tokens } of runs[0]!.steps)
      expect(rows.map((row) => row.map((node) => (node < 0 ? 0 : tokens[node]!)))).toEqual(candidates);
  });
});

describe('other trees', () => {
  const { trees, runs } = read('greedy-v01-other-trees.json') as {
    readonly trees: Readonly<Record<string, { readonly choices: readonly (readonly number[])[] }>>;
    readonly runs: readonly (Run & { readonly tree: string })[];
  };

  it.each(runs.map((run) => [run.tree, run.prompt_id, run] as const))(
    "are walked as the authors', %s, prompt %s",
    (...[, , run]) => {
      const steps = replay(openHeads(`${golden}heads-v01`), shapeFromPaths(trees[run.tree]!.choices), run, {});
      expect(steps).toEqual(stepsOf(run));
      expect(steps.flatMap(({ emitted }) => emitted)).toEqual(run.plain_greedy);
    },
  );
});

describe('typical acceptance', () => {
  const { runs } = read('typical.json') as {
    readonly runs: readonly (Run & {
      readonly temperature: number;
      readonly epsilon: number;
      readonly delta: number;
    })[];
  };

  it.each(runs.map((run) => [run.temperature, run.prompt_id, run] as const))(
    "accepts what the authors' code does, temperature %f, prompt %s",
    (...[, , run]) => {
      const { temperature, epsilon, delta } = run;
      const heads = openHeads(`${golden}heads-v01`);
      const options: GenerateOptions = { verify: 'typical', typical: { epsilon, delta }, temperature };
      expect(replay(heads, medusaShape('mc_sim_7b_63'), run, options)).toEqual(stepsOf(run));
    },
  );
});

describe('files', () => {
  const tensorsOf = (directory: string): TensorToWrite[] => {
    using source = openSafetensors(`${golden}${directory}/medusa_lm_head.safetensors`);
    return Array.from(source.entries.values(), ({ name, shape }) => ({
      name,
      type: 'F32',
      shape,
      data: source.read(name).slice(),
    }));
  };
  const CONFIG = { medusa_num_heads: 4, medusa_num_layers: 1 };

  function directoryOf(file: string, tensors: readonly TensorToWrite[], config: object = CONFIG): string {
    const directory = mkdtempSync(join(scratch, 'medusa-'));
    writeFileSync(join(directory, 'config.json'), JSON.stringify(config));
    writeSafetensors(join(directory, file), tensors);
    return directory;
  }

  const feature = new ScratchTensor().reshape(1, target.config.hiddenSize);
  feature.data.forEach((_, i) => {
    feature.data[i] = Math.sin(i);
  });
  const logitsOf = (directory: string): number[] => {
    using heads = openHeads(directory);
    const logits = heads.logits(feature, heads.config.heads);
    return [...logits.data.subarray(0, logits.rows * logits.cols)];
  };

  it('of torch say what the safetensors do', () => {
    const directory = mkdtempSync(join(scratch, 'medusa-'));
    for (const file of ['config.json', 'medusa_lm_head.pt'])
      copyFileSync(`${golden}heads-v2/${file}`, join(directory, file));
    expect(logitsOf(directory)).toEqual(logitsOf(`${golden}heads-v2`));
  });

  it.each(['heads-v01', 'heads-v2'])('of a merged model hold the heads beside its own tensors, %s', (layout) => {
    const merged = tensorsOf(layout).map((tensor) => ({ ...tensor, name: `medusa_head.${tensor.name}` }));
    const own = { name: 'model.norm.weight', type: 'F32', shape: [1], data: new Uint8Array(4) } as const;
    expect(logitsOf(directoryOf('model.safetensors', [own, ...merged]))).toEqual(logitsOf(golden + layout));
  });

  it('of a deeper v0.1 have its one module again and again', () => {
    const deeper = tensorsOf('heads-v01').flatMap((tensor): TensorToWrite[] => {
      const [head, layer, ...rest] = tensor.name.split('.');
      const named = (index: number) => ({ ...tensor, name: [head, index, ...rest].join('.') });
      return layer === '0' ? [named(0), named(1)] : [named(2)];
    });
    const directory = directoryOf('medusa_lm_head.safetensors', deeper, { ...CONFIG, medusa_num_layers: 2 });
    using once = openHeads(`${golden}heads-v01`);
    using twice = openHeads(directory);
    for (let head = 0; head < 4; head++) {
      const wanted = once.forward(head, once.forward(head, feature));
      expect([...twice.forward(head, feature).data.subarray(0, 64)]).toEqual([...wanted.data.subarray(0, 64)]);
    }
  });

  it('may have fewer heads than are there: the config decides', () => {
    const directory = directoryOf('medusa_lm_head.safetensors', tensorsOf('heads-v01'), {
      ...CONFIG,
      medusa_num_heads: 2,
    });
    expect(logitsOf(directory)).toEqual(logitsOf(`${golden}heads-v01`).slice(0, 2 * target.config.vocabSize));
  });

  const v2 = tensorsOf('heads-v2');
  const v01 = tensorsOf('heads-v01');
  const without = (tensors: readonly TensorToWrite[], name: string) => tensors.filter((tensor) => tensor.name !== name);
  const reshaped = (tensors: readonly TensorToWrite[], name: string, shape: readonly number[]): TensorToWrite[] =>
    tensors.map((tensor) =>
      tensor.name === name ? { ...tensor, shape, data: new Uint8Array(4 * shape.reduce((a, b) => a * b)) } : tensor,
    );
  it.each([
    ['no such config', v2, {}, /config\.json: medusa_num_heads: Invalid input.* got nothing/],
    ['too many heads', v2, { ...CONFIG, medusa_num_heads: 65 }, /medusa_num_heads: .*64, got 65/],
    ['half a layer', v2, { ...CONFIG, medusa_num_layers: 0.5 }, /medusa_num_layers: .* got 0\.5/],
    [
      'a head that is missing',
      v2,
      { ...CONFIG, medusa_num_heads: 5 },
      /4\.0\.linear\.weight: must be present, with shape \[64,64\]/,
    ],
    [
      'a bias that is missing',
      without(v2, '1.0.linear.bias'),
      CONFIG,
      /1\.0\.linear\.bias: must be present, with shape \[64\]/,
    ],
    [
      'an LM head that is missing',
      without(v01, '2.1.weight'),
      CONFIG,
      /2\.1\.weight: must be present, with shape \[512,64\]/,
    ],
    [
      'heads of another width',
      reshaped(v2, '0.0.linear.weight', [32, 32]),
      CONFIG,
      /0\.0\.linear\.weight: expected shape \[64,64\], got \[32,32\]/,
    ],
    [
      'heads of another vocabulary',
      reshaped(v01, '0.1.weight', [500, 64]),
      CONFIG,
      /0\.1\.weight: expected shape \[512,64\], got \[500,64\]/,
    ],
    [
      'a draft vocabulary without a map',
      v2,
      { ...CONFIG, draft_vocab_size: 100 },
      /d2t: must be present: the draft vocabulary has 100 tokens/,
    ],
    [
      'a name with and without medusa_head.',
      [...v2, { ...v2[0]!, name: `medusa_head.${v2[0]!.name}` }],
      CONFIG,
      /is there twice, with "medusa_head\." in front and without/,
    ],
  ] as const)('%s is refused', (_, tensors, config, message) => {
    const directory = directoryOf('medusa_lm_head.safetensors', tensors, config);
    expect(() => openHeads(directory)).toThrow(message);
  });

  it('that are not there are asked for', () => {
    const directory = mkdtempSync(join(scratch, 'medusa-'));
    expect(() => openMedusaFiles(directory)).toThrow('must exist: Medusa heads are a directory with config.json');
    writeFileSync(join(directory, 'config.json'), JSON.stringify(CONFIG));
    expect(() => openMedusaFiles(directory)).toThrow('must hold medusa_lm_head.safetensors or medusa_lm_head.pt or');
  });
});

/** Draws that are no chance: the likeliest of every so many tokens. */
function argmaxOf(law: Law, index: number): number {
  let best = -1;
  for (let token = index % 2; token < law.length; token += 2) if (best < 0 || law[token]! > law[best]!) best = token;
  return best;
}

describe('the drafter', () => {
  const tiny = tinyTarget(kernels);
  afterAll(() => tiny[Symbol.dispose]());

  it('proposes nothing before it has seen a row of the text, and nothing deeper than there are heads', () => {
    using drafter = new MedusaDrafter(tiny, tinyMedusa(tiny, { heads: 2 }), staticShape(), 64);
    expect(drafter.propose(3, 9).size).toBe(1);
    const features = new ScratchTensor().reshape(2, tiny.config.hiddenSize);
    features.data.fill(0.3);
    drafter.observe(Int32Array.of(1, 2), features, Int32Array.of(0, 1), 2);
    expect(drafter.propose(3, 9).size).toBe(1 + 4 + 8); // the static tree's first two levels
    expect(drafter.propose(3, 1).size).toBe(1 + 4);
    // The feature of a text that was cut is gone; the loop always computes one token more.
    expect(drafter.resume([1, 2], 1)).toBe(1);
    expect(drafter.propose(3, 9).size).toBe(1);
  });

  it.each([
    ['chosen', undefined],
    [
      'drawn',
      { kind: 'urn', inverseTemperature: 0.2, draw: (law: Law, _: number, index: number) => argmaxOf(law, index) },
    ],
  ] as const)(
    'guesses below a node what it guesses below its siblings, best or first drawn first: %s',
    (_, sampling) => {
      using drafter = new MedusaDrafter(tiny, tinyMedusa(tiny), staticShape(), 64);
      drafter.resume([1], 0, sampling);
      const features = new ScratchTensor().reshape(1, tiny.config.hiddenSize);
      features.data.fill(0.3);
      drafter.observe(Int32Array.of(1), features, Int32Array.of(0), 1);
      const { size, tokens, parents, laws } = drafter.propose(3, 9);
      const nodes = Array.from({ length: size }, (_, node) => node);
      const byDepth = [1, 2, 3].map((depth) => {
        const children = nodes
          .filter((node) => depthOf(parents, node) === depth - 1)
          .map((node) => nodes.filter((child) => parents[child] === node).map((child) => tokens[child]!));
        const widest = children.reduce((a, b) => (b.length > a.length ? b : a));
        for (const some of children) expect(some).toEqual(widest.slice(0, some.length));
        expect(new Set(widest).size).toBe(widest.length);
        return widest.join();
      });
      expect(new Set(byDepth).size).toBe(3); // each head its own
      expect(laws === undefined).toBe(sampling === undefined);
      if (laws === undefined) return;
      const lawOf = (node: number): number[] => [...laws.draft(node)!];
      const [a, b] = nodes.filter((node) => depthOf(parents, node) === 1);
      expect(lawOf(a!)).toEqual(lawOf(b!));
      expect(lawOf(a!)).not.toEqual(lawOf(0));
    },
  );

  it('is refused a tree wider than the draft vocabulary', () => {
    using heads = tinyMedusa(tiny, { draftVocabSize: 3 });
    expect(() => new MedusaDrafter(tiny, heads, staticShape(), 64)).toThrow(
      'tree: 3 tokens can be guessed after a node, got 4',
    );
  });

  it('guesses with a cut LM head what the whole one would, had it those tokens alone', () => {
    using whole = tinyMedusa(tiny);
    using cut = tinyMedusa(tiny, { draftVocabSize: 24 });
    const row = new ScratchTensor().reshape(1, tiny.config.hiddenSize);
    row.data.fill(0.7);
    const all = whole.logits(row, 3);
    const some = cut.logits(row, 3);
    for (let head = 0; head < 3; head++)
      expect([...some.row(head)]).toEqual([...cut.targetIds!].map((id) => all.row(head)[id]!));
  });
});
