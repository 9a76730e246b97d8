/** What pictures are drawn with: scalable, and standing alone, without scripts or fonts of their own, light and dark alike. */

/** Told apart by those who do not see colours well (Okabe and Ito). */
const COLORS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000'];

export function colorOf(series: number): string {
  return COLORS[series % COLORS.length]!;
}

/** @param title for those who do not see it. */
export function page(width: number, height: number, title: string, body: string): string {
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="sans-serif" font-size="12">
<title>${escapeMarkup(title)}</title>
<rect width="100%" height="100%" fill="white"/>
${body}
</svg>
`;
}

export const titlesOf = (panels: readonly { readonly title: string }[]): string =>
  panels.map(({ title }) => title).join('; ');

export interface Frame {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

/** Lines across with their values, from 0 to the `most` that `axisOf` gives. @param y where a value lies. */
export function drawValueAxis(
  { left, right, top, bottom }: Frame,
  label: string,
  axis: Axis,
  y: (value: number) => number,
): string {
  const parts: string[] = [];
  for (let value = 0; value <= axis.most + axis.step / 2; value += axis.step)
    parts.push(
      `<line x1="${left}" x2="${right}" y1="${y(value)}" y2="${y(value)}" stroke="#ddd"/>`,
      text(left - 6, y(value) + 4, String(round(value)), 'end'),
    );
  const middle = (top + bottom) / 2;
  parts.push(text(14, middle, label, 'middle', `transform="rotate(-90 14 ${middle})"`));
  return parts.join('');
}

export interface Axis {
  readonly step: number;
  readonly most: number;
}

/** From 0 to a round number that all values are below. */
export function axisOf(values: readonly number[]): Axis {
  const largest = Math.max(...values);
  const step = niceStep(largest);
  return { step, most: Math.ceil(largest / step) * step };
}

/** 1, 2 or 5 times a power of ten: four to ten of them reach `most`. */
function niceStep(most: number): number {
  const power = 10 ** Math.floor(Math.log10(most > 0 ? most : 1));
  return [0.1, 0.2, 0.5, 1].map((factor) => factor * power).find((step) => most / step <= 10)!;
}

export const round = (value: number): number => Math.round(value * 100) / 100;

export function text(x: number, y: number, content: string, anchor: string, attributes = ''): string {
  return `<text x="${x}" y="${y}" text-anchor="${anchor}" ${attributes}>${escapeMarkup(content)}</text>`;
}

const escapeMarkup = (content: string): string =>
  content.replace(/[&<>]/g, (character) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[character]!);
