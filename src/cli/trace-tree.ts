/**
 * A round as lines of characters. A node stands on a line of its own; its first child, or the one that was accepted, goes on straight
 * below, the others branch off to the right. So the accepted path is the trunk at the left, and a chain of any depth stays narrow.
 */
import { escapeControls, truncate } from './terminal-text.ts';
import type { TracedRound } from './trace-file.ts';

/** What a line is about, which says how it is coloured: `unemitted` stands behind the end of the text. */
export type LineKind = 'heading' | 'accepted' | 'rejected' | 'bonus' | 'unemitted';

export interface TreeLine {
  readonly kind: LineKind;
  readonly text: string;
}

/** @param columns of the terminal. @param name of a token, already safe to print. */
export function drawTree(round: TracedRound, columns: number, name: (token: number) => string): TreeLine[] {
  const { tokens, parents, positions, logProbs, acceptedPath, bonus, emitted } = round;
  const children: number[][] = tokens.map(() => []);
  for (let node = 1; node < tokens.length; node++) children[parents[node]!]!.push(node);
  const depths = new Map(acceptedPath.map((node, depth) => [node, depth]));
  const bonusPosition = positions[acceptedPath.at(-1)!]! + 1;
  const digits = Math.max(3, ...[...positions, bonusPosition].map((position) => String(position).length));
  const line = (kind: LineKind, position: string, logProb: string, graph: string, label: string): TreeLine => {
    const before = `${position.padStart(digits)}  ${logProb.padStart(6)}  `;
    const room = Math.max(8, columns - before.length);
    // Of deep branches the inner end matters; half of the room is the token's.
    const most = room >> 1;
    const shown = graph.length > most ? `…${graph.slice(graph.length - most + 1)}` : graph;
    return { kind, text: `${before}${shown}${truncate(label, room - shown.length)}` };
  };
  const kindAt = (depth: number, kind: LineKind): LineKind =>
    emitted !== undefined && depth > emitted ? 'unemitted' : kind;

  const lines = [line('heading', 'pos', 'log p', '', 'token')];
  // Nodes still to be drawn, the next one last: a file may have trees too deep for recursion.
  const pending = [{ node: 0, mark: '', below: '' }];
  for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
    const { node, mark, below } = next;
    const depth = depths.get(node);
    const logProb = node === 0 ? null : logProbs[node]!;
    const [kind, dot]: [LineKind, string] =
      depth === undefined ? ['rejected', '○ '] : [kindAt(depth, 'accepted'), '● '];
    const shownLogProb = logProb === null ? '' : logProb.toFixed(2);
    lines.push(line(kind, `${positions[node]}`, shownLogProb, `${mark}${dot}`, name(tokens[node]!)));
    // Below the last accepted node the trunk goes on to the bonus token.
    const nodesBelow = children[node]!;
    const isEnd = depth === acceptedPath.length - 1;
    const straight = isEnd ? undefined : (nodesBelow.find((child) => depths.has(child)) ?? nodesBelow[0]);
    if (straight !== undefined) pending.push({ node: straight, mark: below, below });
    for (const child of nodesBelow.toReversed())
      if (child !== straight) pending.push({ node: child, mark: `${below}├─`, below: `${below}│ ` });
  }
  lines.push(line(kindAt(acceptedPath.length, 'bonus'), `${bonusPosition}`, '', '★ ', name(bonus)));
  return lines;
}

/** `round 3 · 2 of 5 drafts accepted · 8.1 ms`. */
export function describeRound(round: TracedRound): string {
  const { tokens, acceptedPath, ms, emitted } = round;
  const drafted = tokens.length - 1;
  const parts = [
    ...(round.id === undefined ? [] : [escapeControls(round.id)]),
    ...(round.turn === undefined ? [] : [`turn ${round.turn}`]),
    `round ${round.round}`,
    drafted === 0 ? 'nothing drafted' : `${acceptedPath.length - 1} of ${drafted} drafted nodes accepted`,
    `${ms.toFixed(1)} ms`,
    ...(emitted === undefined ? [] : [`the text ended after ${emitted} of ${acceptedPath.length} tokens`]),
  ];
  return parts.join(' · ');
}

/** Tokens that the round gave to the text. */
export const emittedTokens = ({ emitted, acceptedPath }: TracedRound): number => emitted ?? acceptedPath.length;
