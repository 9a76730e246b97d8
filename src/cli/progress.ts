/** Progress on stderr, so that stdout stays clean for pipes: bars on a terminal; elsewhere one line per download, and silence otherwise. */
import { SingleBar } from 'cli-progress';
import type { FetchProgress } from '../checkpoint/hub.ts';
import { formatBytes } from './format.ts';

/** What cli-progress hands to `formatValue`. */
type ValueKind = 'percentage' | 'total' | 'value' | 'eta' | 'duration';

const formatByteValues = (value: number, _options: unknown, kind: ValueKind): string =>
  kind === 'total' || kind === 'value' ? formatBytes(value) : String(value);

/** One bar; gone when it is disposed. Nothing is drawn where stderr is not a terminal. */
export class ProgressBar implements Disposable {
  readonly #bar: SingleBar | undefined;

  constructor(label: string, total: number, unit: 'bytes' | 'items' = 'items') {
    if (!process.stderr.isTTY) return;
    this.#bar = new SingleBar({
      format: `${label} {bar} {percentage}% · {value} of {total} · {eta_formatted} left`,
      stream: process.stderr,
      clearOnComplete: true,
      barsize: 24,
      ...(unit === 'bytes' && { formatValue: formatByteValues }),
    });
    this.#bar.start(total, 0);
  }

  update(done: number): void {
    this.#bar?.update(done);
  }

  [Symbol.dispose](): void {
    this.#bar?.stop();
  }
}

/** Follows a fetch from source to source: a new bar, or a new line, for each phase of each. */
export class FetchReporter implements Disposable {
  #bar: ProgressBar | undefined;
  #phase = '';

  readonly onProgress = ({ source, phase, loadedBytes, totalBytes }: FetchProgress): void => {
    const named = `${source}: ${phase}`;
    if (named !== this.#phase) {
      this.#phase = named;
      this.#bar?.[Symbol.dispose]();
      this.#bar = new ProgressBar(named, totalBytes, 'bytes');
      if (!process.stderr.isTTY) process.stderr.write(`${named}, ${formatBytes(totalBytes)}\n`);
    }
    this.#bar?.update(loadedBytes);
  };

  [Symbol.dispose](): void {
    this.#bar?.[Symbol.dispose]();
  }
}
