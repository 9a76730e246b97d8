/** Rounds as a terminal shows them: title, tree and colours. */
import { styleText } from 'node:util';
import { truncate } from './terminal-text.ts';
import type { TracedRound } from './trace-file.ts';
import { describeRound, drawTree, emittedTokens, type LineKind } from './trace-tree.ts';

/** What a token is called, already safe to print. */
export type NameToken = (token: number) => string;

export interface Progress {
  readonly round: TracedRound;
  /** Of its answer, up to this round. */
  readonly acceptanceLength: number;
}

/** An answer's first round follows another answer's, or starts the count again. */
export function withProgress(rounds: readonly TracedRound[]): Progress[] {
  let tokens = 0;
  let count = 0;
  return rounds.map((round, i) => {
    const before = rounds[i - 1];
    const { id, turn } = round;
    const goesOn = before !== undefined && before.id === id && before.turn === turn && before.round < round.round;
    if (!goesOn) tokens = count = 0;
    tokens += emittedTokens(round);
    return { round, acceptanceLength: tokens / ++count };
  });
}

const STYLES: { readonly [K in LineKind]: Parameters<typeof styleText>[0] } = {
  heading: 'dim',
  accepted: ['bold', 'green'],
  rejected: 'dim',
  bonus: ['bold', 'yellow'],
  unemitted: ['dim', 'strikethrough'],
};

export function drawRound({ round, acceptanceLength }: Progress, columns: number, name: NameToken): string[] {
  const title = `${describeRound(round)} · acceptance length so far ${acceptanceLength.toFixed(2)}`;
  return [
    ...wrap(title, columns).map((line) => paint('bold', line)),
    ...drawTree(round, columns, name).map(({ kind, text }) => paint(STYLES[kind], text)),
  ];
}

function wrap(text: string, columns: number): string[] {
  const lines: string[] = [];
  for (const part of text.split(' · ')) {
    const longer = lines.length === 0 ? part : `${lines.at(-1)} · ${part}`;
    if (lines.length > 0 && longer.length <= columns) lines[lines.length - 1] = longer;
    else lines.push(truncate(part, columns));
  }
  return lines;
}

export function paint(style: Parameters<typeof styleText>[0], text: string): string {
  const { NO_COLOR, FORCE_COLOR } = process.env;
  if (NO_COLOR || !(process.stdout.isTTY || (FORCE_COLOR && FORCE_COLOR !== '0'))) return text;
  return styleText(style, text);
}
