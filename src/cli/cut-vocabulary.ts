/**
 * A copy of a head with a smaller draft vocabulary. Decoding adds the tokens of the text at hand to it, so a few thousand frequent ones beside
 * them serve better than the large vocabularies, or none, that heads come with. The weights stay as they are, bit for bit: all that goes is
 * rows of LM heads.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import { readJsonIfPresent, readTextIfPresent } from '../checkpoint/file.ts';
import { openHeadFiles } from '../checkpoint/head.ts';
import { isMedusaDirectory, openMedusaFiles } from '../checkpoint/medusa.ts';
import { isSafetensorsType, type TensorToWrite } from '../checkpoint/safetensors.ts';
import { readTargetIds } from '../draft/head-vocabulary.ts';
import { lmHeadName } from '../draft/medusa-heads.ts';
import { parseTreeOption } from '../draft/tree-option.ts';
import type { Engine } from '../engine.ts';
import { CheckpointError, RequestError } from '../errors.ts';
import type { TensorSource } from '../tensor/source.ts';
import { readConversations } from '../train/conversations.ts';
import { coverage, DEFAULT_DRAFT_VOCABULARY, mostFrequent } from '../train/draft-vocabulary.ts';
import { encodeConversation } from '../train/encode-conversation.ts';
import { draftMap, requireAbsent, saveDirectory } from '../train/save.ts';
import type { EncodedText } from '../train/unroll.ts';
import {
  type ModelOptions,
  openEngine,
  positiveNumber,
  printJson,
  requireReader,
  withTargetOptions,
} from './common.ts';
import { formatCount, formatFields } from './format.ts';

interface Flags extends ModelOptions {
  readonly conversations: readonly string[];
  readonly out: string;
  readonly size: number;
  readonly json?: boolean;
}

/** Of config, card, provenance and tree each: they are some kilobytes. */
const MAX_TEXT_BYTES = 4 * 2 ** 20;

export function register(program: Command): void {
  withTargetOptions(
    program
      .command('cut-vocabulary')
      .description('a copy of a head, EAGLE’s or Medusa’s, that may guess fewer tokens beside those of the text')
      .argument('<head>', 'its directory')
      .requiredOption('--conversations <files...>', 'JSONL of conversations; the tokens of their answers are counted')
      .requiredOption('-o, --out <directory>', 'the copy; must not exist yet'),
  )
    .option(
      '--size <n>',
      'tokens of the draft vocabulary: the most frequent ones',
      positiveNumber,
      DEFAULT_DRAFT_VOCABULARY,
    )
    .option('--json', 'one JSON line')
    .action(cutVocabulary);
}

async function cutVocabulary(directory: string, flags: Flags): Promise<void> {
  const { out, size } = flags;
  requireAbsent(out);
  using engine = await openEngine({ ...flags, tree: parseTreeOption('chain:1') }); // a chain asks for no measurement
  const { vocabSize } = engine.target.config;
  using head = openUncut(directory, vocabSize);
  const before = head.targetIds?.length ?? vocabSize;
  if (size >= before)
    throw new RequestError('--size', `must be less than the ${before} tokens of ${directory}, got ${size}`);
  const texts = readAnswers(engine, flags.conversations);
  const counts = countAnswers(texts, vocabSize);
  const targetIds = mostFrequent(counts, head.targetIds ?? counts.keys(), size);
  const facts = {
    draftVocabSize: size,
    conversations: texts.length,
    tokens: counts.reduce((sum, count) => sum + count, 0),
    draftVocabularyCoverage: coverage(texts, targetIds),
  };
  const text = (file: string): string | undefined => readTextIfPresent(join(directory, file), MAX_TEXT_BYTES);
  const json = (file: string): unknown => readJsonIfPresent(join(directory, file), MAX_TEXT_BYTES);
  const tree = text('tree.json');
  saveDirectory(
    out,
    { ...(json('config.json') as object), draft_vocab_size: size },
    [...cutTensors(head, targetIds), draftMap(targetIds)],
    { provenance: { ...facts, cutFrom: json('provenance.json') }, card: text('README.md') },
    { weights: head.weights, others: tree === undefined ? {} : { 'tree.json': tree } },
  );
  if (flags.json) return printJson({ out, ...facts });
  process.stdout.write(
    formatFields([
      ['head', out],
      ['draft vocabulary', `${formatCount(size)} of the ${formatCount(before)} tokens of ${directory}`],
      ['counted', `${formatCount(facts.tokens)} tokens of answers in ${formatCount(texts.length)} conversations`],
      ['of these', `${(100 * facts.draftVocabularyCoverage).toFixed(1)} % may be guessed, with those of the text`],
    ]),
  );
}

interface UncutHead extends Disposable {
  readonly source: TensorSource;
  /** [Vd]; undefined is all tokens of the target. */
  readonly targetIds: Int32Array | undefined;
  /** Names of LM heads [Vd, d] of its own. */
  readonly lmHeads: ReadonlySet<string>;
  /** File that its kind's weights are in. */
  readonly weights: string;
}

/** @throws CheckpointError for what is no head, or one of a model with another vocabulary. */
function openUncut(directory: string, vocabSize: number): UncutHead {
  if (!existsSync(directory)) throw new RequestError(directory, 'must be the directory of a head, does not exist');
  if (!isMedusaDirectory(directory)) {
    const { config, source } = openHeadFiles(directory);
    return closeOnError(source, () => {
      if (!source.entries.has('fc.weight'))
        throw new CheckpointError(directory, 'fc.weight', 'must exist: a model without it is no draft head');
      if (config.vocabSize !== vocabSize)
        throw new CheckpointError(directory, 'vocab_size', `must be the model's ${vocabSize}, got ${config.vocabSize}`);
      return { targetIds: readTargetIds(source, config), lmHeads: new Set(), weights: 'model.safetensors' };
    });
  }
  const { config, source } = openMedusaFiles(directory);
  return closeOnError(source, () => {
    const { heads, layers, draftVocabSize = vocabSize } = config;
    const names = Array.from({ length: heads }, (_, head) => lmHeadName(head, layers));
    const lmHeads = new Set(names.filter((name) => source.entries.has(name))); // none in version 2
    for (const name of lmHeads) {
      const { shape } = source.entries.get(name)!;
      if (shape[0] !== draftVocabSize)
        throw new CheckpointError(source.path, name, `expected ${draftVocabSize} rows, got shape [${shape}]`);
    }
    const targetIds = readTargetIds(source, { vocabSize, draftVocabSize });
    return { targetIds, lmHeads, weights: 'medusa_lm_head.safetensors' };
  });
}

/** The source is closed with the head, or at once where it is none. */
function closeOnError(source: TensorSource, read: () => Omit<UncutHead, 'source' | keyof Disposable>): UncutHead {
  try {
    return { ...read(), source, [Symbol.dispose]: () => source[Symbol.dispose]() };
  } catch (error) {
    source[Symbol.dispose]();
    throw error;
  }
}

/** Everything but the map from draft to target ids, and its inverse `t2d`, which says the same and which nothing here reads. */
function* cutTensors({ source, targetIds, lmHeads }: UncutHead, kept: Int32Array): Generator<TensorToWrite> {
  const rows = kept.map((id) => (targetIds === undefined ? id : targetIds.indexOf(id)));
  for (const { name, type, shape, byteLength } of source.entries.values()) {
    if (name === 'd2t' || name === 't2d') continue;
    if (!isSafetensorsType(type))
      throw new CheckpointError(source.path, name, `cannot be written as safetensors: ${type}`);
    const bytes = source.read(name);
    if (!lmHeads.has(name)) {
      yield { name, type, shape, data: bytes.slice() };
      continue;
    }
    const rowBytes = byteLength / shape[0]!;
    const data = new Uint8Array(rows.length * rowBytes);
    for (const [i, row] of rows.entries()) data.set(bytes.subarray(row * rowBytes, (row + 1) * rowBytes), i * rowBytes);
    yield { name, type, shape: [rows.length, ...shape.slice(1)], data };
  }
}

/** Conversations that have an answer, cut where the model's context ends. */
function readAnswers(engine: Engine, files: readonly string[]): EncodedText[] {
  const { contextLength } = engine.target.config;
  const tokenizer = requireReader(engine, contextLength);
  const texts: EncodedText[] = [];
  for (const file of files)
    for (const conversation of readConversations(file)) {
      const text = encodeConversation(tokenizer, engine.chatTemplate, conversation, { maxTokens: contextLength });
      if (typeof text !== 'string') texts.push(text);
    }
  if (texts.length === 0) throw new RequestError('--conversations', 'must hold conversations with answers, got none');
  return texts;
}

/** [V] of the tokens that count. */
function countAnswers(texts: readonly EncodedText[], vocabSize: number): Float64Array {
  const counts = new Float64Array(vocabSize);
  for (const { ids, mask } of texts) for (const [i, id] of ids.entries()) if (mask[i] !== 0) counts[id]!++;
  return counts;
}
