/**
 * Continuous batching: many texts go on together, one forward at a time. A text that ends leaves its place to the next one at once, whose
 * prompt is computed a chunk at a time in the same forwards that draw the others' tokens. A text depends on its own request alone: kernels
 * add up every row in one fixed order, and draws are keyed by (seed, position), so its tokens are those that `generate` gives.
 *
 * Knows token ids only; nothing of text or conversations.
 */
import { RequestError } from '../errors.ts';
import { COMMITTED, ForwardBatch } from '../model/forward-batch.ts';
import type { KvCache, KvSequence } from '../model/kv-cache.ts';
import type { TargetModel } from '../model/target.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { Sampler, type SamplingOptions } from './sampler.ts';

export interface Continuation extends SamplingOptions {
  readonly promptIds: readonly number[];
  /** New tokens at most. */
  readonly maxTokens: number;
}

export interface Continued<Request extends Continuation> {
  readonly request: Request;
  /** An end token, where one was drawn, is the last. */
  readonly newIds: Int32Array;
  /** By an end token; else there were no more tokens to be had. */
  readonly finished: boolean;
  /** [prompt and new tokens but the last, d] after the final norm, where they were asked for: a text's last token is drawn, never computed. */
  readonly features: Float32Array | undefined;
}

/** What one forward brought. */
export interface BatchStep<Request extends Continuation> {
  readonly ended: readonly Continued<Request>[];
  /** Rows that computed prompts. */
  readonly prefilled: number;
  /** Tokens drawn. */
  readonly drawn: number;
}

export interface BatchOptions {
  readonly endTokens: ReadonlySet<number>;
  /** Rows of prompts that a forward takes beside the rows that draw. */
  readonly prefillRows: number;
  /** Keeps the features that forwards compute anyway. */
  readonly keepFeatures?: boolean;
}

/**
 * Continues every request, as many at a time as the cache has sequences; yields after each forward.
 * @param next the request that takes a free place; undefined while there is none. The batch ends when it is empty and there is none.
 * @throws RequestError for a request that does not fit the cache.
 */
export function* continueBatch<Request extends Continuation>(
  target: TargetModel,
  cache: KvCache,
  next: () => Request | undefined,
  { endTokens, prefillRows, keepFeatures = false }: BatchOptions,
): Generator<BatchStep<Request>, void, void> {
  const places = cache.sequences.map((sequence) => new Place<Request>(target, sequence, keepFeatures));
  const batch = new ForwardBatch(places.length + prefillRows, 1);
  for (;;) {
    refill(places, next);
    const taken = places.filter((place) => place.busy);
    if (taken.length === 0) return;
    batch.clear();
    const wanting: Place<Request>[] = []; // in the order of the logits' rows
    for (const place of taken) if (place.drawing) wanting.push(place.appendDrawn(batch));
    const decoding = batch.rows;
    for (const place of taken) {
      if (!place.drawing && place.appendPrompt(batch, decoding + prefillRows)) wanting.push(place);
    }
    const { logits, features } = target.forward(batch, cache);
    if (keepFeatures) keepRows(places, batch, features);
    for (const place of taken) place.sequence.commitAll();
    const ended = wanting.flatMap((place, row) => place.draw(logits, row, endTokens) ?? []);
    yield { ended, prefilled: batch.rows - decoding, drawn: wanting.length };
  }
}

/** A row's features go where its token stands in its text. */
function keepRows(places: readonly Place<Continuation>[], batch: ForwardBatch, features: Tensor): void {
  const byBase = new Map(places.map((place) => [place.sequence.base, place]));
  for (let row = 0; row < batch.rows; row++)
    byBase.get(batch.layout.base[row]!)!.keepFeatures(batch.positions[row]!, features.row(row));
}

/** Each request takes the free place that holds most of its prompt already: the system message, or the conversation so far. */
function refill<Request extends Continuation>(
  places: readonly Place<Request>[],
  next: () => Request | undefined,
): void {
  const free = new Set(places.filter((place) => !place.busy));
  while (free.size > 0) {
    const request = next();
    if (request === undefined) return;
    let best: Place<Request> | undefined;
    for (const place of free) {
      if (best === undefined || place.held(request) > best.held(request)) best = place;
    }
    free.delete(best!);
    best!.take(request);
  }
}

/** A sequence of the cache and the text that it is for. */
class Place<Request extends Continuation> {
  readonly sequence: KvSequence;
  readonly #target: TargetModel;
  readonly #text: Int32Array; // [capacity + 1] prompt, then what was drawn
  /** [capacity, d] of the sequence's rows, kept as they are: a prompt that begins as the text before did finds them too. */
  readonly #features: Float32Array | undefined;
  #length = 0;
  #request: Request | undefined;
  #sampler: Sampler | undefined;

  constructor(target: TargetModel, sequence: KvSequence, keepFeatures: boolean) {
    this.#target = target;
    this.sequence = sequence;
    if (keepFeatures) this.#features = new Float32Array(sequence.capacity * target.config.hiddenSize);
    this.#text = new Int32Array(sequence.capacity + 1);
  }

  get busy(): boolean {
    return this.#request !== undefined;
  }

  /** The prompt is computed: each forward draws a token. */
  get drawing(): boolean {
    return this.#length > this.#request!.promptIds.length;
  }

  held({ promptIds }: Request): number {
    return Math.min(this.sequence.sharedPrefix(promptIds), promptIds.length - 1);
  }

  take(request: Request): void {
    const { promptIds, maxTokens } = request;
    const room = Math.min(this.sequence.capacity, this.#target.config.contextLength);
    if (promptIds.length === 0) throw new RequestError('prompt', 'must have at least one token');
    if (promptIds.length + maxTokens > room)
      throw new RequestError('prompt', `${promptIds.length} tokens and ${maxTokens} new ones are more than ${room}`);
    this.sequence.truncate(this.held(request));
    this.#text.set(promptIds);
    this.#length = promptIds.length;
    this.#request = request;
    this.#sampler = new Sampler(this.#target.kernels, this.#target.config.vocabSize, request);
  }

  appendDrawn(batch: ForwardBatch): this {
    batch.append(this.sequence, this.#text[this.#length - 1]!, COMMITTED, true);
    return this;
  }

  /** As much of the prompt as a batch of `maxRows` has room for; true when its last token is among them. */
  appendPrompt(batch: ForwardBatch, maxRows: number): boolean {
    let at = this.sequence.length;
    for (let parent = COMMITTED; at < this.#length && batch.rows < maxRows; at++) {
      parent = batch.append(this.sequence, this.#text[at]!, parent, at === this.#length - 1);
    }
    return at === this.#length;
  }

  keepFeatures(position: number, features: Float32Array): void {
    this.#features!.set(features, position * features.length);
  }

  /** Draws the next token; the text, where this ends it, and then the place is free. */
  draw(
    logits: ReturnType<TargetModel['forward']>['logits'],
    row: number,
    endTokens: ReadonlySet<number>,
  ): Continued<Request> | undefined {
    const request = this.#request!;
    const promptLength = request.promptIds.length;
    const position = this.#length;
    const token = this.#sampler!.choose(logits, row, { tokens: this.#text, length: position, promptLength }, position);
    this.#text[this.#length++] = token;
    const finished = endTokens.has(token);
    if (!finished && this.#length - promptLength < request.maxTokens) return undefined;
    this.#request = undefined;
    const features = this.#features?.slice(0, (this.#length - 1) * this.#target.config.hiddenSize);
    return { request, newIds: this.#text.slice(promptLength, this.#length), finished, features };
  }
}
