/** Values of several series for each of some groups, side by side, as a picture. */
import { axisOf, colorOf, drawValueAxis, page, round, text, titlesOf } from './svg.ts';

export interface BarPanel {
  readonly title: string;
  readonly yLabel: string;
  readonly groups: readonly string[];
  /** A value for each group; absent where there is none. */
  readonly series: readonly { readonly name: string; readonly values: readonly (number | undefined)[] }[];
  /** A line across at this value. */
  readonly level?: number;
}

const HEIGHT = 300;
const MARGIN = { left: 56, right: 16, top: 52, bottom: 28 };
const BAR = 12;
/** Between two groups. */
const GAP = 18;
/** Of a group's name. */
const LETTER = 8;
const LEGEND_ENTRY = 120;

/** Panels below each other; the axis starts at 0. */
export function barPlot(panels: readonly BarPanel[]): string {
  const widths = panels.map(({ groups, series }) =>
    Math.max(
      groups.length * Math.max(series.length * BAR + GAP, ...groups.map((name) => name.length * LETTER)),
      series.length * LEGEND_ENTRY,
    ),
  );
  const width = MARGIN.left + MARGIN.right + Math.max(...widths);
  const body = panels.map((panel, i) => `<g transform="translate(0 ${i * HEIGHT})">${drawPanel(panel, width)}</g>`);
  return page(width, HEIGHT * panels.length, titlesOf(panels), body.join('\n'));
}

function drawPanel({ title, yLabel, groups, series, level }: BarPanel, width: number): string {
  const right = width - MARGIN.right;
  const bottom = HEIGHT - MARGIN.bottom;
  const axis = axisOf([...series.flatMap(({ values }) => values.filter((value) => value !== undefined)), level ?? 0]);
  const y = (value: number): number => round(bottom - (value / axis.most) * (bottom - MARGIN.top));
  const slot = (right - MARGIN.left) / groups.length;
  const parts = [
    text(width / 2, 20, title, 'middle', 'font-weight="bold"'),
    drawValueAxis({ ...MARGIN, right, bottom }, yLabel, axis, y),
  ];
  for (const [i, { name, values }] of series.entries()) {
    parts.push(text(MARGIN.left + i * LEGEND_ENTRY, 40, name, 'start', `style="fill:${colorOf(i)}"`));
    for (const [group, value] of values.entries()) {
      if (value === undefined) continue;
      const x = round(MARGIN.left + slot * (group + 0.5) + BAR * (i - series.length / 2));
      parts.push(
        `<rect x="${x}" y="${y(value)}" width="${BAR - 2}" height="${round(bottom - y(value))}" fill="${colorOf(i)}"/>`,
      );
    }
  }
  for (const [i, group] of groups.entries())
    parts.push(text(round(MARGIN.left + slot * (i + 0.5)), bottom + 16, group, 'middle'));
  if (level !== undefined)
    parts.push(
      `<line x1="${MARGIN.left}" x2="${right}" y1="${y(level)}" y2="${y(level)}" stroke="#555" stroke-dasharray="4 3"/>`,
    );
  return parts.join('');
}
