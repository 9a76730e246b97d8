/** The gradient kernels in plain TypeScript, as `reference.ts` has the others: sums in f64, rounded when they are added to an output. */
import { type Kernels, KV_TILE } from './kernels.ts';
import { floatAt, floatsOf, keyAt, slotsOf, valueAt } from './layouts.ts';

const { fround } = Math;

const transpose: Kernels['transpose'] = (out, weight) => {
  const from = floatsOf(weight);
  const to = floatsOf(out).fill(0);
  for (let row = 0; row < weight.rows; row++) {
    for (let col = 0; col < weight.cols; col++) to[floatAt(out, col, row)] = from[floatAt(weight, row, col)]!;
  }
};

const accumulateOuter: Kernels['accumulateOuter'] = (gradient, dy, x, n) => {
  const { rows, cols } = gradient;
  const sums = floatsOf(gradient);
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++) {
      const at = floatAt(gradient, row, col);
      let sum = sums[at]!;
      for (let i = 0; i < n; i++) sum += dy[i * rows + row]! * x[i * cols + col]!;
      sums[at] = sum;
    }
  }
};

/** Nothing but additions to the output, so f32 from the start. */
const scatterAddRows: Kernels['scatterAddRows'] = (gradient, ids, dy, count) => {
  const { cols } = gradient;
  const sums = floatsOf(gradient);
  for (let i = 0; i < count; i++) {
    for (let k = 0; k < cols; k++) {
      const at = floatAt(gradient, ids[i]!, k);
      sums[at] = sums[at]! + dy[i * cols + k]!;
    }
  }
};

/** y = x·s·w with s = (mean(x²) + eps)^-½, so ∂s/∂x = -x·s³/cols. */
const rmsNormBackward: Kernels['rmsNormBackward'] = (dx, dWeight, dy, x, weight, n, cols, eps) => {
  const weightSums = new Float64Array(cols);
  for (let row = 0; row < n; row++) {
    const start = row * cols;
    let squares = 0;
    let dot = 0; // Σ dy·w·x
    for (let k = 0; k < cols; k++) {
      squares += x[start + k]! ** 2;
      dot += dy[start + k]! * weight[k]! * x[start + k]!;
    }
    const scale = 1 / Math.sqrt(squares / cols + fround(eps));
    for (let k = 0; k < cols; k++) {
      const at = start + k;
      dx[at] = dx[at]! + scale * dy[at]! * weight[k]! - (x[at]! * scale ** 3 * dot) / cols;
      weightSums[k] = weightSums[k]! + dy[at]! * x[at]! * scale;
    }
  }
  if (dWeight !== null) for (let k = 0; k < cols; k++) dWeight[k] = dWeight[k]! + weightSums[k]!;
};

/** silu(g) = g·σ(g), and its derivative σ(g)·(1 + g·(1 - σ(g))). */
const swigluBackward: Kernels['swigluBackward'] = (dx, dy, x, n, cols) => {
  for (let row = 0; row < n; row++) {
    for (let k = 0; k < cols; k++) {
      const gateAt = row * 2 * cols + k;
      const upAt = gateAt + cols;
      const [gate, up, d] = [x[gateAt]!, x[upAt]!, dy[row * cols + k]!];
      const sigmoid = 1 / (1 + Math.exp(-gate));
      dx[gateAt] = dx[gateAt]! + d * up * sigmoid * (1 + gate / (1 + Math.exp(gate)));
      dx[upAt] = dx[upAt]! + d * gate * sigmoid;
    }
  }
};

/** With P = softmax(S), S = scale·q·k, O = P·v: dP = dO·v, dS = P·(dP - Σ P·dP), and from there dq, dk and dv = P·dO. */
const attentionBackward: Kernels['attentionBackward'] = (
  dQkv,
  dKeys,
  dValues,
  dOut,
  qkv,
  stride,
  heads,
  kv,
  layout,
) => {
  const { headDim, keys, values } = kv;
  const scale = 1 / Math.sqrt(headDim);
  const keySums = new Float64Array(kv.slots * kv.kvHeads * headDim);
  const valueSums = new Float64Array(keySums.length);
  for (let row = 0; row < layout.rows; row++) {
    const slots = slotsOf(layout, row);
    const scores = new Float64Array(slots.length);
    const dProbabilities = new Float64Array(slots.length);
    for (let head = 0; head < heads; head++) {
      const kvHead = Math.floor(head / (heads / kv.kvHeads));
      const query = row * stride + head * headDim;
      const out = (row * heads + head) * headDim;
      for (let j = 0; j < slots.length; j++) {
        const key = keyAt(kv, slots[j]!, kvHead);
        const value = valueAt(kv, slots[j]!, kvHead);
        let [score, dProbability] = [0, 0];
        for (let d = 0; d < headDim; d++) {
          score += qkv[query + d]! * keys[key + d * KV_TILE]!;
          dProbability += dOut[out + d]! * values[value + d]!;
        }
        scores[j] = score * scale;
        dProbabilities[j] = dProbability;
      }
      const normalizer = logSumExp(scores, 0, slots.length);
      let mean = 0; // of dP under P
      for (let j = 0; j < slots.length; j++) mean += Math.exp(scores[j]! - normalizer) * dProbabilities[j]!;
      const querySums = new Float64Array(headDim);
      for (let j = 0; j < slots.length; j++) {
        const probability = Math.exp(scores[j]! - normalizer);
        const dScore = probability * (dProbabilities[j]! - mean) * scale;
        const key = keyAt(kv, slots[j]!, kvHead);
        const at = valueAt(kv, slots[j]!, kvHead);
        for (let d = 0; d < headDim; d++) {
          querySums[d] = querySums[d]! + dScore * keys[key + d * KV_TILE]!;
          keySums[at + d] = keySums[at + d]! + dScore * qkv[query + d]!;
          valueSums[at + d] = valueSums[at + d]! + probability * dOut[out + d]!;
        }
      }
      for (let d = 0; d < headDim; d++) dQkv[query + d] = dQkv[query + d]! + querySums[d]!;
    }
  }
  for (let i = 0; i < keySums.length; i++) {
    dKeys[i] = dKeys[i]! + keySums[i]!;
    dValues[i] = dValues[i]! + valueSums[i]!;
  }
};

const softCrossEntropy: Kernels['softCrossEntropy'] = (losses, dLogits, logits, teacher, weights, n, cols) => {
  for (let row = 0; row < n; row++) {
    const [start, end] = [row * cols, (row + 1) * cols];
    const normalizer = logSumExp(logits, start, end);
    const teacherNormalizer = logSumExp(teacher, start, end);
    let loss = 0;
    for (let i = start; i < end; i++) {
      const wanted = Math.exp(teacher[i]! - teacherNormalizer);
      if (wanted > 0) loss += wanted * (normalizer - logits[i]!);
      dLogits[i] = weights[row]! * (Math.exp(logits[i]! - normalizer) - wanted);
    }
    losses[row] = loss;
  }
};

/** ln Σ e^x[i], start <= i < end; the largest is taken off first, so that no exponential overflows. */
function logSumExp(x: Float32Array | Float64Array, start: number, end: number): number {
  let largest = -Infinity;
  for (let i = start; i < end; i++) largest = Math.max(largest, x[i]!);
  let sum = 0;
  for (let i = start; i < end; i++) sum += Math.exp(x[i]! - largest);
  return largest + Math.log(sum);
}

export const gradients = {
  transpose,
  accumulateOuter,
  scatterAddRows,
  rmsNormBackward,
  swigluBackward,
  attentionBackward,
  softCrossEntropy,
} satisfies Partial<Kernels>;
