/** Hyper-parameters of an EAGLE-1 head: one Llama layer behind `fc`, already validated (by `checkpoint/config.ts`). */
export interface HeadConfig {
  /** d, the target's hidden size. */
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly heads: number;
  readonly kvHeads: number;
  /** Always hiddenSize / heads, as the published heads have it. */
  readonly headDim: number;
  readonly rmsNormEps: number;
  readonly ropeTheta: number;
  /** V, the target's vocabulary. */
  readonly vocabSize: number;
  /** Tokens the head can propose; smaller than `vocabSize` when the file has a `d2t` map. */
  readonly draftVocabSize: number;
}
