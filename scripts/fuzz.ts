/**
 * Feeds damaged files to the checkpoint readers: GGUF, safetensors, torch, config.json. Each must open or throw a CheckpointError,
 * soon and without much memory. Anything else ends the run with exit code 1 and the seed that repeats it.
 *
 *   npm run fuzz -- --seconds 60 --seed 1
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { readHeadConfig, readModelConfig } from '../src/checkpoint/config.ts';
import { readJsonIfPresent } from '../src/checkpoint/file.ts';
import { openGguf } from '../src/checkpoint/gguf.ts';
import { openSafetensors, writeSafetensors } from '../src/checkpoint/safetensors.ts';
import { openTorch } from '../src/checkpoint/torch.ts';
import { CheckpointError } from '../src/errors.ts';
import type { TensorSource } from '../src/tensor/source.ts';
import { buildGguf, TINY_LLAMA } from '../test/support/gguf-writer.ts';
import { buildTorch, floatTensor, pickleTensors } from '../test/support/torch-writer.ts';

/** A file of some kilobytes takes about a millisecond; this is the slowest that a denial of service is not. */
const MAX_MS = 2000;
/** The originals have 10 kB; readers may stage a tensor and hold the header twice. */
const MAX_BUFFER_BYTES = 16e6;

interface Target {
  readonly name: string;
  readonly original: Buffer;
  readonly read: (path: string) => Promise<void> | void;
}

function readAll(source: TensorSource): void {
  for (const name of source.entries.keys()) source.read(name);
}

function targets(directory: string): readonly Target[] {
  const safetensors = join(directory, 'original.safetensors');
  const data = new Uint8Array(48);
  writeSafetensors(
    safetensors,
    [
      { name: 'fc.weight', type: 'F32', shape: [3, 4], data },
      { name: 'd2t', type: 'I64', shape: [6], data },
      { name: 't2d', type: 'BOOL', shape: [48], data },
      { name: 'norm', type: 'BF16', shape: [24], data },
    ],
    { format: 'pt' },
  );
  const config = {
    model_type: 'llama',
    hidden_size: 576,
    intermediate_size: 1536,
    max_position_embeddings: 8192,
    num_attention_heads: 9,
    num_hidden_layers: 30,
    num_key_value_heads: 3,
    rms_norm_eps: 1e-5,
    rope_parameters: { rope_theta: 100_000, rope_type: 'default' },
    rope_scaling: null,
    draft_vocab_size: 1000,
    vocab_size: 49_152,
  };
  const torchTensors = [floatTensor('fc.weight', [3, 4]), floatTensor('fc.bias', [300])];
  const readTorch = (path: string) => {
    using file = openTorch(path);
    readAll(file);
  };
  return [
    {
      name: 'gguf',
      original: buildGguf(TINY_LLAMA),
      read: async (path) => {
        using file = await openGguf(path);
        readAll(file.source);
      },
    },
    {
      name: 'safetensors',
      original: readFileSync(safetensors),
      read: (path) => {
        using file = openSafetensors(path);
        readAll(file);
      },
    },
    {
      name: 'torch',
      original: buildTorch(torchTensors),
      read: readTorch,
    },
    {
      // So that most changes are to the program rather than to its zip file.
      name: 'pickle',
      original: pickleTensors(torchTensors),
      read: (path) => {
        writeFileSync(path, buildTorch(torchTensors, { data: readFileSync(path) }));
        readTorch(path);
      },
    },
    {
      name: 'model config',
      original: Buffer.from(JSON.stringify(config)),
      read: (path) => void readModelConfig(readJsonIfPresent(path, 1e6), path),
    },
    {
      name: 'head config',
      original: Buffer.from(JSON.stringify(config)),
      read: (path) => void readHeadConfig(readJsonIfPresent(path, 1e6), path),
    },
  ];
}

/** mulberry32, by Tommy Ettinger (public domain): every case is a function of its seed alone. */
function randomNumbers(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Where size computations go wrong. */
const INTEGERS = [0n, 1n, 2n ** 31n - 1n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 32n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];
/** Where JSON readers go wrong. */
const TEXTS = [
  '"',
  '\\',
  '{',
  '}',
  '[',
  ']',
  ':',
  ',',
  '-',
  '1e999',
  '-1',
  '0.5',
  'null',
  '__proto__',
  '\ud800',
  '9'.repeat(20),
];

function mutate(original: Buffer, random: () => number): Buffer {
  const below = (n: number) => Math.floor(random() * n);
  let bytes = Buffer.from(original);
  for (let edits = 1 + below(4); edits > 0 && bytes.length > 0; edits--) {
    const at = below(bytes.length);
    switch (below(6)) {
      case 0:
        bytes[at]! ^= 1 << below(8);
        break;
      case 1: {
        const integer = Buffer.alloc(8);
        integer.writeBigUInt64LE(INTEGERS[below(INTEGERS.length)]!);
        integer.copy(bytes, at, 0, random() < 0.5 ? 4 : 8);
        break;
      }
      case 2:
        // A small number is more often nearly right.
        bytes[at] = below(20);
        break;
      case 3: {
        const text = Buffer.from(TEXTS[below(TEXTS.length)]!);
        bytes = Buffer.concat([bytes.subarray(0, at), text, bytes.subarray(at + below(2) * text.length)]);
        break;
      }
      case 4: {
        const length = below(64);
        const from = below(bytes.length);
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(from, from + length), bytes.subarray(at)]);
        break;
      }
      case 5:
        // One cut ends the story of most files, so it is rarer than the rest.
        if (random() < 0.3) bytes = bytes.subarray(0, at);
        break;
    }
  }
  return bytes;
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { seconds: { type: 'string' }, seed: { type: 'string' } } });
  const seconds = Number(values.seconds ?? 60);
  const firstSeed = Number(values.seed ?? Date.now() % 2 ** 31);
  if (!(seconds > 0) || !Number.isSafeInteger(firstSeed)) throw new RangeError('--seconds and --seed must be numbers');
  const directory = mkdtempSync(join(tmpdir(), 'eaglet-fuzz-'));
  const path = join(directory, 'case');
  const counts = new Map<string, number>();
  try {
    const all = targets(directory);
    const end = performance.now() + seconds * 1000;
    let seed = firstSeed;
    // At least one file, however short the time: that is how a seed is repeated.
    do {
      const random = randomNumbers(seed);
      const target = all[Math.floor(random() * all.length)]!;
      const problem = await tryOne(target, mutate(target.original, random), path, counts);
      if (problem !== undefined) {
        console.error(`${target.name}: ${problem}\nrepeat with: npm run fuzz -- --seconds 0.001 --seed ${seed}`);
        process.exitCode = 1;
        return;
      }
      seed++;
    } while (performance.now() < end);
    console.log(`${seed - firstSeed} files from seed ${firstSeed} in ${seconds} s, no failure`);
    for (const [outcome, count] of [...counts].sort()) console.log(`  ${outcome}: ${count}`);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Returns what went wrong, if anything did. */
async function tryOne(
  target: Target,
  bytes: Buffer,
  path: string,
  counts: Map<string, number>,
): Promise<string | undefined> {
  writeFileSync(path, bytes);
  const buffersBefore = process.memoryUsage().arrayBuffers;
  const begun = performance.now();
  let outcome = 'opened';
  try {
    await target.read(path);
  } catch (error) {
    if (!(error instanceof CheckpointError)) return error instanceof Error ? error.stack : String(error);
    outcome = 'refused';
  }
  const ms = performance.now() - begun;
  if (ms > MAX_MS) return `took ${Math.round(ms)} ms`;
  const grown = process.memoryUsage().arrayBuffers - buffersBefore;
  if (grown > MAX_BUFFER_BYTES) return `took ${grown} bytes of buffers`;
  const key = `${target.name} ${outcome}`;
  counts.set(key, (counts.get(key) ?? 0) + 1);
  return undefined;
}

await main();
