/** Composition root: model reference → tokenizer, target, drafter. The asynchronous edge around the synchronous core. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type Checkpoint, openCheckpoint } from './checkpoint/checkpoint.ts';
import { openHeadFiles } from './checkpoint/head.ts';
import { type FetchProgress, resolveModel } from './checkpoint/hub.ts';
import { type GenerateOptions, generate, type StopReason } from './decode/generate.ts';
import { type GenerationStats, StatsCollector } from './decode/stats.ts';
import type { Drafter } from './draft/drafter.ts';
import { EagleDrafter } from './draft/eagle.ts';
import { EagleHead } from './draft/eagle-head.ts';
import { NoDrafter } from './draft/none.ts';
import { staticShape } from './draft/tree.ts';
import { DisposedError, RequestError } from './errors.ts';
import { createKernels } from './kernels/choose.ts';
import type { KernelClock } from './kernels/clocked.ts';
import type { Kernels } from './kernels/kernels.ts';
import type { KvCache } from './model/kv-cache.ts';
import { loadTarget } from './model/registry.ts';
import type { TargetModel } from './model/target.ts';
import type { ModelDtype } from './model/weights.ts';
import { type ChatMessage, ChatTemplate } from './tokenizer/chat-template.ts';
import { StopMatcher, StreamingDetokenizer } from './tokenizer/detokenizer.ts';
import { type Tokenizer, tokenizerFromGguf, tokenizerFromJson } from './tokenizer/tokenizer.ts';

export const DRAFTERS = ['none', 'eagle'] as const;
export type DrafterName = (typeof DRAFTERS)[number];

export interface EngineOptions {
  /** A path or a built-in alias. */
  readonly model?: string;
  readonly dtype?: ModelDtype;
  /** Directory of an EAGLE head; by default the one that ships for the model. */
  readonly head?: string;
  /** Working threads; by default the physical cores. */
  readonly threads?: number;
  /** Tokens of prompt and answer together; by default what the model was trained for. */
  readonly contextSize?: number;
  /** Nodes of EAGLE's static tree, root included (1..26). */
  readonly treeSize?: number;
  /** Counts the time spent inside kernels, for benchmarks. */
  readonly clock?: KernelClock;
  readonly onProgress?: (progress: FetchProgress) => void;
  readonly signal?: AbortSignal;
}

export interface TextOptions extends GenerateOptions {
  readonly drafter?: DrafterName;
  /** Strings that end the text; they are not part of it. */
  readonly stop?: readonly string[];
  readonly signal?: AbortSignal;
}

export interface TextToken {
  readonly id: number;
  /** The characters that this token completes; a token that ends within a character, or may begin a stop string, leaves them to a later one. */
  readonly text: string;
  /** Guessed by the drafter, rather than drawn by the target. */
  readonly drafted: boolean;
}

export interface TextChunk {
  /** The tokens' texts together. */
  readonly text: string;
  readonly tokens: readonly TextToken[];
}

export interface TextResult {
  readonly text: string;
  readonly promptIds: readonly number[];
  readonly newIds: readonly number[];
  readonly stopReason: StopReason | 'stopString' | 'abort';
  readonly stats: GenerationStats;
}

/** Eight nodes cost little more than one on the machines measured so far (docs/kernels.md); `bench cost` shows the curve here. */
const DEFAULT_TREE_SIZE = 8;
/** A head's precision never changes the text, only how often its guesses are right. */
export const HEAD_DTYPE = 'q8';
export const DEFAULT_MODEL = 'smollm2-135m-instruct';

/** @throws ModelNotFoundError, CheckpointError. */
export async function loadEngine(options: EngineOptions = {}): Promise<Engine> {
  const reference = options.model ?? DEFAULT_MODEL;
  const path = await resolveModel(reference, {
    ...(options.onProgress && { onProgress: options.onProgress }),
    ...(options.signal && { signal: options.signal }),
  });
  const started = performance.now();
  const checkpoint = await openCheckpoint(path);
  try {
    return new Engine(reference, checkpoint, options, started);
  } finally {
    checkpoint[Symbol.dispose]();
  }
}

export class Engine implements Disposable {
  readonly target: TargetModel;
  readonly tokenizer: Tokenizer | undefined;
  readonly chatTemplate: ChatTemplate | undefined;
  /** Milliseconds from opening the file to being ready; fetching it is not counted. */
  readonly loadMs: number;
  /** The process's highest resident memory so far, in bytes, once loaded; 0 where the system does not say. */
  readonly peakResidentBytes: number;
  readonly contextSize: number;
  readonly #kernels: Kernels;
  readonly #drafters = new Map<DrafterName, Drafter>();
  readonly #cache: KvCache;
  #busy = false;
  #disposed = false;

  /** @param started when loading began, on `performance.now()`'s clock. */
  constructor(reference: string, checkpoint: Checkpoint, options: EngineOptions, started = performance.now()) {
    const { config, source, tokenizer } = checkpoint;
    const treeSize = options.treeSize ?? DEFAULT_TREE_SIZE;
    const shape = staticShape(treeSize);
    this.contextSize = Math.min(options.contextSize ?? config.contextLength, config.contextLength);
    this.#kernels = createKernels({
      ...(options.threads !== undefined && { threads: options.threads }),
      ...(options.clock && { clock: options.clock }),
    });
    this.tokenizer = tokenizer && buildTokenizer(tokenizer, checkpoint.path);
    const template = chatTemplateOf(checkpoint);
    this.chatTemplate = template === undefined ? undefined : new ChatTemplate(template);
    this.target = loadTarget(this.#kernels, config, source, { dtype: options.dtype ?? 'auto' });
    this.#cache = this.target.createCache(1, this.contextSize + shape.size);
    this.#drafters.set('none', new NoDrafter());
    const headDirectory = options.head ?? shippedHead(reference);
    if (headDirectory !== undefined) {
      try {
        this.#drafters.set(
          'eagle',
          new EagleDrafter(this.target, openHead(this.target, headDirectory), shape, this.contextSize),
        );
      } catch (error) {
        this[Symbol.dispose]();
        throw error;
      }
    }
    this.loadMs = performance.now() - started;
    this.peakResidentBytes = process.resourceUsage().maxRSS * 1024;
  }

  /** Token ids of a prompt text or a chat. */
  encode(prompt: string | readonly ChatMessage[]): number[] {
    const { tokenizer } = this;
    if (tokenizer === undefined) throw new RequestError('prompt', 'the model has no tokenizer: give token ids');
    if (typeof prompt !== 'string') {
      if (this.chatTemplate === undefined) throw new RequestError('messages', 'the model has no chat template');
      return [...this.chatTemplate.encode(tokenizer, prompt, { addGenerationPrompt: true })];
    }
    const ids = [...tokenizer.encode(prompt)];
    return tokenizer.addBos && tokenizer.bosId !== undefined ? [tokenizer.bosId, ...ids] : ids;
  }

  /**
   * Streams the continuation of token ids; returns the whole. One generation at a time.
   * @throws RequestError for bad options; an abort ends the stream with stopReason `abort`.
   */
  async *stream(promptIds: readonly number[], options: TextOptions = {}): AsyncGenerator<TextChunk, TextResult, void> {
    if (this.#disposed) throw new DisposedError('the engine');
    if (this.#busy) throw new RequestError('stream', 'another generation is running on this engine');
    const name = options.drafter ?? (this.#drafters.has('eagle') ? 'eagle' : 'none');
    const drafter = this.#drafters.get(name);
    if (drafter === undefined)
      throw new RequestError('drafter', `"${name}" is not loaded: give the directory of its head`);
    this.#busy = true;
    try {
      const collector = new StatsCollector(promptIds.length);
      const detokenizer = this.tokenizer && new StreamingDetokenizer(this.tokenizer);
      const matcher = new StopMatcher(options.stop ?? []);
      const endTokens = options.endTokens ?? this.tokenizer?.endTokens;
      const newIds: number[] = [];
      let text = '';
      let stopReason: TextResult['stopReason'] | undefined;
      const rounds = generate(this.target, drafter, this.#cache, promptIds, {
        ...options,
        ...(endTokens && { endTokens }),
      });
      while (stopReason === undefined) {
        const began = performance.now();
        const next = rounds.next();
        const milliseconds = performance.now() - began;
        if (next.done) break;
        const event = next.value;
        if (event.type === 'prefill') {
          collector.prefill(milliseconds);
        } else {
          collector.round(event, milliseconds);
          const tokens: { id: number; text: string; drafted: boolean }[] = [];
          for (const [i, id] of event.tokens.entries()) {
            newIds.push(id);
            const matched = matcher.push(detokenizer?.push(id) ?? '');
            tokens.push({ id, text: matched.text, drafted: i < event.drafted });
            if (matched.stopped) {
              stopReason = 'stopString';
              break;
            }
          }
          stopReason ??= event.stopReason;
          if (stopReason !== undefined && stopReason !== 'stopString') {
            const last = matcher.push(detokenizer?.flush() ?? '');
            tokens.at(-1)!.text += last.text + (last.stopped ? '' : matcher.flush());
          }
          const piece = tokens.map((token) => token.text).join('');
          text += piece;
          yield { text: piece, tokens };
        }
        // Lets timers, sockets and signals have their turn: the core itself never waits.
        await nextTurn();
        if (stopReason === undefined && options.signal?.aborted) stopReason = 'abort';
      }
      return { text, promptIds, newIds, stopReason: stopReason ?? 'abort', stats: collector.stats };
    } finally {
      this.#busy = false;
    }
  }

  /** The continuation as a whole. */
  async complete(
    prompt: string | readonly ChatMessage[],
    options: TextOptions & { readonly onTextChunk?: (text: string) => void } = {},
  ): Promise<TextResult> {
    const stream = this.stream(this.encode(prompt), options);
    for (;;) {
      const next = await stream.next();
      if (next.done) return next.value;
      options.onTextChunk?.(next.value.text);
    }
  }

  get kernels(): Kernels {
    return this.#kernels;
  }

  /** Bytes of the target's weights in memory. */
  get weightBytes(): number {
    return this.target.weightBytes;
  }

  get drafters(): readonly DrafterName[] {
    return [...this.#drafters.keys()];
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const drafter of this.#drafters.values()) drafter[Symbol.dispose]();
    this.#cache[Symbol.dispose]();
    this.target[Symbol.dispose]();
    this.#kernels.dispose();
  }
}

function buildTokenizer(tokenizer: NonNullable<Checkpoint['tokenizer']>, path: string): Tokenizer {
  return tokenizer.kind === 'gguf'
    ? tokenizerFromGguf(tokenizer.data, path)
    : tokenizerFromJson(tokenizer.tokenizerJson, tokenizer.tokenizerConfig, path);
}

function chatTemplateOf({ tokenizer }: Checkpoint): string | undefined {
  return tokenizer?.kind === 'gguf' ? tokenizer.data.chatTemplate : tokenizer?.chatTemplate;
}

/** The head that ships with the package for a built-in model. */
export function shippedHead(reference: string): string | undefined {
  if (!/^[\w.-]+$/.test(reference)) return undefined;
  const directory = fileURLToPath(new URL(`../heads/${reference}/eagle/`, import.meta.url));
  return existsSync(join(directory, 'config.json')) ? directory : undefined;
}

function openHead(target: TargetModel, directory: string): EagleHead {
  using files = openHeadFiles(directory);
  return new EagleHead(target, files.config, files.source, { dtype: HEAD_DTYPE });
}
