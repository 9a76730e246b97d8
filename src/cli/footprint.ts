/**
 * What loading will take, found by loading without the weights: the model's own loading code runs over kernels that only count, and over
 * a source whose tensors have names, shapes and types but no bytes. So the figures, and the errors, are those of loading.
 */
import type { HeadFiles } from '../checkpoint/head.ts';
import type { MedusaFiles } from '../checkpoint/medusa.ts';
import { EagleHead } from '../draft/eagle-head.ts';
import { MedusaHeads } from '../draft/medusa-heads.ts';
import { DRAFT_DTYPE } from '../engine.ts';
import { KV_DTYPES, type KvDtype } from '../kernels/kernels.ts';
import { createSizingKernels } from '../kernels/sizing.ts';
import type { ModelConfig } from '../model/config.ts';
import { KvCache } from '../model/kv-cache.ts';
import { loadTarget } from '../model/registry.ts';
import type { TargetModel } from '../model/target.ts';
import { MODEL_DTYPES, type ModelDtype } from '../model/weights.ts';
import type { TensorSource } from '../tensor/source.ts';

interface Model {
  readonly config: ModelConfig;
  readonly source: TensorSource;
}

export interface Footprint {
  /** Bytes of all weights in memory. */
  readonly weights: { readonly [D in ModelDtype]: number };
  /** What the KV cache of a model loaded so holds. */
  readonly kvDtypes: { readonly [D in ModelDtype]: KvDtype };
  readonly cache: { readonly [D in KvDtype]: CacheFootprint };
}

export interface CacheFootprint {
  readonly bytesPerToken: number;
  /** Bytes by context size, the model's full one last. Memory is taken as it is filled, so this is an upper bound. */
  readonly byContext: Readonly<Record<number, number>>;
}

/** Context sizes to tell the cache's memory for, besides the full one. */
const CONTEXTS = [1024, 4096, 16384];

/** @throws CheckpointError where loading would. */
export function footprintOf({ config, source }: Model): Footprint {
  const loaded = MODEL_DTYPES.map((dtype) => {
    using target = loadTarget(createSizingKernels(), config, withoutBytes(source), { dtype });
    using cache = target.createCache(1, 1);
    return { dtype, weightBytes: target.weightBytes, kvDtype: cache.layers[0]!.dtype };
  });
  return {
    weights: byKey(MODEL_DTYPES, (dtype) => loaded.find((model) => model.dtype === dtype)!.weightBytes),
    kvDtypes: byKey(MODEL_DTYPES, (dtype) => loaded.find((model) => model.dtype === dtype)!.kvDtype),
    cache: byKey(KV_DTYPES, (dtype) => cacheFootprint(config, dtype)),
  };
}

function byKey<Key extends string, Value>(keys: readonly Key[], value: (key: Key) => Value): { [K in Key]: Value } {
  return Object.fromEntries(keys.map((key) => [key, value(key)])) as { [K in Key]: Value };
}

function cacheFootprint(config: ModelConfig, dtype: KvDtype): CacheFootprint {
  const bytesOf = (tokens: number): number => {
    const kernels = createSizingKernels();
    using _cache = new KvCache(kernels, { ...config, sequences: 1, capacity: tokens, dtype });
    return kernels.allocatedBytes;
  };
  const contexts = [...CONTEXTS.filter((tokens) => tokens < config.contextLength), config.contextLength];
  return {
    bytesPerToken: 2 * config.layers * config.kvHeads * config.headDim * (dtype === 'f16' ? 2 : 4),
    byContext: Object.fromEntries(contexts.map((tokens) => [tokens, bytesOf(tokens)])),
  };
}

/** Bytes of a head's weights in memory beside this target. @throws CheckpointError where loading would: it does not fit, or is broken. */
export function headFootprint(model: Model, { config, source }: HeadFiles): number {
  return footprintBeside(
    model,
    (target) => new EagleHead(target, config, withoutBytes(source), { dtype: DRAFT_DTYPE }),
  );
}

/** The same of Medusa heads. */
export function medusaFootprint(model: Model, { config, source }: MedusaFiles): number {
  return footprintBeside(
    model,
    (target) => new MedusaHeads(target, config, withoutBytes(source), { dtype: DRAFT_DTYPE }),
  );
}

function footprintBeside({ config, source }: Model, load: (target: TargetModel) => Disposable): number {
  const kernels = createSizingKernels();
  using target = loadTarget(kernels, config, withoutBytes(source), { dtype: 'auto' });
  const targetBytes = kernels.allocatedBytes;
  using _heads = load(target);
  return kernels.allocatedBytes - targetBytes;
}

/** The same tensors, weights without their bytes. Maps of vocabularies are read: what they hold is checked. */
function withoutBytes(source: TensorSource): TensorSource {
  return {
    path: source.path,
    entries: source.entries,
    ...(source.unsupported && { unsupported: source.unsupported }),
    read(name, firstRow, rows) {
      const type = source.entries.get(name)?.type;
      return type === undefined || type === 'I64' || type === 'BOOL'
        ? source.read(name, firstRow, rows)
        : new Uint8Array(0);
    },
    [Symbol.dispose]: () => {},
  };
}
