/**
 * Costs known from an earlier load, in files of the cache: one of the target's forwards, which is the same whoever drafts, and one for each
 * model that drafts. A wrong one costs some speed until the budget has learned better, never text; so a file that is missing, foreign or
 * broken is no error but measured anew, and one that cannot be written is done without.
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import { type CostCurve, ForwardCost } from './costs.ts';

/** Whatever decides what a forward costs. */
export interface CostKey {
  readonly cpu: string;
  readonly isa: string;
  readonly threads: number;
  readonly dtype: string;
  /** The target's files, with what tells that they have changed. */
  readonly model: string;
  /** Whose forwards: `target`, or the files of a model that drafts. */
  readonly forwards: string;
  /** Of eaglet: what is measured, and how, changes. */
  readonly version: string;
  /** The add-on's file: another build has other kernels. */
  readonly addon: string;
}

/** Curves that have learned from this many forwards are better than those of the next load. */
const FORWARDS_WORTH_KEEPING = 64;

/** Of what a file says and how: one of another version is as good as none. */
const FORMAT = 3;

/** Of a file, or of the files in a directory: changes when they are replaced. What cannot be looked at (a broken link) does not count. */
export function fingerprint(file: string): string {
  const path = resolve(file);
  if (!statSync(path, { throwIfNoEntry: false })?.isDirectory()) return fingerprintOfFile(path).join();
  const names = readdirSync(path).sort();
  return names.flatMap((name) => fingerprintOfFile(join(path, name))).join('\n');
}

/** One, or none. */
function fingerprintOfFile(path: string): string[] {
  try {
    const stats = statSync(path);
    return stats.isFile() ? [`${path} ${stats.size} ${stats.mtimeMs}`] : [];
  } catch {
    return [];
  }
}

const ms = z.number().nonnegative().max(1e6);
const curve = z
  .array(z.object({ rows: z.int().min(1).max(1024), ms, contextMs: ms.optional(), steadyMs: ms.optional() }))
  .min(1)
  .max(64)
  .refine((points) => points.every(({ rows }, i) => i === 0 || rows > points[i - 1]!.rows));
const stored = z.object({ format: z.literal(FORMAT), key: z.unknown(), curve });

export class CostCache {
  readonly #directory: string;
  readonly #key: string;

  /** @param directory made when something is written. */
  constructor(directory: string, key: CostKey) {
    this.#directory = directory;
    this.#key = JSON.stringify(key);
  }

  get file(): string {
    return join(this.#directory, `${createHash('sha256').update(this.#key).digest('hex').slice(0, 32)}.json`);
  }

  read(): CostCurve | undefined {
    try {
      const { key, curve } = stored.parse(JSON.parse(readFileSync(this.file, 'utf8')));
      return JSON.stringify(key) === this.#key ? curve : undefined;
    } catch {
      return undefined;
    }
  }

  write(curve: CostCurve): void {
    try {
      mkdirSync(this.#directory, { recursive: true });
      const part = `${this.file}.${process.pid}.part`;
      writeFileSync(part, JSON.stringify({ format: FORMAT, key: JSON.parse(this.#key), curve }));
      renameSync(part, this.file);
    } catch {}
  }
}

/** The costs that an engine goes by: whoever asks for the same forwards is given the same live curve. They are kept when they are disposed. */
export class KnownCosts implements Disposable {
  readonly #directory: string;
  readonly #machine: Omit<CostKey, 'forwards'>;
  readonly #remeasure: boolean;
  readonly #known = new Map<string, { readonly cache: CostCache; readonly cost: ForwardCost }>();

  /** @param remeasure takes nothing from earlier loads. */
  constructor(directory: string, machine: Omit<CostKey, 'forwards'>, remeasure: boolean) {
    this.#directory = directory;
    this.#machine = machine;
    this.#remeasure = remeasure;
  }

  /** @param forwards as in the key. @param measure called where they are not known yet. */
  of(forwards: string, measure: () => CostCurve): ForwardCost {
    let known = this.#known.get(forwards);
    if (known === undefined) {
      const cache = new CostCache(this.#directory, { ...this.#machine, forwards });
      known = { cache, cost: new ForwardCost(this.#read(cache) ?? this.#measure(cache, measure)) };
      this.#known.set(forwards, known);
    }
    return known.cost;
  }

  #read(cache: CostCache): CostCurve | undefined {
    return this.#remeasure ? undefined : cache.read();
  }

  #measure(cache: CostCache, measure: () => CostCurve): CostCurve {
    const curve = measure();
    cache.write(curve);
    return curve;
  }

  /** What forwards cost is known better after some text than it was when they were measured, which may have been a busy moment. */
  [Symbol.dispose](): void {
    for (const { cache, cost } of this.#known.values())
      if (cost.forwards >= FORWARDS_WORTH_KEEPING) cache.write(cost.curve());
  }
}
