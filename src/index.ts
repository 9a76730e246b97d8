export type { FetchProgress } from './checkpoint/hub.ts';
export type { Round } from './decode/generate.ts';
export type { SamplingOptions } from './decode/sampler.ts';
export type { DepthAcceptance, DraftCounters, GenerationStats } from './decode/stats.ts';
export { type RoundTrace, traceRound } from './decode/trace.ts';
export type { TypicalOptions } from './decode/typical.ts';
export { VERIFIERS, type VerifierName } from './decode/verifier.ts';
export type { TreeBudget } from './draft/budget.ts';
export type { Drafter } from './draft/drafter.ts';
export type { LookaheadOptions } from './draft/lookahead-options.ts';
export { DRAFTERS, type DrafterName } from './draft/registry.ts';
export type { DraftTree } from './draft/tree.ts';
export type { TreeOption } from './draft/tree-option.ts';
export {
  type Engine,
  type EngineOptions,
  type LoadProgress,
  loadEngine,
  type TextChunk,
  type TextOptions,
  type TextResult,
  type TextToken,
} from './engine.ts';
export { CheckpointError, DisposedError, ModelNotFoundError, RequestError } from './errors.ts';
export type { ChatMessage } from './tokenizer/chat-template.ts';
