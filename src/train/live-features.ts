/** Features computed whenever a text is read: no disk is needed, and every pass costs the target's forward again. */
import { FeatureReader } from '../decode/features.ts';
import type { TargetModel } from '../model/target.ts';
import { longestOf } from './compute-features.ts';
import type { TextFeatures } from './feature-store.ts';
import { countTokens, type EncodedText, type TrainingText } from './unroll.ts';

export class LiveFeatures implements TextFeatures, Disposable {
  readonly tokens: number;
  readonly #texts: readonly EncodedText[];
  readonly #hiddenSize: number;
  readonly #reader: FeatureReader;

  constructor(target: TargetModel, texts: readonly EncodedText[]) {
    this.#texts = texts;
    this.#hiddenSize = target.config.hiddenSize;
    this.tokens = countTokens(texts);
    this.#reader = new FeatureReader(target, longestOf(texts));
  }

  get texts(): number {
    return this.#texts.length;
  }

  text(index: number): EncodedText {
    return this.#texts[index]!;
  }

  read(index: number): TrainingText {
    const text = this.text(index);
    return { ...text, features: this.#reader.read(text.ids).data.slice(0, text.ids.length * this.#hiddenSize) };
  }

  [Symbol.dispose](): void {
    this.#reader[Symbol.dispose]();
  }
}
