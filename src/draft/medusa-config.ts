/** Hyper-parameters of Medusa heads, already validated (by `checkpoint/config.ts`); sizes are the target's, which the file does not say. */
export interface MedusaConfig {
  /** K: head i guesses the token i + 2 places behind the feature's own. */
  readonly heads: number;
  /** L: residual blocks of each head. */
  readonly layers: number;
  /** Tokens the heads can propose, where the file has a `d2t` map; absent, all of the target's. */
  readonly draftVocabSize?: number | undefined;
}
