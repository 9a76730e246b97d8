/**
 * What a model file, a draft head or Medusa heads are, from their headers: weights are not read, so a file of any size takes a moment. Only the agreement of
 * a head with a target takes both.
 */
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import { type Checkpoint, type CheckpointTokenizer, openCheckpoint } from '../checkpoint/checkpoint.ts';
import { hashModel } from '../checkpoint/hash.ts';
import { type HeadFiles, isHeadDirectory, openHeadFiles } from '../checkpoint/head.ts';
import { isMedusaDirectory, type MedusaFiles, openMedusaFiles } from '../checkpoint/medusa.ts';
import { hasOwnLmHeads } from '../draft/medusa-heads.ts';
import { readTreeFile } from '../draft/tree-option.ts';
import { DEFAULT_MODEL, DRAFT_DTYPE, shipped } from '../engine.ts';
import { RequestError } from '../errors.ts';
import { KV_DTYPES } from '../kernels/kernels.ts';
import { MODEL_DTYPES } from '../model/weights.ts';
import type { TensorSource } from '../tensor/source.ts';
import { fetchModel, printJson } from './common.ts';
import { type Footprint, footprintOf } from './footprint.ts';
import { formatBytes, formatCount, formatFields, formatTable } from './format.ts';
import {
  checkFit,
  checkMedusaFit,
  describeAgreement,
  type Fit,
  type MeasuredAgreement,
  measureHead,
} from './head-fit.ts';
import { ProgressBar } from './progress.ts';
import { escapeControls, truncate } from './terminal-text.ts';

interface Flags {
  readonly target?: string;
  readonly agreement: boolean;
  readonly sha256?: boolean;
  readonly json?: boolean;
}

export function register(program: Command): void {
  program
    .command('inspect')
    .description('file, config, tensors and memory of a model, of a draft head or of Medusa heads')
    .argument('[reference]', 'path or built-in alias of a model, or the directory of a head or heads', DEFAULT_MODEL)
    .option('--target <model>', 'for heads: check that they fit this model, exit code 1 if not')
    .option(
      '--no-agreement',
      'with --target: do not load an EAGLE head and compare its guesses with the model’s tokens',
    )
    .option('--sha256', 'the file’s hash, which means reading all of it')
    .option('--json', 'one JSON line')
    .action(async (reference: string, flags: Flags) => {
      if (isMedusaDirectory(reference)) return inspectMedusa(reference, flags);
      if (isHeadDirectory(reference)) return inspectHead(reference, flags);
      if (flags.target !== undefined)
        throw new RequestError('--target', `is for draft heads, and ${reference} is not the directory of any`);
      await inspectModel(reference, flags);
    });
}

async function inspectModel(reference: string, flags: Flags): Promise<void> {
  const path = await fetchModel(reference);
  using checkpoint = await openCheckpoint(path);
  const { config, source, format, fileBytes } = checkpoint;
  const head = shipped('eagle', reference);
  const report = {
    kind: 'model',
    path,
    format,
    fileBytes,
    ...(flags.sha256 && { sha256: await hashFile(path) }),
    config,
    tensors: countTensors(source),
    tokenizer: describeTokenizer(checkpoint.tokenizer),
    memory: footprintOf(checkpoint),
    ...(head !== undefined && { head }),
  };
  if (flags.json) return printJson(report);
  const { tokenizer } = report;
  process.stdout.write(
    formatFields([
      ['file', path],
      ['format', `${format}, ${formatBytes(fileBytes)}`],
      ...hashField(report.sha256),
      ...configFields(config),
      ['tokenizer', tokenizer === null ? 'none: token ids in, token ids out' : tokenizer.kind],
      ['chat template', tokenizer?.chatTemplate ? 'yes' : 'no'],
      ['draft head', head ?? 'none comes with eaglet'],
    ]),
  );
  process.stdout.write(`\n${tensorTable(report.tensors)}\n${weightTable(report.memory)}\n${cacheTable(report.memory)}`);
}

async function inspectHead(directory: string, flags: Flags): Promise<void> {
  using head = openHeadFiles(directory);
  const { config, format, source } = head;
  const { draftVocabSize, vocabSize } = config;
  const target = flags.target === undefined ? undefined : await checkTarget(directory, flags.target, head, flags);
  const report = {
    kind: 'head',
    path: directory,
    format,
    fileBytes: source.fileBytes,
    ...(flags.sha256 && { sha256: await hashFile(source.path) }),
    config,
    tensors: countTensors(source),
    draftVocabulary: { tokens: draftVocabSize, of: vocabSize },
    ...(target && { target }),
  };
  if (target !== undefined && !target.fits) process.exitCode = 1;
  if (flags.json) return printJson(report);
  process.stdout.write(
    formatFields([
      ['head', directory],
      ['format', `${format}, ${formatBytes(source.fileBytes)}`],
      ...hashField(report.sha256),
      ...configFields(config),
      [
        'draft vocabulary',
        draftVocabSize === vocabSize
          ? 'all tokens of the target'
          : `${formatCount(draftVocabSize)} of the target's ${formatCount(vocabSize)} tokens, and those of the text`,
      ],
      ...targetFields(target),
    ]),
  );
  if (target !== undefined) process.stdout.write(`\n${checkLines(target)}`);
  process.stdout.write(`\n${tensorTable(report.tensors)}`);
}

async function inspectMedusa(directory: string, flags: Flags): Promise<void> {
  using files = openMedusaFiles(directory);
  const { config, format, fileBytes, merged, source } = files;
  const { heads, layers, draftVocabSize } = config;
  const layout = hasOwnLmHeads(source, config) ? 'v0.1' : 'v2';
  const tree = readTree(directory);
  const target = flags.target === undefined ? undefined : await checkMedusaTarget(flags.target, files);
  const report = {
    kind: 'medusa',
    path: directory,
    format,
    fileBytes,
    merged,
    ...(flags.sha256 && { sha256: await hashFile(source.path) }),
    layout,
    config,
    ...(tree && { tree }),
    tensors: countTensors(source),
    ...(target && { target }),
  };
  if (target !== undefined && !target.fits) process.exitCode = 1;
  if (flags.json) return printJson(report);
  process.stdout.write(
    formatFields([
      ['heads', directory],
      ['format', `${format}, ${formatBytes(fileBytes)}${merged ? ', with the model that they were trained with' : ''}`],
      ...hashField(report.sha256),
      ['architecture', `Medusa-1, ${heads} heads of ${layers} ${layers === 1 ? 'block' : 'blocks'}`],
      ['layout', LAYOUTS[layout]],
      [
        'draft vocabulary',
        draftVocabSize === undefined
          ? 'all tokens of the target'
          : `${formatCount(draftVocabSize)} tokens${layout === 'v2' ? ', and those of the text' : ''}`,
      ],
      ['tree', tree === undefined ? 'no tree.json' : describeTree(tree, heads)],
      ...targetFields(target),
    ]),
  );
  if (target !== undefined) process.stdout.write(`\n${checkLines(target)}`);
  process.stdout.write(`\n${tensorTable(report.tensors)}`);
}

const LAYOUTS = {
  'v0.1': 'v0.1: an LM head for each head',
  v2: "v2: blocks alone, all heads read the target's LM head",
} as const;

interface TreeReport {
  /** Root included. */
  readonly nodes: number;
  readonly depth: number;
}

/** The tree that came with the heads. @throws RangeError where its file is none. */
function readTree(directory: string): TreeReport | undefined {
  const file = join(directory, 'tree.json');
  if (!existsSync(file)) return undefined;
  const paths = readTreeFile(file);
  return { nodes: 1 + paths.length, depth: Math.max(...paths.map((path) => path.length)) };
}

function describeTree({ nodes, depth }: TreeReport, heads: number): string {
  const levels = depth > heads ? `${depth} levels, of which ${heads} are drafted` : `${depth} levels`;
  return `tree.json: ${nodes} nodes, root included, ${levels}`;
}

async function checkMedusaTarget(reference: string, files: MedusaFiles): Promise<TargetReport> {
  const path = await fetchModel(reference);
  using target = await openCheckpoint(path);
  return { path, ...checkMedusaFit(target, files) };
}

type TargetReport = Fit & { readonly path: string; readonly agreement?: MeasuredAgreement };

async function checkTarget(directory: string, reference: string, head: HeadFiles, flags: Flags): Promise<TargetReport> {
  const path = await fetchModel(reference);
  using target = await openCheckpoint(path);
  const fit = checkFit(target, head);
  if (!fit.fits || !flags.agreement) return { path, ...fit };
  return { path, ...fit, agreement: await measureHead(path, directory, head) };
}

async function hashFile(path: string): Promise<string> {
  const { size } = statSync(path);
  if (!statSync(path).isFile()) throw new RequestError('--sha256', `is for a single file, and ${path} is a directory`);
  using progress = new ProgressBar('sha256', size, 'bytes');
  return await hashModel(path, (done) => progress.update(done));
}

interface TensorCounts {
  readonly count: number;
  readonly bytes: number;
  readonly byType: Readonly<Record<string, { readonly count: number; readonly bytes: number }>>;
}

function countTensors({ entries }: TensorSource): TensorCounts {
  const byType: Record<string, { count: number; bytes: number }> = {};
  let bytes = 0;
  for (const { type, byteLength } of entries.values()) {
    byType[type] ??= { count: 0, bytes: 0 };
    byType[type].count++;
    byType[type].bytes += byteLength;
    bytes += byteLength;
  }
  return { count: entries.size, bytes, byType };
}

function describeTokenizer(
  tokenizer: CheckpointTokenizer | undefined,
): { readonly kind: string; readonly chatTemplate: boolean } | null {
  switch (tokenizer?.kind) {
    case undefined:
      return null;
    case 'gguf': {
      const { model, pre, tokens, chatTemplate } = tokenizer.data;
      const named = [model, pre].map((name) => truncate(escapeControls(name), 40));
      const kind = `${named.join(', pre-tokenizer ')}, ${formatCount(tokens.length)} tokens`;
      return { kind, chatTemplate: chatTemplate !== undefined };
    }
    case 'json':
      return { kind: 'tokenizer.json', chatTemplate: tokenizer.chatTemplate !== undefined };
  }
}

type Field = readonly [name: string, value: string];

function configFields(config: Checkpoint['config'] | HeadFiles['config']): Field[] {
  const { hiddenSize, intermediateSize, heads, kvHeads, headDim, vocabSize, ropeTheta, rmsNormEps } = config;
  const isTarget = 'architecture' in config;
  return [
    ['architecture', isTarget ? `${config.architecture}, ${config.layers} layers` : 'EAGLE-1, one Llama layer'],
    ['hidden size', `${hiddenSize}, intermediate ${intermediateSize}`],
    ['attention', `${heads} heads of ${headDim}, ${kvHeads} for keys and values`],
    ['vocabulary', `${formatCount(vocabSize)} tokens${isTarget && config.tiedEmbeddings ? ', LM head tied' : ''}`],
    ...(isTarget ? [['context', `${formatCount(config.contextLength)} tokens`] as const] : []),
    ['constants', `RoPE theta ${formatCount(ropeTheta)}, RMSNorm eps ${Number(rmsNormEps.toPrecision(6))}`],
  ];
}

const hashField = (sha256: string | undefined): Field[] => (sha256 === undefined ? [] : [['sha256', sha256]]);

function targetFields(target: TargetReport | undefined): Field[] {
  if (target === undefined) return [];
  const { path, fits, problem, weightBytes, agreement } = target;
  if (!fits) return [['target', `does NOT fit ${path}: ${problem}`]];
  return [
    ['target', `fits ${path}, ${formatBytes(weightBytes!)} in memory at ${DRAFT_DTYPE}`],
    ...(agreement === undefined ? [] : describeAgreement(agreement)),
  ];
}

function checkLines({ checks }: TargetReport): string {
  return formatFields(checks.map(({ what, fits, detail }) => [`${fits ? 'fits' : 'NO  '}  ${what}`, detail]));
}

function tensorTable({ count, bytes, byType }: TensorCounts): string {
  const rows = Object.entries(byType).map(([type, of]) => [type, formatCount(of.count), formatBytes(of.bytes)]);
  return formatTable(['tensors', 'count', 'bytes'], [...rows, ['all', formatCount(count), formatBytes(bytes)]]);
}

function weightTable({ weights, kvDtypes }: Footprint): string {
  return formatTable(
    ['--dtype', 'weights in memory', 'KV cache'],
    MODEL_DTYPES.map((dtype) => [dtype, formatBytes(weights[dtype]), kvDtypes[dtype]]),
  );
}

function cacheTable({ cache }: Footprint): string {
  const contexts = Object.keys(cache.f16.byContext).map(Number);
  return formatTable(
    ['KV cache', 'a token', ...contexts.map((tokens) => `${formatCount(tokens)} tokens`)],
    KV_DTYPES.map((dtype) => [
      dtype,
      formatBytes(cache[dtype].bytesPerToken),
      ...contexts.map((tokens) => formatBytes(cache[dtype].byContext[tokens]!)),
    ]),
  );
}
