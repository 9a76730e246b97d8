// One measurement of eaglet in a process of its own: the counterpart of node-llama-cpp.mjs.
import { loadEngine, type TextResult } from '../../src/index.ts';
import type { Job, Measurement } from './run.ts';

const { model, head, threads, what, promptIds, maxTokens } = JSON.parse(process.argv[2]!) as Job;
using engine = await loadEngine({ model, head, threads, contextSize: 2048 });
const drafter = what === 'eagle' ? 'eagle' : 'none';

async function generate(ids: readonly number[], count: number): Promise<TextResult['stats']> {
  engine.forget(); // every prompt from its first token
  const stream = engine.stream(ids, { drafter, maxTokens: count });
  for (;;) {
    const next = await stream.next();
    if (next.done) return next.value.stats;
  }
}

await generate(promptIds[0]!, 16); // warms up
let tokens = 0;
let ms = 0;
const cpu = process.cpuUsage();
const began = performance.now();
for (const ids of promptIds) {
  const { prefillMs, decodeMs, newTokens } = await generate(ids, what === 'prefill' ? 1 : maxTokens);
  tokens += what === 'prefill' ? ids.length : newTokens - 1;
  ms += what === 'prefill' ? prefillMs : decodeMs;
}
const { user, system } = process.cpuUsage(cpu);
const measurement: Measurement = { tokens, ms, cores: (user + system) / 1000 / (performance.now() - began) };
process.stdout.write(`${JSON.stringify(measurement)}\n`);
