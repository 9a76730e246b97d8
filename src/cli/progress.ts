/** Progress on stderr, so that stdout stays clean for pipes: bars on a terminal; elsewhere one line per download, and silence otherwise. */
import { SingleBar } from 'cli-progress';
import type { FetchProgress } from '../checkpoint/hub.ts';
import type { LoadProgress } from '../engine.ts';
import { formatBytes, formatDuration } from './format.ts';

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
      linewrap: true, // left as it is: after a signal the terminal would be without
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

/** Seconds between lines where stderr is not a terminal. */
const SECONDS_PER_LINE = 60;

/** Work that takes hours: what is done, tokens a second so far, time left. Where stderr is not a terminal, a line now and then. */
export class RateBar implements Disposable {
  readonly #label: string;
  readonly #total: number;
  readonly #first: number;
  readonly #began = performance.now();
  readonly #bar: SingleBar | undefined;
  #lineAt = SECONDS_PER_LINE;

  /** @param first items that were done before: they say nothing of how long the rest takes. */
  constructor(label: string, total: number, first: number) {
    this.#label = label;
    this.#total = total;
    this.#first = first;
    if (!process.stderr.isTTY) return;
    this.#bar = new SingleBar({
      format: `${label} {bar} {percentage}% · {value} of {total} · {rate} tokens/s · {left} left{note}`,
      stream: process.stderr,
      clearOnComplete: true,
      barsize: 24,
    });
    this.#bar.start(total, first, { rate: '…', left: '…', note: '' });
  }

  /** @param items and @param tokens since it began. @param note what else there is to say. */
  update(items: number, tokens: number, note?: string): void {
    const seconds = (performance.now() - this.#began) / 1000;
    const rate = (tokens / seconds).toFixed(0);
    const done = this.#first + items;
    const left = formatDuration(((this.#total - done) * seconds) / items);
    const said = note === undefined ? '' : ` · ${note}`;
    this.#bar?.update(done, { rate, left, note: said });
    if (this.#bar !== undefined || seconds < this.#lineAt) return;
    this.#lineAt += SECONDS_PER_LINE;
    process.stderr.write(`${this.#label}: ${done} of ${this.#total}, ${rate} tokens/s, ${left} left${said}\n`);
  }

  [Symbol.dispose](): void {
    this.#bar?.stop();
  }
}

/** Milliseconds of reading weights that nobody needs to see. */
const UNSEEN_LOAD_MS = 1000;

/**
 * Follows a fetch from source to source: a new bar, or a new line, for each phase of each. Then weights are read: a bar where that takes long,
 * no line.
 */
export class FetchReporter implements Disposable {
  #bar: ProgressBar | undefined;
  #phase = '';
  #began = 0;

  readonly onProgress = ({ source, phase, loadedBytes, totalBytes }: FetchProgress | LoadProgress): void => {
    const loading = phase === 'load';
    const named = loading ? 'loading' : `${source}: ${phase}`;
    if (named !== this.#phase) {
      this.#phase = named;
      this.#began = performance.now();
      this.#bar?.[Symbol.dispose]();
      this.#bar = undefined;
      if (!process.stderr.isTTY && !loading) process.stderr.write(`${named}, ${formatBytes(totalBytes)}\n`);
    }
    if (!loading || performance.now() - this.#began > UNSEEN_LOAD_MS)
      this.#bar ??= new ProgressBar(named, totalBytes, 'bytes');
    this.#bar?.update(loadedBytes);
  };

  [Symbol.dispose](): void {
    this.#bar?.[Symbol.dispose]();
  }
}
