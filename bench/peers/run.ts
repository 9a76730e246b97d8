/**
 * `npm run bench:peers`: eaglet and node-llama-cpp on the same file and prompts, greedy, with every number of threads up to the physical
 * cores. Every measurement is a process of its own; they take turns, so that a slow stretch of the machine falls on all alike, and the
 * median of the repeats counts. A program is compared at its own best number of threads.
 *
 * Needs a machine to itself. llama.cpp's threads wait for each other by spinning: while another process held one of two cores it made
 * 0.6 to 3.6 tokens/s with two threads, and 82 with one. So every measurement also says how many cores it got, and a run in which
 * a program did not get its cores ends with exit code 1 instead of a comparison.
 */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { resolveModel } from '../../src/checkpoint/hub.ts';
import { formatTable } from '../../src/cli/format.ts';
import { DEFAULT_PROMPTS, readPrompts } from '../../src/cli/prompts.ts';
import { median } from '../../src/cli/statistics.ts';
import { DEFAULT_MODEL, shipped } from '../../src/engine.ts';
import { loadEngine } from '../../src/index.ts';

export interface Job {
  /** A GGUF file. */
  readonly model: string;
  readonly head: string;
  readonly threads: number;
  readonly what: What;
  readonly promptIds: readonly (readonly number[])[];
  readonly maxTokens: number;
}

export interface Measurement {
  readonly tokens: number;
  readonly ms: number;
  /** Processor time over wall-clock time. */
  readonly cores: number;
}

type What = 'plain' | 'eagle' | 'lookup' | 'prefill';

const PREFILL_TOKENS = 512;
/** Share of its threads' time that a program must get. Runs that were little disturbed gave 0.85 and more, one beside a busy process 0.5. */
const LEAST_SHARE = 0.8;

const here = (name: string): string => fileURLToPath(new URL(name, import.meta.url));
const OURS = here('ours.ts');
const PEER = here('node-llama-cpp.mjs');

/** In turn order. Ratios are to the program named by `against`. */
const PROGRAMS = [
  { name: 'node-llama-cpp plain', file: PEER, what: 'plain', against: 'node-llama-cpp plain' },
  { name: 'eaglet plain', file: OURS, what: 'plain', against: 'node-llama-cpp plain' },
  { name: 'node-llama-cpp prompt lookup', file: PEER, what: 'lookup', against: 'node-llama-cpp plain' },
  { name: 'eaglet eagle', file: OURS, what: 'eagle', against: 'node-llama-cpp plain' },
  { name: 'node-llama-cpp prefill', file: PEER, what: 'prefill', against: 'node-llama-cpp prefill' },
  { name: 'eaglet prefill', file: OURS, what: 'prefill', against: 'node-llama-cpp prefill' },
] as const;

interface Row {
  readonly name: string;
  readonly threads: number;
  /** Median, lowest and highest tokens/s. */
  readonly tokensPerSecond: number;
  readonly lowest: number;
  readonly highest: number;
  /** Median, as of the rate: one disturbed repeat moves neither. */
  readonly cores: number;
}

const { values: flags } = parseArgs({
  options: {
    repeats: { type: 'string', default: '3' },
    limit: { type: 'string', default: '3' },
    'max-tokens': { type: 'string', default: '64' },
  },
});
const repeats = Number(flags.repeats);
const maxTokens = Number(flags['max-tokens']);

const { model, isa, cores, answers, prefill } = await prepare();
const runs = PROGRAMS.flatMap((program) =>
  Array.from({ length: cores }, (_, i) => ({ ...program, threads: i + 1, measured: [] as Measurement[] })),
);
for (let repeat = 1; repeat <= repeats; repeat++) {
  for (const { name, file, what, threads, measured } of runs) {
    process.stderr.write(`repeat ${repeat} of ${repeats}: ${name}, threads ${threads}\n`);
    const promptIds = what === 'prefill' ? prefill : answers;
    measured.push(
      await measure(file, { model, head: shipped('eagle', DEFAULT_MODEL)!, threads, what, promptIds, maxTokens }),
    );
  }
}

const rows = runs.map(({ name, threads, measured }): Row => {
  const rates = measured.map(({ tokens, ms }) => (tokens / ms) * 1000);
  const coresGot = median(measured.map((one) => one.cores));
  return {
    name,
    threads,
    tokensPerSecond: median(rates),
    lowest: Math.min(...rates),
    highest: Math.max(...rates),
    cores: coresGot,
  };
});
const disturbed = rows.filter((row) => row.cores < LEAST_SHARE * row.threads);
process.stdout.write(`${model}\n${isa} · ${answers.length} prompts, ${maxTokens} tokens each · ${repeats} repeats\n\n`);
process.stdout.write(
  formatTable(
    ['', 'threads', 'tokens/s', 'lowest', 'highest', 'cores got'],
    rows.map((row) => [
      row.name,
      String(row.threads),
      ...[row.tokensPerSecond, row.lowest, row.highest].map((rate) => rate.toFixed(1)),
      row.cores.toFixed(2),
    ]),
  ),
);
const comparison = disturbed.length > 0 ? null : compareBest();
if (comparison === null) {
  process.exitCode = 1;
  process.stdout.write(
    '\nNo comparison: the machine was busy, and some did not get the cores they asked for. Run it again alone.\n',
  );
} else {
  process.stdout.write('\neach at its best number of threads\n');
  for (const { name, ratio, against } of comparison)
    process.stdout.write(`  ${name}: ${ratio.toFixed(2)}x ${against}\n`);
}
process.stdout.write(`\n${JSON.stringify({ isa, repeats, rows, comparison })}\n`);

function compareBest() {
  const best = (name: string): number =>
    Math.max(...rows.filter((row) => row.name === name).map((row) => row.tokensPerSecond));
  return PROGRAMS.filter(({ name, against }) => name !== against).map(({ name, against }) => ({
    name,
    against,
    ratio: best(name) / best(against),
  }));
}

/** Token ids are made here once, so that both programs see the same. */
async function prepare() {
  const model = await resolveModel(DEFAULT_MODEL);
  using engine = await loadEngine({ model });
  const all = readPrompts(DEFAULT_PROMPTS).flatMap(({ messages }) => engine.encode(messages));
  return {
    model,
    isa: engine.kernels.isa,
    cores: engine.kernels.threads,
    answers: readPrompts(DEFAULT_PROMPTS, Number(flags.limit)).map(({ messages }) => engine.encode(messages)),
    prefill: [0, 1].map((i) => all.slice(i * PREFILL_TOKENS, (i + 1) * PREFILL_TOKENS)),
  };
}

async function measure(file: string, task: Job): Promise<Measurement> {
  // Our own flags carry tsx, which the TypeScript child needs.
  const { stdout } = await promisify(execFile)(process.execPath, [...process.execArgv, file, JSON.stringify(task)]);
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as Measurement;
}
