/** From tokens to text while they are being generated. Knows bytes and characters, nothing of how tokens are drawn. */
import { RequestError, show } from '../errors.ts';
import type { DecodeOptions } from './tokenizer.ts';

/** What a detokenizer needs of a `Tokenizer`. */
export interface TokenBytes {
  tokenBytes(id: number): Uint8Array;
  isControl(id: number): boolean;
}

/** Emits whole characters only; the parts together are what `Tokenizer.decode` gives for all the tokens. */
export class StreamingDetokenizer {
  readonly #tokens: TokenBytes;
  readonly #includeSpecial: boolean;
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true });

  constructor(tokens: TokenBytes, { includeSpecial = false }: DecodeOptions = {}) {
    this.#tokens = tokens;
    this.#includeSpecial = includeSpecial;
  }

  /** The characters that this token completes; often empty within an emoji, always for a control token. */
  push(id: number): string {
    if (!this.#includeSpecial && this.#tokens.isControl(id)) return '';
    return this.#decoder.decode(this.#tokens.tokenBytes(id), { stream: true });
  }

  /** What is left at the end: U+FFFD for a character that never became whole. Ready for another text afterwards. */
  flush(): string {
    return this.#decoder.decode();
  }
}

export interface StopMatch {
  /** Can be emitted now: no stop string begins in it. */
  readonly text: string;
  readonly stopped: boolean;
}

/**
 * Watches a stream of text for stop strings, and holds back any tail that may be the start of one.
 * The stop string that is complete first ends the text, however the text was cut into pieces.
 */
export class StopMatcher {
  readonly #stops: readonly string[];
  #held = '';
  #stopped = false;

  constructor(stops: readonly string[]) {
    if (!Array.isArray(stops) || stops.some((stop) => typeof stop !== 'string'))
      throw new RequestError('stop', `must be a list of strings, got ${show(stops)}`);
    if (stops.includes('')) throw new RequestError('stop', 'must not hold an empty string');
    this.#stops = stops;
  }

  push(text: string): StopMatch {
    if (this.#stopped) return { text: '', stopped: true };
    const pending = this.#held + text;
    const stop = firstStop(pending, this.#stops);
    this.#stopped = stop !== undefined;
    const safe = stop ?? pending.length - longestStart(pending, this.#stops);
    this.#held = this.#stopped ? '' : pending.slice(safe);
    return { text: pending.slice(0, safe), stopped: this.#stopped };
  }

  /** The tail that was held back, when the text ends without a stop string. */
  flush(): string {
    const text = this.#held;
    this.#held = '';
    return text;
  }
}

/** Where the stop string begins that is complete first; of several, the longest. */
function firstStop(text: string, stops: readonly string[]): number | undefined {
  let first: { begin: number; end: number } | undefined;
  for (const stop of stops) {
    const begin = text.indexOf(stop);
    const end = begin + stop.length;
    if (begin < 0) continue;
    if (first === undefined || end < first.end || (end === first.end && begin < first.begin)) first = { begin, end };
  }
  return first?.begin;
}

/** UTF-16 units at the end of the text that may be the start of a stop string. */
function longestStart(text: string, stops: readonly string[]): number {
  let longest = 0;
  for (const stop of stops) {
    for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
      if (text.endsWith(stop.slice(0, length))) longest = length;
    }
  }
  return longest;
}
