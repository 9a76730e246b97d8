/**
 * Argument checks in front of every table: the native side trusts what passes here. Cheap on purpose (sizes and row indices, never
 * elements), because they stay on in production.
 */
import {
  type AttentionLayout,
  BLOCK,
  type Kernels,
  KV_TILE,
  type KvLayer,
  type PackedMatrix,
  packedBytes,
  sourceRowBytes,
} from './kernels.ts';

function fail(place: string, rule: string): never {
  throw new RangeError(`${place}: ${rule}`);
}

function count(place: string, name: string, value: number): void {
  if (!Number.isInteger(value) || value < 0) fail(place, `${name} must be a whole number of at least 0, got ${value}`);
}

function atLeast(place: string, name: string, array: { readonly length: number }, length: number): void {
  if (array.length < length) fail(place, `${name} needs ${length} elements, got ${array.length}`);
}

function matrix(place: string, m: PackedMatrix): void {
  const bytes = packedBytes(m.dtype, m.rows, m.cols);
  if (m.data.length < bytes)
    fail(place, `weight [${m.rows}, ${m.cols}] ${m.dtype} needs ${bytes} bytes, got ${m.data.length}`);
}

function indices(place: string, name: string, values: Int32Array, length: number, limit: number): void {
  atLeast(place, name, values, length);
  for (let i = 0; i < length; i++) {
    const value = values[i]!;
    if (value < 0 || value >= limit) fail(place, `${name}[${i}] must be in 0..${limit - 1}, got ${value}`);
  }
}

function kvLayer(place: string, kv: KvLayer): void {
  if (kv.slots % KV_TILE !== 0) fail(place, `slots must be a multiple of ${KV_TILE}, got ${kv.slots}`);
  const elements = kv.slots * kv.kvHeads * kv.headDim;
  atLeast(place, 'keys', kv.keys, elements);
  atLeast(place, 'values', kv.values, elements);
  const half = kv.dtype === 'f16';
  if (kv.keys instanceof Uint16Array !== half || kv.values instanceof Uint16Array !== half) {
    fail(place, `a ${kv.dtype} cache needs ${half ? 'Uint16Array' : 'Float32Array'} keys and values`);
  }
}

function attentionLayout(place: string, layout: AttentionLayout, kv: KvLayer): void {
  const { rows, base, prefix, slots, extrasStart, extras } = layout;
  count(place, 'rows', rows);
  atLeast(place, 'base', base, rows);
  atLeast(place, 'prefix', prefix, rows);
  atLeast(place, 'extrasStart', extrasStart, rows + 1);
  indices(place, 'slots', slots, rows, kv.slots);
  for (let row = 0; row < rows; row++) {
    const start = base[row]!;
    const length = prefix[row]!;
    const extra = extrasStart[row + 1]! - extrasStart[row]!;
    if (start < 0 || start % KV_TILE !== 0) fail(place, `base[${row}] must be a multiple of ${KV_TILE}, got ${start}`);
    if (length < 0 || start + length > kv.slots) {
      fail(place, `row ${row} looks at slots ${start}..${start + length - 1} of a cache of ${kv.slots}`);
    }
    if (extra < 0)
      fail(place, `extrasStart must ascend, got ${extrasStart[row]} then ${extrasStart[row + 1]} at row ${row}`);
    if (length + extra < 1) fail(place, `row ${row} has nothing to attend to`);
  }
  if (rows > 0 && extrasStart[0]! < 0) fail(place, `extrasStart[0] must be at least 0, got ${extrasStart[0]}`);
  indices(place, 'extras', extras, rows > 0 ? extrasStart[rows]! : 0, kv.slots);
}

/** The same kernels behind checks; throws RangeError naming place, rule and what was got. */
export function checked(kernels: Kernels): Kernels {
  return {
    isa: kernels.isa,
    threads: kernels.threads,
    allocate(bytes) {
      count('allocate', 'bytes', bytes);
      return kernels.allocate(bytes);
    },
    release: (buffer) => kernels.release(buffer),
    pack(m, firstRow, source, type, rowMap) {
      matrix('pack', m);
      count('pack', 'firstRow', firstRow);
      if (firstRow + rowMap.length > m.rows)
        fail('pack', `rows ${firstRow}..${firstRow + rowMap.length - 1} of a matrix of ${m.rows}`);
      if (type.startsWith('Q') && m.cols % BLOCK !== 0)
        fail('pack', `${type} needs columns in blocks of ${BLOCK}, got ${m.cols}`);
      indices('pack', 'rowMap', rowMap, rowMap.length, Math.floor(source.length / sourceRowBytes(type, m.cols)));
      kernels.pack(m, firstRow, source, type, rowMap);
    },
    gatherRows(out, outStride, m, ids, n) {
      matrix('gatherRows', m);
      count('gatherRows', 'count', n);
      if (outStride < m.cols) fail('gatherRows', `outStride must be at least ${m.cols}, got ${outStride}`);
      atLeast('gatherRows', 'out', out, n === 0 ? 0 : (n - 1) * outStride + m.cols);
      indices('gatherRows', 'ids', ids, n, m.rows);
      kernels.gatherRows(out, outStride, m, ids, n);
    },
    matmul(out, x, w, n, residual) {
      matrix('matmul', w);
      count('matmul', 'n', n);
      if (x.length < n * w.cols)
        fail('matmul', `inner sizes differ, got x of ${x.length} floats for ${n} rows, w [${w.rows}, ${w.cols}]`);
      atLeast('matmul', 'out', out, n * w.rows);
      if (residual !== null) atLeast('matmul', 'residual', residual, n * w.rows);
      kernels.matmul(out, x, w, n, residual);
    },
    rmsNorm(out, x, weight, n, cols, eps) {
      count('rmsNorm', 'n', n);
      atLeast('rmsNorm', 'x', x, n * cols);
      atLeast('rmsNorm', 'out', out, n * cols);
      atLeast('rmsNorm', 'weight', weight, cols);
      kernels.rmsNorm(out, x, weight, n, cols, eps);
    },
    rope(x, stride, n, heads, headDim, positions, cos, sin) {
      count('rope', 'n', n);
      if (headDim % 2 !== 0) fail('rope', `headDim must be even, got ${headDim}`);
      if (heads * headDim > stride) fail('rope', `${heads} heads of ${headDim} do not fit rows of ${stride}`);
      atLeast('rope', 'x', x, n * stride);
      atLeast('rope', 'sin', sin, cos.length);
      indices('rope', 'positions', positions, n, Math.floor((2 * cos.length) / headDim));
      kernels.rope(x, stride, n, heads, headDim, positions, cos, sin);
    },
    storeKv(kv, qkv, stride, keyOffset, valueOffset, layout) {
      kvLayer('storeKv', kv);
      attentionLayout('storeKv', layout, kv);
      const width = kv.kvHeads * kv.headDim;
      if (Math.max(keyOffset, valueOffset) + width > stride)
        fail('storeKv', `keys or values reach past rows of ${stride}`);
      atLeast('storeKv', 'qkv', qkv, layout.rows * stride);
      kernels.storeKv(kv, qkv, stride, keyOffset, valueOffset, layout);
    },
    attention(out, qkv, stride, heads, kv, layout) {
      kvLayer('attention', kv);
      attentionLayout('attention', layout, kv);
      if (heads % kv.kvHeads !== 0)
        fail('attention', `heads must be a multiple of kvHeads, got ${heads} and ${kv.kvHeads}`);
      if (heads * kv.headDim > stride)
        fail('attention', `${heads} heads of ${kv.headDim} do not fit rows of ${stride}`);
      atLeast('attention', 'qkv', qkv, layout.rows * stride);
      atLeast('attention', 'out', out, layout.rows * heads * kv.headDim);
      kernels.attention(out, qkv, stride, heads, kv, layout);
    },
    moveKv(kv, from, to, n) {
      kvLayer('moveKv', kv);
      indices('moveKv', 'from', from, n, kv.slots);
      indices('moveKv', 'to', to, n, kv.slots);
      for (let i = 0; i < n; i++) {
        if (to[i]! > from[i]! || (i > 0 && to[i]! <= to[i - 1]!)) {
          fail('moveKv', `rows move down, in ascending order, got ${from[i]} → ${to[i]} at ${i}`);
        }
      }
      kernels.moveKv(kv, from, to, n);
    },
    swiglu(out, x, n, cols) {
      count('swiglu', 'n', n);
      atLeast('swiglu', 'x', x, 2 * n * cols);
      atLeast('swiglu', 'out', out, n * cols);
      kernels.swiglu(out, x, n, cols);
    },
    softmax(out, x, n, cols, inverseTemperature) {
      count('softmax', 'n', n);
      atLeast('softmax', 'x', x, n * cols);
      atLeast('softmax', 'out', out, n * cols);
      kernels.softmax(out, x, n, cols, inverseTemperature);
    },
    argmax(out, x, n, cols) {
      count('argmax', 'n', n);
      atLeast('argmax', 'x', x, n * cols);
      atLeast('argmax', 'out', out, n);
      kernels.argmax(out, x, n, cols);
    },
    topK(ids, values, x, n, cols, k) {
      count('topK', 'n', n);
      if (!Number.isInteger(k) || k < 1 || k > cols) fail('topK', `k must be in 1..${cols}, got ${k}`);
      atLeast('topK', 'x', x, n * cols);
      atLeast('topK', 'ids', ids, n * k);
      atLeast('topK', 'values', values, n * k);
      kernels.topK(ids, values, x, n, cols, k);
    },
    bandwidth(bytes, repeats) {
      count('bandwidth', 'bytes', bytes);
      return kernels.bandwidth(bytes, repeats);
    },
    dispose: () => kernels.dispose(),
  };
}
