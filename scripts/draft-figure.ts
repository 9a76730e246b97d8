/** A drafter's round as a picture: at the left what it saw, then who guessed, at the right the tree with the path that stood, below what it cost. */

import { colorOf, page, text } from '../src/cli/svg.ts';
import type { RoundTrace } from '../src/decode/trace.ts';
import type { DraftRound } from './draft-rounds.ts';

const BOX = 22;
/** Between two rows of boxes; a guess has its probability below it. */
const PITCH = 42;
const GAP = 26;
const TOP = 40;
const LABEL = 90;
const GUESSER = { x: 340, width: 140 };
const TREE_X = GUESSER.x + GUESSER.width + 44;
const GREY = '#666';

type Look = 'plain' | 'root' | 'feature' | 'match' | 'accepted' | 'bonus' | 'rejected';
const LOOKS: { readonly [look in Look]: { readonly box: string; readonly text: string } } = {
  plain: { box: 'fill="white" stroke="#999"', text: 'black' },
  root: { box: 'fill="white" stroke="black" stroke-width="2"', text: 'black' },
  feature: { box: 'fill="#d9eaf5" stroke="#0072b2"', text: 'black' },
  match: { box: 'fill="#fbe7c0" stroke="#e69f00"', text: 'black' },
  accepted: { box: `fill="${colorOf(0)}" stroke="${colorOf(0)}"`, text: 'white' },
  bonus: { box: `fill="white" stroke="${colorOf(1)}" stroke-width="2" stroke-dasharray="4 2"`, text: 'black' },
  rejected: { box: 'fill="#f4f4f4" stroke="#ccc"', text: GREY },
};

/** Of a token's box. Letters of the widest usual font take 8 units. */
const widthOf = (token: string): number => Math.max(BOX, 8 * token.length + 10);

function drawToken(token: string, x: number, y: number, look: Look, width = widthOf(token)): string {
  const { box, text: fill } = LOOKS[look];
  return `<rect x="${x}" y="${y - BOX / 2}" width="${width}" height="${BOX}" rx="4" ${box}/>${text(x + width / 2, y + 4, token, 'middle', `fill="${fill}"`)}`;
}

/** @param guesser lines that say who guesses. @param cost a line. */
export function drawRound(
  { drafter, sees, trace }: DraftRound,
  guesser: readonly string[],
  cost: string,
  name: (token: number) => string,
): string {
  const tree = layOutTree(trace, name);
  const height = Math.max(tree.rows * PITCH, sees.length * (BOX + 8) + 8, guesser.length * 16 + 24);
  const middle = TOP + height / 2 - 8;
  const width = Math.max(TREE_X + tree.width + 20, 900);
  const title = (x: number, words: string, anchor = 'start'): string =>
    text(x, 20, words, anchor, 'font-weight="bold"');
  const arrow = (from: number, to: number): string =>
    `<path d="M${from} ${middle}H${to - 2}m-6 -5l6 5l-6 5" fill="none" stroke="black" stroke-width="1.5"/>`;
  const parts = [
    title(12, `${drafter} sees`),
    title(GUESSER.x + GUESSER.width / 2, 'guesses with', 'middle'),
    title(TREE_X, 'proposes'),
    drawSight(sees, middle),
    arrow(GUESSER.x - 34, GUESSER.x - 6),
    `<rect x="${GUESSER.x}" y="${middle - guesser.length * 8 - 12}" width="${GUESSER.width}" height="${guesser.length * 16 + 24}" rx="12" fill="#f4f4f4" stroke="black"/>`,
    ...guesser.map((line, i) =>
      text(GUESSER.x + GUESSER.width / 2, middle + (i - (guesser.length - 1) / 2) * 16 + 4, line, 'middle'),
    ),
    arrow(GUESSER.x + GUESSER.width + 6, TREE_X - 10),
    `<g transform="translate(${TREE_X} ${middle - ((tree.rows - 1) * PITCH) / 2})">${tree.drawing}</g>`,
    `<line x1="12" x2="${width - 12}" y1="${TOP + height + 4}" y2="${TOP + height + 4}" stroke="#ddd"/>`,
    text(12, TOP + height + 24, cost, 'start'),
  ];
  return page(width, TOP + height + 38, `What ${drafter} sees, proposes and costs`, parts.join('\n'));
}

/** Tokens of a column belong together, and have one width. */
function drawSight(sees: DraftRound['sees'], middle: number): string {
  if (sees.length === 0) return text(12, middle + 4, 'nothing', 'start', `fill="${GREY}"`);
  const columns = Math.max(...sees.map(({ cells }) => cells.length));
  const widths = Array.from({ length: columns }, (_, i) =>
    Math.max(...sees.map(({ cells }) => widthOf(cells[i]?.text ?? ''))),
  );
  return sees
    .map(({ label, cells }, row) => {
      const y = middle + (row - (sees.length - 1) / 2) * (BOX + 8);
      let x = LABEL;
      const boxes = cells.map(({ text: token, mark }, i) => {
        const box = drawToken(token, x, y, mark ?? 'plain', widths[i]!);
        x += widths[i]! + 4;
        return box;
      });
      return text(12, y + 4, label, 'start', `fill="${GREY}"`) + boxes.join('');
    })
    .join('\n');
}

/** As `eaglet trace` has it: what stood goes straight on, ends in the bonus and has the rest branch off below it. */
function layOutTree(
  { tokens, parents, logProbs, acceptedPath, bonus }: RoundTrace,
  name: (token: number) => string,
): { readonly drawing: string; readonly width: number; readonly rows: number } {
  const names = [...tokens, bonus].map(name);
  const above = [...parents, acceptedPath.at(-1)!];
  const stood = new Set([...acceptedPath, tokens.length]);
  const columns: number[] = [];
  const rows: number[] = [];
  let lastRow = 0;
  const place = (node: number, column: number): void => {
    columns[node] = column;
    rows[node] = lastRow;
    const children = above.flatMap((parent, child) => (parent === node ? [child] : []));
    for (const [i, child] of children.sort((a, b) => Number(stood.has(b)) - Number(stood.has(a))).entries()) {
      if (i > 0) lastRow++;
      place(child, column + 1);
    }
  };
  place(0, 0);

  const xs = [0];
  for (let column = 0; column <= Math.max(...columns); column++)
    xs.push(
      xs[column]! + GAP + Math.max(...names.map((token, node) => (columns[node] === column ? widthOf(token) : 0))),
    );
  const drawNode = (node: number): string => {
    const token = names[node]!;
    const x = xs[columns[node]!]!;
    const y = rows[node]! * PITCH;
    if (node === 0) return drawToken(token, x, y, 'root');
    const parent = above[node]!;
    const from = `${xs[columns[parent]!]! + widthOf(names[parent]!)} ${rows[parent]! * PITCH}`;
    const color = stood.has(node) ? `stroke="${colorOf(0)}" stroke-width="2"` : 'stroke="#999"';
    const isBonus = node === tokens.length;
    const below = isBonus ? 'bonus' : logProbs[node] === null ? '' : Math.exp(logProbs[node]!).toFixed(2);
    return [
      `<path d="M${from}H${x - 12}V${y}H${x}" fill="none" ${color}/>`,
      drawToken(token, x, y, isBonus ? 'bonus' : stood.has(node) ? 'accepted' : 'rejected'),
      text(x + widthOf(token) / 2, y + 23, below, 'middle', `fill="${GREY}" font-size="11"`),
    ].join('');
  };
  const nodes = [...names.keys()].sort((a, b) => Number(stood.has(a)) - Number(stood.has(b))); // what stood over the rest
  return { drawing: nodes.map(drawNode).join('\n'), width: xs.at(-1)! - GAP, rows: lastRow + 1 };
}
