/**
 * `npm run bench:peers`: eaglet and node-llama-cpp on the same file, prompts and number of threads, greedy. Every measurement is a process
 * of its own; they take turns, so that a slow stretch of the machine falls on all alike, and the median of the repeats counts.
 */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { resolveModel } from '../../src/checkpoint/hub.ts';
import { formatTable } from '../../src/cli/format.ts';
import { DEFAULT_PROMPTS, readPrompts } from '../../src/cli/prompts.ts';
import { median } from '../../src/cli/statistics.ts';
import { DEFAULT_MODEL, shippedHead } from '../../src/engine.ts';
import { loadEngine } from '../../src/index.ts';

export interface Job {
  /** A GGUF file. */
  readonly model: string;
  readonly head: string;
  readonly threads: number;
  readonly what: 'plain' | 'eagle' | 'lookup' | 'prefill';
  readonly promptIds: readonly (readonly number[])[];
  readonly maxTokens: number;
}

const PREFILL_TOKENS = 512;

const here = (name: string): string => fileURLToPath(new URL(name, import.meta.url));
const OURS = here('ours.ts');
const PEER = here('node-llama-cpp.mjs');

/** In turn order. Ratios are to the row of `against`. */
const MEASUREMENTS = [
  { name: 'node-llama-cpp plain', program: PEER, what: 'plain', against: 0 },
  { name: 'eaglet plain', program: OURS, what: 'plain', against: 0 },
  { name: 'node-llama-cpp prompt lookup', program: PEER, what: 'lookup', against: 0 },
  { name: 'eaglet eagle', program: OURS, what: 'eagle', against: 0 },
  { name: 'node-llama-cpp prefill', program: PEER, what: 'prefill', against: 4 },
  { name: 'eaglet prefill', program: OURS, what: 'prefill', against: 4 },
] as const;

const { values: flags } = parseArgs({
  options: {
    repeats: { type: 'string', default: '5' },
    limit: { type: 'string', default: '4' },
    'max-tokens': { type: 'string', default: '96' },
  },
});

const { model, isa, threads, answers, prefill } = await prepare();
const job = { model, head: shippedHead(DEFAULT_MODEL)!, threads, maxTokens: Number(flags['max-tokens']) };
const rates: number[][] = MEASUREMENTS.map(() => []);
for (let repeat = 0; repeat < Number(flags.repeats); repeat++) {
  for (const [i, { name, program, what }] of MEASUREMENTS.entries()) {
    process.stderr.write(`repeat ${repeat + 1} of ${flags.repeats}: ${name}\n`);
    const { tokens, ms } = await measure(program, { ...job, what, promptIds: what === 'prefill' ? prefill : answers });
    rates[i]!.push((tokens / ms) * 1000);
  }
}
const rows = MEASUREMENTS.map(({ name, against }, i) => {
  const tokensPerSecond = median(rates[i]!);
  const ratio = tokensPerSecond / median(rates[against]!);
  return { name, tokensPerSecond, lowest: Math.min(...rates[i]!), highest: Math.max(...rates[i]!), ratio };
});
process.stdout.write(
  `${model}\n${isa} · ${threads} threads · ${answers.length} prompts, ${job.maxTokens} tokens each\n\n`,
);
process.stdout.write(
  formatTable(
    ['', 'tokens/s', 'lowest', 'highest', 'x peer'],
    rows.map(({ name, tokensPerSecond, lowest, highest, ratio }) => [
      name,
      ...[tokensPerSecond, lowest, highest].map((rate) => rate.toFixed(1)),
      ratio.toFixed(2),
    ]),
  ),
);
process.stdout.write(`\n${JSON.stringify({ isa, threads, repeats: Number(flags.repeats), rows })}\n`);

/** Token ids are made here once, so that both programs see the same. */
async function prepare() {
  const model = await resolveModel(DEFAULT_MODEL);
  using engine = await loadEngine({ model });
  const entries = readPrompts(DEFAULT_PROMPTS);
  const chosen = readPrompts(DEFAULT_PROMPTS, Number(flags.limit));
  const all = entries.flatMap(({ messages }) => engine.encode(messages));
  return {
    model,
    isa: engine.kernels.isa,
    threads: engine.kernels.threads,
    answers: chosen.map(({ messages }) => engine.encode(messages)),
    prefill: [0, 1].map((i) => all.slice(i * PREFILL_TOKENS, (i + 1) * PREFILL_TOKENS)),
  };
}

async function measure(program: string, task: Job): Promise<{ readonly tokens: number; readonly ms: number }> {
  // Our own flags carry tsx, which the TypeScript child needs.
  const { stdout } = await promisify(execFile)(process.execPath, [...process.execArgv, program, JSON.stringify(task)]);
  return JSON.parse(stdout.trim().split('\n').at(-1)!) as { tokens: number; ms: number };
}
