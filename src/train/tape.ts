/**
 * Reverse-mode differentiation (Griewank and Walther, Evaluating Derivatives, ch. 3) over `Ops`: computes as `EagerOps` does, bit for bit,
 * and writes down what it did; `backward` walks that list from the end. What a head or a model is written against `Ops` once for, it is
 * trained with.
 *
 * A tape holds one training step: `reset` it before the next. Until then everything that an operation was given must stay as it was:
 * a batch of rows, a cache's slots.
 */
import type { AttentionLayout, Kernels, KvLayer, PackedMatrix } from '../kernels/kernels.ts';
import { Arena } from '../tensor/arena.ts';
import { EagerOps, type HeadShape, type Ops, type RotaryTables } from '../tensor/ops.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { BACKWARD, type Differentiable } from './backward.ts';
import { allocateF32 } from './matrices.ts';
import type { Parameters } from './parameters.ts';

/** Gradients of the keys and values in a layer's slots, [slots, kvHeads · headDim] each. */
export interface KvGradient {
  readonly keys: Float32Array;
  readonly values: Float32Array;
}

export class Tape implements Ops {
  readonly kernels: Kernels;
  readonly parameters: Parameters;
  readonly #ops: EagerOps;
  readonly #steps: (() => void)[] = []; // one per operation on the way back, in the order of the way there
  readonly #gradientArena = new Arena();
  /** Of the outputs that depend on a parameter. */
  readonly #gradients = new Map<Tensor, Tensor>();
  readonly #kvGradients = new Map<KvLayer, KvGradient>();
  /** Transposed weights: a frozen one's stays, a parameter's is made again in every step. */
  readonly #transposed = new Map<PackedMatrix, { readonly matrix: PackedMatrix; fresh: boolean }>();
  readonly #opposite = new Map<RotaryTables, RotaryTables>();

  constructor(kernels: Kernels, parameters: Parameters) {
    this.kernels = kernels;
    this.parameters = parameters;
    this.#ops = new EagerOps(kernels);
  }

  /** Forgets the step: its tensors' buffers are used again. The parameters' gradients become zero. */
  reset(): void {
    this.#steps.length = 0;
    this.#gradients.clear();
    this.#gradientArena.release(0);
    this.#ops.release(0);
    for (const gradient of this.#kvGradients.values()) {
      gradient.keys.fill(0);
      gradient.values.fill(0);
    }
    for (const [weight, transposed] of this.#transposed)
      if (this.parameters.gradient(weight) !== undefined) transposed.fresh = false;
    this.parameters.clearGradients();
  }

  /**
   * The loss's derivative by an output of this tape, [rows, cols]: zeros at first, filled by the caller for what the loss reads, and by
   * `backward` for the rest. Undefined where the tensor depends on no parameter.
   */
  gradient(tensor: Tensor): Tensor | undefined {
    return this.#gradients.get(tensor);
  }

  /** From the gradients of the outputs to those of the parameters, which are added to. */
  backward(): void {
    for (let i = this.#steps.length - 1; i >= 0; i--) this.#steps[i]!();
    this.#steps.length = 0;
  }

  kvGradient(kv: KvLayer): KvGradient {
    let gradient = this.#kvGradients.get(kv);
    if (gradient === undefined) {
      const length = kv.slots * kv.kvHeads * kv.headDim;
      gradient = { keys: new Float32Array(length), values: new Float32Array(length) };
      this.#kvGradients.set(kv, gradient);
    }
    return gradient;
  }

  /** For when a cache is made anew. */
  forgetCaches(): void {
    this.#kvGradients.clear();
  }

  /** Wᵀ, with which a product's gradient is a product again. */
  transposed(weight: PackedMatrix): PackedMatrix {
    let transposed = this.#transposed.get(weight);
    if (transposed === undefined) {
      transposed = { matrix: allocateF32(this.kernels, weight.cols, weight.rows), fresh: false };
      this.#transposed.set(weight, transposed);
    }
    if (!transposed.fresh) {
      this.kernels.transpose(transposed.matrix, weight);
      transposed.fresh = true;
    }
    return transposed.matrix;
  }

  /** The tables of turning back. */
  opposite(rotary: RotaryTables): RotaryTables {
    let opposite = this.#opposite.get(rotary);
    if (opposite === undefined) {
      opposite = { cos: rotary.cos, sin: rotary.sin.map((sin) => -sin) };
      this.#opposite.set(rotary, opposite);
    }
    return opposite;
  }

  /** A gradient that nobody asked for. */
  discarded(tensor: Tensor): Tensor {
    return this.#gradientArena.allocate(tensor.rows, tensor.cols);
  }

  gather(table: PackedMatrix, ids: Int32Array, count: number): Tensor {
    return this.#record('gather', [table, ids, count], this.#ops.gather(table, ids, count));
  }

  concat(a: Tensor, b: Tensor): Tensor {
    return this.#record('concat', [a, b], this.#ops.concat(a, b));
  }

  selectRows(x: Tensor, rows: Int32Array, count: number): Tensor {
    return this.#record('selectRows', [x, rows, count], this.#ops.selectRows(x, rows, count));
  }

  linear(x: Tensor, weight: PackedMatrix, residual?: Tensor, bias?: Float32Array): Tensor {
    return this.#record('linear', [x, weight, residual, bias], this.#ops.linear(x, weight, residual, bias));
  }

  rmsNorm(x: Tensor, weight: Float32Array, eps: number): Tensor {
    return this.#record('rmsNorm', [x, weight, eps], this.#ops.rmsNorm(x, weight, eps));
  }

  attention(
    qkv: Tensor,
    shape: HeadShape,
    positions: Int32Array,
    rotary: RotaryTables,
    kv: KvLayer,
    layout: AttentionLayout,
  ): Tensor {
    const output = this.#ops.attention(qkv, shape, positions, rotary, kv, layout);
    return this.#record('attention', [qkv, shape, positions, rotary, kv, layout], output);
  }

  swiglu(gateUp: Tensor): Tensor {
    return this.#record('swiglu', [gateUp], this.#ops.swiglu(gateUp));
  }

  silu(x: Tensor, residual: Tensor): Tensor {
    return this.#record('silu', [x, residual], this.#ops.silu(x, residual));
  }

  /** Nothing is taken back before `reset`: the way back needs it. */
  mark(): number {
    return 0;
  }

  release(): void {}

  keep(_mark: number, tensor: Tensor): Tensor {
    return tensor;
  }

  #record<K extends Differentiable>(operation: K, args: globalThis.Parameters<Ops[K]>, output: Tensor): Tensor {
    if (!args.some((argument) => this.#depends(argument))) return output;
    const gradient = this.#gradientArena.allocate(output.rows, output.cols);
    gradient.data.fill(0, 0, output.rows * output.cols);
    this.#gradients.set(output, gradient);
    const rule = BACKWARD[operation];
    this.#steps.push(() => rule(this, gradient, ...args));
    return output;
  }

  /** Whether an operation's argument is a parameter, or an output that depends on one. */
  #depends(argument: unknown): boolean {
    return this.#gradients.has(argument as Tensor) || this.parameters.gradient(argument as PackedMatrix) !== undefined;
  }
}
