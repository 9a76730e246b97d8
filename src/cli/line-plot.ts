/** Curves as a picture. */
import { axisOf, colorOf, drawValueAxis, page, round, text, titlesOf } from './svg.ts';

export interface Panel {
  readonly title: string;
  readonly xLabel: string;
  readonly yLabel: string;
  readonly series: readonly {
    readonly name: string;
    readonly points: readonly (readonly [x: number, y: number])[];
    /** A point that is marked. */
    readonly mark?: number;
  }[];
}

const WIDTH = 460;
const HEIGHT = 300;
const MARGIN = { left: 56, right: 16, top: 36, bottom: 44 };

/** Panels side by side; both axes start at 0. */
export function linePlot(panels: readonly Panel[]): string {
  const body = panels.map((panel, i) => `<g transform="translate(${i * WIDTH} 0)">${drawPanel(panel)}</g>`);
  return page(WIDTH * panels.length, HEIGHT, titlesOf(panels), body.join('\n'));
}

function drawPanel({ title, xLabel, yLabel, series }: Panel): string {
  const all = series.flatMap(({ points }) => points);
  const xAxis = axisOf(all.map(([x]) => x));
  const yAxis = axisOf(all.map(([, y]) => y));
  const right = WIDTH - MARGIN.right;
  const bottom = HEIGHT - MARGIN.bottom;
  const x = (value: number): number => round(MARGIN.left + (value / xAxis.most) * (right - MARGIN.left));
  const y = (value: number): number => round(bottom - (value / yAxis.most) * (bottom - MARGIN.top));
  const parts = [text(WIDTH / 2, 20, title, 'middle', 'font-weight="bold"')];
  for (let value = 0; value <= xAxis.most + xAxis.step / 2; value += xAxis.step)
    parts.push(text(x(value), bottom + 16, String(round(value)), 'middle'));
  parts.push(drawValueAxis({ ...MARGIN, right, bottom }, yLabel, yAxis, y));
  parts.push(text((MARGIN.left + right) / 2, HEIGHT - 8, xLabel, 'middle'));
  for (const [i, { name, points, mark }] of series.entries()) {
    const color = colorOf(i);
    const line = points.map(([px, py]) => `${x(px)},${y(py)}`).join(' ');
    parts.push(`<polyline points="${line}" fill="none" stroke="${color}" stroke-width="2"/>`);
    if (mark !== undefined) {
      const [px, py] = points[mark]!;
      parts.push(`<circle cx="${x(px)}" cy="${y(py)}" r="5" fill="${color}"/>`);
    }
    parts.push(text(MARGIN.left + 10, MARGIN.top + 14 + 16 * i, name, 'start', `style="fill:${color}"`));
  }
  return parts.join('');
}
