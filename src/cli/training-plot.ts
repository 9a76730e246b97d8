/** The curves of a training run. */
import type { LogEntry } from '../train/training-log.ts';
import { linePlot, type Panel } from './line-plot.ts';

/** Points of a curve at most: a picture has no room for more. */
const POINTS = 200;

export function drawTraining(entries: readonly LogEntry[]): string {
  const updates = thin(entries.filter(({ update }) => update !== undefined));
  const heldBack = entries.filter(({ update }) => update === undefined);
  const millions = ({ tokens }: LogEntry): number => tokens / 1e6;
  const curve = (name: string, from: readonly LogEntry[], pick: (entry: LogEntry) => number) => ({
    name,
    points: from.map((entry) => [millions(entry), pick(entry)] as const),
  });
  const steps = Array.from({ length: Math.max(0, ...heldBack.map(({ losses }) => losses.length)) }, (_, j) => j);
  const stepName = (j: number): string => (steps.length > 1 ? `${j} own features` : 'held back');
  const xLabel = 'million tokens';
  const panels: readonly Panel[] = [
    {
      title: steps.length > 1 ? 'Loss of the first step' : 'Loss',
      xLabel,
      yLabel: 'cross-entropy, nats',
      series: [
        curve('trained', updates, ({ losses }) => losses[0]!.classification),
        curve('held back', heldBack, ({ losses }) => losses[0]!.classification),
      ],
    },
    {
      title: 'Agreement on held-back text',
      xLabel,
      yLabel: 'share of best tokens',
      series: steps.map((j) => curve(stepName(j), heldBack, ({ losses }) => losses[j]?.agreement ?? 0)),
    },
  ];
  return linePlot(panels.filter(({ series }) => series.some(({ points }) => points.length > 0)));
}

/** Means of neighbours. */
function thin(entries: readonly LogEntry[]): LogEntry[] {
  const each = Math.ceil(entries.length / POINTS);
  return Array.from({ length: Math.ceil(entries.length / Math.max(1, each)) }, (_, i) => {
    const part = entries.slice(i * each, (i + 1) * each);
    const [first] = part.map(({ losses }) => losses[0]!);
    const classification = part.reduce((sum, { losses }) => sum + losses[0]!.classification, 0) / part.length;
    return { ...part.at(-1)!, losses: [{ ...first!, classification }] };
  });
}
