/** What `inspect HEAD --target MODEL` says of heads that fit, that do not, and that fit but guess like dice. */
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { openSafetensors, writeSafetensors } from '../../src/checkpoint/safetensors.ts';
import type { Fit, MeasuredAgreement } from '../../src/cli/head-fit.ts';
import { judgeAgreement } from '../../src/decode/agreement.ts';
import { smolPath } from '../support/model.ts';
import { randomFloats, xorshift } from '../support/random.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { torchFromSafetensors } from '../support/torch-writer.ts';
import { eaglet, ensureBuilt, HEAD, ROOT, TINY } from './support.ts';

const GOLDEN = join(ROOT, 'test/golden/eagle-tiny/eagle1-head');
const D = 64;
const scratch = temporaryDirectory();

beforeAll(async () => {
  await smolPath();
  ensureBuilt();
});

type Tensors = Map<string, { shape: readonly number[]; data: Float32Array | BigInt64Array }>;

/** The golden head with some of it changed. @param config fields that replace its own. */
function headWith(change: (tensors: Tensors) => void, config: Readonly<Record<string, unknown>> = {}): string {
  const directory = mkdtempSync(join(scratch, 'head-'));
  const own = JSON.parse(readFileSync(join(GOLDEN, 'config.json'), 'utf8')) as Record<string, unknown>;
  writeFileSync(join(directory, 'config.json'), JSON.stringify({ ...own, ...config }));
  using source = openSafetensors(join(GOLDEN, 'model.safetensors'));
  const tensors: Tensors = new Map();
  for (const { name, shape } of source.entries.values())
    tensors.set(name, { shape, data: new Float32Array(source.read(name).slice().buffer) });
  change(tensors);
  writeSafetensors(
    join(directory, 'model.safetensors'),
    Array.from(tensors, ([name, { shape, data }]) => ({
      name,
      shape,
      type: data instanceof Float32Array ? ('F32' as const) : ('I64' as const),
      data: new Uint8Array(data.buffer),
    })),
  );
  return directory;
}

type Report = Fit & { readonly agreement?: MeasuredAgreement };

async function inspect(
  head: string,
  ...more: string[]
): Promise<{ readonly code: number | null; readonly target: Report }> {
  const { code, stdout } = await eaglet(['inspect', head, '--target', TINY, '--json', ...more]);
  return { code, target: (JSON.parse(stdout) as { target: Report }).target };
}

const misfits = ({ checks }: Fit): string[] =>
  checks.filter(({ fits }) => !fits).map(({ what, detail }) => `${what}: ${detail}`);

describe('a head that fits', () => {
  test('each check is a line; its guesses agree with the target’s own text, and owe it to the features', async () => {
    const { code, target } = await inspect(GOLDEN);
    expect(code).toBe(0);
    expect(target.fits).toBe(true);
    expect(misfits(target)).toEqual([]);
    expect(target.checks.map(({ what }) => what)).toEqual(
      expect.arrayContaining(['hidden size', 'vocabulary', 'draft vocabulary', 'fc.weight']),
    );
    expect(target.agreement).toMatchObject({ positions: 256, inDraftVocabulary: 1, verdict: 'plausible' });
    expect(target.agreement!.share).toBeGreaterThan(0.75); // 0.79; with the tokens one place off 0.71
    expect(target.agreement!.shuffledFeatures).toBeLessThan(0.2);
  });

  test('the same from pytorch_model.bin, to the last guess', async () => {
    const directory = mkdtempSync(join(scratch, 'torch-'));
    writeFileSync(join(directory, 'config.json'), readFileSync(join(GOLDEN, 'config.json')));
    writeFileSync(join(directory, 'pytorch_model.bin'), torchFromSafetensors(join(GOLDEN, 'model.safetensors')));
    const [torch, safetensors] = await Promise.all([inspect(directory), inspect(GOLDEN)]);
    expect(torch.target.agreement).toEqual(safetensors.target.agreement);
  });

  test('a cut draft vocabulary bounds what can be guessed', async () => {
    const every = BigInt64Array.from({ length: 128 }, (_, draft) => BigInt(3 * draft)); // token 4 · draft
    const head = headWith((tensors) => tensors.set('d2t', { shape: [128], data: every }), { draft_vocab_size: 128 });
    const { target } = await inspect(head);
    expect(target.checks.find(({ what }) => what === 'draft vocabulary')!.detail).toBe(
      '128 of 512 tokens, a map (d2t) that ascends to 508',
    );
    expect((await eaglet(['inspect', head])).stdout).toMatch(
      /draft vocabulary +128 of the target's 512 tokens, and those of the text\n/,
    );
    const { share, inDraftVocabulary } = target.agreement!;
    expect(inDraftVocabulary).toBeLessThan(0.5);
    expect(share).toBeLessThanOrEqual(inDraftVocabulary);
    expect(share).toBeGreaterThan(0);
  });

  test('--no-agreement leaves the weights unread', async () => {
    const { code, target } = await inspect(GOLDEN, '--no-agreement');
    expect(code).toBe(0);
    expect(target).toMatchObject({ fits: true, weightBytes: expect.any(Number) });
    expect(target).not.toHaveProperty('agreement');
  });

  test('the shipped head, in words', async () => {
    const { code, stdout } = await eaglet(['inspect', HEAD, '--target', 'smollm2-135m-instruct']);
    expect(code).toBe(0);
    const [, share, tokens] = /agreement +(\d+) % of (\d+) next tokens guessed right/.exec(stdout)!;
    expect(Number(share)).toBeGreaterThan(40);
    expect(Number(share)).toBeLessThan(75);
    // 64 of each answer; the target may end one earlier, which differs between instruction sets.
    expect(Number(tokens)).toBeGreaterThan(192);
    expect(Number(tokens)).toBeLessThanOrEqual(256);
    expect(stdout).toContain("the target's own greedy answers to 4 short prompts");
    expect(stdout).toMatch(/verdict +plausible:/);
    expect(stdout).toMatch(/fits {2}hidden size +576, as the target's\n/);
  });
});

describe('a head that fits and guesses like dice', () => {
  test.each<[string, (tensors: Tensors) => void]>([
    [
      'fed [feature | embedding] where it learnt [embedding | feature]',
      (tensors) => {
        const { data } = tensors.get('fc.weight')!;
        for (let row = 0; row < D; row++) {
          const [from, middle, to] = [2 * D * row, 2 * D * row + D, 2 * D * (row + 1)];
          const first = data.slice(from, middle) as Float32Array;
          data.copyWithin(from, middle, to);
          (data as Float32Array).set(first, middle);
        }
      },
    ],
    [
      'random weights',
      (tensors) => {
        const random = xorshift(5);
        for (const [name, { shape, data }] of tensors)
          if (shape.length === 2) (data as Float32Array).set(randomFloats(random, data.length, 0.2), 0);
          else expect(name).toContain('norm');
      },
    ],
  ])('%s: called out', async (_, change) => {
    const head = headWith(change);
    const [{ code, target }, { stdout }] = await Promise.all([
      inspect(head),
      eaglet(['inspect', head, '--target', TINY]),
    ]);
    expect(code).toBe(0); // it does fit
    expect(target.agreement!.verdict).toBe('random');
    expect(target.agreement!.share).toBeLessThan(0.1);
    expect(stdout).toMatch(/verdict +random: no better than naming the commonest token each time/);
    expect(stdout).toContain('embedding and feature the other way round');
  });

  test.each([
    ['random', { positions: 256, share: 0.1, commonestToken: 0.07, shuffledFeatures: 0 }], // 0.03 = 1.2 standard errors
    ['weak', { positions: 256, share: 0.3, commonestToken: 0.07, shuffledFeatures: 0.24 }], // 0.06 = 1.5
    ['plausible', { positions: 256, share: 0.3, commonestToken: 0.07, shuffledFeatures: 0.2 }], // 0.1 = 2.6
    ['weak', { positions: 64, share: 0.3, commonestToken: 0.07, shuffledFeatures: 0.2 }], // 1.3 of fewer tokens
    ['random', { positions: 1, share: 0, commonestToken: 1, shuffledFeatures: 0 }],
  ] as const)('%s: %o', (verdict, figures) => {
    expect(judgeAgreement(figures)).toBe(verdict);
  });
});

describe('a head that does not fit', () => {
  const offsets = (values: readonly number[]): BigInt64Array => BigInt64Array.from(values, BigInt);

  test.each<[string, () => string, readonly string[]]>([
    [
      'made for another model',
      () => join(ROOT, HEAD),
      ['hidden size: the head has 576, the target 64', 'vocabulary: the head has 49,152, the target 512'],
    ],
    [
      'a map that goes back',
      () =>
        headWith((tensors) => tensors.set('d2t', { shape: [3], data: offsets([0, 5, -1]) }), { draft_vocab_size: 3 }),
      ['draft vocabulary: d2t[2]: target ids must ascend below 512, got 1 after 6'],
    ],
    [
      'a map beyond the vocabulary',
      () => headWith((tensors) => tensors.set('d2t', { shape: [2], data: offsets([0, 511]) }), { draft_vocab_size: 2 }),
      ['draft vocabulary: d2t[1]: target ids must ascend below 512, got 512 after 0'],
    ],
    [
      'no map',
      () => headWith(() => {}, { draft_vocab_size: 100 }),
      ['draft vocabulary: d2t: must be present: the draft vocabulary has 100 tokens'],
    ],
    [
      'a matrix of another shape, and one that is missing',
      () =>
        headWith((tensors) => {
          tensors.set('fc.weight', { shape: [D, D], data: new Float32Array(D * D) });
          tensors.delete('layers.0.mlp.up_proj.weight');
          tensors.set('layers.1.extra', { shape: [1], data: new Float32Array(1) });
        }),
      [
        'fc.weight: [64, 64], should be [64, 128]: embedding and feature to hidden size',
        "layers.0.mlp.up_proj.weight: missing, should be [176, 64]: the MLP's way up",
      ],
    ],
  ])('%s', async (_, make, lines) => {
    const head = make();
    const [{ code, target }, { stdout }] = await Promise.all([
      inspect(head),
      eaglet(['inspect', head, '--target', TINY]),
    ]);
    expect(code).toBe(1);
    expect(target.fits).toBe(false);
    expect(misfits(target)).toEqual(lines);
    expect(target).not.toHaveProperty('agreement');
    expect(stdout).toContain('does NOT fit');
    expect(stdout.match(/^NO /gm)).toHaveLength(lines.length);
  });

  test('what only loading finds is a line too', async () => {
    const head = headWith((tensors) => {
      tensors.set('layers.0.self_attn.q_proj.bias', { shape: [D], data: new Float32Array(D) });
    });
    const { code, target } = await inspect(head);
    expect(code).toBe(1);
    expect(misfits(target)).toEqual([expect.stringContaining('layers.0.self_attn.k_proj.bias: ')]);
  });
});
