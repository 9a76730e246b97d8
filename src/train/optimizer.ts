/**
 * AdamW (Loshchilov and Hutter, arXiv:1711.05101), as PyTorch computes it: decay first, bias-corrected moments, ε outside the root.
 */
import type { Parameters } from './parameters.ts';

export interface AdamWOptions {
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  /** On every parameter, norms and biases included, as the authors' optimiser has it. */
  readonly weightDecay: number;
}

/** The authors' (EAGLE, branch v1, train/main.py); weight decay is PyTorch's default. */
export const EAGLE_ADAMW: AdamWOptions = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.01 };

/** First and second moment of one parameter. */
export interface Moments {
  readonly first: Float32Array;
  readonly second: Float32Array;
}

export class AdamW {
  readonly #parameters: Parameters;
  readonly #options: AdamWOptions;
  /** In the parameters' order. */
  readonly moments: readonly Moments[];
  /** Updates made. */
  steps = 0;

  constructor(parameters: Parameters, options: AdamWOptions = EAGLE_ADAMW) {
    this.#parameters = parameters;
    this.#options = options;
    this.moments = Array.from(parameters, ({ values }) => ({
      first: new Float32Array(values.length),
      second: new Float32Array(values.length),
    }));
  }

  update(learningRate: number): void {
    const { beta1, beta2, epsilon, weightDecay } = this.#options;
    this.steps++;
    const stepSize = learningRate / (1 - beta1 ** this.steps);
    const inverseRoot = 1 / Math.sqrt(1 - beta2 ** this.steps);
    const kept = 1 - learningRate * weightDecay;
    let index = 0;
    for (const { values, gradients } of this.#parameters) {
      const { first, second } = this.moments[index++]!;
      for (let i = 0; i < values.length; i++) {
        const g = gradients[i]!;
        const m = first[i]! + (g - first[i]!) * (1 - beta1);
        const v = second[i]! * beta2 + g * g * (1 - beta2);
        first[i] = m;
        second[i] = v;
        values[i] = values[i]! * kept - (stepSize * m) / (Math.sqrt(v) * inverseRoot + epsilon);
      }
    }
  }
}

/** Scales all gradients so that their common norm is `bound` at most; returns the norm before. ε as PyTorch has it. */
export function clipByNorm(parameters: Parameters, bound: number): number {
  let squares = 0;
  for (const { gradients } of parameters) for (let i = 0; i < gradients.length; i++) squares += gradients[i]! ** 2;
  const norm = Math.sqrt(squares);
  const scale = bound / (norm + 1e-6);
  if (scale < 1)
    for (const { gradients } of parameters) for (let i = 0; i < gradients.length; i++) gradients[i]! *= scale;
  return norm;
}
