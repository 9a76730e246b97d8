/** What `inspect HEADS --target MODEL` says of Medusa heads: both layouts, merged models, heads that do not fit, trees. */
import { copyFileSync, cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { openSafetensors, writeSafetensors } from '../../src/checkpoint/safetensors.ts';
import type { Fit } from '../../src/cli/head-fit.ts';
import { smolPath } from '../support/model.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { eaglet, ensureBuilt, ROOT } from './support.ts';

const GOLDEN = join(ROOT, 'test/golden/medusa-tiny');
const TARGET = join(GOLDEN, 'target');
const V2 = join(GOLDEN, 'heads-v2');
const D = 64;
const scratch = temporaryDirectory();

beforeAll(async () => {
  await smolPath();
  ensureBuilt();
});

type Tensors = Map<string, { shape: readonly number[]; data: Float32Array | BigInt64Array }>;

/** The golden heads with some of them changed. @param config fields that replace their own. */
function headsWith(
  change: (tensors: Tensors) => void,
  config: Readonly<Record<string, unknown>> = {},
  file = 'medusa_lm_head.safetensors',
): string {
  const directory = mkdtempSync(join(scratch, 'heads-'));
  const own = JSON.parse(readFileSync(join(V2, 'config.json'), 'utf8')) as Record<string, unknown>;
  writeFileSync(join(directory, 'config.json'), JSON.stringify({ ...own, ...config }));
  using source = openSafetensors(join(V2, 'medusa_lm_head.safetensors'));
  const tensors: Tensors = new Map();
  for (const { name, shape } of source.entries.values())
    tensors.set(name, { shape, data: new Float32Array(source.read(name).slice().buffer) });
  change(tensors);
  writeSafetensors(
    join(directory, file),
    Array.from(tensors, ([name, { shape, data }]) => ({
      name,
      shape,
      type: data instanceof Float32Array ? ('F32' as const) : ('I64' as const),
      data: new Uint8Array(data.buffer),
    })),
  );
  return directory;
}

interface Report {
  readonly kind: string;
  readonly layout: string;
  readonly target: Fit;
}

async function inspect(
  heads: string,
  target = TARGET,
): Promise<{ readonly code: number | null; readonly report: Report }> {
  const { code, stdout } = await eaglet(['inspect', heads, '--target', target, '--json']);
  return { code, report: JSON.parse(stdout) as Report };
}

const misfits = ({ checks }: Fit): string[] =>
  checks.filter(({ fits }) => !fits).map(({ what, detail }) => `${what}: ${detail}`);

describe('heads that fit', () => {
  test.each([
    ['heads-v01', 'v0.1', 'an LM head of [512, 64]'],
    ['heads-v2', 'v2', "the target's LM head"],
  ])('%s: layout, a line for each head, no agreement', async (name, layout, lmHead) => {
    const { code, report } = await inspect(join(GOLDEN, name));
    expect(code).toBe(0);
    expect(report).toMatchObject({
      kind: 'medusa',
      format: 'safetensors',
      merged: false,
      layout,
      config: { heads: 4, layers: 1 },
      target: { fits: true, weightBytes: expect.any(Number) },
    });
    expect(report).not.toHaveProperty('tree');
    expect(report.target).not.toHaveProperty('agreement');
    expect(misfits(report.target)).toEqual([]);
    expect(report.target.checks).toContainEqual({
      what: 'head 3',
      fits: true,
      detail: `1 block of [64, 64], ${lmHead}`,
    });
  });

  test('from medusa_lm_head.pt; with a draft vocabulary; within a model', async () => {
    const torch = mkdtempSync(join(scratch, 'torch-'));
    for (const file of ['config.json', 'medusa_lm_head.pt']) copyFileSync(join(V2, file), join(torch, file));
    expect((await inspect(torch)).report).toMatchObject({ format: 'torch', target: { fits: true } });

    const every = BigInt64Array.from({ length: 128 }, (_, draft) => BigInt(3 * draft)); // token 4 · draft
    const cut = headsWith((tensors) => tensors.set('d2t', { shape: [128], data: every }), { draft_vocab_size: 128 });
    const { report } = await inspect(cut);
    expect(report.target.checks).toContainEqual({
      what: 'draft vocabulary',
      fits: true,
      detail: '128 of 512 tokens, a map (d2t) that ascends to 508',
    });
    expect((await eaglet(['inspect', cut])).stdout).toMatch(/draft vocabulary +128 tokens, and those of the text\n/);

    const norm = { shape: [D], data: new Float32Array(D) };
    const merged = headsWith((tensors) => tensors.set('model.norm.weight', norm), {}, 'model.safetensors');
    const { stdout } = await eaglet(['inspect', merged]);
    expect(stdout).toContain(', with the model that they were trained with\n');
    expect(stdout).toMatch(/F32 +8 /);
  });

  test('in words, with the tree that came with them', async () => {
    const heads = headsWith(() => {});
    const words = async (tree: string): Promise<string> => {
      writeFileSync(join(heads, 'tree.json'), tree);
      return (await eaglet(['inspect', heads, '--target', TARGET])).stdout;
    };
    const four = await words('[[0], [1], [0, 0], [0, 0, 0]]');
    expect(four).toMatch(/architecture +Medusa-1, 4 heads of 1 block\n/);
    expect(four).toMatch(/layout +v2: blocks alone, all heads read the target's LM head\n/);
    expect(four).toMatch(/draft vocabulary +all tokens of the target\n/);
    expect(four).toMatch(/tree +tree.json: 5 nodes, root included, 3 levels\n/);
    expect(four).toMatch(/target +fits .* in memory at q8\n/);
    expect(four).toMatch(/fits {2}head 0 +1 block of \[64, 64\], the target's LM head\n/);
    expect(await words('[[0], [0, 0], [0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0, 0]]')).toContain(
      '5 levels, of which 4 are drafted\n',
    );
    rmSync(join(heads, 'tree.json'));
    expect((await eaglet(['inspect', heads])).stdout).toMatch(/tree +no tree\.json\n/);
  });
});

describe('heads that do not fit', () => {
  test.each<[string, () => string, readonly string[]]>([
    [
      'a block of another shape, a missing one',
      () =>
        headsWith((tensors) => {
          tensors.set('1.0.linear.bias', { shape: [D + 1], data: new Float32Array(D + 1) });
          tensors.delete('2.0.linear.weight');
        }),
      ['head 1: 1.0.linear.bias: [65], should be [64]', 'head 2: 2.0.linear.weight: missing, should be [64, 64]'],
    ],
    [
      'an LM head for one of them',
      () => headsWith((tensors) => tensors.set('0.1.weight', { shape: [512, D], data: new Float32Array(512 * D) })),
      [1, 2, 3].map((head) => `head ${head}: ${head}.1.weight: missing, should be [512, 64]`),
    ],
    [
      'fewer than the config says',
      () => headsWith(() => {}, { medusa_num_heads: 5 }),
      ['head 4: 4.0.linear.weight: missing, should be [64, 64]'],
    ],
    [
      'a draft vocabulary without its map',
      () => headsWith(() => {}, { draft_vocab_size: 100 }),
      ['draft vocabulary: d2t: must be present: the draft vocabulary has 100 tokens'],
    ],
  ])('%s', async (_, make, lines) => {
    const { code, report } = await inspect(make());
    expect(code).toBe(1);
    expect(report.target).toMatchObject({ fits: false, problem: expect.any(String) });
    expect(misfits(report.target)).toEqual(lines);
  });

  test('made for another model', async () => {
    const { code, report } = await inspect(V2, 'smollm2-135m-instruct');
    expect(code).toBe(1);
    expect(misfits(report.target)[0]).toBe('head 0: 0.0.linear.weight: [64, 64], should be [576, 576]');
  });

  test('more than the config says: those are not used, and named', async () => {
    const { code, report } = await inspect(headsWith(() => {}, { medusa_num_heads: 3 }));
    expect(code).toBe(0);
    expect(report.target.checks.at(-1)).toEqual({
      what: 'other tensors',
      fits: true,
      detail: 'not used: 3.0.linear.bias, 3.0.linear.weight',
    });
  });
});

test.each<[string, (directory: string) => void, RegExp]>([
  [
    'no config',
    (directory) => rmSync(join(directory, 'config.json')),
    /config\.json: file: must exist: Medusa heads are a directory with config\.json/,
  ],
  [
    'no number of heads',
    (directory) => writeFileSync(join(directory, 'config.json'), '{"medusa_num_layers": 1}'),
    /config\.json: medusa_num_heads: /,
  ],
  [
    'no weights',
    (directory) => {
      for (const file of ['medusa_lm_head.safetensors', 'medusa_lm_head.pt']) rmSync(join(directory, file));
    },
    /directory: must hold medusa_lm_head\.safetensors or /,
  ],
  [
    'a tree that is none',
    (directory) => writeFileSync(join(directory, 'tree.json'), '[[0, 0], [0]]'),
    /tree\.json: tree: \[0,0\] comes before its parent \[0\]/,
  ],
])('%s: named, and nothing else is said', async (_, spoil, message) => {
  const directory = mkdtempSync(join(scratch, 'spoilt-'));
  cpSync(V2, directory, { recursive: true });
  spoil(directory);
  const { code, stdout, stderr } = await eaglet(['inspect', directory]);
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  expect(stderr).toMatch(message);
  expect(stderr).not.toContain('    at ');
});
