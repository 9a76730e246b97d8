/** A curve in one line of text. */
const LEVELS = '▁▂▃▄▅▆▇█';

/** Means of `width` equal parts of the values, from the lowest level for the least to the highest for the greatest. */
export function sparkline(values: readonly number[], width: number): string {
  const count = Math.min(width, values.length);
  const means = Array.from({ length: count }, (_, i) => {
    const part = values.slice(Math.floor((i * values.length) / count), Math.floor(((i + 1) * values.length) / count));
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
  const least = Math.min(...means);
  const range = Math.max(...means) - least;
  const level = (value: number): number =>
    range === 0 ? 0 : Math.round(((value - least) / range) * (LEVELS.length - 1));
  return means.map((value) => LEVELS[level(value)]).join('');
}
