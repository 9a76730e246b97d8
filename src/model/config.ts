/** Hyper-parameters of a decoder-only transformer, already validated (by `checkpoint/config.ts` for files). */
export interface ModelConfig {
  /** Key of the architecture registry. */
  readonly architecture: 'llama';
  /** L, decoder layers. */
  readonly layers: number;
  /** d, hidden size. */
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** V. */
  readonly vocabSize: number;
  /** Positions the model was trained for. */
  readonly contextLength: number;
  readonly ropeTheta: number;
  readonly rmsNormEps: number;
  /** The LM head is the embedding matrix. */
  readonly tiedEmbeddings: boolean;
  /** How query and key rows pair up for RoPE in the file: HF's rotate-half, or llama.cpp's interleaved order, which is undone at load. */
  readonly rotaryLayout: 'half' | 'interleaved';
}
