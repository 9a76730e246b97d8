/**
 * Costs measured at an earlier load, in a file of the cache. A wrong one costs some speed until the budget has learned better, never text;
 * so a file that is missing, foreign or broken is no error but measured anew, and one that cannot be written is done without.
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import type { TreeCosts } from './costs.ts';

/** Whatever decides what a forward costs. */
export interface CostKey {
  readonly cpu: string;
  readonly isa: string;
  readonly threads: number;
  readonly dtype: string;
  /** The model's and the drafter's files, with what tells that they have changed. */
  readonly model: string;
  readonly drafter: string;
  /** Of eaglet: kernels get faster. */
  readonly version: string;
}

/** Of a file, or the files of a directory: changes when they are replaced. */
export function fingerprint(file: string): string {
  const path = resolve(file);
  const stats = statSync(path);
  if (!stats.isDirectory()) return `${path} ${stats.size} ${stats.mtimeMs}`;
  const files = readdirSync(path).sort();
  return files.map((file) => fingerprint(join(path, file))).join('\n');
}

const curve = z
  .array(z.object({ rows: z.int().min(1).max(1024), ms: z.number().nonnegative().max(1e6) }))
  .min(1)
  .max(64)
  .refine((points) => points.every(({ rows }, i) => i === 0 || rows > points[i - 1]!.rows));
const stored = z.object({ key: z.unknown(), costs: z.object({ target: curve, draft: curve }) });

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

  read(): TreeCosts | undefined {
    try {
      const { key, costs } = stored.parse(JSON.parse(readFileSync(this.file, 'utf8')));
      return JSON.stringify(key) === this.#key ? costs : undefined;
    } catch {
      return undefined;
    }
  }

  write(costs: TreeCosts): void {
    try {
      mkdirSync(this.#directory, { recursive: true });
      const part = `${this.file}.${process.pid}.part`;
      writeFileSync(part, JSON.stringify({ key: JSON.parse(this.#key), costs }));
      renameSync(part, this.file);
    } catch {}
  }
}
