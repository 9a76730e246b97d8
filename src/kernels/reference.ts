/**
 * The kernels in plain TypeScript: what the C++ tables are held against, and what runs where there is no compiler. Written to be
 * read, so slow. Knows the packed layouts of `kernels.ts`; knows nothing of instruction sets or threads.
 *
 * Sums are kept in f64, which makes it the better judge of f32 kernels. What decides integers (quantising weights and inputs) follows
 * the f32 arithmetic of the contract operation by operation, so that codes are equal to the last one. Scalars (eps, inverse
 * temperature) are f32, as behind the native border.
 */
import { checked } from './check.ts';
import { bfloatToFloat, floatToHalf, halfToFloat } from './half.ts';
import {
  BLOCK,
  type Kernels,
  KV_TILE,
  type PackedMatrix,
  type SourceType,
  sourceRowBytes,
  TILE_ROWS,
} from './kernels.ts';
import { floatAt, floatsOf, keyAt, slotsOf, tileStart, valueAt } from './layouts.ts';
import { raceTime } from './race.ts';
import { gradients } from './reference-gradients.ts';

const { fround } = Math;

export interface ReferenceOptions {
  /** Inputs of q8 products are rounded as the AVX2 table rounds them (`byteReach`): by default as all others do, by their largest alone. */
  readonly pairsFit?: boolean;
}

export function createReferenceKernels(options: ReferenceOptions = {}): Kernels {
  return checked({
    isa: 'reference',
    threads: 1,
    // JavaScript cannot ask for 64-byte alignment; here it would only be a matter of speed.
    allocate: (bytes) => new ArrayBuffer(bytes),
    // Moved into a copy that nobody holds.
    release: (buffer) => {
      structuredClone(buffer, { transfer: [buffer] });
    },
    pack,
    gatherRows,
    matmul: matmul(options.pairsFit ? pairReach : largestMagnitude),
    rmsNorm,
    rope,
    storeKv,
    attention,
    moveKv,
    swiglu,
    softmax,
    argmax,
    topK,
    race,
    ...gradients,
    bandwidth,
    fmaLimit,
    dispose: () => {},
  });
}

// Packed weights: one block of one row at a time, whatever the layout.

/** 32 weights: code · scale, and for q4 + minimum. Scale and minimum are f16 bits, so that copies are exact. */
interface WeightBlock {
  /** -128..127 (q8) or 0..15 (q4). */
  readonly codes: Int8Array; // [BLOCK]
  scale: number;
  minimum: number;
}

const newBlock = (): WeightBlock => ({ codes: new Int8Array(BLOCK), scale: 0, minimum: 0 });

type QuantisedDtype = 'q8' | 'q4';

/** Where things lie inside a quantised tile, in bytes: input i of block b at lane; f16 scales and, 16 further, minimums. */
const TILE_LAYOUT = {
  q8: { inputBytes: BLOCK * TILE_ROWS, halfBytes: 2 * TILE_ROWS },
  q4: { inputBytes: (BLOCK * TILE_ROWS) / 2, halfBytes: 4 * TILE_ROWS },
} as const satisfies Record<QuantisedDtype, object>;

const blocksOf = (cols: number): number => Math.ceil(cols / BLOCK);

/** Byte of the code of input i, counted from the data's start. q4: inputs i and i + 16 share one. */
function codeAt(m: PackedMatrix, dtype: QuantisedDtype, row: number, b: number, i: number): number {
  const within = dtype === 'q8' ? i : i % (BLOCK / 2);
  const group = Math.floor(within / 4);
  return tileStart(m, row) + b * TILE_LAYOUT[dtype].inputBytes + (group * TILE_ROWS + (row % TILE_ROWS)) * 4 + (i % 4);
}

/** Byte of a block's scale; a q4 minimum lies 2·TILE_ROWS further. */
function scaleAt(m: PackedMatrix, dtype: QuantisedDtype, row: number, b: number): number {
  const { inputBytes, halfBytes } = TILE_LAYOUT[dtype];
  return tileStart(m, row) + blocksOf(m.cols) * inputBytes + b * halfBytes + (row % TILE_ROWS) * 2;
}

function readBlock(block: WeightBlock, m: PackedMatrix, dtype: QuantisedDtype, row: number, b: number): void {
  for (let i = 0; i < BLOCK; i++) {
    const byte = m.data[codeAt(m, dtype, row, b, i)]!;
    block.codes[i] = dtype === 'q8' ? byte - 128 : i < BLOCK / 2 ? byte & 15 : byte >> 4;
  }
  const at = scaleAt(m, dtype, row, b);
  block.scale = read16(m.data, at);
  block.minimum = dtype === 'q4' ? read16(m.data, at + 2 * TILE_ROWS) : 0;
}

function writeBlock(m: PackedMatrix, dtype: QuantisedDtype, row: number, b: number, block: WeightBlock): void {
  for (let i = 0; i < (dtype === 'q8' ? BLOCK : BLOCK / 2); i++) {
    const code = block.codes[i]!;
    m.data[codeAt(m, dtype, row, b, i)] = dtype === 'q8' ? code + 128 : code | (block.codes[i + BLOCK / 2]! << 4);
  }
  const at = scaleAt(m, dtype, row, b);
  write16(m.data, at, block.scale);
  if (dtype === 'q4') write16(m.data, at + 2 * TILE_ROWS, block.minimum);
}

/** Little-endian, as in files and on every machine the add-on runs on. */
const read16 = (bytes: Uint8Array, at: number): number => bytes[at]! | (bytes[at + 1]! << 8);

function write16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value & 255;
  bytes[at + 1] = value >> 8;
}

function dequantise(out: Float32Array, start: number, count: number, dtype: QuantisedDtype, block: WeightBlock): void {
  const scale = halfToFloat(block.scale);
  const minimum = halfToFloat(block.minimum);
  for (let i = 0; i < count; i++) {
    const product = scale * block.codes[i]!; // exact in f32: 11 bits times 8
    out[start + i] = dtype === 'q8' ? product : product + minimum;
  }
}

// Packing

const pack: Kernels['pack'] = (matrix, firstRow, source, type, rowMap) => {
  const rowBytes = sourceRowBytes(type, matrix.cols);
  for (let i = 0; i < rowMap.length; i++) packRow(matrix, firstRow + i, source, rowMap[i]! * rowBytes, type);
};

function packRow(m: PackedMatrix, row: number, source: Uint8Array, start: number, type: SourceType): void {
  const { dtype, cols } = m;
  const blocks = blocksOf(cols);
  const block = newBlock();
  if (isBlockSource(type) && dtype === blockDtype(type)) {
    for (let b = 0; b < blocks; b++) {
      readSourceBlock(block, source, start, type, b);
      writeBlock(m, dtype, row, b, block);
    }
    return;
  }
  const values = new Float32Array(blocks * BLOCK); // padded with zeros, which count in a block's extremes
  readSourceRow(values, source, start, type, cols);
  if (dtype === 'f32') {
    const floats = floatsOf(m);
    for (let k = 0; k < cols; k++) floats[floatAt(m, row, k)] = values[k]!;
    return;
  }
  for (let b = 0; b < blocks; b++) {
    const inputs = values.subarray(b * BLOCK, (b + 1) * BLOCK);
    if (dtype === 'q8') quantiseQ8(block, inputs);
    else quantiseQ4(block, inputs);
    writeBlock(m, dtype, row, b, block);
  }
}

type BlockSource = 'Q8_0' | 'Q4_0' | 'Q4_1';
const isBlockSource = (type: SourceType): type is BlockSource => type === 'Q8_0' || type === 'Q4_0' || type === 'Q4_1';
/** The packed format that holds a file's blocks exactly. */
const blockDtype = (type: BlockSource): QuantisedDtype => (type === 'Q8_0' ? 'q8' : 'q4');

/** Block b of a file's row. Q4 files order nibbles as we do: byte i holds inputs i (low) and i + 16 (high). */
function readSourceBlock(block: WeightBlock, source: Uint8Array, start: number, type: BlockSource, b: number): void {
  const at = start + b * sourceRowBytes(type, BLOCK);
  block.scale = read16(source, at);
  if (type === 'Q8_0') {
    for (let i = 0; i < BLOCK; i++) block.codes[i] = source[at + 2 + i]!; // wraps to signed
    return;
  }
  block.minimum = type === 'Q4_1' ? read16(source, at + 2) : floatToHalf(-8 * halfToFloat(block.scale));
  const nibbles = at + (type === 'Q4_1' ? 4 : 2);
  for (let i = 0; i < BLOCK / 2; i++) {
    block.codes[i] = source[nibbles + i]! & 15;
    block.codes[i + BLOCK / 2] = source[nibbles + i]! >> 4;
  }
}

function readSourceRow(out: Float32Array, source: Uint8Array, start: number, type: SourceType, cols: number): void {
  if (isBlockSource(type)) {
    const block = newBlock();
    for (let b = 0; b < cols / BLOCK; b++) {
      readSourceBlock(block, source, start, type, b);
      dequantise(out, b * BLOCK, BLOCK, blockDtype(type), block);
    }
    return;
  }
  const bytes = new DataView(source.buffer, source.byteOffset, source.byteLength); // files align nothing
  const read: Record<typeof type, (k: number) => number> = {
    F32: (k) => bytes.getFloat32(start + 4 * k, true),
    F16: (k) => halfToFloat(bytes.getUint16(start + 2 * k, true)),
    BF16: (k) => bfloatToFloat(bytes.getUint16(start + 2 * k, true)),
  };
  for (let k = 0; k < cols; k++) out[k] = read[type](k);
}

function quantiseQ8(block: WeightBlock, inputs: Float32Array): void {
  block.scale = floatToHalf(fround(largestMagnitude(inputs, 0, BLOCK) / 127));
  const scale = halfToFloat(block.scale);
  for (let i = 0; i < BLOCK; i++) {
    block.codes[i] = scale === 0 ? 0 : roundedWithin(-127, 127, fround(inputs[i]! / scale));
  }
}

function quantiseQ4(block: WeightBlock, inputs: Float32Array): void {
  let low = inputs[0]!;
  let high = inputs[0]!;
  for (const input of inputs) {
    if (input < low) low = input;
    if (input > high) high = input;
  }
  block.minimum = floatToHalf(low);
  block.scale = floatToHalf(fround(fround(high - low) / 15));
  const minimum = halfToFloat(block.minimum);
  const scale = halfToFloat(block.scale);
  for (let i = 0; i < BLOCK; i++) {
    block.codes[i] = scale === 0 ? 0 : roundedWithin(0, 15, fround(fround(inputs[i]! - minimum) / scale));
  }
}

/** max |x| of x[start, end); NaN does not count. */
function largestMagnitude(x: Float32Array, start: number, end: number): number {
  let largest = 0;
  for (let i = start; i < end; i++) {
    const magnitude = Math.abs(x[i]!);
    if (magnitude > largest) largest = magnitude;
  }
  return largest;
}

/** Rounded half to even, clamped to whole bounds. NaN gives 0. */
function roundedWithin(low: number, high: number, value: number): number {
  if (Number.isNaN(value)) return 0;
  const clamped = Math.min(high, Math.max(low, value));
  const floor = Math.floor(clamped);
  const rest = clamped - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

const gatherRows: Kernels['gatherRows'] = (out, outStride, matrix, ids, count) => {
  const { dtype, cols } = matrix;
  const block = newBlock();
  const floats = dtype === 'f32' ? floatsOf(matrix) : null;
  for (let i = 0; i < count; i++) {
    const row = ids[i]!;
    if (dtype === 'f32') {
      for (let k = 0; k < cols; k++) out[i * outStride + k] = floats![floatAt(matrix, row, k)]!;
      continue;
    }
    for (let b = 0; b < blocksOf(cols); b++) {
      readBlock(block, matrix, dtype, row, b);
      dequantise(out, i * outStride + b * BLOCK, Math.min(BLOCK, cols - b * BLOCK), dtype, block);
    }
  }
};

// Matrix product

const matmul =
  (byteReach: Reach): Kernels['matmul'] =>
  (out, x, weight, n, residual) => {
    const sums = new Float64Array(n);
    const { dtype } = weight;
    const accumulate =
      dtype === 'f32'
        ? sumsOfFloats(x, weight, n)
        : sumsOfBlocks(x, weight, dtype, n, dtype === 'q8' ? byteReach : largestMagnitude);
    for (let row = 0; row < weight.rows; row++) {
      accumulate(sums, row);
      for (let i = 0; i < n; i++) {
        const at = i * weight.rows + row;
        out[at] = residual === null ? sums[i]! : residual[at]! + sums[i]!;
      }
    }
  };

/** What becomes 127 where x[start .. end) is rounded to int8. */
type Reach = (x: Float32Array, start: number, end: number) => number;

/** The largest of inputs and of sums of two neighbours: where two byte products are added in 16 bits. */
function pairReach(x: Float32Array, start: number, end: number): number {
  let reach = largestMagnitude(x, start, end);
  for (let i = start; i + 1 < end; i += 2) {
    const sum = Math.abs(fround(x[i]! + x[i + 1]!));
    if (sum > reach) reach = sum;
  }
  return reach;
}

/** sums[i] = x[i, ·] · W[row, ·], inputs in ascending order. */
type Accumulate = (sums: Float64Array, row: number) => void;

function sumsOfFloats(x: Float32Array, weight: PackedMatrix, n: number): Accumulate {
  const floats = floatsOf(weight);
  const { cols } = weight;
  return (sums, row) => {
    const start = floatAt(weight, row, 0);
    for (let i = 0; i < n; i++) {
      let sum = 0;
      for (let k = 0; k < cols; k++) sum += x[i * cols + k]! * floats[start + k * TILE_ROWS]!;
      sums[i] = sum;
    }
  };
}

/** Integer products inside a block, then blocks in ascending order. */
function sumsOfBlocks(
  x: Float32Array,
  weight: PackedMatrix,
  dtype: QuantisedDtype,
  n: number,
  reach: Reach,
): Accumulate {
  const blocks = blocksOf(weight.cols);
  const inputs = quantiseInputs(x, n, weight.cols, reach);
  const block = newBlock();
  return (sums, row) => {
    sums.fill(0);
    for (let b = 0; b < blocks; b++) {
      readBlock(block, weight, dtype, row, b);
      const scale = halfToFloat(block.scale);
      const minimum = halfToFloat(block.minimum);
      for (let i = 0; i < n; i++) {
        const at = i * blocks + b;
        let dot = 0;
        let total = 0;
        for (let k = 0; k < BLOCK; k++) {
          const code = inputs.codes[at * BLOCK + k]!;
          dot += code * block.codes[k]!;
          total += code;
        }
        sums[i] =
          sums[i]! + inputs.scales[at]! * scale * dot + (dtype === 'q4' ? inputs.scales[at]! * minimum * total : 0);
      }
    }
  };
}

interface QuantisedInputs {
  readonly codes: Int8Array; // [n, blocks, BLOCK]
  readonly scales: Float32Array; // [n, blocks]
}

function quantiseInputs(x: Float32Array, n: number, cols: number, reach: Reach): QuantisedInputs {
  const blocks = blocksOf(cols);
  const codes = new Int8Array(n * blocks * BLOCK);
  const scales = new Float32Array(n * blocks);
  for (let i = 0; i < n; i++) {
    for (let b = 0; b < blocks; b++) {
      const start = i * cols + b * BLOCK;
      const count = Math.min(BLOCK, cols - b * BLOCK);
      const largest = reach(x, start, start + count);
      const inverse = largest === 0 ? 0 : fround(127 / largest);
      scales[i * blocks + b] = largest / 127;
      for (let k = 0; k < count; k++) {
        codes[(i * blocks + b) * BLOCK + k] = roundedWithin(-127, 127, fround(x[start + k]! * inverse));
      }
    }
  }
  return { codes, scales };
}

// Rows

const rmsNorm: Kernels['rmsNorm'] = (out, x, weight, n, cols, eps) => {
  for (let row = 0; row < n; row++) {
    const start = row * cols;
    let squares = 0;
    for (let k = 0; k < cols; k++) squares += x[start + k]! ** 2;
    const scale = 1 / Math.sqrt(squares / cols + fround(eps));
    for (let k = 0; k < cols; k++) out[start + k] = x[start + k]! * scale * weight[k]!;
  }
};

const rope: Kernels['rope'] = (x, stride, n, heads, headDim, positions, cos, sin) => {
  const half = headDim / 2;
  for (let row = 0; row < n; row++) {
    for (let head = 0; head < heads; head++) {
      for (let i = 0; i < half; i++) {
        const c = cos[positions[row]! * half + i]!;
        const s = sin[positions[row]! * half + i]!;
        const at = row * stride + head * headDim + i;
        const a = x[at]!;
        const b = x[at + half]!;
        x[at] = a * c - b * s;
        x[at + half] = b * c + a * s;
      }
    }
  }
};

const swiglu: Kernels['swiglu'] = (out, x, n, cols) => {
  for (let row = 0; row < n; row++) {
    for (let k = 0; k < cols; k++) {
      const gate = x[row * 2 * cols + k]!;
      const up = x[row * 2 * cols + cols + k]!;
      out[row * cols + k] = (gate / (1 + Math.exp(-gate))) * up;
    }
  }
};

const softmax: Kernels['softmax'] = (out, x, n, cols, inverseTemperature) => {
  const weights = new Float64Array(cols);
  for (let row = 0; row < n; row++) {
    for (let k = 0; k < cols; k++) weights[k] = x[row * cols + k]!;
    softmaxInPlace(weights, cols, fround(inverseTemperature));
    for (let k = 0; k < cols; k++) out[row * cols + k] = weights[k]!;
  }
};

/** The largest is taken off first: softmax does not change and no exponential overflows. */
function softmaxInPlace(x: Float64Array, count: number, factor: number): void {
  let largest = -Infinity;
  for (let i = 0; i < count; i++) if (x[i]! > largest) largest = x[i]!;
  let sum = 0;
  for (let i = 0; i < count; i++) {
    x[i] = x[i]! > -Infinity ? Math.exp((x[i]! - largest) * factor) : 0;
    sum += x[i]!;
  }
  for (let i = 0; sum > 0 && i < count; i++) x[i] = x[i]! / sum;
}

/** Whether a stands before b, b having come first: larger, or a number where b is none. */
const precedes = (a: number, b: number): boolean => a > b || (Number.isNaN(b) && !Number.isNaN(a));

const argmax: Kernels['argmax'] = (out, x, n, cols) => {
  for (let row = 0; row < n; row++) {
    let best = 0;
    for (let k = 1; k < cols; k++) {
      if (precedes(x[row * cols + k]!, x[row * cols + best]!)) best = k;
    }
    out[row] = best;
  }
};

/** Insertion into a sorted list of k; one that ties with a held one stays behind it. */
const topK: Kernels['topK'] = (ids, values, x, n, cols, k) => {
  for (let row = 0; row < n; row++) {
    const first = row * k;
    for (let col = 0; col < cols; col++) {
      const value = x[row * cols + col]!;
      const held = Math.min(col, k);
      if (held === k && !precedes(value, values[first + k - 1]!)) continue;
      let at = first + Math.min(held, k - 1);
      for (; at > first && precedes(value, values[at - 1]!); at--) {
        values[at] = values[at - 1]!;
        ids[at] = ids[at - 1]!;
      }
      values[at] = value;
      ids[at] = col;
    }
  }
};

/** As topK, of arrivals. */
const race: Kernels['race'] = (ids, times, rates, n, cols, k, key, labels) => {
  const arrivals = new Float64Array(k);
  for (let row = 0; row < n; row++) {
    for (let col = 0; col < cols; col++) {
      const rate = rates[row * cols + col]!;
      const time = rate > 0 ? raceTime(key[0]!, key[1]!, labels === null ? col : labels[col]!) / rate : Infinity;
      const held = Math.min(col, k);
      if (held === k && !(time < arrivals[k - 1]!)) continue;
      let at = Math.min(held, k - 1);
      for (; at > 0 && time < arrivals[at - 1]!; at--) {
        arrivals[at] = arrivals[at - 1]!;
        ids[row * k + at] = ids[row * k + at - 1]!;
      }
      arrivals[at] = time;
      ids[row * k + at] = col;
    }
    times.set(arrivals, row * k);
  }
};

// Attention

const storeKv: Kernels['storeKv'] = (kv, qkv, stride, keyOffset, valueOffset, layout) => {
  const encode = kv.dtype === 'f16' ? floatToHalf : (value: number) => value;
  for (let row = 0; row < layout.rows; row++) {
    for (let head = 0; head < kv.kvHeads; head++) {
      const key = keyAt(kv, layout.slots[row]!, head);
      const value = valueAt(kv, layout.slots[row]!, head);
      for (let d = 0; d < kv.headDim; d++) {
        const from = row * stride + head * kv.headDim + d;
        kv.keys[key + d * KV_TILE] = encode(qkv[from + keyOffset]!);
        kv.values[value + d] = encode(qkv[from + valueOffset]!);
      }
    }
  }
};

const attention: Kernels['attention'] = (out, qkv, stride, heads, kv, layout) => {
  const { headDim, keys, values } = kv;
  const decode = kv.dtype === 'f16' ? halfToFloat : (value: number) => value;
  const sums = new Float64Array(headDim);
  for (let row = 0; row < layout.rows; row++) {
    const slots = slotsOf(layout, row);
    const weights = new Float64Array(slots.length);
    for (let head = 0; head < heads; head++) {
      const kvHead = Math.floor(head / (heads / kv.kvHeads));
      const query = row * stride + head * headDim;
      for (let j = 0; j < slots.length; j++) {
        const key = keyAt(kv, slots[j]!, kvHead);
        let score = 0;
        for (let d = 0; d < headDim; d++) score += qkv[query + d]! * decode(keys[key + d * KV_TILE]!);
        weights[j] = score;
      }
      softmaxInPlace(weights, slots.length, 1 / Math.sqrt(headDim));
      sums.fill(0);
      for (let j = 0; j < slots.length; j++) {
        const value = valueAt(kv, slots[j]!, kvHead);
        for (let d = 0; d < headDim; d++) sums[d] = sums[d]! + weights[j]! * decode(values[value + d]!);
      }
      out.set(sums, (row * heads + head) * headDim);
    }
  }
};

const moveKv: Kernels['moveKv'] = (kv, from, to, count) => {
  for (let i = 0; i < count; i++) {
    for (let head = 0; head < kv.kvHeads; head++) {
      const keyFrom = keyAt(kv, from[i]!, head);
      const keyTo = keyAt(kv, to[i]!, head);
      const valueFrom = valueAt(kv, from[i]!, head);
      const valueTo = valueAt(kv, to[i]!, head);
      for (let d = 0; d < kv.headDim; d++) {
        kv.keys[keyTo + d * KV_TILE] = kv.keys[keyFrom + d * KV_TILE]!;
        kv.values[valueTo + d] = kv.values[valueFrom + d]!;
      }
    }
  }
};

const bandwidth: Kernels['bandwidth'] = (bytes, repeats) => {
  const data = new Float64Array(Math.ceil(bytes / 8)).fill(1);
  let best = 0;
  for (let repeat = 0; repeat < repeats; repeat++) {
    const start = performance.now();
    let sum = 0;
    for (let i = 0; i < data.length; i++) sum += data[i]!;
    const seconds = (performance.now() - start) / 1000;
    if (sum === data.length && seconds > 0) best = Math.max(best, data.byteLength / seconds / 1e9); // the sum must be used
  }
  return best;
};

/** Four products at a time: more than one is under way at once, as far as JavaScript lets the machine. */
const fmaLimit: Kernels['fmaLimit'] = (repeats) => {
  const products = 4e6;
  let best = 0;
  for (let repeat = 0; repeat < repeats; repeat++) {
    const start = performance.now();
    let [a, b, c, d] = [1, 2, 3, 4];
    for (let i = 0; i < products / 4; i++) {
      a = a * 0.5 + 1;
      b = b * 0.5 + 1;
      c = c * 0.5 + 1;
      d = d * 0.5 + 1;
    }
    const seconds = (performance.now() - start) / 1000;
    if (a + b + c + d > 0 && seconds > 0) best = Math.max(best, (2 * products) / seconds / 1e9); // the results must be used
  }
  return best;
};
