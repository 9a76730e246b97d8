/**
 * Argument checks in front of every table: the native side trusts what passes here. They stay on in production, so they look at sizes
 * and row indices, never at elements, and allocate nothing unless they throw.
 *
 * Arrays may be longer than needed: callers pass views of arenas.
 */
import { constants } from 'node:buffer';
import {
  type AttentionLayout,
  BLOCK,
  type Kernels,
  KV_TILE,
  type KvLayer,
  type PackedMatrix,
  packedBytes,
  type SourceType,
  sourceRowBytes,
  WEIGHT_DTYPES,
} from './kernels.ts';

/** Sizes and counts are int32 on the native side. */
const LARGEST_COUNT = 2 ** 31 - 1;

interface Sized {
  readonly length: number;
}

/** The same kernels behind checks; a bad argument throws a RangeError or TypeError naming place, rule and what was got. */
export function checked(kernels: Kernels): Kernels {
  return {
    isa: kernels.isa,
    threads: kernels.threads,
    allocate(bytes, dense) {
      checkBytes('allocate', bytes);
      if (bytes > constants.MAX_LENGTH)
        fail('allocate', `this Node has buffers of at most ${constants.MAX_LENGTH} bytes, got ${bytes}`);
      return kernels.allocate(bytes, dense);
    },
    release: (buffer) => kernels.release(buffer),
    pack(matrix, firstRow, source, type, rowMap) {
      checkPack(matrix, firstRow, source, type, rowMap);
      kernels.pack(matrix, firstRow, source, type, rowMap);
    },
    gatherRows(out, outStride, matrix, ids, count) {
      checkGatherRows(out, outStride, matrix, ids, count);
      kernels.gatherRows(out, outStride, matrix, ids, count);
    },
    matmul(out, x, weight, n, residual) {
      checkMatmul(out, x, weight, n, residual);
      kernels.matmul(out, x, weight, n, residual);
    },
    rmsNorm(out, x, weight, n, cols, eps) {
      checkRows('rmsNorm', out, cols, x, cols, n);
      atLeast('rmsNorm', 'weight', weight, cols);
      kernels.rmsNorm(out, x, weight, n, cols, eps);
    },
    rope(x, stride, n, heads, headDim, positions, cos, sin) {
      checkRope(x, stride, n, heads, headDim, positions, cos, sin);
      kernels.rope(x, stride, n, heads, headDim, positions, cos, sin);
    },
    storeKv(kv, qkv, stride, keyOffset, valueOffset, layout) {
      checkStoreKv(kv, qkv, stride, keyOffset, valueOffset, layout);
      kernels.storeKv(kv, qkv, stride, keyOffset, valueOffset, layout);
    },
    attention(out, qkv, stride, heads, kv, layout) {
      checkAttention(out, qkv, stride, heads, kv, layout);
      kernels.attention(out, qkv, stride, heads, kv, layout);
    },
    moveKv(kv, from, to, count) {
      checkMoveKv(kv, from, to, count);
      kernels.moveKv(kv, from, to, count);
    },
    swiglu(out, x, n, cols) {
      checkCount('swiglu', 'cols', cols, 1);
      checkRows('swiglu', out, cols, x, 2 * cols, n);
      kernels.swiglu(out, x, n, cols);
    },
    softmax(out, x, n, cols, inverseTemperature) {
      checkRows('softmax', out, cols, x, cols, n);
      kernels.softmax(out, x, n, cols, inverseTemperature);
    },
    argmax(out, x, n, cols) {
      checkRows('argmax', out, 1, x, cols, n);
      kernels.argmax(out, x, n, cols);
    },
    topK(ids, values, x, n, cols, k) {
      checkTopK(ids, values, x, n, cols, k);
      kernels.topK(ids, values, x, n, cols, k);
    },
    race(ids, times, rates, n, cols, k, key, labels) {
      checkRace(ids, times, rates, n, cols, k, key, labels);
      kernels.race(ids, times, rates, n, cols, k, key, labels);
    },
    transpose(out, weight) {
      checkTranspose(out, weight);
      kernels.transpose(out, weight);
    },
    accumulateOuter(gradient, dy, x, n) {
      checkFloatMatrix('accumulateOuter', 'gradient', gradient);
      checkCount('accumulateOuter', 'n', n, 0);
      atLeast('accumulateOuter', 'dy', dy, n * gradient.rows);
      atLeast('accumulateOuter', 'x', x, n * gradient.cols);
      kernels.accumulateOuter(gradient, dy, x, n);
    },
    scatterAddRows(gradient, ids, dy, count) {
      checkFloatMatrix('scatterAddRows', 'gradient', gradient);
      checkCount('scatterAddRows', 'count', count, 0);
      atLeast('scatterAddRows', 'dy', dy, count * gradient.cols);
      checkIndices('scatterAddRows', 'ids', ids, 0, count, gradient.rows);
      kernels.scatterAddRows(gradient, ids, dy, count);
    },
    rmsNormBackward(dx, dWeight, dy, x, weight, n, cols, eps) {
      checkRows('rmsNormBackward', dx, cols, x, cols, n, 'dx');
      atLeast('rmsNormBackward', 'dy', dy, n * cols);
      atLeast('rmsNormBackward', 'weight', weight, cols);
      if (dWeight !== null) atLeast('rmsNormBackward', 'dWeight', dWeight, cols);
      kernels.rmsNormBackward(dx, dWeight, dy, x, weight, n, cols, eps);
    },
    swigluBackward(dx, dy, x, n, cols) {
      checkCount('swigluBackward', 'cols', cols, 1);
      checkRows('swigluBackward', dx, 2 * cols, x, 2 * cols, n, 'dx');
      atLeast('swigluBackward', 'dy', dy, n * cols);
      kernels.swigluBackward(dx, dy, x, n, cols);
    },
    attentionBackward(dQkv, dKeys, dValues, dOut, qkv, stride, heads, kv, layout) {
      checkAttentionBackward(dQkv, dKeys, dValues, dOut, qkv, stride, heads, kv, layout);
      kernels.attentionBackward(dQkv, dKeys, dValues, dOut, qkv, stride, heads, kv, layout);
    },
    softCrossEntropy(losses, dLogits, logits, teacher, weights, n, cols) {
      checkRows('softCrossEntropy', dLogits, cols, logits, cols, n, 'dLogits', 'logits');
      atLeast('softCrossEntropy', 'teacher', teacher, n * cols);
      atLeast('softCrossEntropy', 'losses', losses, n);
      atLeast('softCrossEntropy', 'weights', weights, n);
      kernels.softCrossEntropy(losses, dLogits, logits, teacher, weights, n, cols);
    },
    bandwidth(bytes, repeats) {
      checkBytes('bandwidth', bytes);
      checkCount('bandwidth', 'repeats', repeats, 1);
      return kernels.bandwidth(bytes, repeats);
    },
    fmaLimit(repeats) {
      checkCount('fmaLimit', 'repeats', repeats, 1);
      return kernels.fmaLimit(repeats);
    },
    dispose: () => kernels.dispose(),
  };
}

function checkPack(m: PackedMatrix, firstRow: number, source: Uint8Array, type: SourceType, rowMap: Int32Array): void {
  checkMatrix('pack', m);
  checkCount('pack', 'firstRow', firstRow, 0);
  if (firstRow + rowMap.length > m.rows) {
    fail('pack', `rows must lie within the matrix of ${m.rows}, got ${firstRow}..${firstRow + rowMap.length - 1}`);
  }
  const rowBytes = sourceRowBytes(type, m.cols);
  if (rowBytes === undefined) throw new TypeError(`pack: unknown source type, got ${type}`);
  if (type.startsWith('Q') && m.cols % BLOCK !== 0) {
    fail('pack', `${type} needs columns in blocks of ${BLOCK}, got ${m.cols}`);
  }
  if (source.length % rowBytes !== 0) {
    fail('pack', `source must be whole ${type} rows of ${rowBytes} bytes, got ${source.length} bytes`);
  }
  checkIndices('pack', 'rowMap', rowMap, 0, rowMap.length, source.length / rowBytes);
}

function checkGatherRows(out: Sized, outStride: number, m: PackedMatrix, ids: Int32Array, count: number): void {
  checkMatrix('gatherRows', m);
  checkCount('gatherRows', 'count', count, 0);
  checkCount('gatherRows', 'outStride', outStride, m.cols);
  atLeast('gatherRows', 'out', out, count === 0 ? 0 : (count - 1) * outStride + m.cols);
  checkIndices('gatherRows', 'ids', ids, 0, count, m.rows);
}

function checkMatmul(out: Sized, x: Sized, w: PackedMatrix, n: number, residual: Sized | null): void {
  checkMatrix('matmul', w);
  checkCount('matmul', 'n', n, 0);
  if (x.length < n * w.cols) {
    fail('matmul', `inner sizes differ, got x of ${x.length} floats for ${n} rows, w [${w.rows}, ${w.cols}]`);
  }
  atLeast('matmul', 'out', out, n * w.rows);
  if (residual !== null) atLeast('matmul', 'residual', residual, n * w.rows);
}

/** x [n, xCols] → out [n, outCols]. */
function checkRows(
  place: string,
  out: Sized,
  outCols: number,
  x: Sized,
  xCols: number,
  n: number,
  outName = 'out',
  xName = 'x',
): void {
  checkCount(place, 'n', n, 0);
  checkCount(place, 'cols', xCols, 1);
  atLeast(place, xName, x, n * xCols);
  atLeast(place, outName, out, n * outCols);
}

function checkRope(
  x: Sized,
  stride: number,
  n: number,
  heads: number,
  headDim: number,
  positions: Int32Array,
  cos: Sized,
  sin: Sized,
): void {
  checkCount('rope', 'n', n, 0);
  checkCount('rope', 'heads', heads, 1);
  checkHeadDim('rope', headDim);
  checkCount('rope', 'stride', stride, heads * headDim);
  atLeast('rope', 'x', x, n * stride);
  atLeast('rope', 'sin', sin, cos.length);
  checkIndices('rope', 'positions', positions, 0, n, Math.floor((2 * cos.length) / headDim));
}

function checkStoreKv(
  kv: KvLayer,
  qkv: Sized,
  stride: number,
  keyOffset: number,
  valueOffset: number,
  { rows, slots }: AttentionLayout,
): void {
  checkKvLayer('storeKv', kv);
  checkCount('storeKv', 'rows', rows, 0);
  checkCount('storeKv', 'keyOffset', keyOffset, 0);
  checkCount('storeKv', 'valueOffset', valueOffset, 0);
  checkCount('storeKv', 'stride', stride, Math.max(keyOffset, valueOffset) + kv.kvHeads * kv.headDim);
  atLeast('storeKv', 'qkv', qkv, rows * stride);
  checkIndices('storeKv', 'slots', slots, 0, rows, kv.slots);
}

function checkAttention(
  out: Sized,
  qkv: Sized,
  stride: number,
  heads: number,
  kv: KvLayer,
  layout: AttentionLayout,
): void {
  checkQueries('attention', qkv, stride, heads, kv, layout);
  atLeast('attention', 'out', out, layout.rows * heads * kv.headDim);
  if (kv.next !== undefined) checkNext(kv, kv.next);
}

function checkNext(kv: KvLayer, next: KvLayer): void {
  checkKvLayer('attention', next);
  for (const field of ['dtype', 'kvHeads', 'headDim', 'slots'] as const)
    if (next[field] !== kv[field]) fail('attention', `next must have ${field} ${kv[field]}, got ${next[field]}`);
}

function checkQueries(
  place: string,
  qkv: Sized,
  stride: number,
  heads: number,
  kv: KvLayer,
  layout: AttentionLayout,
): void {
  checkKvLayer(place, kv);
  checkLayout(place, layout, kv.slots);
  checkCount(place, 'heads', heads, 1);
  if (heads % kv.kvHeads !== 0) fail(place, `heads must be a multiple of kvHeads, got ${heads} and ${kv.kvHeads}`);
  checkCount(place, 'stride', stride, heads * kv.headDim);
  atLeast(place, 'qkv', qkv, layout.rows * stride);
}

function checkAttentionBackward(
  dQkv: Sized,
  dKeys: Sized,
  dValues: Sized,
  dOut: Sized,
  qkv: Sized,
  stride: number,
  heads: number,
  kv: KvLayer,
  layout: AttentionLayout,
): void {
  const place = 'attentionBackward';
  checkQueries(place, qkv, stride, heads, kv, layout);
  if (kv.dtype !== 'f32') throw new TypeError(`${place}: the cache must be f32, got ${kv.dtype}`);
  atLeast(place, 'dOut', dOut, layout.rows * heads * kv.headDim);
  atLeast(place, 'dQkv', dQkv, layout.rows * stride);
  atLeast(place, 'dKeys', dKeys, kv.slots * kv.kvHeads * kv.headDim);
  atLeast(place, 'dValues', dValues, kv.slots * kv.kvHeads * kv.headDim);
}

function checkTranspose(out: PackedMatrix, weight: PackedMatrix): void {
  checkFloatMatrix('transpose', 'weight', weight);
  checkFloatMatrix('transpose', 'out', out);
  if (out.rows !== weight.cols || out.cols !== weight.rows) {
    fail(
      'transpose',
      `out must be [${weight.cols}, ${weight.rows}] for weight [${weight.rows}, ${weight.cols}], got [${out.rows}, ${out.cols}]`,
    );
  }
}

function checkMoveKv(kv: KvLayer, from: Int32Array, to: Int32Array, count: number): void {
  checkKvLayer('moveKv', kv);
  checkCount('moveKv', 'count', count, 0);
  checkIndices('moveKv', 'from', from, 0, count, kv.slots);
  checkIndices('moveKv', 'to', to, 0, count, kv.slots);
  for (let i = 0; i < count; i++) {
    if (to[i]! > from[i]!) fail('moveKv', `rows move down, got ${from[i]} → ${to[i]} at ${i}`);
    // Then every later source lies above this row: from[j] >= to[j] > to[i].
    if (i > 0 && to[i]! <= to[i - 1]!) fail('moveKv', `to must ascend, got ${to[i - 1]} then ${to[i]} at ${i}`);
  }
}

/** What names the k first of every row. */
function checkRanking(place: string, ids: Sized, n: number, cols: number, k: number): void {
  checkCount(place, 'n', n, 0);
  checkCount(place, 'cols', cols, 1);
  if (!(Number.isInteger(k) && k >= 1 && k <= cols)) fail(place, `k must be in 1..${cols}, got ${k}`);
  atLeast(place, 'ids', ids, n * k);
}

function checkTopK(ids: Sized, values: Sized, x: Sized, n: number, cols: number, k: number): void {
  checkRanking('topK', ids, n, cols, k);
  atLeast('topK', 'x', x, n * cols);
  atLeast('topK', 'values', values, n * k);
}

function checkRace(
  ids: Sized,
  times: Sized,
  rates: Sized,
  n: number,
  cols: number,
  k: number,
  key: Sized,
  labels: Sized | null,
): void {
  checkRanking('race', ids, n, cols, k);
  atLeast('race', 'rates', rates, n * cols);
  atLeast('race', 'times', times, n * k);
  atLeast('race', 'key', key, 2);
  if (labels !== null) atLeast('race', 'labels', labels, cols);
}

function checkMatrix(place: string, m: PackedMatrix, name = 'weight'): void {
  if (!WEIGHT_DTYPES.includes(m.dtype)) throw new TypeError(`${place}: unknown ${name} dtype, got ${m.dtype}`);
  // The names are only put together for the message: this runs in the hot loop.
  if (!isCount(m.rows, 0)) checkCount(place, `${name} rows`, m.rows, 0);
  if (!isCount(m.cols, 1)) checkCount(place, `${name} cols`, m.cols, 1);
  const bytes = packedBytes(m.dtype, m.rows, m.cols);
  if (m.data.length < bytes) {
    fail(place, `${name} [${m.rows}, ${m.cols}] ${m.dtype} needs ${bytes} bytes, got ${m.data.length}`);
  }
}

function checkFloatMatrix(place: string, name: string, m: PackedMatrix): void {
  checkMatrix(place, m, name);
  if (m.dtype !== 'f32') throw new TypeError(`${place}: ${name} must be f32, got ${m.dtype}`);
}

function checkKvLayer(place: string, kv: KvLayer): void {
  const half = kv.dtype === 'f16';
  if (!half && kv.dtype !== 'f32') throw new TypeError(`${place}: unknown cache dtype, got ${kv.dtype}`);
  if (kv.keys instanceof Uint16Array !== half || kv.values instanceof Uint16Array !== half) {
    throw new TypeError(
      `${place}: a ${kv.dtype} cache holds ${half ? 'Uint16Array' : 'Float32Array'}s, ` +
        `got keys ${kv.keys.constructor.name}, values ${kv.values.constructor.name}`,
    );
  }
  checkCount(place, 'kvHeads', kv.kvHeads, 1);
  checkHeadDim(place, kv.headDim);
  checkCount(place, 'cache slots', kv.slots, 0);
  if (kv.slots % KV_TILE !== 0) fail(place, `cache slots must be a multiple of ${KV_TILE}, got ${kv.slots}`);
  const elements = kv.slots * kv.kvHeads * kv.headDim;
  atLeast(place, 'keys', kv.keys, elements);
  atLeast(place, 'values', kv.values, elements);
}

/** What rows look at; where they are written is `storeKv`'s business. */
function checkLayout(place: string, layout: AttentionLayout, slots: number): void {
  const { rows, base, prefix, extrasStart, extras } = layout;
  checkCount(place, 'rows', rows, 0);
  atLeast(place, 'base', base, rows);
  atLeast(place, 'prefix', prefix, rows);
  atLeast(place, 'extrasStart', extrasStart, rows + 1);
  for (let row = 0; row < rows; row++) {
    const start = base[row]!;
    const length = prefix[row]!;
    const extraCount = extrasStart[row + 1]! - extrasStart[row]!;
    if (start < 0 || start % KV_TILE !== 0) fail(place, `base[${row}] must be a multiple of ${KV_TILE}, got ${start}`);
    if (length < 0) fail(place, `prefix[${row}] must be at least 0, got ${length}`);
    if (start + length > slots) {
      fail(place, `row ${row} must look inside the cache of ${slots} slots, got ${start}..${start + length - 1}`);
    }
    if (extraCount < 0) {
      fail(place, `extrasStart must ascend, got ${extrasStart[row]} then ${extrasStart[row + 1]} at row ${row}`);
    }
    if (length + extraCount === 0) fail(place, `row ${row} must look at a slot, got prefix 0 and no extras`);
  }
  if (rows > 0) checkIndices(place, 'extras', extras, extrasStart[0]!, extrasStart[rows]!, slots);
}

function checkHeadDim(place: string, headDim: number): void {
  checkCount(place, 'headDim', headDim, 2);
  if (headDim % 2 !== 0) fail(place, `headDim must be even, got ${headDim}`);
}

/** values[start, end) must be in 0..limit-1. */
function checkIndices(
  place: string,
  name: string,
  values: Int32Array,
  start: number,
  end: number,
  limit: number,
): void {
  if (start < 0) fail(place, `${name} must start at 0 or later, got ${start}`);
  atLeast(place, name, values, end);
  for (let i = start; i < end; i++) {
    const value = values[i]!;
    if (value < 0 || value >= limit) fail(place, `${name}[${i}] must be in 0..${limit - 1}, got ${value}`);
  }
}

function atLeast(place: string, name: string, array: Sized, length: number): void {
  if (array.length < length) fail(place, `${name} needs ${length} elements, got ${array.length}`);
}

function checkCount(place: string, name: string, value: number, least: number): void {
  if (!isCount(value, least)) fail(place, `${name} must be a whole number of at least ${least}, got ${value}`);
}

function isCount(value: number, least: number): boolean {
  return Number.isInteger(value) && value >= least && value <= LARGEST_COUNT;
}

/** Memory is counted in 64 bits. */
function checkBytes(place: string, bytes: number): void {
  if (!(Number.isSafeInteger(bytes) && bytes >= 0)) {
    fail(place, `bytes must be a whole number of at least 0, got ${bytes}`);
  }
}

function fail(place: string, rule: string): never {
  throw new RangeError(`${place}: ${rule}`);
}
