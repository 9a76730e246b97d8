import { constants } from 'node:buffer';
import { describe, expect, test } from 'vitest';
import { checked } from '../../src/kernels/check.ts';
import type { AttentionLayout, Kernels, KvLayer, PackedMatrix, SourceType } from '../../src/kernels/kernels.ts';
import { packedBytes } from '../../src/kernels/kernels.ts';

/** Kernels that only say that they were reached. */
const kernels = checked(
  new Proxy({} as Kernels, {
    get: (_, name) => () => {
      throw new Error(`reached ${String(name)}`);
    },
  }),
);

const floats = (length: number) => new Float32Array(length);
const ints = (...values: number[]) => Int32Array.from(values);
const bytes = (length: number) => new Uint8Array(length);

function matrix(changes: Partial<PackedMatrix> = {}): PackedMatrix {
  return { dtype: 'f32', rows: 128, cols: 65, data: bytes(packedBytes('f32', 128, 65)), ...changes };
}
const quantised: PackedMatrix = { dtype: 'q8', rows: 20, cols: 64, data: bytes(packedBytes('q8', 20, 64)) };

/** 32 slots, 2 KV heads of 4. */
function cache(changes: Partial<KvLayer> = {}): KvLayer {
  return { dtype: 'f32', kvHeads: 2, headDim: 4, slots: 32, keys: floats(256), values: floats(256), ...changes };
}

/** Two rows: positions 0..2 and itself; positions 16..31. */
function layout(changes: Partial<AttentionLayout> = {}): AttentionLayout {
  return {
    rows: 2,
    base: ints(0, 16),
    prefix: ints(3, 16),
    slots: ints(3, 31),
    extrasStart: ints(0, 1, 1),
    extras: ints(3),
    ...changes,
  };
}

const pack = (
  changes: Partial<{ m: PackedMatrix; firstRow: number; source: Uint8Array; type: SourceType; rowMap: Int32Array }>,
) => {
  const all = {
    m: matrix(),
    firstRow: 0,
    source: bytes(3 * 260),
    type: 'F32',
    rowMap: ints(2, 0),
    ...changes,
  } as const;
  kernels.pack(all.m, all.firstRow, all.source, all.type, all.rowMap);
};
const matmul = (x: number, n: number, out = n * 128, residual: number | null = null) =>
  kernels.matmul(floats(out), floats(x), matrix(), n, residual === null ? null : floats(residual));
const matmulOf = (changes: Partial<PackedMatrix>) => kernels.matmul(floats(999), floats(999), matrix(changes), 1, null);
const gather = (ids: Int32Array, count: number, out = 200, stride = 65) =>
  kernels.gatherRows(floats(out), stride, matrix(), ids, count);
const rope = (heads: number, headDim: number, positions: Int32Array, x = 40, cos = 12, sin = 12) =>
  kernels.rope(floats(x), 20, 2, heads, headDim, positions, floats(cos), floats(sin));
const storeKv = (kv: KvLayer, changes: Partial<AttentionLayout> = {}, keyOffset = 8, valueOffset = 16, qkv = 48) =>
  kernels.storeKv(kv, floats(qkv), 24, keyOffset, valueOffset, layout(changes));
const attention = (changes: Partial<AttentionLayout>, kv = cache(), heads = 4, qkv = 48, out = 32) =>
  kernels.attention(floats(out), floats(qkv), 24, heads, kv, layout(changes));
const moveKv = (from: Int32Array, to: Int32Array, count = from.length) => kernels.moveKv(cache(), from, to, count);
const topK = (k: number, cols = 5, ids = 10) => kernels.topK(new Int32Array(ids), floats(10), floats(10), 2, cols, k);
const race = (k: number, cols = 5, ids = 10, key = 2, labels: number | null = null) =>
  kernels.race(
    new Int32Array(ids),
    floats(10),
    floats(10),
    2,
    cols,
    k,
    new Int32Array(key),
    labels === null ? null : new Int32Array(labels),
  );

const floatMatrix = (rows: number, cols: number): PackedMatrix => ({
  dtype: 'f32',
  rows,
  cols,
  data: bytes(packedBytes('f32', rows, cols)),
});
const outer = (dy: number, x: number, n = 2, gradient = matrix()) =>
  kernels.accumulateOuter(gradient, floats(dy), floats(x), n);
const scatter = (ids: Int32Array, count: number, dy = 130) => kernels.scatterAddRows(matrix(), ids, floats(dy), count);
const rmsNormBackward = (dx: number, dWeight: number | null, dy = 8, x = 8, weight = 4) =>
  kernels.rmsNormBackward(
    floats(dx),
    dWeight === null ? null : floats(dWeight),
    floats(dy),
    floats(x),
    floats(weight),
    2,
    4,
    0,
  );
const attentionBackward = (
  changes: Partial<AttentionLayout>,
  { kv = cache(), heads = 4, dQkv = 48, dKeys = 256, dValues = 256, dOut = 32, qkv = 48 } = {},
) =>
  kernels.attentionBackward(
    floats(dQkv),
    floats(dKeys),
    floats(dValues),
    floats(dOut),
    floats(qkv),
    24,
    heads,
    kv,
    layout(changes),
  );
const softCrossEntropy = (losses: number, dLogits = 8, logits = 8, teacher = 8, weights = 2) =>
  kernels.softCrossEntropy(floats(losses), floats(dLogits), floats(logits), floats(teacher), floats(weights), 2, 4);

type Case = readonly [call: () => unknown, message: string, type?: typeof RangeError | typeof TypeError];

const REFUSED: Readonly<Record<string, readonly Case[]>> = {
  allocate: [
    [() => kernels.allocate(-1), 'allocate: bytes must be a whole number of at least 0, got -1'],
    [() => kernels.allocate(NaN), 'allocate: bytes must be a whole number of at least 0, got NaN'],
    [() => kernels.allocate(2 ** 60), 'allocate: bytes must be a whole number of at least 0'],
    [() => kernels.allocate(constants.MAX_LENGTH + 1), 'allocate: '], // one more than this Node has in one piece
  ],
  pack: [
    [() => pack({ m: matrix({ data: bytes(100) }) }), 'pack: weight [128, 65] f32 needs 33280 bytes, got 100'],
    [() => pack({ firstRow: 127 }), 'pack: rows must lie within the matrix of 128, got 127..128'],
    [() => pack({ firstRow: -1 }), 'pack: firstRow must be a whole number of at least 0, got -1'],
    [() => pack({ rowMap: ints(0, 3) }), 'pack: rowMap[1] must be in 0..2, got 3'],
    [() => pack({ rowMap: ints(-1) }), 'pack: rowMap[0] must be in 0..2, got -1'],
    [() => pack({ source: bytes(700) }), 'pack: source must be whole F32 rows of 260 bytes, got 700 bytes'],
    [() => pack({ type: 'Q8_0' }), 'pack: Q8_0 needs columns in blocks of 32, got 65'],
    [() => pack({ type: 'F64' as SourceType }), 'pack: unknown source type, got F64', TypeError],
  ],
  gatherRows: [
    [() => gather(ints(0, 128), 2), 'gatherRows: ids[1] must be in 0..127, got 128'],
    [() => gather(ints(-1), 1), 'gatherRows: ids[0] must be in 0..127, got -1'],
    [() => gather(ints(0), 2), 'gatherRows: ids needs 2 elements, got 1'],
    [() => gather(ints(0, 1), 2, 129), 'gatherRows: out needs 130 elements, got 129'],
    [() => gather(ints(0), 1, 200, 64), 'gatherRows: outStride must be a whole number of at least 65, got 64'],
  ],
  matmul: [
    [() => matmul(192, 3), 'matmul: inner sizes differ, got x of 192 floats for 3 rows, w [128, 65]'],
    [() => matmul(65, -1, 128), 'matmul: n must be a whole number of at least 0, got -1'],
    [() => matmul(65, 0.5, 128), 'matmul: n must be a whole number of at least 0, got 0.5'],
    [() => matmul(65, NaN, 128), 'matmul: n must be a whole number of at least 0, got NaN'],
    [() => matmul(130, 2, 255), 'matmul: out needs 256 elements, got 255'],
    [() => matmul(130, 2, 256, 255), 'matmul: residual needs 256 elements, got 255'],
    [() => matmulOf({ rows: 2 ** 32 }), 'matmul: weight rows must be a whole number of at least 0, got 4294967296'],
    [() => matmulOf({ cols: 0 }), 'matmul: weight cols must be a whole number of at least 1, got 0'],
    [() => matmulOf({ dtype: 'q5' as 'q4' }), 'matmul: unknown weight dtype, got q5', TypeError],
  ],
  rmsNorm: [
    [() => kernels.rmsNorm(floats(8), floats(7), floats(4), 2, 4, 0), 'rmsNorm: x needs 8 elements, got 7'],
    [() => kernels.rmsNorm(floats(7), floats(8), floats(4), 2, 4, 0), 'rmsNorm: out needs 8 elements, got 7'],
    [() => kernels.rmsNorm(floats(8), floats(8), floats(3), 2, 4, 0), 'rmsNorm: weight needs 4 elements, got 3'],
    [() => kernels.rmsNorm(floats(8), floats(8), floats(4), 2, NaN, 0), 'rmsNorm: cols must be a whole number'],
  ],
  rope: [
    [() => rope(0, 4, ints(0, 1)), 'rope: heads must be a whole number of at least 1, got 0'],
    [() => rope(3, 5, ints(0, 1)), 'rope: headDim must be even, got 5'],
    [() => rope(6, 4, ints(0, 1)), 'rope: stride must be a whole number of at least 24, got 20'],
    [() => rope(3, 4, ints(0, 1), 39), 'rope: x needs 40 elements, got 39'],
    [() => rope(3, 4, ints(0, 6)), 'rope: positions[1] must be in 0..5, got 6'],
    [() => rope(3, 4, ints(0)), 'rope: positions needs 2 elements, got 1'],
    [() => rope(3, 4, ints(0, 1), 40, 12, 11), 'rope: sin needs 12 elements, got 11'],
  ],
  storeKv: [
    [() => storeKv(cache(), { slots: ints(0, 32) }), 'storeKv: slots[1] must be in 0..31, got 32'],
    [() => storeKv(cache(), { slots: ints(-1, 0) }), 'storeKv: slots[0] must be in 0..31, got -1'],
    [() => storeKv(cache(), {}, 8, 17), 'storeKv: stride must be a whole number of at least 25, got 24'],
    [() => storeKv(cache(), {}, -1), 'storeKv: keyOffset must be a whole number of at least 0, got -1'],
    [() => storeKv(cache(), {}, 8, 16, 47), 'storeKv: qkv needs 48 elements, got 47'],
    [() => storeKv(cache({ slots: 24 })), 'storeKv: cache slots must be a multiple of 16, got 24'],
    [() => storeKv(cache({ keys: floats(255) })), 'storeKv: keys needs 256 elements, got 255'],
    [() => storeKv(cache({ headDim: 3 })), 'storeKv: headDim must be even, got 3'],
    [
      () => storeKv(cache({ dtype: 'f16' })),
      'storeKv: a f16 cache holds Uint16Arrays, got keys Float32Array, values Float32Array',
      TypeError,
    ],
    [() => storeKv(cache({ dtype: 'f64' as 'f32' })), 'storeKv: unknown cache dtype, got f64', TypeError],
  ],
  attention: [
    [() => attention({ base: ints(0, 8) }), 'attention: base[1] must be a multiple of 16, got 8'],
    [() => attention({ base: ints(-16, 0) }), 'attention: base[0] must be a multiple of 16, got -16'],
    [() => attention({ prefix: ints(3, 17) }), 'attention: row 1 must look inside the cache of 32 slots, got 16..32'],
    [() => attention({ prefix: ints(-1, 1) }), 'attention: prefix[0] must be at least 0, got -1'],
    [() => attention({ prefix: ints(3, 0) }), 'attention: row 1 must look at a slot, got prefix 0 and no extras'],
    [() => attention({ extrasStart: ints(0, 1, 0) }), 'attention: extrasStart must ascend, got 1 then 0 at row 1'],
    [() => attention({ extrasStart: ints(0, 1, 2) }), 'attention: extras needs 2 elements, got 1'],
    [() => attention({ extrasStart: ints(-1, 0, 1) }), 'attention: extras must start at 0 or later, got -1'],
    [() => attention({ extrasStart: ints(0, 1) }), 'attention: extrasStart needs 3 elements, got 2'],
    [() => attention({ extras: ints(32) }), 'attention: extras[0] must be in 0..31, got 32'],
    [() => attention({ rows: 3 }), 'attention: base needs 3 elements, got 2'],
    [() => attention({}, cache({ next: cache({ kvHeads: 1 }) })), 'attention: next must have kvHeads 2, got 1'],
    [() => attention({}, cache({ next: cache({ keys: floats(255) }) })), 'attention: keys needs 256 elements, got 255'],
    [() => attention({}, cache(), 3), 'attention: heads must be a multiple of kvHeads, got 3 and 2'],
    [() => attention({}, cache(), 8), 'attention: stride must be a whole number of at least 32, got 24'],
    [() => attention({}, cache(), 4, 47), 'attention: qkv needs 48 elements, got 47'],
    [() => attention({}, cache(), 4, 48, 31), 'attention: out needs 32 elements, got 31'],
  ],
  moveKv: [
    [() => moveKv(ints(3), ints(4)), 'moveKv: rows move down, got 3 → 4 at 0'],
    [() => moveKv(ints(5, 6), ints(3, 3)), 'moveKv: to must ascend, got 3 then 3 at 1'],
    [() => moveKv(ints(32), ints(0)), 'moveKv: from[0] must be in 0..31, got 32'],
    [() => moveKv(ints(3), ints(-1)), 'moveKv: to[0] must be in 0..31, got -1'],
    [() => moveKv(ints(3), ints(1), 2), 'moveKv: from needs 2 elements, got 1'],
  ],
  swiglu: [
    [() => kernels.swiglu(floats(8), floats(15), 2, 4), 'swiglu: x needs 16 elements, got 15'],
    [() => kernels.swiglu(floats(7), floats(16), 2, 4), 'swiglu: out needs 8 elements, got 7'],
    [() => kernels.swiglu(floats(8), floats(16), 2, 0.5), 'swiglu: cols must be a whole number of at least 1, got 0.5'],
  ],
  softmax: [[() => kernels.softmax(floats(7), floats(8), 2, 4, 1), 'softmax: out needs 8 elements, got 7']],
  argmax: [
    [() => kernels.argmax(new Int32Array(1), floats(8), 2, 4), 'argmax: out needs 2 elements, got 1'],
    [
      () => kernels.argmax(new Int32Array(2), floats(8), 2, 0),
      'argmax: cols must be a whole number of at least 1, got 0',
    ],
  ],
  topK: [
    [() => topK(6), 'topK: k must be in 1..5, got 6'],
    [() => topK(0), 'topK: k must be in 1..5, got 0'],
    [() => topK(NaN), 'topK: k must be in 1..5, got NaN'],
    [() => topK(3, 6), 'topK: x needs 12 elements, got 10'],
    [() => topK(5, 5, 9), 'topK: ids needs 10 elements, got 9'],
  ],
  race: [
    [() => race(6), 'race: k must be in 1..5, got 6'],
    [() => race(3, 6), 'race: rates needs 12 elements, got 10'],
    [() => race(5, 5, 9), 'race: ids needs 10 elements, got 9'],
    [() => race(5, 5, 10, 1), 'race: key needs 2 elements, got 1'],
    [() => race(5, 5, 10, 2, 4), 'race: labels needs 5 elements, got 4'],
  ],
  transpose: [
    [
      () => kernels.transpose(floatMatrix(65, 127), matrix()),
      'transpose: out must be [65, 128] for weight [128, 65], got [65, 127]',
    ],
    [() => kernels.transpose(floatMatrix(64, 20), quantised), 'transpose: weight must be f32, got q8', TypeError],
    [() => kernels.transpose(quantised, floatMatrix(64, 20)), 'transpose: out must be f32, got q8', TypeError],
  ],
  accumulateOuter: [
    [() => outer(255, 130), 'accumulateOuter: dy needs 256 elements, got 255'],
    [() => outer(256, 129), 'accumulateOuter: x needs 130 elements, got 129'],
    [() => outer(256, 130, -1), 'accumulateOuter: n must be a whole number of at least 0, got -1'],
    [() => outer(256, 130, 2, quantised), 'accumulateOuter: gradient must be f32, got q8', TypeError],
    [
      () => outer(256, 130, 2, matrix({ data: bytes(9) })),
      'accumulateOuter: gradient [128, 65] f32 needs 33280 bytes, got 9',
    ],
  ],
  scatterAddRows: [
    [() => scatter(ints(0, 128), 2), 'scatterAddRows: ids[1] must be in 0..127, got 128'],
    [() => scatter(ints(-1), 1), 'scatterAddRows: ids[0] must be in 0..127, got -1'],
    [() => scatter(ints(0), 2), 'scatterAddRows: ids needs 2 elements, got 1'],
    [() => scatter(ints(0, 1), 2, 129), 'scatterAddRows: dy needs 130 elements, got 129'],
  ],
  rmsNormBackward: [
    [() => rmsNormBackward(7, 4), 'rmsNormBackward: dx needs 8 elements, got 7'],
    [() => rmsNormBackward(8, 3), 'rmsNormBackward: dWeight needs 4 elements, got 3'],
    [() => rmsNormBackward(8, 4, 7), 'rmsNormBackward: dy needs 8 elements, got 7'],
    [() => rmsNormBackward(8, 4, 8, 7), 'rmsNormBackward: x needs 8 elements, got 7'],
    [() => rmsNormBackward(8, null, 8, 8, 3), 'rmsNormBackward: weight needs 4 elements, got 3'],
  ],
  swigluBackward: [
    [
      () => kernels.swigluBackward(floats(15), floats(8), floats(16), 2, 4),
      'swigluBackward: dx needs 16 elements, got 15',
    ],
    [
      () => kernels.swigluBackward(floats(16), floats(7), floats(16), 2, 4),
      'swigluBackward: dy needs 8 elements, got 7',
    ],
    [
      () => kernels.swigluBackward(floats(16), floats(8), floats(15), 2, 4),
      'swigluBackward: x needs 16 elements, got 15',
    ],
  ],
  attentionBackward: [
    [
      () => attentionBackward({ prefix: ints(3, 17) }),
      'attentionBackward: row 1 must look inside the cache of 32 slots, got 16..32',
    ],
    [() => attentionBackward({}, { heads: 3 }), 'attentionBackward: heads must be a multiple of kvHeads, got 3 and 2'],
    [() => attentionBackward({}, { qkv: 47 }), 'attentionBackward: qkv needs 48 elements, got 47'],
    [() => attentionBackward({}, { dQkv: 47 }), 'attentionBackward: dQkv needs 48 elements, got 47'],
    [() => attentionBackward({}, { dOut: 31 }), 'attentionBackward: dOut needs 32 elements, got 31'],
    [() => attentionBackward({}, { dKeys: 255 }), 'attentionBackward: dKeys needs 256 elements, got 255'],
    [() => attentionBackward({}, { dValues: 255 }), 'attentionBackward: dValues needs 256 elements, got 255'],
    [
      () =>
        attentionBackward(
          {},
          { kv: cache({ dtype: 'f16', keys: new Uint16Array(256), values: new Uint16Array(256) }) },
        ),
      'attentionBackward: the cache must be f32, got f16',
      TypeError,
    ],
  ],
  softCrossEntropy: [
    [() => softCrossEntropy(1), 'softCrossEntropy: losses needs 2 elements, got 1'],
    [() => softCrossEntropy(2, 7), 'softCrossEntropy: dLogits needs 8 elements, got 7'],
    [() => softCrossEntropy(2, 8, 7), 'softCrossEntropy: logits needs 8 elements, got 7'],
    [() => softCrossEntropy(2, 8, 8, 7), 'softCrossEntropy: teacher needs 8 elements, got 7'],
    [() => softCrossEntropy(2, 8, 8, 8, 1), 'softCrossEntropy: weights needs 2 elements, got 1'],
  ],
  fmaLimit: [[() => kernels.fmaLimit(0), 'fmaLimit: repeats must be a whole number of at least 1, got 0']],
  bandwidth: [
    [() => kernels.bandwidth(1.5, 1), 'bandwidth: bytes must be a whole number of at least 0, got 1.5'],
    [() => kernels.bandwidth(64, 0), 'bandwidth: repeats must be a whole number of at least 1, got 0'],
  ],
};

/** What lies just inside the rules. */
const PASSED: Readonly<Record<string, readonly (() => unknown)[]>> = {
  allocate: [() => kernels.allocate(0), () => kernels.allocate(2 ** 32)],
  pack: [
    () => pack({ firstRow: 126 }),
    () => pack({ rowMap: ints() }),
    () => pack({ m: quantised, source: bytes(2 * 68), type: 'Q8_0', rowMap: ints(1) }),
    () => pack({ m: { ...quantised, cols: 40 }, source: bytes(160), rowMap: ints(0) }),
  ],
  gatherRows: [() => gather(ints(127, 0), 2, 130), () => gather(ints(), 0, 0), () => gather(ints(0, 999), 1)],
  matmul: [() => matmul(195, 3), () => matmul(0, 0), () => matmul(999, 1, 999, 128)],
  rope: [() => rope(5, 4, ints(5, 0))],
  storeKv: [
    () => storeKv(cache()),
    () => storeKv(cache(), { rows: 0 }, 8, 16, 0),
    () => storeKv(cache({ dtype: 'f16', keys: new Uint16Array(256), values: new Uint16Array(256) })),
    () => storeKv(cache(), { base: ints(), prefix: ints(), extrasStart: ints() }), // says nothing of where rows go
  ],
  attention: [() => attention({}), () => attention({ rows: 0 }), () => attention({ prefix: ints(0, 1) })],
  moveKv: [() => moveKv(ints(3, 9), ints(3, 4)), () => moveKv(ints(9, 5), ints(3, 4)), () => moveKv(ints(), ints())],
  topK: [() => topK(5), () => topK(1)],
  transpose: [() => kernels.transpose(floatMatrix(65, 128), matrix())],
  accumulateOuter: [() => outer(256, 130), () => outer(0, 0, 0)],
  scatterAddRows: [() => scatter(ints(127, 127), 2), () => scatter(ints(), 0, 0)],
  rmsNormBackward: [() => rmsNormBackward(8, 4), () => rmsNormBackward(8, null)],
  swigluBackward: [() => kernels.swigluBackward(floats(16), floats(8), floats(16), 2, 4)],
  attentionBackward: [() => attentionBackward({}), () => attentionBackward({ rows: 0 })],
  softCrossEntropy: [() => softCrossEntropy(2)],
};

describe.each(Object.entries(REFUSED))('%s refuses', (_, cases) => {
  test.each(cases.map(([call, message, type]) => ({ call, message, type: type ?? RangeError })))(
    '$message',
    ({ call, message, type }) => {
      expect(call).toThrow(message);
      expect(call).toThrow(type);
    },
  );
});

test.each(Object.entries(PASSED))('%s takes what lies just inside', (name, calls) => {
  for (const call of calls) expect(call).toThrow(`reached ${name}`);
});
