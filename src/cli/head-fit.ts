/** Whether a draft head, or Medusa heads, belong to a target: what its headers say, line by line, and how often it guesses what the target writes. */
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import type { HeadFiles } from '../checkpoint/head.ts';
import type { MedusaFiles } from '../checkpoint/medusa.ts';
import { type Agreement, measureAgreement } from '../decode/agreement.ts';
import { EagleHead } from '../draft/eagle-head.ts';
import { readTargetIds, type VocabularySizes } from '../draft/head-vocabulary.ts';
import { hasOwnLmHeads, lmHeadName } from '../draft/medusa-heads.ts';
import { DRAFT_DTYPE, type Engine, loadEngine } from '../engine.ts';
import { CheckpointError } from '../errors.ts';
import type { TensorSource } from '../tensor/source.ts';
import { headFootprint, medusaFootprint } from './footprint.ts';
import { formatCount } from './format.ts';

export interface FitCheck {
  readonly what: string;
  readonly fits: boolean;
  /** The values, in words. */
  readonly detail: string;
}

export interface Fit {
  readonly fits: boolean;
  readonly checks: readonly FitCheck[];
  /** What loading says, where it does not fit. */
  readonly problem?: string;
  /** Of the head in memory, where it fits. */
  readonly weightBytes?: number;
}

/** The checks that loading makes, without the weights. Loading itself is the judge; the lines say what each part has and should have. */
export function checkFit(target: Checkpoint, head: HeadFiles): Fit {
  const { source, config } = head;
  const checks = [
    checkEqual('hidden size', config.hiddenSize, target.config.hiddenSize),
    checkEqual('vocabulary', config.vocabSize, target.config.vocabSize),
    checkMap(source, config),
    ...checkTensors(head),
  ];
  return judge(checks, () => headFootprint(target, head));
}

/** @param load what loading would take, in bytes. */
function judge(checks: readonly FitCheck[], load: () => number): Fit {
  try {
    return { fits: true, checks, weightBytes: load() };
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error;
    const { message: problem, field, rule } = error;
    const known = checks.some(({ fits }) => !fits);
    return { fits: false, checks: known ? checks : [...checks, { what: field, fits: false, detail: rule }], problem };
  }
}

/** The same of Medusa heads, whose files do not say how large the target should be: a line for each head. */
export function checkMedusaFit(target: Checkpoint, files: MedusaFiles): Fit {
  const { source, config } = files;
  const { vocabSize } = target.config;
  const heads = Array.from({ length: config.heads }, (_, head) => medusaTensors(target, files, head));
  const known = new Set(['d2t', ...heads.flat().map(({ name }) => name)]);
  const checks = [
    checkMap(source, { vocabSize, draftVocabSize: config.draftVocabSize ?? vocabSize }),
    ...heads.map((tensors, head) => checkMedusaHead(files, tensors, head)),
    ...checkOthers(source, (name) => known.has(name)),
  ];
  return judge(checks, () => medusaFootprint(target, files));
}

interface ExpectedTensor {
  readonly name: string;
  readonly shape: readonly number[];
}

/** What a head has: its blocks, then an LM head if it is to have its own. */
function medusaTensors(target: Checkpoint, { source, config }: MedusaFiles, head: number): readonly ExpectedTensor[] {
  const { hiddenSize: d, vocabSize } = target.config;
  const { layers, draftVocabSize = vocabSize } = config;
  const blocks = Array.from({ length: layers }, (_, layer): ExpectedTensor[] => [
    { name: `${head}.${layer}.linear.weight`, shape: [d, d] },
    { name: `${head}.${layer}.linear.bias`, shape: [d] },
  ]);
  const lmHead = { name: lmHeadName(head, layers), shape: [draftVocabSize, d] };
  return [...blocks.flat(), ...(hasOwnLmHeads(source, config) ? [lmHead] : [])];
}

function checkMedusaHead({ source, config }: MedusaFiles, tensors: readonly ExpectedTensor[], head: number): FitCheck {
  const what = `head ${head}`;
  for (const { name, shape } of tensors) {
    const problem = problemOf(source, name, shape);
    if (problem !== undefined) return { what, fits: false, detail: `${name}: ${problem}` };
  }
  const blocks = `${config.layers} ${config.layers === 1 ? 'block' : 'blocks'} of [${tensors[0]!.shape.join(', ')}]`;
  const lmHead = hasOwnLmHeads(source, config)
    ? `an LM head of [${tensors.at(-1)!.shape.join(', ')}]`
    : "the target's LM head";
  return { what, fits: true, detail: `${blocks}, ${lmHead}` };
}

/** What is wrong with a tensor's shape. */
function problemOf({ entries }: TensorSource, name: string, shape: readonly number[]): string | undefined {
  const got = entries.get(name)?.shape.join(', ');
  const wanted = shape.join(', ');
  if (got === wanted) return undefined;
  return got === undefined ? `missing, should be [${wanted}]` : `[${got}], should be [${wanted}]`;
}

function checkEqual(what: string, ours: number, theirs: number): FitCheck {
  const fits = ours === theirs;
  const detail = fits
    ? `${formatCount(ours)}, as the target's`
    : `the head has ${formatCount(ours)}, the target ${formatCount(theirs)}`;
  return { what, fits, detail };
}

function checkMap(source: TensorSource, sizes: VocabularySizes): FitCheck {
  const what = 'draft vocabulary';
  const { draftVocabSize, vocabSize } = sizes;
  try {
    const map = readTargetIds(source, sizes);
    if (map === undefined) return { what, fits: true, detail: `all ${formatCount(vocabSize)} tokens, no map` };
    const tokens = `${formatCount(draftVocabSize)} of ${formatCount(vocabSize)} tokens`;
    return { what, fits: true, detail: `${tokens}, a map (d2t) that ascends to ${formatCount(map.at(-1)!)}` };
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error;
    return { what, fits: false, detail: `${error.field}: ${error.rule}` };
  }
}

/** Every tensor that an EAGLE-1 head has, against its own config; the config is held against the target. */
function checkTensors({ source, config }: HeadFiles): FitCheck[] {
  const { hiddenSize: d, intermediateSize, heads, kvHeads, headDim, vocabSize } = config;
  const [queries, keys] = [heads * headDim, kvHeads * headDim];
  const layer = 'layers.0.';
  const shapes: readonly (readonly [name: string, meaning: string, shape: readonly number[], presence?: 'optional'])[] =
    [
      ['fc.weight', 'embedding and feature to hidden size', [d, 2 * d]],
      ['fc.bias', 'its bias', [d], 'optional'],
      ['embed_tokens.weight', "the target's embedding, which is used instead", [vocabSize, d], 'optional'],
      [`${layer}self_attn.q_proj.weight`, `queries, ${heads} heads of ${headDim}`, [queries, d]],
      [`${layer}self_attn.k_proj.weight`, `keys, ${kvHeads} heads of ${headDim}`, [keys, d]],
      [`${layer}self_attn.v_proj.weight`, `values, ${kvHeads} heads of ${headDim}`, [keys, d]],
      [`${layer}self_attn.q_proj.bias`, 'bias of the queries', [queries], 'optional'],
      [`${layer}self_attn.k_proj.bias`, 'bias of the keys', [keys], 'optional'],
      [`${layer}self_attn.v_proj.bias`, 'bias of the values', [keys], 'optional'],
      [`${layer}self_attn.o_proj.weight`, "attention's output", [d, queries]],
      [`${layer}post_attention_layernorm.weight`, 'norm after attention', [d]],
      [`${layer}mlp.gate_proj.weight`, "the MLP's gate", [intermediateSize, d]],
      [`${layer}mlp.up_proj.weight`, "the MLP's way up", [intermediateSize, d]],
      [`${layer}mlp.down_proj.weight`, "the MLP's way down", [d, intermediateSize]],
    ];
  const known = new Set<string>(['d2t', ...shapes.map(([name]) => name)]);
  return [
    ...shapes.flatMap(([what, meaning, shape, presence]): FitCheck[] => {
      if (presence === 'optional' && !source.entries.has(what)) return [];
      const problem = problemOf(source, what, shape);
      return [{ what, fits: problem === undefined, detail: `${problem ?? `[${shape.join(', ')}]`}: ${meaning}` }];
    }),
    ...checkOthers(source, (name) => known.has(name)),
  ];
}

function checkOthers({ entries }: TensorSource, isKnown: (name: string) => boolean): FitCheck[] {
  const others = [...entries.keys()].filter((name) => !isKnown(name));
  if (others.length === 0) return [];
  const more = others.length > 4 ? `, and ${others.length - 4} more` : '';
  return [{ what: 'other tensors', fits: true, detail: `not used: ${others.slice(0, 4).join(', ')}${more}` }];
}

export interface MeasuredAgreement extends Agreement {
  /** What was guessed at. */
  readonly text: string;
}

/** Ours, and of several kinds: one kind of text may suit a head by chance. */
const PROMPTS = [
  'Explain in a few sentences how bread is made.',
  'A train leaves at nine and travels sixty miles an hour for three hours. How far does it go? Think step by step.',
  'Write a short letter to a friend about a walk by the sea.',
  'What is a bridge for, and what kinds of bridges are there?',
] as const;

/** With four prompts 256 tokens: a share is known to 0.03 at worst, for two seconds of decoding a small model. */
const NEW_TOKENS = 64;

/** Loads both, weights and all. @param path of the target, @param directory of the head. */
export async function measureHead(path: string, directory: string, head: HeadFiles): Promise<MeasuredAgreement> {
  using engine = await loadEngine({ model: path, head: directory, treeSize: 1 });
  using loaded = new EagleHead(engine.target, head.config, head.source, { dtype: DRAFT_DTYPE });
  const newTokens = Math.min(NEW_TOKENS, engine.contextSize >> 1);
  const { prompts, text } = promptsFor(engine);
  return { ...measureAgreement(engine.target, loaded, prompts, newTokens, engine.tokenizer?.endTokens), text };
}

function promptsFor(engine: Engine): { readonly prompts: readonly (readonly number[])[]; readonly text: string } {
  const { tokenizer, chatTemplate, target } = engine;
  if (tokenizer === undefined) {
    const { vocabSize } = target.config;
    const prompts = PROMPTS.map((_, p) => Array.from({ length: 8 }, (_, i) => (1 + 131 * p + 17 * i) % vocabSize));
    return { prompts, text: `the target's own greedy continuations of ${PROMPTS.length} short prompts of token ids` };
  }
  const asked = (prompt: string): number[] =>
    engine.encode(chatTemplate === undefined ? prompt : [{ role: 'user', content: prompt }]);
  return { prompts: PROMPTS.map(asked), text: `the target's own greedy answers to ${PROMPTS.length} short prompts` };
}

const percent = (share: number): string => `${(share * 100).toFixed(0)} %`;

/** What the figures say, in plain words. */
export const VERDICTS: { readonly [V in Agreement['verdict']]: string } = {
  random:
    'random: no better than naming the commonest token each time. The head is untrained, or it is fed what it was not trained on: another model’s features, another layer’s, embedding and feature the other way round',
  weak: 'weak: as good with features of other positions, so the features tell it nothing. It would draft from tokens alone; the feature source may be wrong',
  plausible: 'plausible: clearly better than without a head, and than with features of other positions',
};

export function describeAgreement(agreement: MeasuredAgreement): readonly (readonly [name: string, value: string])[] {
  const { positions, share, shuffledFeatures, commonestToken, inDraftVocabulary, text, verdict } = agreement;
  return [
    [
      'agreement',
      `${percent(share)} of ${positions} next tokens guessed right, given true features; the text: ${text}`,
    ],
    [
      'beside it',
      `${percent(shuffledFeatures)} with features of other positions, ${percent(commonestToken)} by naming the commonest token; ${percent(inDraftVocabulary)} can be guessed at all`,
    ],
    ['verdict', VERDICTS[verdict]],
  ];
}
