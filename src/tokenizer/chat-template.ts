/**
 * Messages to text and to token ids, by the Jinja template that comes with a model.
 * What a user writes never becomes a control token: see `encode`.
 */
import { CheckpointError, RequestError } from '../errors.ts';
import { type Program, parseTemplate, runTemplate } from './template-interpreter.ts';
import { alternatives, type Tokenizer } from './tokenizer.ts';

export interface ChatMessage {
  readonly role: 'system' | 'user' | 'assistant' | string;
  readonly content: string;
}

export interface ChatTemplateOptions {
  /** The template's `bos_token` and `eos_token`. */
  readonly bosToken?: string;
  readonly eosToken?: string;
  /** The file that the template came with, for messages. */
  readonly file?: string;
}

export interface RenderOptions {
  /** Ends with the opening of the assistant's turn. */
  readonly addGenerationPrompt: boolean;
}

/** UTF-16 units. Templates in use have up to 30 thousand. */
const MAX_TEMPLATE = 2 ** 16;
/** Templates write the role between control characters (`<|user|>`), so a free role could forge a control token. */
const ROLES = ['system', 'developer', 'user', 'assistant', 'model', 'tool', 'function', 'ipython'];
/** Unicode's private use area, where stand-ins are taken from. */
const PRIVATE_USE = { first: 0xe000, last: 0xf8ff };

export class ChatTemplate {
  readonly source: string;
  readonly #program: Program;
  readonly #bosToken: string;
  readonly #eosToken: string;

  constructor(source: string, { bosToken = '', eosToken = '', file = 'chat template' }: ChatTemplateOptions = {}) {
    if (source.length > MAX_TEMPLATE) {
      const rule = `must have at most ${MAX_TEMPLATE} UTF-16 units, got ${source.length}`;
      throw new CheckpointError(file, 'chat_template', rule);
    }
    try {
      this.#program = parseTemplate(source);
    } catch (error) {
      throw new CheckpointError(file, 'chat_template', `is not a Jinja template: ${reason(error)}`, { cause: error });
    }
    this.source = source;
    this.#bosToken = bosToken;
    this.#eosToken = eosToken;
  }

  /** For reading. Not to be encoded with control tokens parsed: content may hold them; that is what `encode` is for. */
  render(messages: readonly ChatMessage[], options: RenderOptions): string {
    checkMessages(messages);
    return this.#render(messages, options);
  }

  /**
   * Token ids of the rendered text, in which only the template's own control tokens count. While the template runs, the first
   * character of each control token in the messages is replaced by a private-use stand-in; the text is then split at the
   * control tokens that are left, and each stretch gets its characters back and is encoded whole, so that tokens form
   * across the seams of template and content just as in the plain text.
   *
   * A template could still make a control token from harmless content, by deleting or joining parts of it. So content is also
   * rendered with every character that begins a control token replaced; if that changes which control tokens come out,
   * the request is refused.
   *
   * BOS is the template's affair.
   */
  encode(tokenizer: Tokenizer, messages: readonly ChatMessage[], options: RenderOptions): Int32Array {
    checkMessages(messages);
    const controls = tokenizer.controlTokens;
    const standIns = new StandIns(controls, [this.source, ...messages.map(({ content }) => content)].join('\n'));
    const replaced = (pattern: RegExp): ChatMessage[] =>
      messages.map(({ role, content }) => ({ role, content: standIns.replace(content, pattern) }));
    const partsOf = (these: readonly ChatMessage[]) => tokenizer.splitControls(this.#render(these, options));

    const parts = partsOf(replaced(standIns.controlTokens));
    const strict = replaced(standIns.beginnings);
    if (strict.some(({ content }, i) => content !== messages[i]!.content)) {
      const found = parts.filter((part) => typeof part === 'number');
      const own = partsOf(strict).filter((part) => typeof part === 'number');
      if (found.length !== own.length || found.some((id, i) => id !== own[i])) {
        throw new RequestError('messages', 'the chat template would turn parts of the content into control tokens');
      }
    }
    const restored = parts.map((part) => (typeof part === 'number' ? part : standIns.restore(part)));
    return Int32Array.from(tokenizer.encodeParts(restored));
  }

  /** What a text that begins with a turn of `role` begins with, up to the turn's content: a system message, perhaps, and the turn's opening. */
  encodeOpening(tokenizer: Tokenizer, role: string): number[] {
    const [a, b] = ['a', 'b'].map((content) => this.render([{ role, content }], { addGenerationPrompt: false }));
    let length = 0;
    while (length < a!.length && a![length] === b![length]) length++;
    return tokenizer.encodeParts(tokenizer.splitControls(a!.slice(0, length)));
  }

  #render(messages: readonly ChatMessage[], { addGenerationPrompt }: RenderOptions): string {
    try {
      return runTemplate(this.#program, {
        messages: messages.map(({ role, content }) => ({ role, content })),
        add_generation_prompt: addGenerationPrompt,
        bos_token: this.#bosToken,
        eos_token: this.#eosToken,
      });
    } catch (error) {
      throw new RequestError('messages', `the chat template failed: ${reason(error)}`, { cause: error });
    }
  }
}

/** Characters that hold the places of those that begin control tokens. */
class StandIns {
  /** Matches the first character of every control token, overlapping ones too. */
  readonly controlTokens: RegExp;
  /** Matches every character that some control token begins with. */
  readonly beginnings: RegExp;
  readonly #standIns = new Map<string, string>();
  readonly #originals = new Map<string, string>();
  readonly #pattern: RegExp;

  /** @param taken text whose characters cannot be stand-ins. */
  constructor(controls: readonly string[], taken: string) {
    const beginnings = [...new Set(controls.map((text) => String.fromCodePoint(text.codePointAt(0)!)))];
    const used = new Set(taken);
    let code = PRIVATE_USE.first;
    for (const beginning of beginnings) {
      while (used.has(String.fromCharCode(code))) code++;
      if (code > PRIVATE_USE.last) {
        throw new RequestError('messages', 'must leave some private-use characters of Unicode unused');
      }
      const standIn = String.fromCharCode(code++);
      this.#standIns.set(beginning, standIn);
      this.#originals.set(standIn, beginning);
    }
    this.controlTokens = new RegExp(`(?=${alternatives(controls).source})[^]`, 'gu');
    this.beginnings = alternatives(beginnings);
    this.#pattern = alternatives([...this.#originals.keys()]);
  }

  replace(content: string, pattern: RegExp): string {
    return content.replace(pattern, (character) => this.#standIns.get(character)!);
  }

  restore(text: string): string {
    return text.replace(this.#pattern, (standIn) => this.#originals.get(standIn)!);
  }
}

function checkMessages(messages: readonly ChatMessage[]): void {
  if (messages.length === 0) throw new RequestError('messages', 'must hold at least one message');
  for (const [index, { role, content }] of messages.entries()) {
    if (!ROLES.includes(role)) {
      const rule = `must be one of ${ROLES.join(', ')}, got ${JSON.stringify(role)}`;
      throw new RequestError(`messages[${index}].role`, rule);
    }
    if (typeof content !== 'string') {
      throw new RequestError(`messages[${index}].content`, `must be a string, got ${typeof content}`);
    }
  }
}

function reason(error: unknown): string {
  if (error instanceof RangeError) return `it nests too deep or makes too long a text (${error.message})`;
  return error instanceof Error ? error.message : String(error);
}
