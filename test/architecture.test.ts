/** Who may import whom: arrows may skip, never point back (docs: the house). Types count: knowing a shape is knowing its owner. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const SRC = fileURLToPath(new URL('../src/', import.meta.url));

/** Per module, a directory of src or a file in it: the modules, or single files of them, that it may import. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  'errors.ts': [],
  'package-info.ts': [],
  kernels: [],
  tensor: ['kernels'],
  model: ['tensor', 'kernels'],
  draft: ['model', 'tensor', 'kernels'],
  decode: ['draft', 'model', 'tensor', 'kernels'],
  tokenizer: [],
  checkpoint: ['model', 'tensor', 'kernels', 'draft/head-config.ts', 'draft/medusa-config.ts'],
  train: ['decode', 'draft', 'model', 'tensor', 'kernels', 'checkpoint', 'tokenizer'],
  'engine.ts': ['package-info.ts', 'decode', 'draft', 'model', 'tensor', 'kernels', 'tokenizer', 'checkpoint'],
  'index.ts': ['engine.ts', 'decode', 'draft', 'model', 'tensor', 'kernels', 'tokenizer', 'checkpoint'],
  cli: [
    'package-info.ts',
    'index.ts',
    'engine.ts',
    'train',
    'decode',
    'draft',
    'model',
    'tensor',
    'kernels',
    'tokenizer',
    'checkpoint',
  ],
};

const moduleOf = (file: string): string => file.split('/')[0]!;

function allowed(from: string, to: string): boolean {
  if (moduleOf(from) === moduleOf(to) || to === 'errors.ts') return true;
  const may = MAY_IMPORT[moduleOf(from)] ?? [];
  return may.includes(moduleOf(to)) || may.includes(to);
}

const files = readdirSync(SRC, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'));
const imports = files.flatMap((from) =>
  [...readFileSync(join(SRC, from), 'utf8').matchAll(/\b(?:from|import)\s*\(?\s*'(\.{1,2}\/[^']+)'/g)].map((match) => ({
    from,
    to: normalize(join(dirname(from), match[1]!)),
  })),
);

test('every module has its place', () => {
  expect([...new Set(files.map(moduleOf))].filter((module) => !(module in MAY_IMPORT))).toEqual([]);
});

test('imports point down', () => {
  expect(imports.length).toBeGreaterThan(100); // that they are found at all
  const wrong = imports.filter(({ from, to }) => !allowed(from, to));
  expect(wrong.map(({ from, to }) => `${from} imports ${to}`)).toEqual([]);
});

test.each([
  ['kernels/native.ts', 'model/llama.ts', false],
  ['model/llama.ts', 'kernels/native.ts', true],
  ['checkpoint/config.ts', 'draft/head-config.ts', true],
  ['checkpoint/config.ts', 'draft/eagle.ts', false],
  ['tokenizer/tokenizer.ts', 'errors.ts', true],
  ['tokenizer/tokenizer.ts', 'model/config.ts', false],
  ['engine.ts', 'train/tape.ts', false],
  ['index.ts', 'cli/main.ts', false],
])('%s may import %s: %s', (from, to, may) => {
  expect(allowed(from, to)).toBe(may);
});
