/** The engine as a caller meets it: streams, aborts, limits, disposal, heads that do not fit. */
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { BigramDrafter } from '../../examples/custom-drafter.ts';
import type { Round } from '../../src/decode/generate.ts';
import { VERIFIERS } from '../../src/decode/verifier.ts';
import type { TreeBudget } from '../../src/draft/budget.ts';
import type { DrafterName } from '../../src/draft/registry.ts';
import type { TreeOption } from '../../src/draft/tree-option.ts';
import { type Engine, type EngineOptions, type LoadProgress, loadEngine, type TextResult } from '../../src/engine.ts';
import { CheckpointError, DisposedError, RequestError } from '../../src/errors.ts';
import type { Kernels } from '../../src/kernels/kernels.ts';
import { buildGguf, withKeys } from '../support/gguf-writer.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';

/** Every kernels object that an engine made, with the buffers it has not given back. */
const made: { readonly held: Set<ArrayBuffer>; disposed: boolean }[] = [];

vi.mock('../../src/kernels/choose.ts', async (original) => {
  const { createKernels, ...rest } = await original<typeof import('../../src/kernels/choose.ts')>();
  return {
    ...rest,
    createKernels(options: Parameters<typeof createKernels>[0]): Kernels {
      const kernels = createKernels(options);
      const entry = { held: new Set<ArrayBuffer>(), disposed: false };
      made.push(entry);
      return {
        ...kernels,
        allocate(bytes, dense) {
          const buffer = kernels.allocate(bytes, dense);
          entry.held.add(buffer);
          return buffer;
        },
        release(buffer) {
          entry.held.delete(buffer);
          kernels.release(buffer);
        },
        dispose() {
          entry.disposed = true;
          kernels.dispose();
        },
      };
    },
  };
});

const golden = new URL('../golden/eagle-tiny/', import.meta.url).pathname;
const model = `${golden}target`;
const head = `${golden}eagle1-head`;
const directory = temporaryDirectory();
const load = (options: Parameters<typeof loadEngine>[0] = {}): Promise<Engine> =>
  loadEngine({ model, head, dtype: 'f32', treeSize: 12, ...options });
const prompt = [1, 7, 300, 22, 45, 8];

async function drain(stream: AsyncGenerator<unknown, TextResult, void>): Promise<TextResult> {
  for (;;) {
    const next = await stream.next();
    if (next.done) return next.value;
  }
}

/** A signal that is found aborted when it is looked at once more after so many times. */
function abortsAfter(looks: number): AbortSignal {
  let left = looks;
  return Object.defineProperty(new AbortController().signal, 'aborted', { get: () => left-- <= 0 });
}

function everythingReleased(): boolean {
  const { held, disposed } = made.at(-1)!;
  return disposed && held.size === 0;
}

describe('streams', () => {
  it('the pieces are the whole', async () => {
    using engine = await load();
    const ids: number[] = [];
    const stream = engine.stream(prompt, { maxTokens: 20 });
    let next = await stream.next();
    for (; !next.done; next = await stream.next()) ids.push(...next.value.tokens.map((token) => token.id));
    expect(ids).toEqual(next.value.newIds);
    expect(ids).toHaveLength(20);
  });

  it('the callback hears what the generator yields, on a model with a tokenizer', async () => {
    using engine = await loadEngine({ dtype: 'q8', treeSize: 8, contextSize: 128 });
    let heard = '';
    const options = { maxTokens: 12, temperature: 1, seed: 4 };
    const result = await engine.complete('The capital of France is', {
      ...options,
      onTextChunk: (text) => (heard += text),
    });
    let streamed = '';
    for await (const chunk of engine.stream(engine.encode('The capital of France is'), options)) streamed += chunk.text;
    expect(heard).toBe(result.text);
    expect(streamed).toBe(result.text);
    expect(result.text).not.toBe('');
  });

  it('a callback that throws ends the generation, not the engine', async () => {
    using engine = await loadEngine({ dtype: 'q8', treeSize: 8, contextSize: 128 });
    const onTextChunk = (): never => {
      throw new Error('heard enough');
    };
    await expect(engine.complete('Say hello.', { maxTokens: 8, onTextChunk })).rejects.toThrow('heard enough');
    expect((await engine.complete('Say hello.', { maxTokens: 8 })).newIds).toHaveLength(8);
  });

  it('one generation at a time: a second is refused, and the first goes on', async () => {
    using engine = await load();
    const first = engine.stream(prompt, { maxTokens: 8 });
    await first.next();
    await expect(engine.stream(prompt).next()).rejects.toThrow(RequestError);
    await expect(engine.stream(prompt).next()).rejects.toThrow('another generation is running');
    expect((await drain(first)).newIds).toHaveLength(8);
    expect((await drain(engine.stream(prompt, { maxTokens: 8 }))).newIds).toHaveLength(8);
  });

  it('a consumer that leaves early frees the engine', async () => {
    using engine = await load();
    for await (const _ of engine.stream(prompt)) break;
    expect((await drain(engine.stream(prompt, { maxTokens: 2 }))).newIds).toHaveLength(2);
  });
});

describe('onRound', () => {
  it('sees every round: what was drafted, what of it stood, and that together they are the text', async () => {
    using engine = await load();
    const text: number[] = [];
    const onRound = ({ tree, verdict, committed }: Round, kept: number): void => {
      expect(committed).toBe(prompt.length + text.length);
      const drafts = Array.from(verdict!.path.subarray(1, verdict!.pathLength), (node) => tree!.tokens[node]!);
      text.push(...[...drafts, verdict!.bonus].slice(0, kept));
    };
    const { newIds, stats } = await drain(engine.stream(prompt, { maxTokens: 20, onRound }));
    expect(text).toEqual(newIds.slice(1)); // the first comes out of prefill
    expect(stats.counters.num_accepted_tokens).toBe(text.length - stats.rounds);
  });

  it('what it throws ends the text, and leaves the engine free', async () => {
    using engine = await load();
    const onRound = (): void => {
      throw new Error('the disk is full');
    };
    await expect(drain(engine.stream(prompt, { maxTokens: 20, onRound }))).rejects.toThrow('the disk is full');
    expect((await drain(engine.stream(prompt, { maxTokens: 3 }))).newIds).toHaveLength(3);
  });
});

describe('abort', () => {
  it('before anything is computed', async () => {
    using engine = await load();
    const result = await drain(engine.stream(prompt, { signal: AbortSignal.abort() }));
    expect(result).toMatchObject({ stopReason: 'abort', newIds: [], text: '' });
  });

  it('within the prefill of a long prompt', async () => {
    using engine = await load();
    const controller = new AbortController();
    setImmediate(() => controller.abort());
    const long = Array.from({ length: 480 }, (_, i) => i % 512);
    const result = await drain(engine.stream(long, { signal: controller.signal, prefillChunk: 4 }));
    expect(result).toMatchObject({ stopReason: 'abort', newIds: [] });
    expect((await drain(engine.stream(prompt, { maxTokens: 3 }))).newIds).toHaveLength(3);
  });

  it.each([
    { kind: 'static', nodes: 12 },
    { kind: 'chain', depth: 4 },
    { kind: 'dynamic', depth: 3, topK: 4, total: 16 },
  ] satisfies TreeOption[])(
    'wherever it is looked for, with any drafter: the beginning of the text, and the next is whole, %o',
    async (tree) => {
      using engine = await loadEngine({ model, head, dtype: 'f32', tree });
      for (const drafter of [...engine.drafters, new BigramDrafter()]) {
        for (const verify of VERIFIERS) {
          const options = { drafter, verify, temperature: 1, seed: 3, maxTokens: 16, prefillChunk: 2 };
          engine.forget();
          const whole = await drain(engine.stream(prompt, options));
          let aborted = true;
          for (let looks = 0; aborted; looks++) {
            const signal = abortsAfter(looks);
            const cut = await drain(engine.stream(prompt, { ...options, signal }));
            aborted = cut.stopReason === 'abort';
            expect(cut.newIds).toEqual(whole.newIds.slice(0, cut.newIds.length));
            expect((await drain(engine.stream(prompt, options))).newIds).toEqual(whole.newIds);
          }
        }
      }
    },
  );

  it('within the text, which then is what was streamed', async () => {
    using engine = await loadEngine({ dtype: 'q8', treeSize: 8, contextSize: 128 });
    const controller = new AbortController();
    let streamed = '';
    const stream = engine.stream(engine.encode('Once upon a time'), {
      signal: controller.signal,
      stop: [', there lived'],
    });
    let next = await stream.next();
    for (let rounds = 0; !next.done; next = await stream.next()) {
      streamed += next.value.text;
      if (++rounds === 4) controller.abort();
    }
    expect(next.value.stopReason).toBe('abort');
    expect(next.value.text).toBe(streamed);
    expect(next.value.text).toBe(engine.tokenizer!.decode(next.value.newIds));
    expect(next.value.newIds.length).toBeGreaterThan(3);
  });
});

describe('costs of forwards', () => {
  it('are measured once, refined by whoever drafts, and taken up by the next load', async () => {
    const cacheDir = mkdtempSync(join(tmpdir(), 'eaglet-engine-'));
    const auto = (): Promise<Engine> => loadEngine({ model, head, dtype: 'f32', cacheDir });
    const kept = (of: 'target' | 'head'): string => {
      const files = readdirSync(join(cacheDir, 'costs')).map((file) =>
        readFileSync(join(cacheDir, 'costs', file), 'utf8'),
      );
      expect(files).toHaveLength(2); // one for both that draft with the head, none for drafts that are free
      return files.find((text) => (JSON.parse(text).key.forwards === 'target') === (of === 'target'))!;
    };
    const firstPoint = (text: string): number => JSON.parse(text).curve[0].ms;
    try {
      let measured: string;
      {
        using engine = await auto();
        measured = kept('target');
        await drain(engine.stream(prompt, { maxTokens: 8 }));
      }
      expect(kept('target')).toBe(measured); // too few rounds to know better
      const measuredHead = kept('head');
      {
        using engine = await auto();
        const budgets = engine.drafters.flatMap((name) => engine.budgetOf(name) ?? []);
        expect(budgets).toHaveLength(4);
        const [{ target }] = budgets as [TreeBudget];
        expect(target.at(1)).toBe(firstPoint(measured));
        expect(new Set(budgets.map((budget) => budget.target))).toEqual(new Set([target]));
        expect(engine.budgetOf('hybrid')!.draft).toBe(engine.budgetOf('eagle')!.draft);
        const lookup = engine.budgetOf('prompt-lookup')!;
        const options = { drafter: 'prompt-lookup', maxTokens: 32, endTokens: new Set<number>() } as const;
        while (lookup.rounds < 64) await drain(engine.stream(prompt, options));
      }
      expect(kept('target')).not.toBe(measured);
      expect(kept('head')).toBe(measuredHead);
      using engine = await auto();
      expect(engine.budgetOf('eagle')!.target.at(1)).toBe(firstPoint(kept('target')));
    } finally {
      rmSync(cacheDir, { recursive: true, force: true });
    }
  });
});

describe('the default drafter', () => {
  const medusa = new URL('../golden/medusa-tiny/heads-v2', import.meta.url).pathname;
  it.each([
    ['hybrid', 'with a head', { head }],
    ['hybrid', 'with a head and a tree of its own choice', { head, tree: { kind: 'auto' } }],
    ['hybrid', 'with a head and Medusa heads', { head, medusa }],
    ['eagle', 'with a head and a tree that was asked for', { head, treeSize: 4 }],
    ['medusa', 'with Medusa heads alone', { medusa }],
    ['none', 'with a draft model alone', { draftModel: model }],
  ] satisfies [DrafterName, string, EngineOptions][])('is %s %s', async (name, _, options) => {
    using engine = await loadEngine({ model, dtype: 'f32', cacheDir: directory, ...options });
    expect(engine.defaultDrafter).toBe(name);
    expect(engine.budget).toBe(engine.budgetOf(name));
    expect(engine.budget === undefined).toBe(['eagle', 'none'].includes(name));
    const request = { maxTokens: 12, endTokens: new Set<number>() };
    const { newIds } = await drain(engine.stream(prompt, request));
    expect(newIds).toEqual((await drain(engine.stream(prompt, { ...request, drafter: 'none' }))).newIds);
    if (engine.budget !== undefined) expect(engine.budget.rounds).toBeGreaterThan(0);
  });
});

describe('a second text', () => {
  it('computes again only what is new, and says so; after `forget` all of it', async () => {
    using engine = await load();
    const first = await drain(engine.stream(prompt, { maxTokens: 8 }));
    const next = [...prompt, ...first.newIds, 9, 10];
    const second = await drain(engine.stream(next, { maxTokens: 8 }));
    expect(second.stats).toMatchObject({ promptTokens: 16, cachedTokens: 13 });
    engine.forget();
    const anew = await drain(engine.stream(next, { maxTokens: 8 }));
    expect(anew.stats).toMatchObject({ promptTokens: 16, cachedTokens: 0 });
    expect(anew.newIds).toEqual(second.newIds);
  });

  it('cannot be forgotten while it is written', async () => {
    using engine = await load();
    const stream = engine.stream(prompt);
    await stream.next();
    expect(() => engine.forget()).toThrow('a generation is running on this engine');
  });
});

/** The path of the tiny GGUF with keys changed. */
function written(name: string, changes: Parameters<typeof withKeys>[0]): string {
  const path = join(directory, name);
  writeFileSync(path, buildGguf(withKeys(changes)));
  return path;
}

it('loading is told of part by part, up to the whole', async () => {
  const heard: LoadProgress[] = [];
  using engine = await load({ onProgress: (progress) => void (progress.phase === 'load' && heard.push(progress)) });
  const { totalBytes } = heard[0]!;
  const loaded = heard.map(({ loadedBytes }) => loadedBytes);
  expect(heard.every((progress) => progress.totalBytes === totalBytes && progress.source === model)).toBe(true);
  expect(loaded).toEqual(loaded.toSorted((a, b) => a - b));
  expect(loaded.length).toBeGreaterThan(10);
  expect(loaded.at(-1)).toBe(totalBytes);
  expect(totalBytes).toBeGreaterThanOrEqual(engine.weightBytes);
});

describe('the chat template', () => {
  const withTemplate = (name: string, template: string): string =>
    written(name, {
      'tokenizer.ggml.bos_token_id': { type: 'u32', value: 4 },
      'tokenizer.chat_template': { type: 'string', value: template },
    });

  it('has the texts of BOS and EOS, of which a control token becomes one', async () => {
    using engine = await loadEngine({
      model: withTemplate('template.gguf', '{{ bos_token }}{{ messages[0].content }}{{ eos_token }}'),
    });
    const messages = [{ role: 'user', content: 'c' }];
    expect(engine.chatTemplate!.render(messages, { addGenerationPrompt: true })).toBe('abc<|end|>');
    expect(engine.encode(messages)).toEqual([4, 3, 0]);
  });

  it('is named by its file where it is none', async () => {
    const path = withTemplate('no-template.gguf', '{% for %}');
    await expect(loadEngine({ model: path })).rejects.toThrow(`${path}: chat_template: is not a Jinja template`);
  });
});

describe('requests that cannot be served', () => {
  it.each([
    ['an empty prompt', [], {}, 'prompt: must have at least one token'],
    [
      'a prompt longer than the context',
      new Array<number>(64).fill(1),
      {},
      'prompt: 64 tokens leave no room in a context of 64',
    ],
    ['a token that does not exist', [1, 512], {}, 'prompt: token ids are 0..511, got 512'],
    ['no tokens wanted', prompt, { maxTokens: 0 }, 'maxTokens: must be a whole number of at least 1, got 0'],
    ['half a token wanted', prompt, { maxTokens: 1.5 }, 'maxTokens: must be a whole number of at least 1, got 1.5'],
    ['no prefill', prompt, { prefillChunk: 0 }, 'prefillChunk: must be a whole number of at least 1, got 0'],
    ['a temperature below zero', prompt, { temperature: -1 }, 'temperature: must be in 0..100, got -1'],
    ['a bias of nobody', prompt, { logitBias: new Map([[512, 1]]) }, 'logitBias: ids are 0..511, got 512'],
    ['an empty stop string', prompt, { stop: [''] }, 'stop: must not hold an empty string'],
    ['a stop string alone', prompt, { stop: '5' as never }, 'stop: must be a list of strings, got "5"'],
  ])('%s', async (_, ids, options, message) => {
    using engine = await load({ contextSize: 64 });
    const forward = vi.spyOn(engine.target, 'forward');
    const error: unknown = await drain(engine.stream(ids, options)).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(RequestError);
    expect((error as RequestError).message).toBe(message);
    expect(forward).not.toHaveBeenCalled();
  });

  it('text for a model without a tokenizer, a drafter without a head, a context of nothing', async () => {
    using engine = await loadEngine({ model, dtype: 'f32' });
    expect(() => engine.encode('hello')).toThrow('the model has no tokenizer');
    await expect(engine.stream(prompt, { drafter: 'eagle' }).next()).rejects.toThrow('"eagle" is not loaded');
    expect([engine.defaultDrafter, ...engine.drafters]).toEqual(['none', 'none', 'prompt-lookup', 'lookahead']);
    const plain = await drain(engine.stream(prompt, { maxTokens: 24 }));
    expect((await drain(engine.stream(prompt, { maxTokens: 24, drafter: 'lookahead' }))).newIds).toEqual(plain.newIds);
    await expect(load({ contextSize: 1 })).rejects.toThrow('contextSize: must be a whole number of at least 2, got 1');
    await expect(load({ treeSize: 27 })).rejects.toThrow('the static tree has 1..26 nodes, got 27');
    await expect(load({ tree: { kind: 'static' } })).rejects.toThrow('tree: says how many nodes there are');
    const loadTree = (tree: TreeOption) => loadEngine({ model, head, dtype: 'f32', tree, contextSize: 40 });
    await expect(loadTree({ kind: 'chain', depth: 0 })).rejects.toThrow('tree: a chain has a depth of 1..1023, got 0');
    await expect(loadTree({ kind: 'chain', depth: 40 })).rejects.toThrow('does not fit in a context of 40');
    const engines = made.length;
    const lookahead = { window: 30, ngram: 11, guesses: 2 };
    await expect(load({ lookahead, contextSize: 40 })).rejects.toThrow('need a context of 41 tokens, got 40');
    expect(made).toHaveLength(engines); // before anything was loaded
  });

  it.each([
    [{ kind: 'chain', depth: 5 }, 6],
    [{ kind: 'static' }, 26],
    [{ kind: 'static', nodes: 8 }, 8],
    [{ kind: 'dynamic', depth: 3, topK: 4, total: 16 }, 16],
    [{ kind: 'paths', paths: [[0], [3], [0, 0]] }, 4],
  ] satisfies [TreeOption, number][])('the tree %o has %i nodes', async (tree, nodes) => {
    using engine = await loadEngine({ model, head, dtype: 'f32', tree });
    expect([engine.defaultDrafter, engine.budget]).toEqual(['eagle', undefined]); // no place for hybrid's other source
    const plain = await drain(engine.stream(prompt, { maxTokens: 24, drafter: 'none' }));
    const sizes: number[] = [];
    const onRound = ({ treeSize }: Round): void => void sizes.push(treeSize);
    const drafted = await drain(engine.stream(prompt, { maxTokens: 24, onRound }));
    expect(drafted.newIds).toEqual(plain.newIds);
    expect(Math.max(...sizes)).toBe(nodes);
    expect(engine.maxNodes).toBe(Math.max(nodes, 20)); // lookahead's have 20
  });
});

it.each([
  [{ dtype: 'f16' }, 'dtype: must be one of auto, f32, q8, q4, got "f16"'],
  [{ tree: { kind: 'bush' } }, 'tree.kind: must be one of auto, chain, static, medusa, dynamic, paths, got "bush"'],
  [{ tree: null }, 'tree.kind: must be one of auto, chain, static, medusa, dynamic, paths, got nothing'],
  [{ drafters: ['medussa'] }, /^drafters: must be one of none, eagle, .*, medusa, got "medussa"$/],
  [{ drafters: 'medusa' }, 'drafters: must be a list of names, got "medusa"'],
])('refuses a name that a caller without types got wrong: %o', async (options: object, message) => {
  const engines = made.length;
  const loading = loadEngine({ model, head, ...(options as EngineOptions) });
  await expect(loading).rejects.toThrow(RequestError);
  await expect(loading).rejects.toThrow(message);
  expect(made).toHaveLength(engines);
});

it('loads nothing once the signal is aborted, before or while the model is looked for', async () => {
  const engines = made.length;
  await expect(load({ signal: AbortSignal.abort(new Error('no more')) })).rejects.toThrow('no more');
  const controller = new AbortController();
  const loading = load({ signal: controller.signal });
  controller.abort(new Error('too late'));
  await expect(loading).rejects.toThrow('too late');
  expect(made).toHaveLength(engines);
});

it('refuses a drafter whose trees are larger than there is room for', async () => {
  using engine = await load();
  const drafter = Object.assign(new BigramDrafter(), { maxNodes: engine.maxNodes + 1 });
  const wanted = `drafter: trees have at most ${engine.maxNodes} nodes, "bigram" may propose ${engine.maxNodes + 1}`;
  await expect(drain(engine.stream(prompt, { drafter }))).rejects.toThrow(wanted);
});

describe('disposal', () => {
  it('gives everything back, once', async () => {
    const engine = await load();
    expect(made.at(-1)!.held.size).toBeGreaterThan(10);
    engine[Symbol.dispose]();
    expect(everythingReleased()).toBe(true);
    engine[Symbol.dispose]();
    await expect(engine.stream(prompt).next()).rejects.toThrow(DisposedError);
  });

  it('in the middle of a stream ends it with an error', async () => {
    const engine = await load();
    const stream = engine.stream(prompt);
    await stream.next();
    engine[Symbol.dispose]();
    await expect(stream.next()).rejects.toThrow(DisposedError);
  });

  it('in the middle of a round too', async () => {
    const engine = await load();
    const onLogits = (position: number): void => void (position > prompt.length + 2 && engine[Symbol.dispose]());
    await expect(drain(engine.stream(prompt, { onLogits }))).rejects.toThrow(DisposedError);
  });

  it('`using` frees the engine', async () => {
    {
      using engine = await load();
      expect(engine.drafters).toContain('eagle');
    }
    expect(everythingReleased()).toBe(true);
  });

  it('leaves other engines of the process alone', async () => {
    using first = await load({ threads: 2 });
    const wanted = await drain(first.stream(prompt, { maxTokens: 12 }));
    const second = await load({ threads: 1 });
    second[Symbol.dispose]();
    expect((await drain(first.stream(prompt, { maxTokens: 12 }))).newIds).toEqual(wanted.newIds);
  });
});

interface HeadFiles {
  readonly config: Record<string, unknown>;
  /** Of `model.safetensors`: names, shapes and types. */
  readonly header: Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  readonly data: Buffer;
}

/** The golden head with something changed. */
function changedHead(name: string, change: (files: HeadFiles) => void): string {
  const path = join(directory, name);
  cpSync(head, path, { recursive: true });
  const bytes = readFileSync(join(path, 'model.safetensors'));
  const headerBytes = Number(bytes.readBigUInt64LE());
  const files: HeadFiles = {
    config: JSON.parse(readFileSync(join(path, 'config.json'), 'utf8')) as HeadFiles['config'],
    header: JSON.parse(bytes.toString('utf8', 8, 8 + headerBytes)) as HeadFiles['header'],
    data: bytes.subarray(8 + headerBytes),
  };
  change(files);
  const header = JSON.stringify(files.header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(Buffer.byteLength(header)));
  writeFileSync(join(path, 'model.safetensors'), Buffer.concat([length, Buffer.from(header), files.data]));
  writeFileSync(join(path, 'config.json'), JSON.stringify(files.config));
  return path;
}

/** With a draft vocabulary of four tokens, given as offsets. */
function withDraftVocabulary(name: string, offsets: readonly bigint[], type = 'I64'): string {
  const path = changedHead(name, ({ config, header, data }) => {
    config.draft_vocab_size = 4;
    header.d2t = {
      dtype: type,
      shape: [offsets.length],
      data_offsets: [data.length, data.length + 8 * offsets.length],
    };
  });
  const file = join(path, 'model.safetensors');
  const tail = Buffer.from(BigInt64Array.from(offsets).buffer);
  writeFileSync(file, Buffer.concat([readFileSync(file), tail]));
  return path;
}

describe('a head that does not fit is refused by name, and all memory given back', () => {
  const cases: readonly (readonly [string, () => string, RegExp])[] = [
    ['no such directory', () => join(directory, 'nowhere'), /nowhere\/config\.json: file: must exist/],
    [
      'no weights',
      () => {
        const path = changedHead('no-weights', () => {});
        rmSync(join(path, 'model.safetensors'));
        return path;
      },
      /no-weights: directory: must hold model\.safetensors or pytorch_model\.bin/,
    ],
    [
      'config.json that is no JSON',
      () => {
        const path = changedHead('no-json', () => {});
        writeFileSync(join(path, 'config.json'), '{"hidden_size": ');
        return path;
      },
      /no-json\/config\.json: file: must be JSON/,
    ],
    [
      'another hidden size',
      () => changedHead('hidden', ({ config }) => Object.assign(config, { hidden_size: 128, num_attention_heads: 8 })),
      /hidden\/.*: hidden_size: must be the target's 64, got 128/,
    ],
    [
      'another vocabulary',
      () => changedHead('vocab', ({ config }) => Object.assign(config, { vocab_size: 500 })),
      /vocab\/.*: vocab_size: must be the target's 512, got 500/,
    ],
    [
      'a missing tensor',
      () => changedHead('missing', ({ header }) => void delete header['layers.0.mlp.up_proj.weight']),
      /missing\/.*/,
    ],
    [
      'a tensor of another shape',
      () => changedHead('shape', ({ header }) => void header['fc.weight']!.shape.reverse()),
      /shape\/model\.safetensors: fc\.weight: expected shape \[64,128\], got \[128,64\]/,
    ],
    [
      'a truncated file',
      () => {
        const path = changedHead('short', () => {});
        truncateSync(join(path, 'model.safetensors'), 4000);
        return path;
      },
      /short\/model\.safetensors: /,
    ],
    [
      'a draft vocabulary without its map',
      () => changedHead('no-map', ({ config }) => Object.assign(config, { draft_vocab_size: 4 })),
      /no-map\/.*: d2t: must be present: the draft vocabulary has 4 tokens/,
    ],
    [
      'a map of another length',
      () => withDraftVocabulary('long', [0n, 0n, 0n, 0n, 0n]),
      /d2t: expected I64 \[4\], got I64 \[5\]/,
    ],
    ['a map of another type', () => withDraftVocabulary('floats', [0n, 0n, 0n, 0n], 'F64'), /floats\/.*/],
    [
      'a map that turns back',
      () => withDraftVocabulary('back', [0n, 5n, 0n, 0n]),
      /d2t\[2\]: target ids must ascend below 512, got 2 after 6/,
    ],
    [
      'a map out of the vocabulary',
      () => withDraftVocabulary('out', [0n, 0n, 0n, 509n]),
      /d2t\[3\]: target ids must ascend below 512, got 512/,
    ],
    [
      'a map below it',
      () => withDraftVocabulary('below', [-1n, 0n, 0n, 0n]),
      /d2t\[0\]: target ids must ascend below 512, got -1/,
    ],
  ];

  mkdirSync(directory, { recursive: true });
  it.each(cases)('%s', async (_, make, message) => {
    const error: unknown = await load({ head: make() }).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(CheckpointError);
    expect((error as CheckpointError).message).toMatch(message);
    expect(everythingReleased()).toBe(true);
  });

  it('a head with a draft vocabulary that fits is taken', async () => {
    using engine = await load({ head: withDraftVocabulary('fits', [0n, 9n, 99n, 508n]) });
    using plain = await loadEngine({ model, dtype: 'f32' });
    const { newIds } = await drain(engine.stream(prompt, { maxTokens: 16 }));
    expect(newIds).toEqual((await drain(plain.stream(prompt, { maxTokens: 16 }))).newIds);
  });
});

describe('a draft model', () => {
  const load = (options: Parameters<typeof loadEngine>[0]): Promise<Engine> => loadEngine({ dtype: 'f32', ...options });

  it('writes ahead what the target would', async () => {
    using engine = await load({ model, draftModel: model, tree: { kind: 'chain', depth: 4 } });
    const options = { maxTokens: 40, endTokens: new Set<number>() };
    const drafted = await drain(engine.stream(prompt, { ...options, drafter: 'draft' }));
    expect(drafted.newIds).toEqual((await drain(engine.stream(prompt, { ...options, drafter: 'none' }))).newIds);
    expect(drafted.stats.acceptanceLength).toBeGreaterThan(3); // the same model, but for its weights' precision
  });

  it('is not there unless it was asked for', async () => {
    using engine = await load({ model, head });
    await expect(drain(engine.stream(prompt, { drafter: 'draft' }))).rejects.toThrow(
      /drafter: "draft" is not loaded, available: none, eagle, /,
    );
  });

  it('of another vocabulary is refused', async () => {
    const tiny = written('tiny.gguf', {});
    const number = made.length;
    await expect(load({ model, draftModel: tiny })).rejects.toThrow(
      "draftModel: must have the target's vocabulary of 512 tokens, has 8",
    );
    expect(made.slice(number).every(({ held, disposed }) => held.size === 0 && disposed)).toBe(true);
    const tokens = ['<|end|>', 'a', 'b', 'c', 'ba', '\ufeff', 'é', '__proto__'];
    const other = written('other.gguf', {
      'tokenizer.ggml.tokens': { type: 'strings', value: tokens },
      'tokenizer.ggml.merges': { type: 'strings', value: ['b a'] },
    });
    await expect(load({ model: tiny, draftModel: other })).rejects.toThrow(
      `draftModel: must have the target's tokens: 4 is "ab", there "ba"`,
    );
    using engine = await load({ model: tiny, draftModel: tiny });
    expect(engine.drafters).toContain('draft');
  });
});
