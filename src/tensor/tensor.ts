/** A dense matrix of f32 in scratch memory. `data` may be longer than rows·cols: buffers are used again. */
export interface Tensor {
  readonly data: Float32Array;
  readonly rows: number;
  readonly cols: number;
}
