/** A dense matrix of f32 in scratch memory. `data` may be longer than rows·cols: buffers are used again. */
export interface Tensor {
  readonly data: Float32Array;
  readonly rows: number;
  readonly cols: number;
  /** A view of one row. It is made once: asking for the same row again, also in a later round, allocates nothing. */
  row(index: number): Float32Array;
}

/** Numbers that a buffer grows by: a width that goes up by one every few rounds shall not mean a buffer every few rounds. */
const GROWTH = 4096;

/** Shapes whose views are kept: far more than one buffer serves in turn, few where the width goes up with a text. */
const MOST_SHAPES = 64;

/** A tensor whose buffer stays and grows while its shape changes. */
export class ScratchTensor implements Tensor {
  data = new Float32Array(0);
  rows = 0;
  cols = 0;
  /** By cols: a buffer serves several shapes within one round, and each finds its views again in the next. */
  readonly #views = new Map<number, Float32Array[]>();

  /** Keeps the contents where the buffer is large enough. */
  reshape(rows: number, cols: number): this {
    if (this.data.length < rows * cols) {
      this.data = new Float32Array(Math.ceil((rows * cols) / GROWTH) * GROWTH);
      this.#views.clear();
    }
    this.rows = rows;
    this.cols = cols;
    return this;
  }

  row(index: number): Float32Array {
    const { cols } = this;
    let views = this.#views.get(cols);
    if (views === undefined) {
      if (this.#views.size === MOST_SHAPES) this.#views.clear();
      views = [];
      this.#views.set(cols, views);
    }
    let view = views[index];
    if (view === undefined) {
      view = this.data.subarray(index * cols, (index + 1) * cols);
      views[index] = view;
    }
    return view;
  }
}

/** Row `toRow` of `to` = row `fromRow` of `from`, which has as many columns. */
export function copyRow(to: Tensor, toRow: number, from: Tensor, fromRow: number): void {
  to.data.set(from.row(fromRow), toRow * to.cols);
}
