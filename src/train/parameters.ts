/** What is trained: weights in the very buffers that forwards read, each with a gradient of the same layout. */
import type { Kernels, PackedMatrix } from '../kernels/kernels.ts';
import { floatsOf } from '../kernels/layouts.ts';
import { allocateF32 } from './matrices.ts';

/** A matrix [out, in], packed as f32, or a vector (norm, bias). */
export type Weight = PackedMatrix | Float32Array;

export interface Parameter<W extends Weight = Weight> {
  /** For messages. */
  readonly name: string;
  readonly weight: W;
  readonly gradient: W;
  /** The same memory as numbers; of a packed matrix in its tiles' order, padding included (zeros, which stay so). */
  readonly values: Float32Array;
  readonly gradients: Float32Array;
}

export class Parameters implements Iterable<Parameter> {
  readonly #all = new Map<Weight, Parameter>();

  /** @param tensors by the names in a file; those that share a weight are one parameter, named by the first. */
  constructor(kernels: Kernels, tensors: Iterable<{ readonly name: string; readonly weight: Weight }>) {
    for (const { name, weight } of tensors)
      if (!this.#all.has(weight)) this.#all.set(weight, createParameter(kernels, name, weight));
  }

  /** Undefined where the weight is frozen. */
  gradient<W extends Weight>(weight: W): W | undefined {
    return this.#all.get(weight)?.gradient as W | undefined;
  }

  clearGradients(): void {
    for (const { gradients } of this) gradients.fill(0);
  }

  /** Trained numbers, padding included. */
  get count(): number {
    return [...this].reduce((sum, { values }) => sum + values.length, 0);
  }

  [Symbol.iterator](): Iterator<Parameter> {
    return this.#all.values();
  }
}

function createParameter(kernels: Kernels, name: string, weight: Weight): Parameter {
  if (weight instanceof Float32Array) {
    const gradient = new Float32Array(weight.length);
    return { name, weight, gradient, values: weight, gradients: gradient };
  }
  if (weight.dtype !== 'f32')
    throw new RangeError(`parameters: ${name} must be f32 to be trained, got ${weight.dtype}`);
  const gradient = allocateF32(kernels, weight.rows, weight.cols);
  return { name, weight, gradient, values: floatsOf(weight), gradients: floatsOf(gradient) };
}
