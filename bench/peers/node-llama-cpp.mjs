// One measurement of node-llama-cpp in a process of its own: a job in argv, a line of JSON out. Plain JavaScript, because its types are
// installed in this folder only.
import { getLlama, InputLookupTokenPredictor, LlamaLogLevel } from 'node-llama-cpp';

const { model: modelPath, threads, what, promptIds, maxTokens } = JSON.parse(process.argv[2]);

const llama = await getLlama({ build: 'never', gpu: false, maxThreads: threads, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
const context = await model.createContext({ contextSize: 2048, batchSize: 512, threads });
const sequence = context.getSequence(what === 'lookup' ? { tokenPredictor: new InputLookupTokenPredictor() } : {});

/** Tokens after the first and the milliseconds they took; prefill is the time to the first. */
async function generate(ids, count) {
  await sequence.clearHistory();
  const began = performance.now();
  let first;
  let tokens = 0;
  for await (const _ of sequence.evaluate(ids, { temperature: 0 })) {
    first ??= performance.now();
    if (++tokens === count) break;
  }
  return { prefillMs: first - began, decodeMs: performance.now() - first, decoded: tokens - 1 };
}

await generate(promptIds[0], 16); // warms up
let tokens = 0;
let ms = 0;
const cpu = process.cpuUsage();
const began = performance.now();
for (const ids of promptIds) {
  const { prefillMs, decodeMs, decoded } = await generate(ids, what === 'prefill' ? 1 : maxTokens);
  tokens += what === 'prefill' ? ids.length : decoded;
  ms += what === 'prefill' ? prefillMs : decodeMs;
}
const { user, system } = process.cpuUsage(cpu);
console.log(JSON.stringify({ tokens, ms, cores: (user + system) / 1000 / (performance.now() - began) }));
await llama.dispose();
