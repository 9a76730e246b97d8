/**
 * The worked example of docs/drafters.md: computes it (draft-rounds.ts), draws it (draft-figure.ts) and puts its numbers into the page. A drafter
 * whose files are missing keeps what stands there.
 *
 *   npx tsx scripts/drafters-page.ts [--medusa DIR] [--draft-model REF]
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import type { RoundTrace } from '../src/decode/trace.ts';
import type { DrafterName } from '../src/draft/registry.ts';
import { DEFAULT_MODEL, shipped } from '../src/engine.ts';
import { drawRound } from './draft-figure.ts';
import { type DrafterFiles, draftRounds, TREES } from './draft-rounds.ts';

const at = (path: string): string => fileURLToPath(new URL(`../${path}`, import.meta.url));
const PAGE = at('docs/drafters.md');
const ROUNDS = at('docs/figures/drafters.jsonl');

const ORDER = Object.keys(TREES) as readonly DrafterName[]; // as on the page

/** Who guesses, and what a forward of its own is. */
const GUESSERS: Readonly<Record<DrafterName, { readonly lines: readonly string[]; readonly forward?: string }>> = {
  none: { lines: ['nothing'] },
  eagle: { lines: ['one layer, trained', 'for the target'], forward: 'of the head' },
  medusa: { lines: ['small heads, one', 'for each depth'], forward: 'of all heads' },
  draft: { lines: ['a small model', 'of its own'], forward: 'of the draft model' },
  'prompt-lookup': { lines: ['a suffix automaton:', 'it copies'] },
  hybrid: { lines: ['both, in one tree', 'of one budget'], forward: 'of the head' },
  lookahead: { lines: ['the target’s own', 'earlier answers'] },
};

/** A line of ROUNDS, which `eaglet trace` draws too. */
interface Line extends RoundTrace {
  readonly id: DrafterName;
  readonly forwards: number;
}

/** All files of the page by their paths, as they should be. */
export async function pageFiles(files: DrafterFiles): Promise<ReadonlyMap<string, string>> {
  const { rounds, name } = await draftRounds(files);
  const kept = existsSync(ROUNDS) ? readFileSync(ROUNDS, 'utf8').trim().split('\n') : [];
  const lines = new Map(kept.map((line) => JSON.parse(line) as Line).map((line) => [line.id, line]));
  for (const { drafter, trace, forwards } of rounds) lines.set(drafter, { id: drafter, ...trace, forwards });
  const ordered = ORDER.flatMap((drafter) => lines.get(drafter) ?? []);
  let page = fill(readFileSync(PAGE, 'utf8'), 'all', tableOf(ordered));
  for (const { id } of ordered) page = fill(page, id, `![What ${id} sees, proposes and costs](figures/${id}.svg)`);
  return new Map([
    [PAGE, page],
    [ROUNDS, ordered.map((line) => `${JSON.stringify(line)}\n`).join('')],
    ...rounds.map((round): [string, string] => {
      const { drafter, trace, forwards } = round;
      const cost = costOf({ id: drafter, ...trace, forwards });
      return [at(`docs/figures/${drafter}.svg`), drawRound(round, GUESSERS[drafter].lines, cost, name)];
    }),
  ]);
}

/** What stands between two marks of the page. */
function fill(page: string, mark: string, content: string): string {
  const [start, end] = [`<!-- example: ${mark} -->`, '<!-- end -->'];
  const from = page.indexOf(start);
  if (from < 0) throw new RangeError(`${PAGE}: "${start}" is missing`);
  return `${page.slice(0, from)}${start}\n\n${content}\n\n${page.slice(page.indexOf(end, from))}`;
}

const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? '' : 's'}`;

function forwardsOf({ id, forwards }: Line): string {
  const { forward } = GUESSERS[id];
  return forward === undefined ? 'none' : `${forwards} ${forward}`;
}

function costOf(line: Line): string {
  const { forward } = GUESSERS[line.id];
  const own = forward === undefined ? 'no forward of its own' : `${counted(line.forwards, 'forward')} ${forward}`;
  const { tokens, acceptedPath } = line;
  return `It costs ${own} and one of the target with ${counted(tokens.length, 'row')}, and brings ${counted(acceptedPath.length, 'token')}.`;
}

function tableOf(lines: readonly Line[]): string {
  const heading = [
    'drafter',
    '`--tree`',
    'guesses',
    'that stand',
    'tokens',
    'rows of the target',
    'forwards of its own',
  ];
  const cells = lines.map((line) => {
    const { id, tokens, acceptedPath } = line;
    const stood = acceptedPath.length;
    return [`\`${id}\``, TREES[id].says, tokens.length - 1, stood - 1, stood, tokens.length, forwardsOf(line)].map(
      String,
    );
  });
  const widths = heading.map((title, i) => Math.max(title.length, ...cells.map((row) => row[i]!.length)));
  const format = (row: readonly string[]): string => `| ${row.map((cell, i) => cell.padEnd(widths[i]!)).join(' | ')} |`;
  return [format(heading), format(widths.map((width) => '-'.repeat(width))), ...cells.map(format)].join('\n');
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { medusa: { type: 'string' }, 'draft-model': { type: 'string' } } });
  for (const [path, content] of await pageFiles({ ...shippedFiles(), ...values })) writeFileSync(path, content);
}

/** What ships beside the model's EAGLE head. */
export function shippedFiles(): DrafterFiles {
  const [medusa, draft] = [shipped('medusa', DEFAULT_MODEL), shipped('draft', DEFAULT_MODEL)];
  return { ...(medusa && { medusa }), ...(draft && { 'draft-model': draft }) };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
