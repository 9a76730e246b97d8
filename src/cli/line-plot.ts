/** Curves as a scalable picture that stands alone: no scripts, no fonts of its own, light and dark alike. */

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
/** Told apart by those who do not see colours well (Okabe and Ito). */
const COLORS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7'];

/** Panels side by side; both axes start at 0. */
export function linePlot(panels: readonly Panel[]): string {
  const width = WIDTH * panels.length;
  const body = panels.map((panel, i) => `<g transform="translate(${i * WIDTH} 0)">${drawPanel(panel)}</g>`);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${HEIGHT}" width="${width}" height="${HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
${body.join('\n')}
</svg>
`;
}

function drawPanel({ title, xLabel, yLabel, series }: Panel): string {
  const all = series.flatMap(({ points }) => points);
  const xStep = niceStep(Math.max(...all.map(([x]) => x)));
  const yStep = niceStep(Math.max(...all.map(([, y]) => y)));
  const xMost = Math.ceil(Math.max(...all.map(([x]) => x)) / xStep) * xStep;
  const yMost = Math.ceil(Math.max(...all.map(([, y]) => y)) / yStep) * yStep;
  const right = WIDTH - MARGIN.right;
  const bottom = HEIGHT - MARGIN.bottom;
  const x = (value: number): number => round(MARGIN.left + (value / xMost) * (right - MARGIN.left));
  const y = (value: number): number => round(bottom - (value / yMost) * (bottom - MARGIN.top));
  const parts = [text(WIDTH / 2, 20, title, 'middle', 'font-weight="bold"')];
  for (let value = 0; value <= xMost + xStep / 2; value += xStep)
    parts.push(text(x(value), bottom + 16, String(round(value)), 'middle'));
  for (let value = 0; value <= yMost + yStep / 2; value += yStep)
    parts.push(
      `<line x1="${MARGIN.left}" x2="${right}" y1="${y(value)}" y2="${y(value)}" stroke="#ddd"/>`,
      text(MARGIN.left - 6, y(value) + 4, String(round(value)), 'end'),
    );
  parts.push(text((MARGIN.left + right) / 2, HEIGHT - 8, xLabel, 'middle'));
  const middle = (MARGIN.top + bottom) / 2;
  parts.push(text(14, middle, yLabel, 'middle', `transform="rotate(-90 14 ${middle})"`));
  for (const [i, { name, points, mark }] of series.entries()) {
    const color = COLORS[i % COLORS.length]!;
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

/** 1, 2 or 5 times a power of ten: four to ten of them reach `most`. */
function niceStep(most: number): number {
  const power = 10 ** Math.floor(Math.log10(most > 0 ? most : 1));
  return [0.1, 0.2, 0.5, 1].map((factor) => factor * power).find((step) => most / step <= 10)!;
}

const round = (value: number): number => Math.round(value * 100) / 100;

function text(x: number, y: number, content: string, anchor: string, attributes = ''): string {
  return `<text x="${x}" y="${y}" text-anchor="${anchor}" ${attributes}>${escapeMarkup(content)}</text>`;
}

const escapeMarkup = (content: string): string =>
  content.replace(/[&<>]/g, (character) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[character]!);
