/** What a run has reported, one JSON line each: the curves, and what survives of them when it goes on from an earlier step. */
import { closeSync, existsSync, openSync, writeFileSync } from 'node:fs';
import { z } from 'zod';
import { writeAtomically } from '../checkpoint/file.ts';
import { parseLine, readLines, writing } from './json-lines.ts';

const stepLoss = z.object({
  regression: z.number().optional(),
  classification: z.number(),
  rows: z.number(),
  agreement: z.number(),
});
const entry = z.object({
  step: z.int().nonnegative(),
  /** Tokens trained on so far. */
  tokens: z.number(),
  /** Of each unrolled step. */
  losses: z.array(stepLoss).min(1),
  /** Absent where the losses are of held-back text. */
  update: z.object({ learningRate: z.number(), gradientNorm: z.number(), ms: z.number() }).optional(),
});
export type LogEntry = z.infer<typeof entry>;

export class TrainingLog implements Disposable {
  readonly path: string;
  readonly entries: LogEntry[] = [];
  readonly #file: number;

  /** Keeps what the file holds of the first `step` updates. */
  constructor(path: string, step: number) {
    this.path = path;
    if (existsSync(path)) {
      for (const { text, number, ended } of readLines(path)) {
        if (!ended) break;
        const read = parseLine(text, `${path}:${number}`, entry);
        if (read.step <= step) this.entries.push(read);
      }
      const kept = Buffer.from(this.entries.map((entry) => `${JSON.stringify(entry)}\n`).join(''));
      writing(path, () => writeAtomically(path, [kept]));
    }
    this.#file = writing(path, () => openSync(path, 'a'));
  }

  /** @throws RequestError where there is no room: a run goes on from its checkpoint. */
  append(entry: LogEntry): void {
    this.entries.push(entry);
    writing(this.path, () => writeFileSync(this.#file, `${JSON.stringify(entry)}\n`));
  }

  [Symbol.dispose](): void {
    closeSync(this.#file);
  }
}
