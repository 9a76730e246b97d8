/** Composition root: model reference → tokenizer, target, drafter. The asynchronous edge around the synchronous core. */
import { existsSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type Checkpoint, openCheckpoint } from './checkpoint/checkpoint.ts';
import { openHeadFiles } from './checkpoint/head.ts';
import { defaultCacheDir, type FetchProgress, resolveModel } from './checkpoint/hub.ts';
import { openMedusaFiles } from './checkpoint/medusa.ts';
import { type GenerateEvent, type GenerateOptions, generate, type Round, type StopReason } from './decode/generate.ts';
import { type GenerationStats, StatsCollector } from './decode/stats.ts';
import type { TreeBudget } from './draft/budget.ts';
import { fingerprint, KnownCosts } from './draft/cost-cache.ts';
import { ForwardCost, FREE, type TreeCosts } from './draft/costs.ts';
import type { Drafter } from './draft/drafter.ts';
import { EagleHead } from './draft/eagle-head.ts';
import { checkLookahead, type LookaheadOptions } from './draft/lookahead-options.ts';
import { type DraftForwards, measureDraft, measureTarget } from './draft/measure-costs.ts';
import { MedusaHeads } from './draft/medusa-heads.ts';
import { createDrafter, DRAFTERS, type DrafterName } from './draft/registry.ts';
import { TREE_KINDS, type TreeOption, treePolicy } from './draft/tree-option.ts';
import type { TreePolicy } from './draft/tree-policy.ts';
import { DisposedError, RequestError, show } from './errors.ts';
import { createKernels } from './kernels/choose.ts';
import type { KernelClock } from './kernels/clocked.ts';
import type { Kernels } from './kernels/kernels.ts';
import { addonPath } from './kernels/native.ts';
import type { KvCache } from './model/kv-cache.ts';
import { loadTarget } from './model/registry.ts';
import type { TargetModel } from './model/target.ts';
import { MODEL_DTYPES, type ModelDtype } from './model/weights.ts';
import { packageInfo } from './package-info.ts';
import { type ChatMessage, ChatTemplate } from './tokenizer/chat-template.ts';
import { StopMatcher, StreamingDetokenizer } from './tokenizer/detokenizer.ts';
import { type Tokenizer, tokenizerFromGguf, tokenizerFromJson } from './tokenizer/tokenizer.ts';

export interface EngineOptions {
  /** A path or a built-in alias. */
  readonly model?: string;
  readonly dtype?: ModelDtype;
  /** Directory of an EAGLE head; by default the one that ships for the model. */
  readonly head?: string;
  /** A path or a built-in alias of a small model with the target's vocabulary; by default the one that ships, if `drafters` names `draft`. */
  readonly draftModel?: string;
  /** Directory of Medusa heads; by default those that ship, if `drafters` names them. */
  readonly medusa?: string;
  /** Drafters that will be asked for: a draft model and Medusa heads that ship for the model are loaded where they are named here. */
  readonly drafters?: readonly DrafterName[];
  /** Working threads; by default the physical cores. */
  readonly threads?: number;
  /** Tokens of prompt and answer together; by default what the model was trained for. */
  readonly contextSize?: number;
  /** Nodes of EAGLE's static tree, root included (1..26). */
  readonly treeSize?: number;
  /** The drafters' tree: by default `auto`, what pays on this machine and text. `{ kind: 'static', nodes }` is what `treeSize` asks for. */
  readonly tree?: TreeOption;
  /** The lookahead drafter's window, n-grams and guesses, the greatest where a budget decides; by default small ones. */
  readonly lookahead?: LookaheadOptions;
  /** Measures what forwards cost, instead of taking what an earlier load on this machine has measured. */
  readonly remeasure?: boolean;
  /** Instead of `$EAGLET_CACHE`, `$XDG_CACHE_HOME/eaglet` or `~/.cache/eaglet`: for models and measured costs. */
  readonly cacheDir?: string;
  /** Counts the time spent inside kernels, for benchmarks. */
  readonly clock?: KernelClock;
  readonly onProgress?: (progress: FetchProgress | LoadProgress) => void;
  readonly signal?: AbortSignal;
}

/** Weights of the target that were read, once the model is on this machine. */
export interface LoadProgress {
  /** The model's path. */
  readonly source: string;
  readonly phase: 'load';
  readonly loadedBytes: number;
  readonly totalBytes: number;
}

export interface TextOptions extends Omit<GenerateOptions, 'contextSize'> {
  /** A drafter by name, by default `defaultDrafter`, or one of your own, which stays yours: its trees have at most the engine's `maxNodes`. */
  readonly drafter?: DrafterName | Drafter;
  /** Strings that end the text; they are not part of it. `onLogits` sees all tokens of the round in which one is found. */
  readonly stop?: readonly string[];
  readonly signal?: AbortSignal;
  /**
   * Sees every round with its tree, as it was drafted and verified; valid during the call. What it throws ends the text.
   * @param kept tokens of the round that became output: a stop may end the text within it.
   */
  readonly onRound?: (round: Round, kept: number) => void;
}

export interface TextToken {
  readonly id: number;
  /** The characters that this token completes; a token that ends within a character, or may begin a stop string, leaves them to a later one. */
  readonly text: string;
  /** Guessed by the drafter, rather than drawn by the target. */
  readonly drafted: boolean;
}

export interface TextChunk {
  /** The tokens' texts together. After an abort a last chunk without tokens brings what was held back. */
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

/** A drafter's precision never changes the text, only how often its guesses are right. */
export const DRAFT_DTYPE = 'q8';
/** Who drafts where nobody is asked for: the first of these that is loaded. On no task is `eagle` faster than `hybrid` (docs/log.md). */
const PREFERRED: readonly DrafterName[] = ['hybrid', 'eagle', 'medusa'];
export const DEFAULT_MODEL = 'smollm2-135m-instruct';

/** @throws ModelNotFoundError, CheckpointError, RequestError; the signal's reason once it is aborted. */
export async function loadEngine(options: EngineOptions = {}): Promise<Engine> {
  const { signal } = options;
  signal?.throwIfAborted();
  checkNames(options);
  const reference = options.model ?? DEFAULT_MODEL;
  const fetching = {
    ...(options.cacheDir !== undefined && { cacheDir: options.cacheDir }),
    ...(options.onProgress && { onProgress: options.onProgress }),
    ...(signal && { signal }),
  };
  const path = await resolveModel(reference, fetching);
  signal?.throwIfAborted();
  const draftModel = options.draftModel ?? shippedIfAsked('draft', reference, options);
  const draftPath = draftModel && (await resolveModel(draftModel, fetching));
  signal?.throwIfAborted();
  const started = performance.now();
  using checkpoint = await openCheckpoint(path);
  using draft = draftPath === undefined ? undefined : await openCheckpoint(draftPath);
  return new Engine(reference, checkpoint, options, started, draft);
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
  /** Most nodes of a tree, root included, of any of its drafters; one of your own may have as many. */
  readonly maxNodes: number;
  readonly kernels: Kernels;
  readonly #drafters = new Map<DrafterName, Drafter>();
  readonly #cache: KvCache;
  readonly #owned: Disposable[] = []; // in the order of their making
  #busy = false;
  #disposed = false;

  /**
   * @param started when loading began, on `performance.now()`'s clock.
   * @param draft of the draft model.
   */
  constructor(
    reference: string,
    checkpoint: Checkpoint,
    options: EngineOptions,
    started = performance.now(),
    draft?: Checkpoint,
  ) {
    const { config, source, tokenizer } = checkpoint;
    const contextSize = options.contextSize ?? config.contextLength;
    if (!Number.isInteger(contextSize) || contextSize < 2)
      throw new RequestError('contextSize', `must be a whole number of at least 2, got ${contextSize}`);
    if (contextSize > config.contextLength)
      throw new RequestError('contextSize', `must be at most the model's ${config.contextLength}, got ${contextSize}`);
    this.contextSize = contextSize;
    // Both are refused before anything is loaded.
    const wanted = readTree(options, this.contextSize);
    if (options.lookahead !== undefined) checkLookahead(options.lookahead, this.contextSize);
    this.tokenizer = tokenizer && buildTokenizer(tokenizer, checkpoint.path);
    if (draft !== undefined) checkTokens(this.tokenizer, draft, config.vocabSize);
    this.chatTemplate = buildChatTemplate(checkpoint, this.tokenizer);
    try {
      const kernels = createKernels({
        ...(options.threads !== undefined && { threads: options.threads }),
        ...(options.clock && { clock: options.clock }),
      });
      this.#own({ [Symbol.dispose]: () => kernels.dispose() });
      this.kernels = kernels;
      this.target = this.#own(
        loadTarget(kernels, config, source, {
          dtype: options.dtype ?? 'auto',
          ...(options.onProgress && { onBytes: counted(checkpoint, options.onProgress) }),
        }),
      );
      const headDirectory = options.head ?? shipped('eagle', reference);
      const medusaDirectory = options.medusa ?? shippedIfAsked('medusa', reference, options);
      // The same for all drafters.
      let head: EagleHead | undefined;
      const costs = this.#own(knownCosts(kernels, checkpoint.path, options));
      const drafterFiles: Partial<Record<DrafterName, string | undefined>> = {
        eagle: headDirectory,
        hybrid: headDirectory,
        draft: draft?.path,
        medusa: medusaDirectory,
      };
      const parts = {
        target: this.target,
        contextSize: this.contextSize,
        tree: wanted,
        lookahead: options.lookahead,
        openMedusa: medusaDirectory === undefined ? undefined : () => openMedusa(this.target, medusaDirectory),
        openHead: headDirectory === undefined ? undefined : () => (head ??= openHead(this.target, headDirectory)),
        openDraftModel:
          draft && ((): TargetModel => loadTarget(kernels, draft.config, draft.source, { dtype: DRAFT_DTYPE })),
        costs: (name: DrafterName, forwards: (() => DraftForwards) | undefined): TreeCosts => {
          const target = costs.of('target', () => measureTarget(this.target));
          if (forwards === undefined) return { target, draft: new ForwardCost(FREE) };
          const files = drafterFiles[name];
          return { target, draft: costs.of(files ? fingerprint(files) : name, () => measureDraft(forwards)) };
        },
      };
      for (const name of DRAFTERS) {
        const drafter = createDrafter(name, parts);
        if (drafter !== undefined) this.#drafters.set(name, this.#own(drafter));
      }
      this.maxNodes = Math.max(...Array.from(this.#drafters.values(), ({ maxNodes }) => maxNodes));
      this.#cache = this.#own(this.target.createCache(1, this.contextSize + this.maxNodes));
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
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
   * Streams the continuation of token ids; returns the whole. One generation at a time. What the prompt has in common with the text
   * before, from its start on, is not computed again.
   * @throws RequestError for bad options; an abort ends the stream with stopReason `abort`.
   */
  async *stream(promptIds: readonly number[], options: TextOptions = {}): AsyncGenerator<TextChunk, TextResult, void> {
    if (this.#disposed) throw new DisposedError('the engine');
    if (this.#busy) throw new RequestError('stream', 'another generation is running on this engine');
    const name = options.drafter ?? this.defaultDrafter;
    const drafter = typeof name === 'string' ? this.#drafters.get(name) : name;
    if (drafter === undefined)
      throw new RequestError('drafter', `"${name}" is not loaded, available: ${this.drafters.join(', ')}`);
    if (drafter.maxNodes > this.maxNodes)
      throw new RequestError(
        'drafter',
        `trees have at most ${this.maxNodes} nodes, "${drafter.name}" may propose ${drafter.maxNodes}`,
      );
    this.#busy = true;
    try {
      const answer = new Answer(promptIds, this.tokenizer, options);
      const endTokens = options.endTokens ?? this.tokenizer?.endTokens;
      const rounds = generate(this.target, drafter, this.#cache, promptIds, {
        ...options,
        ...(endTokens && { endTokens }),
        contextSize: this.contextSize,
      });
      while (answer.stopReason === undefined && !options.signal?.aborted) {
        if (this.#disposed) throw new DisposedError('the engine');
        const began = performance.now();
        const next = this.#next(rounds);
        if (next.done) break;
        const chunk = answer.take(next.value, performance.now() - began);
        if (chunk !== undefined) yield chunk;
        // Lets timers, sockets and signals have their turn: the core itself never waits.
        await nextTurn();
      }
      const held = answer.end();
      if (held !== '') yield { text: held, tokens: [] };
      return answer.result(drafter.budget?.target);
    } finally {
      this.#busy = false;
    }
  }

  /** @throws DisposedError too where `onLogits` disposes of the engine: what is left of the round then meets caches that are gone. */
  #next(rounds: ReturnType<typeof generate>): IteratorResult<GenerateEvent, void> {
    try {
      return rounds.next();
    } catch (error) {
      throw this.#disposed ? new DisposedError('the engine', { cause: error }) : error;
    }
  }

  /** The continuation as a whole. */
  async complete(
    prompt: string | readonly ChatMessage[],
    options: TextOptions & { readonly onTextChunk?: (text: string) => void } = {},
  ): Promise<TextResult> {
    const stream = this.stream(this.encode(prompt), options);
    try {
      for (;;) {
        const next = await stream.next();
        if (next.done) return next.value;
        options.onTextChunk?.(next.value.text);
      }
    } finally {
      await stream.return(undefined as never); // a callback that throws leaves no generation behind
    }
  }

  /** Drops the text that the caches hold: the next prompt is computed from its first token. */
  forget(): void {
    if (this.#disposed) throw new DisposedError('the engine');
    if (this.#busy) throw new RequestError('forget', 'a generation is running on this engine');
    this.#cache.sequences[0]!.truncate(0);
  }

  /** Bytes of the target's weights in memory. */
  get weightBytes(): number {
    return this.target.weightBytes;
  }

  /** What decides the default drafter's trees; undefined where the tree was asked for, or nothing drafts by default. */
  get budget(): TreeBudget | undefined {
    return this.budgetOf(this.defaultDrafter);
  }

  /** What decides a drafter's trees, if it is loaded and a budget does. */
  budgetOf(name: DrafterName): TreeBudget | undefined {
    return this.#drafters.get(name)?.budget;
  }

  /** Who guesses ahead where a request does not say: `hybrid` with a head, `eagle` where a tree is asked for, else `medusa` or `none`. */
  get defaultDrafter(): DrafterName {
    return PREFERRED.find((name) => this.#drafters.has(name)) ?? 'none';
  }

  /** All that are loaded. */
  get drafters(): readonly DrafterName[] {
    return [...this.#drafters.keys()];
  }

  #own<T extends Disposable>(part: T): T {
    this.#owned.push(part);
    return part;
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    for (const part of this.#owned.splice(0).reverse()) part[Symbol.dispose]();
  }
}

/** What a generation has said so far: its tokens become text here, and stop strings end it. */
class Answer {
  readonly #promptIds: readonly number[];
  readonly #detokenizer: StreamingDetokenizer | undefined;
  readonly #matcher: StopMatcher;
  readonly #collector: StatsCollector;
  readonly #onRound: TextOptions['onRound'];
  readonly #newIds: number[] = [];
  #text = '';
  stopReason: TextResult['stopReason'] | undefined;

  constructor(promptIds: readonly number[], tokenizer: Tokenizer | undefined, options: TextOptions) {
    this.#promptIds = promptIds;
    this.#detokenizer = tokenizer && new StreamingDetokenizer(tokenizer);
    this.#matcher = new StopMatcher(options.stop ?? []);
    this.#collector = new StatsCollector(promptIds.length);
    this.#onRound = options.onRound;
  }

  /** @param milliseconds that the event took to compute. */
  take(event: GenerateEvent, milliseconds: number): TextChunk | undefined {
    if (event.type === 'prefill') {
      this.#collector.prefill(event, milliseconds);
      return undefined;
    }
    const tokens = this.#takeTokens(event);
    this.#collector.round(event, tokens.length, milliseconds);
    if (event.tree !== undefined) this.#onRound?.(event, tokens.length);
    const text = tokens.map((token) => token.text).join('');
    this.#text += text;
    return { text, tokens };
  }

  /** The round's tokens up to the one that completes a stop string: it is the last of the output, as an end token is. */
  #takeTokens(round: Round): TextToken[] {
    const tokens: { id: number; text: string; drafted: boolean }[] = [];
    for (const [i, id] of round.tokens.entries()) {
      const matched = this.#matcher.push(this.#detokenizer?.push(id) ?? '');
      this.#newIds.push(id);
      tokens.push({ id, text: matched.text, drafted: i < round.drafted });
      if (matched.stopped) {
        this.stopReason = 'stopString';
        return tokens;
      }
    }
    this.stopReason = round.stopReason;
    if (this.stopReason !== undefined) tokens.at(-1)!.text += this.#rest();
    return tokens;
  }

  /** What was held back: the start of a character, or of a stop string. */
  #rest(): string {
    const last = this.#matcher.push(this.#detokenizer?.flush() ?? '');
    if (last.stopped) this.stopReason = 'stopString';
    return last.text + this.#matcher.flush();
  }

  /** Ends the text where it stands, if nothing has ended it; returns what was held back. */
  end(): string {
    if (this.stopReason !== undefined) return '';
    this.stopReason = 'abort';
    const rest = this.#rest();
    this.#text += rest;
    return rest;
  }

  /** @param costs of the target, where they are known. */
  result(costs: ForwardCost | undefined): TextResult {
    const meanContext = this.#promptIds.length + this.#newIds.length / 2;
    return {
      text: this.#text,
      promptIds: this.#promptIds,
      newIds: this.#newIds,
      stopReason: this.stopReason ?? 'abort',
      stats: this.#collector.stats(costs?.plain(meanContext)),
    };
  }
}

/** What a caller without types may have got wrong. @throws RequestError */
function checkNames({ dtype, tree, drafters }: EngineOptions): void {
  const check = (option: string, known: readonly string[], got: unknown): void => {
    if (!known.some((name) => name === got))
      throw new RequestError(option, `must be one of ${known.join(', ')}, got ${show(got)}`);
  };
  if (dtype !== undefined) check('dtype', MODEL_DTYPES, dtype);
  if (tree !== undefined) check('tree.kind', TREE_KINDS, tree?.kind);
  if (drafters === undefined) return;
  if (!Array.isArray(drafters)) throw new RequestError('drafters', `must be a list of names, got ${show(drafters)}`);
  for (const name of drafters) check('drafters', DRAFTERS, name);
}

/** The tree that was asked for; undefined leaves the choice to the budget. */
function readTree({ tree, treeSize }: EngineOptions, contextSize: number): TreePolicy | undefined {
  if (tree !== undefined && treeSize !== undefined)
    throw new RequestError('tree', 'says how many nodes there are: give no treeSize beside it');
  if (tree !== undefined) return treePolicy(tree, contextSize);
  return treeSize === undefined ? undefined : treePolicy({ kind: 'static', nodes: treeSize });
}

export function buildTokenizer(tokenizer: NonNullable<Checkpoint['tokenizer']>, path: string): Tokenizer {
  return tokenizer.kind === 'gguf'
    ? tokenizerFromGguf(tokenizer.data, path)
    : tokenizerFromJson(tokenizer.tokenizerJson, tokenizer.tokenizerConfig, path);
}

/** Undefined where the model comes without one. @throws CheckpointError naming the model for what is no template. */
export function buildChatTemplate(
  { path, tokenizer: files }: Checkpoint,
  tokenizer: Tokenizer | undefined,
): ChatTemplate | undefined {
  const template = files?.kind === 'gguf' ? files.data.chatTemplate : files?.chatTemplate;
  if (template === undefined) return undefined;
  const textOf = (id: number | undefined): string =>
    id === undefined ? '' : (tokenizer?.decode([id], { includeSpecial: true }) ?? '');
  return new ChatTemplate(template, {
    bosToken: textOf(tokenizer?.bosId),
    eosToken: textOf(tokenizer?.eosId),
    file: path,
  });
}

/** What is told of each part that is read, from the parts' bytes. */
function counted({ path, source }: Checkpoint, onProgress: (progress: LoadProgress) => void): (bytes: number) => void {
  let loadedBytes = 0;
  let totalBytes = 0;
  for (const { byteLength } of source.entries.values()) totalBytes += byteLength;
  return (bytes) => {
    loadedBytes += bytes;
    onProgress({ source: path, phase: 'load', loadedBytes, totalBytes });
  };
}

/** What forwards cost on this machine. */
function knownCosts(kernels: Kernels, model: string, options: EngineOptions): KnownCosts {
  const machine = {
    cpu: cpus()[0]?.model ?? 'unknown',
    isa: kernels.isa,
    threads: kernels.threads,
    dtype: options.dtype ?? 'auto',
    model: fingerprint(model),
    version: packageInfo().version,
    addon: fingerprint(addonPath),
  };
  return new KnownCosts(join(options.cacheDir ?? defaultCacheDir(), 'costs'), machine, options.remeasure ?? false);
}

/** The directory of what ships with the package for a built-in model: a head, a draft model, Medusa heads. */
export function shipped(what: 'eagle' | 'draft' | 'medusa', reference: string): string | undefined {
  if (!/^[\w.-]+$/.test(reference)) return undefined;
  const directory = fileURLToPath(new URL(`../heads/${reference}/${what}/`, import.meta.url));
  return existsSync(join(directory, 'config.json')) ? directory : undefined;
}

/** A load takes longer with them, so these are left out unless they are wanted. */
function shippedIfAsked(what: 'draft' | 'medusa', reference: string, { drafters }: EngineOptions): string | undefined {
  return drafters?.includes(what) ? shipped(what, reference) : undefined;
}

/** A draft model saved without a tokenizer has the target's, as far as can be known. @throws RequestError naming the first token that differs. */
function checkTokens(tokenizer: Tokenizer | undefined, draft: Checkpoint, vocabSize: number): void {
  if (tokenizer === undefined || draft.tokenizer === undefined || draft.config.vocabSize !== vocabSize) return;
  const other = buildTokenizer(draft.tokenizer, draft.path);
  for (let id = 0; id < vocabSize; id++) {
    const [wanted, got] = [tokenizer.textOf(id), other.textOf(id)];
    if (wanted !== got)
      throw new RequestError(
        'draftModel',
        `must have the target's tokens: ${id} is ${JSON.stringify(wanted)}, there ${JSON.stringify(got)}`,
      );
  }
}

function openHead(target: TargetModel, directory: string): EagleHead {
  using files = openHeadFiles(directory);
  return new EagleHead(target, files.config, files.source, { dtype: DRAFT_DTYPE });
}

function openMedusa(target: TargetModel, directory: string): MedusaHeads {
  using files = openMedusaFiles(directory);
  return new MedusaHeads(target, files.config, files.source, { dtype: DRAFT_DTYPE });
}
