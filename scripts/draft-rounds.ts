/**
 * The worked example of docs/drafters.md: one moment of one answer through every drafter. What each sees there, the tree that it proposes, what
 * of it the target agrees with, and the forwards that took: counts, no times. In f32, so that instruction sets differ by too little to be seen.
 */
import { openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import { openHeadFiles } from '../src/checkpoint/head.ts';
import { resolveModel } from '../src/checkpoint/hub.ts';
import { openMedusaFiles } from '../src/checkpoint/medusa.ts';
import { generate } from '../src/decode/generate.ts';
import { type RoundTrace, traceRound } from '../src/decode/trace.ts';
import { ForwardCost } from '../src/draft/costs.ts';
import { EagleHead } from '../src/draft/eagle-head.ts';
import { LookaheadWindow } from '../src/draft/lookahead-window.ts';
import { MedusaHeads } from '../src/draft/medusa-heads.ts';
import { createDrafter, DRAFTERS, type DrafterName, type DrafterParts } from '../src/draft/registry.ts';
import { type TreeOption, treePolicy } from '../src/draft/tree-option.ts';
import { buildChatTemplate, buildTokenizer, DEFAULT_MODEL, shipped } from '../src/engine.ts';
import { createKernels } from '../src/kernels/choose.ts';
import { loadTarget } from '../src/model/registry.ts';

const QUESTION =
  'Translate into plain words: The ferry leaves the harbour at dawn, and it comes back to the harbour at dusk. ' +
  'When does the ferry leave, and when does it come back?';
/** The target then says ` at`, the root. */
const ANSWER = 'The ferry leaves';

/** Eight rows of the target each, root included. Hybrid has no tree but the budget's, on a machine that is made up: see COSTS. */
export const TREES: Readonly<Record<DrafterName, { readonly says: string; readonly tree: TreeOption }>> = {
  none: { says: 'the root alone', tree: { kind: 'auto' } },
  eagle: { says: 'dynamic:3,3,8', tree: { kind: 'dynamic', depth: 3, topK: 3, total: 8 } },
  medusa: { says: 'static:8', tree: { kind: 'static', nodes: 8 } },
  draft: { says: 'chain:7', tree: { kind: 'chain', depth: 7 } },
  'prompt-lookup': {
    says: 'two chains, of 4 and 3',
    tree: { kind: 'paths', paths: [[0], [1], [0, 0], [1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0, 0]] },
  },
  hybrid: { says: 'auto', tree: { kind: 'auto' } },
  lookahead: { says: 'W, N, G = 3, 3, 2', tree: { kind: 'chain', depth: 1 } },
};
/** A row more of the target takes 1.4 ms, a forward of the head 1 ms. */
const COSTS = {
  target: [
    { rows: 1, ms: 10 },
    { rows: 11, ms: 24 },
  ],
  draft: [{ rows: 1, ms: 1 }],
};
const CONTEXT = 256;

export interface Cell {
  readonly text: string;
  readonly mark?: 'root' | 'feature' | 'match' | undefined;
}

/** What a drafter looks at: rows of tokens, those of a column belonging together. */
export interface SightRow {
  readonly label: string;
  readonly cells: readonly Cell[];
}

export interface DraftRound {
  readonly drafter: DrafterName;
  readonly sees: readonly SightRow[];
  readonly trace: RoundTrace;
  /** Of the drafter's own. */
  readonly forwards: number;
}

export interface DrafterFiles {
  /** Directory of heads. */
  readonly medusa?: string | undefined;
  /** Path or alias. */
  readonly 'draft-model'?: string | undefined;
}

/** A drafter without its files is left out. @returns what tokens are called, too. */
export async function draftRounds(
  files: DrafterFiles,
): Promise<{ readonly rounds: readonly DraftRound[]; readonly name: (token: number) => string }> {
  const { medusa, 'draft-model': draftModel } = files;
  const path = await resolveModel(DEFAULT_MODEL);
  using checkpoint = await openCheckpoint(path);
  using draft = draftModel === undefined ? undefined : await openCheckpoint(await resolveModel(draftModel));
  const tokenizer = buildTokenizer(checkpoint.tokenizer!, path);
  const name = (token: number): string => tokenizer.decode([token], { includeSpecial: true }).trimStart() || '⏎';
  const chat = [{ role: 'user', content: QUESTION }];
  const question = [
    ...buildChatTemplate(checkpoint, tokenizer)!.encode(tokenizer, chat, { addGenerationPrompt: true }),
  ];
  const text = [...question, ...tokenizer.encode(ANSWER)];

  const kernels = createKernels();
  using _kernels = { [Symbol.dispose]: () => kernels.dispose() };
  using target = loadTarget(kernels, checkpoint.config, checkpoint.source, { dtype: 'f32' });
  let forwards = 0;
  const counted = <T extends object>(model: T, method: keyof T): T => {
    const call = model[method] as (...values: unknown[]) => unknown;
    const value = (...values: unknown[]): unknown => {
      forwards++;
      return call.apply(model, values);
    };
    return Object.defineProperty(model, method, { value });
  };
  const parts: DrafterParts = {
    target,
    contextSize: CONTEXT,
    lookahead: { window: 3, ngram: 3, guesses: 2 },
    costs: () => ({ target: new ForwardCost(COSTS.target), draft: new ForwardCost(COSTS.draft) }),
    openHead: () => {
      using head = openHeadFiles(shipped('eagle', DEFAULT_MODEL)!);
      return counted(new EagleHead(target, head.config, head.source, { dtype: 'f32' }), 'forward');
    },
    openMedusa:
      medusa === undefined
        ? undefined
        : () => {
            using heads = openMedusaFiles(medusa);
            return counted(new MedusaHeads(target, heads.config, heads.source, { dtype: 'f32' }), 'logits');
          },
    openDraftModel:
      draft && (() => counted(loadTarget(kernels, draft.config, draft.source, { dtype: 'f32' }), 'forward')),
  };
  using cache = target.createCache(1, CONTEXT + 64);

  const watch = (drafter: DrafterName): DraftRound | undefined => {
    using made = createDrafter(drafter, { ...parts, tree: treePolicy(TREES[drafter].tree) });
    if (made === undefined) return undefined;
    // Lookahead sees what the target answered in the rounds before; the others only need the text.
    const prompt = drafter === 'lookahead' ? question : text;
    // A text that the cache held already would have to be made up for by the drafter's first forwards.
    cache.sequences[0]!.truncate(0);
    let before = forwards;
    for (const event of generate(target, made, cache, prompt)) {
      if (event.type === 'round' && event.tree !== undefined && event.committed === text.length) {
        const trace = rounded(traceRound(event, 1, event.tokens.length));
        const sees = sight(drafter, [...text, trace.tokens[0]!], window, name);
        return { drafter, sees, trace, forwards: forwards - before };
      }
      before = forwards;
    }
    throw new RangeError(`${drafter}: no round begins behind "${ANSWER}"`);
  };
  using window = watchWindow();
  using _clock = replace(performance, 'now', () => forwards); // of COSTS' machine, in the budget's eyes
  return { rounds: DRAFTERS.flatMap((drafter) => watch(drafter) ?? []), name };
}

/** What every machine agrees on. */
const rounded = (trace: RoundTrace): RoundTrace => ({
  ...trace,
  logProbs: trace.logProbs.map((value) => value && Math.round(value * 1000) / 1000),
  ms: 0,
});

/** Puts another method in the place of one, until it is disposed. */
function replace<T extends object, K extends keyof T>(owner: T, method: K, value: T[K]): Disposable {
  const original = owner[method];
  owner[method] = value;
  return {
    [Symbol.dispose]: () => {
      owner[method] = original;
    },
  };
}

interface WatchedWindow extends Disposable {
  /** As last hung below the root. */
  levels: number[][];
  /** N-grams hung there before it. */
  guesses: number[][];
}

/** Lookahead's window says nothing of itself: what it hangs into the tree is written down. */
function watchWindow(): WatchedWindow {
  const { plant } = LookaheadWindow.prototype;
  const watched: WatchedWindow = {
    levels: [],
    guesses: [],
    ...replace(LookaheadWindow.prototype, 'plant', function (this: LookaheadWindow, tree): void {
      const { tokens, parents, size } = tree;
      const leaves = range(1, size).filter((node) => !parents.subarray(0, size).includes(node));
      const path = (node: number): number[] => (node < 0 ? [] : [...path(parents[node]!), tokens[node]!]);
      watched.guesses = leaves.map(path);
      const hung = [tokens[0]!];
      const child = (parent: number, token: number): number => {
        hung.push(token);
        return tree.child(parent, token);
      };
      plant.call(this, { tokens, parents, size, start: () => {}, child });
      watched.levels = range(0, hung.length / this.width).map((i) => hung.slice(i * this.width, (i + 1) * this.width));
    }),
  };
  return watched;
}

const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);

/** @param tokens of the text, the root the last. */
function sight(
  drafter: DrafterName,
  tokens: readonly number[],
  { levels, guesses }: WatchedWindow,
  name: (token: number) => string,
): readonly SightRow[] {
  const row = (label: string, ids: readonly number[], mark?: (i: number) => Cell['mark']): SightRow => ({
    label,
    cells: ids.map((id, i) => ({ text: name(id), mark: mark?.(i) })),
  });
  const last = (i: number): Cell['mark'] => (i === 2 ? 'root' : undefined);
  const head = [row('features of', tokens.slice(-4, -1), () => 'feature'), row('tokens', tokens.slice(-3), last)];
  const { length, ends } = repeats(tokens);
  const lookup = [tokens.length, ...ends].map((end, i) =>
    row(['the end', 'seen last', 'and before'][i]!, tokens.slice(end - length - 1, end + 2), (at) =>
      at >= 1 && at <= length ? (i === 0 && at === length ? 'root' : 'match') : undefined,
    ),
  );
  switch (drafter) {
    case 'none':
      return [];
    case 'eagle':
      return head;
    case 'medusa':
      return [row('feature of', tokens.slice(-2, -1), () => 'feature'), row('unseen', tokens.slice(-1), () => 'root')];
    case 'draft':
      return [row('tokens', tokens.slice(-3), last)];
    case 'prompt-lookup':
      return lookup;
    case 'hybrid':
      return [...head, ...lookup];
    case 'lookahead':
      return [
        ...levels.map((level, i) => row(`level ${i}`, level, (at) => (i + at === 0 ? 'root' : undefined))),
        ...guesses.map((guess) => row('n-gram', guess, (at) => (at === 0 ? 'match' : undefined))),
      ];
    default:
      return drafter satisfies never;
  }
}

/** The text's longest end that occurs earlier: its tokens, and where its last two occurrences end, the latest first. */
function repeats(tokens: readonly number[]): { readonly length: number; readonly ends: readonly number[] } {
  const matched = tokens.map((_, end) => {
    let length = 0;
    while (length < end && tokens[end - 1 - length] === tokens.at(-1 - length)) length++;
    return length;
  });
  const length = Math.max(...matched);
  const ends = range(1, tokens.length).filter((end) => matched[end] === length);
  return { length, ends: ends.reverse().slice(0, 2) };
}
