/**
 * `config.json` → `ModelConfig`, `HeadConfig` or `MedusaConfig`: the one place where a stranger's JSON is narrowed. The bounds serve the
 * GGUF reader too. Knows nothing of tensors.
 */
import { z } from 'zod';
import type { HeadConfig } from '../draft/head-config.ts';
import { type MedusaConfig, MOST_MEDUSA_HEADS, MOST_MEDUSA_LAYERS } from '../draft/medusa-config.ts';
import { CheckpointError, show } from '../errors.ts';
import type { ModelConfig } from '../model/config.ts';

/** Model families with a forward pass in `model/`. */
export const SUPPORTED_FAMILIES = ['llama'] as const;

/** Bounds on what a file may ask for: [least, most, why the most is enough]. All are inclusive. */
const LIMITS = {
  layers: [1, 1024, 'Llama 3.1 405B has 126'],
  hiddenSize: [1, 65_536, 'Llama 3.1 405B has 16,384'],
  intermediateSize: [1, 524_288, 'Llama 3.1 405B has 53,248'],
  heads: [1, 1024, 'Llama 3.1 405B has 128'],
  kvHeads: [1, 1024, 'as heads'],
  headDim: [2, 1024, '64 to 256 are in use'],
  vocabSize: [1, 2 ** 20, 'the largest in use are about 2^18'],
  draftVocabSize: [1, 2 ** 20, 'as vocabSize'],
  contextLength: [2, 2 ** 24, 'a token and one that follows; the longest claimed is 10 million'],
  ropeTheta: [1, 1e12, '1e4 to 1e9 are in use; 1 and below turns no frequency down'],
  rmsNormEps: [1e-12, 1e-2, '1e-5 and 1e-6 are in use; 0 divides by zero on a zero row'],
} as const satisfies Record<string, readonly [number, number, string]>;

/** Positions by head dimension: tables of rotary angles take 4 bytes for each; a million positions of heads of 128. */
const MOST_ANGLES = 2 ** 27;

const REALS: ReadonlySet<string> = new Set(['ropeTheta', 'rmsNormEps']);

type LimitedNumbers = { readonly [K in keyof typeof LIMITS]?: number };

/**
 * Holds every number against its bound, then the numbers against each other.
 * @param names what the file calls each field, so that the message can be acted on.
 */
export function checkLimits(
  file: string,
  config: LimitedNumbers & { readonly heads: number; readonly kvHeads: number; readonly headDim: number },
  names: Readonly<Record<string, string>>,
): void {
  for (const key of Object.keys(LIMITS) as (keyof typeof LIMITS)[]) {
    const value = config[key];
    if (value === undefined) continue;
    const [least, most, reason] = LIMITS[key];
    const kind = REALS.has(key) ? 'a number' : 'an integer';
    if (!(value >= least && value <= most) || (!REALS.has(key) && !Number.isInteger(value))) {
      const rule = `must be ${kind} from ${least} to ${most} (${reason}), got ${value}`;
      throw new CheckpointError(file, names[key] ?? key, rule);
    }
  }
  const { heads, kvHeads, headDim } = config;
  if (heads % kvHeads !== 0) {
    const rule = `must divide the ${heads} query heads, got ${kvHeads}`;
    throw new CheckpointError(file, names.kvHeads ?? 'kvHeads', rule);
  }
  const angles = (config.contextLength ?? 1) * headDim;
  if (angles > MOST_ANGLES) {
    const rule = `times the head dimension ${headDim} must be at most ${MOST_ANGLES}, got ${config.contextLength}`;
    throw new CheckpointError(file, names.contextLength ?? 'contextLength', rule);
  }
  if (headDim % 2 !== 0) {
    throw new CheckpointError(file, names.headDim ?? 'headDim', `must be even, for rotary pairs, got ${headDim}`);
  }
}

/** The names of `config.json`. */
const JSON_NAMES = {
  layers: 'num_hidden_layers',
  hiddenSize: 'hidden_size',
  intermediateSize: 'intermediate_size',
  heads: 'num_attention_heads',
  kvHeads: 'num_key_value_heads',
  headDim: 'head_dim',
  vocabSize: 'vocab_size',
  draftVocabSize: 'draft_vocab_size',
  contextLength: 'max_position_embeddings',
  ropeTheta: 'rope_theta',
  rmsNormEps: 'rms_norm_eps',
} as const satisfies Record<keyof typeof LIMITS, string>;

/** The absence of scaling is written as null, as nothing, or as type "default". */
const ropeVariant = z
  .object({
    type: z.literal('default').optional(),
    rope_type: z.literal('default').optional(),
    rope_theta: z.number().optional(),
    factor: z.number().nullish(),
  })
  // Of no type it is linear scaling's.
  .refine(({ type, rope_type, factor }) => (type ?? rope_type) !== undefined || (factor ?? 1) === 1, {
    path: ['factor'],
    message: 'must be 1 or absent where there is no type',
  })
  .nullish();

/** What a target and a head share. Unknown keys are dropped, so a key named `__proto__` goes nowhere. */
const decoderLayer = {
  hidden_size: z.number(),
  intermediate_size: z.number(),
  num_attention_heads: z.number(),
  num_key_value_heads: z.number().nullish(),
  head_dim: z.number().nullish(),
  vocab_size: z.number(),
  hidden_act: z.literal('silu').default('silu'),
  // 1e-6 is LlamaConfig's default.
  rms_norm_eps: z.number().default(1e-6),
  rope_theta: z.number().nullish(),
  rope_scaling: ropeVariant,
  rope_parameters: ropeVariant,
  attention_bias: z.literal(false).nullish(),
  mlp_bias: z.literal(false).nullish(),
};

const modelSchema = z.object({
  ...decoderLayer,
  model_type: z.enum(SUPPORTED_FAMILIES),
  num_hidden_layers: z.number(),
  // 2048 is LlamaConfig's default.
  max_position_embeddings: z.number().default(2048),
  tie_word_embeddings: z.boolean().default(false),
  // GPTQ, AWQ and the like replace the weight tensors with packed ones of other names.
  quantization_config: z.null().optional(),
});

const headSchema = z.object({
  ...decoderLayer,
  // All are one dense Llama layer; a Qwen2 head's has biases on q, k and v.
  model_type: z.enum(['llama', 'mixtral', 'qwen2']).optional(),
  draft_vocab_size: z.number().nullish(),
});

const medusaSchema = z.object({
  medusa_num_heads: z.int().min(1).max(MOST_MEDUSA_HEADS),
  medusa_num_layers: z.int().min(1).max(MOST_MEDUSA_LAYERS),
  draft_vocab_size: z.int().min(1).max(LIMITS.draftVocabSize[1]).nullish(),
});

/** 10,000 is what transformers and the EAGLE code take when the file is silent. */
const DEFAULT_ROPE_THETA = 10_000;

/** @param file path of the `config.json`, for messages. */
export function readModelConfig(json: unknown, file: string): ModelConfig {
  const raw = narrow(modelSchema, json, file);
  const config: ModelConfig = {
    architecture: raw.model_type,
    layers: raw.num_hidden_layers,
    hiddenSize: raw.hidden_size,
    intermediateSize: raw.intermediate_size,
    heads: raw.num_attention_heads,
    kvHeads: raw.num_key_value_heads ?? raw.num_attention_heads,
    headDim: raw.head_dim ?? raw.hidden_size / raw.num_attention_heads,
    vocabSize: raw.vocab_size,
    contextLength: raw.max_position_embeddings,
    ropeTheta: raw.rope_parameters?.rope_theta ?? raw.rope_theta ?? DEFAULT_ROPE_THETA,
    rmsNormEps: raw.rms_norm_eps,
    tiedEmbeddings: raw.tie_word_embeddings,
    rotaryLayout: 'half',
  };
  checkLimits(file, config, JSON_NAMES);
  return config;
}

/**
 * An EAGLE-1 head's config. `num_hidden_layers` is not read: a published 13B head states it wrongly, and an EAGLE-1 head
 * has one layer. `bias` and `qkv_bias` are not read either: whether the tensors are in the file says more.
 */
export function readHeadConfig(json: unknown, file: string): HeadConfig {
  const raw = narrow(headSchema, json, file);
  const config: HeadConfig = {
    hiddenSize: raw.hidden_size,
    intermediateSize: raw.intermediate_size,
    heads: raw.num_attention_heads,
    kvHeads: raw.num_key_value_heads ?? raw.num_attention_heads,
    headDim: raw.hidden_size / raw.num_attention_heads,
    rmsNormEps: raw.rms_norm_eps,
    ropeTheta: raw.rope_parameters?.rope_theta ?? raw.rope_theta ?? DEFAULT_ROPE_THETA,
    vocabSize: raw.vocab_size,
    draftVocabSize: raw.draft_vocab_size ?? raw.vocab_size,
  };
  checkLimits(file, config, JSON_NAMES);
  if ((raw.head_dim ?? config.headDim) !== config.headDim) {
    const rule = `must be hidden_size / num_attention_heads = ${config.headDim} in a head, got ${raw.head_dim}`;
    throw new CheckpointError(file, 'head_dim', rule);
  }
  if (config.draftVocabSize > config.vocabSize) {
    const rule = `must be at most vocab_size ${config.vocabSize}, got ${config.draftVocabSize}`;
    throw new CheckpointError(file, 'draft_vocab_size', rule);
  }
  return config;
}

/** Medusa heads' config, or that of a model with such heads. `version` is not read: whether LM heads are in the file says more. */
export function readMedusaConfig(json: unknown, file: string): MedusaConfig {
  const raw = narrow(medusaSchema, json, file);
  return {
    heads: raw.medusa_num_heads,
    layers: raw.medusa_num_layers,
    draftVocabSize: raw.draft_vocab_size ?? undefined,
  };
}

function narrow<Schema extends z.ZodType>(schema: Schema, json: unknown, file: string): z.output<Schema> {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  const field = issue.path.join('.') || 'file';
  throw new CheckpointError(file, field, `${issue.message}, got ${show(valueAt(json, issue.path))}`);
}

function valueAt(json: unknown, path: readonly PropertyKey[]): unknown {
  let value = json;
  for (const key of path) {
    if (typeof value !== 'object' || value === null) return undefined;
    value = Object.getOwnPropertyDescriptor(value, key)?.value;
  }
  return value;
}
