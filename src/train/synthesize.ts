/**
 * Training text that the target writes itself: it answers prompts, many at a time in one batch, at a temperature of its own for each
 * conversation; and where there are no prompts it writes them too, continuing its chat template's opening of a user's turn.
 *
 * What a conversation says depends on its id, its prompt and the options, not on the others that are written beside it.
 */
import { createHash } from 'node:crypto';
import { type Continuation, type Continued, continueBatch } from '../decode/batch.ts';
import { RequestError } from '../errors.ts';
import type { KvCache } from '../model/kv-cache.ts';
import type { TargetModel } from '../model/target.ts';
import type { ChatMessage, ChatTemplate } from '../tokenizer/chat-template.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { encodeConversation, unlessRefused } from './encode-conversation.ts';
import type { TrainingText } from './unroll.ts';

export interface SynthesisModel {
  readonly target: TargetModel;
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate;
}

export interface SynthesisPrompt {
  readonly id: string;
  /** Up to the first answer. */
  readonly messages: readonly ChatMessage[];
  /** What the user says after each answer. */
  readonly followUps: readonly string[];
}

/** What is to be written. */
export type SynthesisTask =
  | { readonly kind: 'answer'; readonly prompts: Iterable<SynthesisPrompt> }
  /** Conversations that begin with a prompt of the model's own. */
  | { readonly kind: 'invent'; readonly count: number };

export interface SynthesisOptions {
  /** 32 bits. */
  readonly seed: number;
  /** Each conversation has one of them. */
  readonly temperatures: readonly number[];
  /** New tokens of an answer at most. */
  readonly maxTokens: number;
  /** Tokens of a prompt at most, the conversation before it included; longer ones are left out. */
  readonly maxPromptTokens: number;
  /** Rows of prompts that a forward takes beside the rows that draw. */
  readonly prefillRows: number;
  /** Steps give the conversations' features, too: they were computed on the way. */
  readonly keepFeatures?: boolean;
}

/** One line of the output. */
export interface SynthesizedConversation {
  readonly id: string;
  readonly messages: readonly ChatMessage[];
  readonly temperature: number;
  /** The last answer ended by itself; an answer that did not is the last of its conversation. */
  readonly finished: boolean;
  /** Tokens that the model was given, the chat template's included. */
  readonly promptTokens: number;
  /** Tokens that it drew for the answers, end tokens included. */
  readonly newTokens: number;
}

export interface SynthesisCounts {
  conversations: number;
  /** Prompts longer than `maxPromptTokens`, or than the context is beside an answer. */
  tooLong: number;
  /** Prompts that the chat template does not take. */
  refused: number;
  /** Prompts that are there already, or are not to be asked, but for case and white space. */
  duplicates: number;
  /** Conversations whose answer held no text. */
  empty: number;
  /** Invented prompts that did not come to an end, or held no text. */
  unfinishedPrompts: number;
}

/** Conversations that exist: they are not written again, nor are others that ask the same. */
export class Known {
  readonly #ids = new Set<string>();
  readonly #prompts = new Set<string>();
  readonly #excluded = new Set<string>();

  /** Conversations with an id. */
  get size(): number {
    return this.#ids.size;
  }

  has(id: string): boolean {
    return this.#ids.has(id);
  }

  asks(prompt: string): boolean {
    return this.#prompts.has(folded(prompt));
  }

  add(id: string | undefined, prompt: string): void {
    if (id !== undefined) this.#ids.add(id);
    this.#prompts.add(folded(prompt));
  }

  /** Nothing that a user said in it is to be asked, whatever else is said beside it. */
  exclude(messages: readonly ChatMessage[]): void {
    for (const { role, content } of messages) if (role === 'user') this.#excluded.add(folded(content));
  }

  excludes({ messages, followUps }: Omit<SynthesisPrompt, 'id'>): boolean {
    const said = messages.filter(({ role }) => role === 'user').map(({ content }) => content);
    return [...said, ...followUps].some((turn) => this.#excluded.has(folded(turn)));
  }
}

const folded = (text: string): string => text.toLowerCase().replace(/\s+/gu, ' ').trim();

/** All that is said to the model in a conversation. */
export function promptText(messages: readonly ChatMessage[], followUps: readonly string[] = []): string {
  const said = messages.filter(({ role }) => role !== 'assistant').map(({ content }) => content);
  return [...said, ...followUps].join('\n');
}

const invented = (index: number): string => `invented/${index}`;

/** A conversation that is being written. */
interface Draft {
  readonly id: string;
  readonly messages: readonly ChatMessage[];
  readonly followUps: readonly string[];
  /** Tokens of the answers so far. */
  readonly newTokens: number;
}

interface Request extends Continuation {
  readonly draft: Draft;
  readonly writes: 'prompt' | 'answer';
}

/** Invented prompts that do not come to an end before the model is believed not to end any. */
const MOST_UNFINISHED = 1000;
/** Prompts are invented so; colder, they are all alike. */
const INVENTION_TEMPERATURE = 1;

/** Conversations are written in a batch, and some alone: what batching brings is told from the same run. */
export const LANES = ['batch', 'alone'] as const;
export type Lane = (typeof LANES)[number];

export interface SynthesisStep {
  readonly lane: Lane;
  /** Milliseconds that it took. */
  readonly ms: number;
  readonly conversations: readonly SynthesizedConversation[];
  /** The same conversations as the model saw them, where features are kept: their answers count. */
  readonly texts: readonly TrainingText[];
  /** Rows that computed prompts. */
  readonly prefilled: number;
  /** Tokens drawn. */
  readonly drawn: number;
}

export class Synthesis {
  readonly counts: SynthesisCounts = {
    conversations: 0,
    tooLong: 0,
    refused: 0,
    duplicates: 0,
    empty: 0,
    unfinishedPrompts: 0,
  };
  readonly #model: SynthesisModel;
  readonly #options: SynthesisOptions;
  readonly #known: Known;
  readonly #begin: () => Request | undefined;
  /** What goes on with conversations that have begun. */
  readonly #waiting: Request[] = [];
  /** Conversations that have begun and not ended. */
  #open = 0;
  #unfinishedInTurn = 0; // invented prompts

  /** @param known gets the conversations of this synthesis, too. */
  constructor(model: SynthesisModel, task: SynthesisTask, options: SynthesisOptions, known: Known) {
    this.#model = model;
    this.#options = options;
    this.#known = known;
    this.#begin = task.kind === 'answer' ? this.#answers(task.prompts) : this.#inventions(task.count);
  }

  /**
   * Writes until everything is written; each forward is a step.
   * @param caches with one sequence for each conversation of the lane. @param aloneShare of the time that is spent on conversations alone.
   */
  *run(caches: { readonly [L in Lane]: KvCache }, aloneShare: number): Generator<SynthesisStep, void, void> {
    const [batch, alone] = LANES.map((lane) => ({ lane, steps: this.#steps(caches[lane]), ms: 0, done: false }));
    while (!batch!.done || !alone!.done) {
      const turn = alone!.ms <= aloneShare * (alone!.ms + batch!.ms) ? alone! : batch!;
      const taken = !turn.done ? turn : turn === alone ? batch! : alone!;
      const began = performance.now();
      const step = taken.steps.next();
      const ms = performance.now() - began;
      taken.ms += ms;
      if (step.done) taken.done = true;
      else yield { lane: taken.lane, ms, ...step.value };
    }
  }

  *#steps(cache: KvCache): Generator<Omit<SynthesisStep, 'lane' | 'ms'>, void, void> {
    const { target, tokenizer } = this.#model;
    const next = (): Request | undefined => this.#waiting.shift() ?? this.#begin();
    const steps = continueBatch(target, cache, next, {
      endTokens: tokenizer.endTokens,
      prefillRows: this.#options.prefillRows,
      keepFeatures: this.#options.keepFeatures ?? false,
    });
    for (const { ended, prefilled, drawn } of steps) {
      const conversations: SynthesizedConversation[] = [];
      const texts: TrainingText[] = [];
      for (const text of ended) {
        const conversation = this.#proceed(text);
        if (conversation === undefined) continue;
        conversations.push(conversation);
        if (text.features !== undefined) texts.push(this.#trainingText(text, text.features));
      }
      yield { conversations, texts, prefilled, drawn };
    }
  }

  /**
   * A conversation that has ended, as the model saw it. Its last token was never computed: nothing has to be predicted after it. Earlier
   * answers count, too, where the text reads as it was written.
   */
  #trainingText({ request, newIds }: Continued<Request>, features: Float32Array): TrainingText {
    const { tokenizer, template } = this.#model;
    const { promptIds, draft } = request;
    const ids = Int32Array.from([...promptIds, ...newIds.subarray(0, -1)]);
    const mask = new Uint8Array(ids.length);
    const before = { kind: 'chat', messages: draft.messages, finished: true } as const;
    const earlier = encodeConversation(tokenizer, template, before, { maxTokens: ids.length });
    if (typeof earlier !== 'string' && earlier.ids.every((id, i) => id === ids[i])) mask.set(earlier.mask);
    mask.fill(1, promptIds.length);
    return { ids, mask, features };
  }

  #answers(prompts: Iterable<SynthesisPrompt>): () => Request | undefined {
    const left = prompts[Symbol.iterator]();
    return () => {
      for (let next = left.next(); !next.done; next = left.next()) {
        const { id, messages, followUps } = next.value;
        const request = this.#answer({ id, messages, followUps, newTokens: 0 });
        if (request !== undefined) return this.#opened(request);
      }
      return undefined;
    };
  }

  #inventions(count: number): () => Request | undefined {
    const { tokenizer, template } = this.#model;
    const { seed, maxTokens } = this.#options;
    const promptIds = template.encodeOpening(tokenizer, 'user');
    let index = 0;
    const already = this.#known.size;
    return () => {
      if (already + this.counts.conversations + this.#open >= count) return undefined;
      while (this.#known.has(invented(index))) index++;
      const id = invented(index++);
      const draft = { id, messages: [], followUps: [], newTokens: 0 };
      const drawn = drawFor(seed, `${id} prompt`);
      const temperature = INVENTION_TEMPERATURE;
      return this.#opened({ draft, writes: 'prompt', promptIds, maxTokens, temperature, seed: drawn.seed });
    };
  }

  #opened(request: Request): Request {
    this.#open++;
    return request;
  }

  /** The conversation if the text completes it; else what comes next waits for a place. */
  #proceed({ request, newIds, finished }: Continued<Request>): SynthesizedConversation | undefined {
    const text = this.#model.tokenizer.decode(newIds);
    const next =
      request.writes === 'prompt'
        ? this.#afterPrompt(request.draft, text, finished)
        : this.#afterAnswer(request, newIds, text, finished);
    if (next !== undefined && 'writes' in next) {
      this.#waiting.push(next);
      return undefined;
    }
    this.#open--;
    if (next === undefined) return undefined;
    this.counts.conversations++;
    this.#known.add(next.id, promptText(next.messages));
    return next;
  }

  #afterPrompt(draft: Draft, text: string, finished: boolean): Request | undefined {
    const content = text.trim();
    if (!finished || content === '') {
      this.counts.unfinishedPrompts++;
      if (++this.#unfinishedInTurn === MOST_UNFINISHED)
        throw new RequestError(
          'maxTokens',
          `${MOST_UNFINISHED} invented prompts one after another did not come to an end`,
        );
      return undefined;
    }
    this.#unfinishedInTurn = 0;
    const messages = [{ role: 'user', content }];
    if (this.#known.asks(content) || this.#known.excludes({ messages, followUps: [] })) {
      this.counts.duplicates++;
      return undefined;
    }
    this.#known.add(undefined, content); // another one in the batch may be about to ask the same
    return this.#answer({ ...draft, messages });
  }

  #afterAnswer(
    { draft, promptIds, temperature }: Request,
    newIds: Int32Array,
    text: string,
    finished: boolean,
  ): Request | SynthesizedConversation | undefined {
    if (text.trim() === '') {
      this.counts.empty++;
      return undefined;
    }
    const { id } = draft;
    const messages = [...draft.messages, { role: 'assistant', content: text }];
    const newTokens = draft.newTokens + newIds.length;
    const [followUp, ...followUps] = draft.followUps;
    if (finished && followUp !== undefined) {
      const asked = [...messages, { role: 'user', content: followUp }];
      const next = this.#answer({ id, messages: asked, followUps, newTokens });
      if (next !== undefined) return next;
    }
    const promptTokens = promptIds.length - draft.newTokens;
    return { id, messages, temperature: temperature!, finished, promptTokens, newTokens };
  }

  /** Has the last message answered; undefined where the prompt cannot be. */
  #answer(draft: Draft): Request | undefined {
    const { tokenizer, template } = this.#model;
    const { seed, temperatures, maxTokens, maxPromptTokens } = this.#options;
    const promptIds = unlessRefused(() => [
      ...template.encode(tokenizer, draft.messages, { addGenerationPrompt: true }),
    ]);
    if (promptIds === 'refused') {
      this.counts.refused++;
      return undefined;
    }
    if (promptIds.length > Math.min(maxPromptTokens, this.#model.target.config.contextLength - maxTokens)) {
      this.counts.tooLong++;
      return undefined;
    }
    const drawn = drawFor(seed, draft.id);
    const temperature = temperatures[drawn.choice % temperatures.length]!;
    return { draft, writes: 'answer', promptIds, maxTokens, temperature, seed: drawn.seed };
  }
}

/**
 * The prompts that are still to be answered, in an order drawn from the seed, so that the first of them are a fair mixture of all.
 * @param count of all prompts, answered ones included; the first so many in that order.
 */
export function openPrompts(
  prompts: readonly SynthesisPrompt[],
  known: Known,
  options: { readonly seed: number; readonly count?: number },
): { readonly prompts: readonly SynthesisPrompt[]; readonly answered: number; readonly duplicates: number } {
  const asked = new Known();
  let duplicates = 0;
  const open: { readonly prompt: SynthesisPrompt; readonly rank: number }[] = [];
  for (const prompt of prompts) {
    const text = promptText(prompt.messages, prompt.followUps);
    if (asked.has(prompt.id)) {
      if (!asked.asks(text)) throw new RequestError('prompts', `ids must be distinct, got "${prompt.id}" again`);
      duplicates++;
      continue;
    }
    const answeredBefore = known.has(prompt.id);
    if (!answeredBefore && (asked.asks(text) || known.asks(text) || known.excludes(prompt))) duplicates++;
    else open.push({ prompt, rank: drawFor(options.seed, prompt.id).rank });
    asked.add(prompt.id, text);
  }
  const order = open.sort((a, b) => a.rank - b.rank).slice(0, options.count);
  const left = order.filter(({ prompt }) => !known.has(prompt.id)).map(({ prompt }) => prompt);
  return { prompts: left, answered: order.length - left.length, duplicates };
}

/** Numbers that stay with an id: whatever else is written, in whatever order. */
function drawFor(seed: number, id: string): { readonly seed: number; readonly choice: number; readonly rank: number } {
  const digest = createHash('sha256').update(`${seed}\n${id}`).digest();
  return { seed: digest.readUInt32LE(0), choice: digest.readUInt32LE(4), rank: digest.readUIntLE(8, 6) };
}
