/**
 * The typed border: everything the model and its training ask of the machine, in one interface. `native.ts` (C++ add-on) and
 * `reference.ts` (plain TypeScript) implement it; tests hold one against the other.
 *
 * Knows pointers (typed arrays), sizes and strides; knows nothing of models.
 *
 * Batch invariance is part of the contract: each output element is accumulated in one fixed order that depends on its
 * own row's logical inputs alone, never on how many rows are computed together, on threads, or on where KV rows lie.
 *
 * Callers pass clean arguments: sizes are checked here in TypeScript (`check.ts`), not in C++.
 */

/** Storage formats of a weight matrix. q8 = blocks of 32: int8 × f16 scale. q4 = blocks of 32: 4 bit × f16 scale + f16 minimum. */
export const WEIGHT_DTYPES = ['f32', 'q8', 'q4'] as const;
export type WeightDtype = (typeof WEIGHT_DTYPES)[number];

/** Element types found in files, which `pack` turns into a `WeightDtype`. The order is the native enum's. */
export const SOURCE_TYPES = ['F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1'] as const;
export type SourceType = (typeof SOURCE_TYPES)[number];

export const KV_DTYPES = ['f32', 'f16'] as const;
export type KvDtype = (typeof KV_DTYPES)[number];

/** Outputs per tile of a packed matrix: one AVX-512 register of f32. */
export const TILE_ROWS = 16;
/** Inputs per quantisation block: the block of GGUF's Q8_0, Q4_0 and Q4_1. */
export const BLOCK = 32;
/** KV positions per tile of the transposed key cache: one AVX-512 register of f32. */
export const KV_TILE = 16;

/**
 * A weight matrix W [rows, cols], y = x Wᵀ, packed in tiles of 16 output rows so that a kernel reads it front to back once.
 * `rows` are padded to a multiple of 16 with zeros; for q8 and q4 `cols` are padded to a multiple of 32 with zeros.
 * With B = ceil(cols / 32) blocks, one tile is
 *
 * - f32: `[cols][16]` f32.
 * - q8:  `[B][8][16][4]` u8 = int8 weight + 128 (input 4g+i of a block is at [g][·][i]), then `[B][16]` f16 scales;
 *        tile size B·544 bytes rounded up to 64.
 * - q4:  `[B][4][16][4]` u8, low nibble = input 4g+i, high nibble = input 4(g+4)+i of the block,
 *        then `[B][16]` f16 scales d and `[16]` f16 minimums m interleaved per block (`[B][2][16]`): w = d·nibble + m;
 *        tile size B·320 bytes.
 */
export interface PackedMatrix {
  readonly dtype: WeightDtype;
  /** Outputs. */
  readonly rows: number;
  /** Inputs. */
  readonly cols: number;
  /** 64-byte aligned, `packedBytes(dtype, rows, cols)` long. */
  readonly data: Uint8Array;
}

/** Bytes of one tile of 16 output rows. */
export function tileBytes(dtype: WeightDtype, cols: number): number {
  const blocks = Math.ceil(cols / BLOCK);
  switch (dtype) {
    case 'f32':
      return cols * TILE_ROWS * 4;
    case 'q8':
      return Math.ceil((blocks * (BLOCK * TILE_ROWS + 2 * TILE_ROWS)) / 64) * 64;
    case 'q4':
      return blocks * ((BLOCK * TILE_ROWS) / 2 + 4 * TILE_ROWS);
  }
}

/** Bytes of a packed matrix. */
export function packedBytes(dtype: WeightDtype, rows: number, cols: number): number {
  return Math.ceil(rows / TILE_ROWS) * tileBytes(dtype, cols);
}

/** Bytes of one source row of `cols` elements; quantised types need cols % 32 == 0. */
export function sourceRowBytes(type: SourceType, cols: number): number {
  switch (type) {
    case 'F32':
      return cols * 4;
    case 'F16':
    case 'BF16':
      return cols * 2;
    case 'Q8_0':
      return (cols / BLOCK) * 34;
    case 'Q4_0':
      return (cols / BLOCK) * 18;
    case 'Q4_1':
      return (cols / BLOCK) * 20;
  }
}

/**
 * Keys and values of one layer. A *slot* is a physical row. Per KV head h and tile t of 16 slots, the element type being
 * f32 or f16 (then `keys` and `values` are Uint16Array):
 *
 * - keys:   `[slots/16][kvHeads][headDim][16]`: transposed inside the tile, so 16 scores are one vector.
 * - values: `[slots][kvHeads][headDim]`.
 */
export interface KvLayer {
  readonly dtype: KvDtype;
  readonly kvHeads: number;
  readonly headDim: number;
  /** A multiple of 16. */
  readonly slots: number;
  readonly keys: Float32Array | Uint16Array;
  readonly values: Float32Array | Uint16Array;
  /** The layer of the same shape that is attended to next, with the same layout: a table may fetch it while products before that are computed. */
  readonly next?: KvLayer | undefined;
}

/**
 * What each row of a forward may look at, in logical order: the slots base .. base+prefix-1 of its sequence, then its
 * extra slots `extras[extrasStart[row]] … extras[extrasStart[row+1]-1]` (tree ancestors and itself). `slots[row]` is where
 * the row's own key and value are written. A row attends to at least one slot.
 */
export interface AttentionLayout {
  /** Rows in use. */
  rows: number;
  /** [rows] first slot of the row's sequence, a multiple of 16. */
  readonly base: Int32Array;
  /** [rows] contiguous logical positions from `base`. */
  readonly prefix: Int32Array;
  /** [rows] slot the row's own key and value go to. */
  readonly slots: Int32Array;
  /** [rows + 1] half-open ranges into `extras`. */
  readonly extrasStart: Int32Array;
  readonly extras: Int32Array;
}

export interface Kernels {
  /** The table in use: `reference`, `generic`, `avx2`, `avx512vnni`. */
  readonly isa: string;
  readonly threads: number;

  /**
   * Zeroed, 64-byte aligned, mapped lazily where the system can: untouched pages cost nothing. Memory that will be used in full says
   * so (`dense`), and then shares large pages with its like.
   */
  allocate(bytes: number, dense?: boolean): ArrayBuffer;
  /** Gives the memory back now: every view of the buffer becomes empty. */
  release(buffer: ArrayBuffer): void;

  /**
   * Writes rows `rowMap[i]` of a source matrix `[?, cols]` to rows `firstRow + i` of `matrix`, i < rowMap.length.
   * Same precision class copies exactly (Q8_0 → q8, Q4_0/Q4_1 → q4, f32/f16/bf16 → f32); anything else goes through f32:
   * → q8: scale = max|w|/127 to f16, w/scale rounded half to even; → q4: minimum and (max-min)/15 to f16, rounded half to even.
   */
  pack(matrix: PackedMatrix, firstRow: number, source: Uint8Array, type: SourceType, rowMap: Int32Array): void;

  /** out[i, 0..cols) (row stride `outStride`) = row ids[i] of `matrix` as f32, i < count. */
  gatherRows(out: Float32Array, outStride: number, matrix: PackedMatrix, ids: Int32Array, count: number): void;

  /**
   * out [n, W.rows] = x [n, W.cols] · Wᵀ (+ residual [n, W.rows]). q8 and q4 quantise x to int8 per row and block of 32
   * (scale = max|x|/127 in f32, x·(127/max|x|) rounded half to even), multiply in integers, and accumulate f32 over blocks in order.
   * Beside q8 the AVX2 table takes for max|x| the largest of |x[2i]|, |x[2i+1]| and |x[2i] + x[2i+1]|. `residual` may be `out`.
   */
  matmul(out: Float32Array, x: Float32Array, weight: PackedMatrix, n: number, residual: Float32Array | null): void;

  /** out [n, cols] = x / sqrt(mean(x²) + eps) · weight [cols]. */
  rmsNorm(out: Float32Array, x: Float32Array, weight: Float32Array, n: number, cols: number, eps: number): void;

  /**
   * Rotates in place the first `heads` heads of each row of x (row stride `stride`), rotate-half: pairs (i, i + headDim/2).
   * cos, sin: [positions, headDim/2].
   */
  rope(
    x: Float32Array,
    stride: number,
    n: number,
    heads: number,
    headDim: number,
    positions: Int32Array,
    cos: Float32Array,
    sin: Float32Array,
  ): void;

  /** Stores key and value of each row (kvHeads·headDim each, at keyOffset and valueOffset of rows of `stride` floats) at layout.slots. */
  storeKv(
    kv: KvLayer,
    qkv: Float32Array,
    stride: number,
    keyOffset: number,
    valueOffset: number,
    layout: AttentionLayout,
  ): void;

  /**
   * out [n, heads·headDim] = soft-max attention of each row's queries (first heads·headDim floats of rows of `stride`) over
   * its layout positions, scale 1/sqrt(headDim); query head h reads KV head h / (heads / kvHeads).
   */
  attention(
    out: Float32Array,
    qkv: Float32Array,
    stride: number,
    heads: number,
    kv: KvLayer,
    layout: AttentionLayout,
  ): void;

  /** Copies key and value rows, slot from[i] → to[i], i < count in order. to[i] <= from[i], ascending, so nothing is overwritten unread. */
  moveKv(kv: KvLayer, from: Int32Array, to: Int32Array, count: number): void;

  /** out [n, cols] = silu(gate) · up, where x [n, 2·cols] holds gate then up in each row. */
  swiglu(out: Float32Array, x: Float32Array, n: number, cols: number): void;

  /** out [n, cols] = softmax(x · inverseTemperature) per row. `out` may be `x`. -Infinity and NaN give 0, in a row of nothing else too. */
  softmax(out: Float32Array, x: Float32Array, n: number, cols: number, inverseTemperature: number): void;

  /** out[i] = index of the largest element of row i; ties to the lowest index; NaN never wins (a row of NaN gives 0). */
  argmax(out: Int32Array, x: Float32Array, n: number, cols: number): void;

  /** Per row the k largest, descending, ties to the lower index, NaN last: ids [n, k], values [n, k]. k <= cols. */
  topK(ids: Int32Array, values: Float32Array, x: Float32Array, n: number, cols: number, k: number): void;

  /**
   * The k that arrive first in an exponential race, per row: column i arrives at E_i / rates[i], E_i exponential, ascending: ids [n, k],
   * times [n, k]. The first one is a draw from the law that the rates are in proportion to. E_i depends on `key` [2] and on labels[i]
   * (on i for null), so rows, and calls with the same key, run the same race at rates of their own. Rates that are not above 0 never arrive:
   * Infinity, lowest ids first. k <= cols.
   */
  race(
    ids: Int32Array,
    times: Float32Array,
    rates: Float32Array,
    n: number,
    cols: number,
    k: number,
    key: Int32Array,
    labels: Int32Array | null,
  ): void;

  // Gradients. All f32; matrices are f32 `PackedMatrix`. `+=` adds to what the output holds, so the caller zeroes it first. Bits do not
  // depend on threads.

  /** out [weight.cols, weight.rows] = weightᵀ; padding rows of out are zero. */
  transpose(out: PackedMatrix, weight: PackedMatrix): void;

  /**
   * A weight's gradient: gradient [out, in] += dyᵀ · x, where x is [n, in] and dy [n, out]. Each element is one accumulator that
   * goes on from what the gradient holds, rows ascending.
   */
  accumulateOuter(gradient: PackedMatrix, dy: Float32Array, x: Float32Array, n: number): void;

  /** An embedding's gradient: row ids[i] of gradient [rows, cols] += dy[i, 0..cols), i < count ascending. */
  scatterAddRows(gradient: PackedMatrix, ids: Int32Array, dy: Float32Array, count: number): void;

  /**
   * Of y = rmsNorm(x, weight, eps), with dy [n, cols]: dx [n, cols] += ∂/∂x, dWeight [cols] += ∂/∂weight, rows ascending.
   * dWeight null: the weight is frozen.
   */
  rmsNormBackward(
    dx: Float32Array,
    dWeight: Float32Array | null,
    dy: Float32Array,
    x: Float32Array,
    weight: Float32Array,
    n: number,
    cols: number,
    eps: number,
  ): void;

  /** Of y = swiglu(x), with dy [n, cols]: dx [n, 2·cols] += ∂/∂x; x and dx hold gate then up in each row. */
  swigluBackward(dx: Float32Array, dy: Float32Array, x: Float32Array, n: number, cols: number): void;

  /**
   * Of `attention` with the same arguments (qkv holds the rotated queries; the cache is f32 and holds keys and values of all slots that
   * the layout names), with dOut [n, heads·headDim]: the first heads·headDim floats of each row of dQkv (rows of `stride`) += ∂/∂query,
   * still rotated; dKeys and dValues [kv.slots, kvHeads·headDim], row by row, += at every slot attended to. Probabilities are computed
   * again. Rows are added in ascending order per sequence and KV head.
   */
  attentionBackward(
    dQkv: Float32Array,
    dKeys: Float32Array,
    dValues: Float32Array,
    dOut: Float32Array,
    qkv: Float32Array,
    stride: number,
    heads: number,
    kv: KvLayer,
    layout: AttentionLayout,
  ): void;

  /**
   * Soft cross-entropy and its gradient, per row of logits and teacher [n, cols]: losses[i] = -Σ softmax(teacher) · ln softmax(logits);
   * dLogits[i, ·] = weights[i] · (softmax(logits) - softmax(teacher)), overwritten. `dLogits` may be `logits`. Where the teacher's
   * probability is 0 nothing is added, also if the logit is -Infinity.
   */
  softCrossEntropy(
    losses: Float32Array,
    dLogits: Float32Array,
    logits: Float32Array,
    teacher: Float32Array,
    weights: Float32Array,
    n: number,
    cols: number,
  ): void;

  /** Streams `bytes` of fresh memory `repeats` times with every thread; returns the best GB/s (10⁹ bytes per second) read. */
  bandwidth(bytes: number, repeats: number): number;

  /**
   * The machine's f32 limit: multiply-adds on registers alone, by every thread, some milliseconds at a time. Returns the best of
   * `repeats` in GFLOP/s (10⁹ a second; a multiply-add counts as two).
   */
  fmaLimit(repeats: number): number;

  /** Leaves the thread pool, which ends with its last user. The object must not be used afterwards. */
  dispose(): void;
}
