/** The keys and values of a training step: a cache that is made anew where a step needs more slots than any before. */
import type { KvCache } from '../model/kv-cache.ts';
import type { Tape } from './tape.ts';

export class StepCache implements Disposable {
  readonly #tape: Tape;
  readonly #create: (slots: number) => KvCache;
  #cache: KvCache | undefined;
  #slots = 0;

  constructor(tape: Tape, create: (slots: number) => KvCache) {
    this.#tape = tape;
    this.#create = create;
  }

  /** One sequence of at least so many slots. */
  reserve(slots: number): KvCache {
    if (this.#cache === undefined || this.#slots < slots) {
      this.#cache?.[Symbol.dispose]();
      this.#tape.forgetCaches();
      this.#cache = this.#create(slots);
      this.#slots = slots;
    }
    return this.#cache;
  }

  [Symbol.dispose](): void {
    this.#cache?.[Symbol.dispose]();
  }
}
