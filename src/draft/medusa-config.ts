/** Hyper-parameters of Medusa heads, already validated (by `checkpoint/config.ts`); sizes are the target's, which the file does not say. */
/** Bounds on K and L: released heads are five, of one block each. */
export const MOST_MEDUSA_HEADS = 64;
export const MOST_MEDUSA_LAYERS = 64;

export interface MedusaConfig {
  /** K: head i guesses the token i + 2 places behind the feature's own. */
  readonly heads: number;
  /** L: residual blocks of each head. */
  readonly layers: number;
  /** Tokens the heads can propose, where the file has a `d2t` map; absent, all of the target's. */
  readonly draftVocabSize?: number | undefined;
}
