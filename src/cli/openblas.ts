/**
 * OpenBLAS as a yardstick: a small C++ program (bench/openblas/) is compiled where its headers are and run beside us, one product at a
 * time, so that both are measured in turn on the same machine in the same minute. Nothing else depends on it.
 */
import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const SOURCE = fileURLToPath(new URL('../../bench/openblas/products.cc', import.meta.url));

/** y = x·Wᵀ, and its gradients by the input and by the weight. */
export const PRODUCTS = ['forward', 'input', 'weight'] as const;
export type Product = (typeof PRODUCTS)[number];

/** What matrices are filled with on both sides: x, w and dy have the seeds 1, 2 and 3. */
export const fillValue = (i: number, seed: number): number =>
  Math.fround(((Math.imul(i, 2654435761) + seed) >>> 0) / 2 ** 32 - 0.5);

export interface ProductTime {
  readonly ms: number;
  /** First and last element of the result. */
  readonly first: number;
  readonly last: number;
}

export class OpenBlas {
  readonly #directory: string;
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #answers: AsyncIterator<string>;

  private constructor(directory: string, program: string, threads: number) {
    this.#directory = directory;
    this.#child = spawn(program, {
      // Its threads would go on spinning for a while after a product, while ours are measured: 2^4 cycles is the least.
      env: { ...process.env, OPENBLAS_NUM_THREADS: String(threads), OPENBLAS_THREAD_TIMEOUT: '4' },
    });
    this.#child.stderr.pipe(process.stderr);
    this.#answers = createInterface(this.#child.stdout)[Symbol.asyncIterator]();
  }

  /** Compiles and starts it; else why not, and what to do about it. */
  static start(threads: number): OpenBlas | string {
    const directory = mkdtempSync(join(tmpdir(), 'eaglet-openblas-'));
    const program = join(directory, 'products');
    const compiled = spawnSync('g++', ['-O2', SOURCE, '-o', program, '-lopenblas'], { encoding: 'utf8' });
    if (compiled.status === 0) return new OpenBlas(directory, program, threads);
    rmSync(directory, { recursive: true });
    return 'not measured: needs a C++ compiler and OpenBLAS (Debian, Ubuntu: apt-get install g++ libopenblas-dev)';
  }

  /** Matrices for the next products. */
  async shape(rows: number, outputs: number, inputs: number): Promise<void> {
    await this.#ask(`shape ${rows} ${outputs} ${inputs}`);
  }

  async run(product: Product): Promise<ProductTime> {
    const [ms, first, last] = (await this.#ask(product)).split(' ').map(Number);
    return { ms: ms!, first: first!, last: last! };
  }

  async #ask(line: string): Promise<string> {
    this.#child.stdin.write(`${line}\n`);
    const answer = await this.#answers.next();
    if (answer.done) throw new Error(`openblas: the program ended at "${line}"`);
    return answer.value;
  }

  [Symbol.dispose](): void {
    this.#child.stdin.end();
    this.#child.kill();
    rmSync(this.#directory, { recursive: true });
  }
}
