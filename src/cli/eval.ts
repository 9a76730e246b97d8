/** How well a head guesses on held-back conversations: as a chain along the text as it stands, and as trees in decoding. */
import { writeFileSync } from 'node:fs';
import type { Command } from 'commander';
import { openHeadFiles } from '../checkpoint/head.ts';
import { FeatureReader } from '../decode/features.ts';
import { EagleHead } from '../draft/eagle-head.ts';
import { parseTreeOption } from '../draft/tree-option.ts';
import { DRAFT_DTYPE, type Engine, shipped } from '../engine.ts';
import { RequestError } from '../errors.ts';
import { type Conversation, readConversations } from '../train/conversations.ts';
import { encodeConversation } from '../train/encode-conversation.ts';
import { type ChainAcceptance, chainAcceptance } from '../train/evaluate.ts';
import {
  type ModelOptions,
  openEngine,
  outputFile,
  positiveNumber,
  printJson,
  requireReader,
  withTargetOptions,
} from './common.ts';
import { formatTable } from './format.ts';
import { linePlot } from './line-plot.ts';
import { ProgressBar } from './progress.ts';
import { obstacle } from './prompts.ts';
import { mean, median, sum } from './statistics.ts';

interface Flags extends ModelOptions {
  readonly conversations: readonly string[];
  readonly limit: number;
  readonly depth: number;
  readonly trees: readonly string[];
  readonly maxTokens: number;
  readonly maxLength: number;
  readonly svg?: string;
  readonly json?: boolean;
}

export function register(program: Command): void {
  withTargetOptions(
    program
      .command('eval')
      .description('acceptance of a head on conversations that it was not trained on')
      .argument('[head]', 'its directory (default: the one shipped for the model)')
      .requiredOption('--conversations <files...>', 'JSONL of conversations with answers'),
  )
    .option('--limit <n>', 'conversations at most', positiveNumber, 64)
    .option('--depth <n>', 'n-α from 0 to n - 1', positiveNumber, 5)
    .option('--trees <list...>', 'trees to decode with', ['chain:5', 'dynamic:4,4,8', 'dynamic:5,8,26'])
    .option('-n, --max-tokens <n>', 'new tokens a conversation and tree', positiveNumber, 128)
    .option('--max-length <n>', 'tokens of a conversation; longer ones are cut', positiveNumber, 1024)
    .option('--svg <file>', 'draw the acceptance by depth', outputFile)
    .option('--json', 'one JSON line')
    .action(evaluate);
}

interface TreeAcceptance {
  readonly tree: string;
  /** Tokens a round, over all rounds. */
  readonly acceptanceLength: number;
  readonly median: number;
}

async function evaluate(directory: string | undefined, flags: Flags): Promise<void> {
  const head = directory ?? shipped('eagle', flags.model);
  if (head === undefined) throw new RequestError('head', `none is shipped for ${flags.model}: give its directory`);
  for (const tree of flags.trees) parseTreeOption(tree); // refused before anything is loaded
  const conversations = readAnswered(flags);
  const along = await alongTexts(head, conversations, flags);
  const chain = along.filter(({ guesses }) => guesses > 0); // a prefix: an answer of n tokens has n - 1 guesses, and so on
  if (chain.length === 0)
    throw new RequestError(
      '--conversations',
      `must hold answers within --max-length ${flags.maxLength} tokens, got none`,
    );
  const trees: TreeAcceptance[] = [];
  for (const tree of flags.trees) trees.push(await inDecoding(head, tree, conversations, flags));
  const rates = chain.map(({ accepted, guesses }) => accepted / guesses);
  if (flags.svg !== undefined) writeFileSync(flags.svg, draw(rates));
  if (flags.json) printJson({ head, conversations: conversations.length, chain, trees });
  else process.stdout.write(describe(chain, trees));
}

type Answered = Conversation & { readonly kind: 'chat' };

/** Conversations with an answer, evenly from the files. */
function readAnswered({ conversations, limit }: Flags): Answered[] {
  const all = conversations.flatMap((file) =>
    [...readConversations(file)].flatMap((conversation) =>
      conversation.kind === 'chat' && conversation.messages.at(-1)?.role === 'assistant' ? [conversation] : [],
    ),
  );
  if (all.length === 0) throw new RequestError('--conversations', 'must hold conversations that end with an answer');
  const step = Math.max(1, all.length / limit);
  return Array.from({ length: Math.min(limit, all.length) }, (_, i) => all[Math.floor(i * step)]!);
}

async function alongTexts(
  directory: string,
  conversations: readonly Answered[],
  flags: Flags,
): Promise<ChainAcceptance[]> {
  using engine = await openEngine({ ...flags, head: directory, tree: parseTreeOption('chain:1') });
  const { target, chatTemplate } = engine;
  const tokenizer = requireReader(engine, flags.maxLength);
  using files = openHeadFiles(directory);
  using head = new EagleHead(target, files.config, files.source, { dtype: DRAFT_DTYPE });
  using reader = new FeatureReader(target, flags.maxLength);
  using progress = new ProgressBar('texts', conversations.length);
  const sums: { guesses: number; accepted: number }[] = [];
  for (const [i, conversation] of conversations.entries()) {
    const text = encodeConversation(tokenizer, chatTemplate, conversation, { maxTokens: flags.maxLength });
    if (typeof text === 'string') continue;
    const features = reader.read(text.ids).data.slice(0, text.ids.length * target.config.hiddenSize);
    for (const [j, { guesses, accepted }] of chainAcceptance(
      target,
      head,
      { ...text, features },
      flags.depth,
    ).entries()) {
      sums[j] ??= { guesses: 0, accepted: 0 };
      sums[j].guesses += guesses;
      sums[j].accepted += accepted;
    }
    progress.update(i + 1);
  }
  return sums;
}

async function inDecoding(
  head: string,
  tree: string,
  conversations: readonly Answered[],
  flags: Flags,
): Promise<TreeAcceptance> {
  using engine: Engine = await openEngine({ ...flags, head, tree: parseTreeOption(tree) });
  using progress = new ProgressBar(tree, conversations.length);
  const answers: { tokens: number; rounds: number }[] = [];
  for (const [i, { messages }] of conversations.entries()) {
    const question = messages.slice(0, -1);
    if (obstacle(engine, question) === undefined) {
      const { stats } = await engine.complete(question, { drafter: 'eagle', maxTokens: flags.maxTokens });
      if (stats.rounds > 0) answers.push({ tokens: stats.newTokens - 1, rounds: stats.rounds });
    }
    progress.update(i + 1);
  }
  if (answers.length === 0)
    throw new RequestError('--conversations', 'must hold questions that the model has room to answer, got none');
  return {
    tree,
    acceptanceLength: sum(answers.map(({ tokens }) => tokens)) / sum(answers.map(({ rounds }) => rounds)),
    median: median(answers.map(({ tokens, rounds }) => tokens / rounds)),
  };
}

function describe(chain: readonly ChainAcceptance[], trees: readonly TreeAcceptance[]): string {
  const columns = chain.map((_, n) => `${n}-α`);
  const rates = chain.map(({ accepted, guesses }) => (accepted / guesses).toFixed(3));
  return [
    formatTable(['chain along the text', ...columns], [['acceptance', ...rates]]),
    formatTable(
      ['tree in decoding', 'acceptance length', 'median'],
      trees.map(({ tree, acceptanceLength, median }) => [tree, acceptanceLength.toFixed(2), median.toFixed(2)]),
    ),
  ].join('\n');
}

function draw(rates: readonly number[]): string {
  const points = rates.map((rate, n) => [n, rate] as const);
  const panel = { title: 'Chain acceptance', xLabel: 'own features in the input', yLabel: 'accepted of guessed' };
  return linePlot([{ ...panel, series: [{ name: `mean ${mean(rates).toFixed(2)}`, points }] }]);
}
