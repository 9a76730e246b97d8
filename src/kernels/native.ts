/** The C++ add-on behind the `Kernels` interface: translates objects to positional arguments. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { RequestError } from '../errors.ts';
import { checked } from './check.ts';
import { clocked, type KernelClock } from './clocked.ts';
import {
  type AttentionLayout,
  type Kernels,
  type KvLayer,
  type PackedMatrix,
  SOURCE_TYPES,
  WEIGHT_DTYPES,
} from './kernels.ts';

type Floats = Float32Array;

/** With fewer rows no table's products fetch what attention reads next: they wait for memory themselves (native/matmul-inl.h). */
const FETCH_ROWS = 13;

/** The functions of one table, as `native/addon.cc` exports them. */
interface NativeTable {
  allocate(bytes: number, dense: number): ArrayBuffer;
  release(buffer: ArrayBuffer): void;
  /** How many work then, the caller included: fewer where the system refuses some. */
  setThreads(threads: number): number;
  pack(
    dtype: number,
    rows: number,
    cols: number,
    data: Uint8Array,
    firstRow: number,
    source: Uint8Array,
    type: number,
    rowMap: Int32Array,
    count: number,
  ): void;
  gatherRows(
    out: Floats,
    stride: number,
    dtype: number,
    rows: number,
    cols: number,
    data: Uint8Array,
    ids: Int32Array,
    count: number,
  ): void;
  matmul(
    out: Floats,
    x: Floats,
    dtype: number,
    rows: number,
    cols: number,
    data: Uint8Array,
    n: number,
    residual: Floats | null,
  ): void;
  rmsNorm(out: Floats, x: Floats, weight: Floats, n: number, cols: number, eps: number): void;
  rope(
    x: Floats,
    stride: number,
    n: number,
    heads: number,
    headDim: number,
    positions: Int32Array,
    cos: Floats,
    sin: Floats,
  ): void;
  useLayout(
    rows: number,
    base: Int32Array,
    prefix: Int32Array,
    slots: Int32Array,
    extrasStart: Int32Array,
    extras: Int32Array,
  ): void;
  useKv(
    half: number,
    kvHeads: number,
    headDim: number,
    slots: number,
    keys: Floats | Uint16Array,
    values: Floats | Uint16Array,
  ): void;
  storeKv(qkv: Floats, stride: number, keyOffset: number, valueOffset: number): void;
  attention(
    out: Floats,
    qkv: Floats,
    stride: number,
    heads: number,
    nextKeys: Floats | Uint16Array | null,
    nextValues: Floats | Uint16Array | null,
  ): void;
  moveKv(from: Int32Array, to: Int32Array, count: number): void;
  swiglu(out: Floats, x: Floats, n: number, cols: number): void;
  softmax(out: Floats, x: Floats, n: number, cols: number, inverseTemperature: number): void;
  argmax(out: Int32Array, x: Floats, n: number, cols: number): void;
  topK(ids: Int32Array, values: Floats, x: Floats, n: number, cols: number, k: number): void;
  race(
    ids: Int32Array,
    times: Floats,
    rates: Floats,
    n: number,
    cols: number,
    k: number,
    key: Int32Array,
    labels: Int32Array | null,
  ): void;
  transpose(
    outDtype: number,
    outRows: number,
    outCols: number,
    outData: Uint8Array,
    dtype: number,
    rows: number,
    cols: number,
    data: Uint8Array,
  ): void;
  accumulateOuter(dtype: number, rows: number, cols: number, data: Uint8Array, dy: Floats, x: Floats, n: number): void;
  scatterAddRows(
    dtype: number,
    rows: number,
    cols: number,
    data: Uint8Array,
    ids: Int32Array,
    dy: Floats,
    count: number,
  ): void;
  rmsNormBackward(
    dx: Floats,
    dWeight: Floats | null,
    dy: Floats,
    x: Floats,
    weight: Floats,
    n: number,
    cols: number,
    eps: number,
  ): void;
  swigluBackward(dx: Floats, dy: Floats, x: Floats, n: number, cols: number): void;
  attentionBackward(
    dQkv: Floats,
    dKeys: Floats,
    dValues: Floats,
    dOut: Floats,
    qkv: Floats,
    stride: number,
    heads: number,
  ): void;
  softCrossEntropy(
    losses: Floats,
    dLogits: Floats,
    logits: Floats,
    teacher: Floats,
    weights: Floats,
    n: number,
    cols: number,
  ): void;
  bandwidth(bytes: number, repeats: number): number;
  fmaLimit(repeats: number): number;
}

/** `EAGLET_ADDON` names another build of the add-on: one with sanitizers, say (scripts/sanitize.mjs). */
export const addonPath =
  process.env.EAGLET_ADDON ?? fileURLToPath(new URL('../../build/Release/eaglet.node', import.meta.url));

let loaded: Readonly<Record<string, NativeTable>> | undefined;

function addonTables(): Readonly<Record<string, NativeTable>> {
  if (loaded === undefined) {
    const addon =
      process.env.EAGLET_ADDON !== undefined || existsSync(addonPath)
        ? (createRequire(import.meta.url)(addonPath) as { tables: Record<string, NativeTable> })
        : { tables: {} };
    loaded = addon.tables;
  }
  return loaded;
}

/** Instruction-set tables that this machine can run, best first; empty where the add-on was not compiled. */
export function nativeTables(): readonly string[] {
  return Object.keys(addonTables());
}

const dtypeIndex = (matrix: PackedMatrix): number => WEIGHT_DTYPES.indexOf(matrix.dtype);

/** Far more than help. */
export const MOST_THREADS = 256;

/** @throws RequestError where that many threads cannot be. */
export function checkThreads(threads: number): void {
  if (!(Number.isInteger(threads) && threads >= 1 && threads <= MOST_THREADS))
    throw new RequestError('threads', `must be a whole number in 1..${MOST_THREADS}, got ${threads}`);
}

/**
 * Threads asked for by the instances that live, oldest first. The pool is one per process: the youngest decides its size, the one before
 * it again once it is disposed, and with the last of them the pool ends.
 */
const living: { readonly threads: number }[] = [];

function joinPool(table: NativeTable, wanted: number): { readonly threads: number; readonly leave: () => void } {
  const member = { threads: wanted };
  living.push(member);
  const leave = (): void => {
    const at = living.indexOf(member);
    if (at < 0) return; // disposed before
    living.splice(at, 1);
    table.setThreads(living.at(-1)?.threads ?? 1);
  };
  return { threads: table.setThreads(wanted), leave };
}

/**
 * @param options.isa one of `nativeTables()`; @param options.threads working threads, the caller included; where the system
 * refuses some, the others do the work, and the kernels say how many there are.
 * The pool is one per process: the youngest living instance sets its size. Worker threads do not know of each other's instances.
 */
export function createNativeKernels(options: {
  readonly isa: string;
  readonly threads: number;
  readonly clock?: KernelClock;
}): Kernels {
  const table = addonTables()[options.isa];
  if (table === undefined) {
    throw new RangeError(
      `kernels: no table "${options.isa}" on this machine, available: ${nativeTables().join(', ') || 'none'}`,
    );
  }
  checkThreads(options.threads);
  const { threads, leave } = joinPool(table, options.threads);
  const useKv = (kv: KvLayer): void =>
    table.useKv(kv.dtype === 'f16' ? 1 : 0, kv.kvHeads, kv.headDim, kv.slots, kv.keys, kv.values);
  const use = (kv: KvLayer, layout: AttentionLayout): void => {
    useKv(kv);
    table.useLayout(layout.rows, layout.base, layout.prefix, layout.slots, layout.extrasStart, layout.extras);
  };
  const kernels: Kernels = {
    isa: options.isa,
    threads,
    allocate: (bytes, dense) => table.allocate(bytes, dense ? 1 : 0),
    release: (buffer) => table.release(buffer),
    pack: (m, firstRow, source, type, rowMap) =>
      table.pack(
        dtypeIndex(m),
        m.rows,
        m.cols,
        m.data,
        firstRow,
        source,
        SOURCE_TYPES.indexOf(type),
        rowMap,
        rowMap.length,
      ),
    gatherRows: (out, outStride, m, ids, count) =>
      table.gatherRows(out, outStride, dtypeIndex(m), m.rows, m.cols, m.data, ids, count),
    matmul: (out, x, w, n, residual) => table.matmul(out, x, dtypeIndex(w), w.rows, w.cols, w.data, n, residual),
    rmsNorm: (out, x, weight, n, cols, eps) => table.rmsNorm(out, x, weight, n, cols, eps),
    rope: (x, stride, n, heads, headDim, positions, cos, sin) =>
      table.rope(x, stride, n, heads, headDim, positions, cos, sin),
    storeKv: (kv, qkv, stride, keyOffset, valueOffset, layout) => {
      use(kv, layout);
      table.storeKv(qkv, stride, keyOffset, valueOffset);
    },
    attention: (out, qkv, stride, heads, kv, layout) => {
      use(kv, layout);
      const next = layout.rows < FETCH_ROWS ? undefined : kv.next;
      table.attention(out, qkv, stride, heads, next?.keys ?? null, next?.values ?? null);
    },
    moveKv: (kv, from, to, count) => {
      useKv(kv);
      table.moveKv(from, to, count);
    },
    swiglu: (out, x, n, cols) => table.swiglu(out, x, n, cols),
    softmax: (out, x, n, cols, inverseTemperature) => table.softmax(out, x, n, cols, inverseTemperature),
    argmax: (out, x, n, cols) => table.argmax(out, x, n, cols),
    topK: (ids, values, x, n, cols, k) => table.topK(ids, values, x, n, cols, k),
    race: (ids, times, rates, n, cols, k, key, labels) => table.race(ids, times, rates, n, cols, k, key, labels),
    transpose: (out, w) =>
      table.transpose(dtypeIndex(out), out.rows, out.cols, out.data, dtypeIndex(w), w.rows, w.cols, w.data),
    accumulateOuter: (g, dy, x, n) => table.accumulateOuter(dtypeIndex(g), g.rows, g.cols, g.data, dy, x, n),
    scatterAddRows: (g, ids, dy, count) => table.scatterAddRows(dtypeIndex(g), g.rows, g.cols, g.data, ids, dy, count),
    rmsNormBackward: (dx, dWeight, dy, x, weight, n, cols, eps) =>
      table.rmsNormBackward(dx, dWeight, dy, x, weight, n, cols, eps),
    swigluBackward: (dx, dy, x, n, cols) => table.swigluBackward(dx, dy, x, n, cols),
    attentionBackward: (dQkv, dKeys, dValues, dOut, qkv, stride, heads, kv, layout) => {
      use(kv, layout);
      table.attentionBackward(dQkv, dKeys, dValues, dOut, qkv, stride, heads);
    },
    softCrossEntropy: (losses, dLogits, logits, teacher, weights, n, cols) =>
      table.softCrossEntropy(losses, dLogits, logits, teacher, weights, n, cols),
    fmaLimit: (repeats) => table.fmaLimit(repeats),
    bandwidth: (bytes, repeats) => table.bandwidth(bytes, repeats),
    dispose: leave,
  };
  // Inside the checks: they are TypeScript, so their time is not the kernels'.
  return checked(clocked(kernels, options.clock));
}
