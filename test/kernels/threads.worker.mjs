// The other JavaScript thread of threads.test.ts: loads the add-on itself and counts rounds whose result is wrong.
import { createRequire } from 'node:module';
import { parentPort, workerData } from 'node:worker_threads';

const table = createRequire(import.meta.url)(workerData.addon).tables[workerData.isa];
const [n, cols] = [50, 96];
const x = Float32Array.from({ length: n * cols }, (_, i) => Math.sin(i));
const want = new Float32Array(n * cols);
table.softmax(want, x, n, cols, 1);
const out = new Float32Array(n * cols);
let wrong = 0;
for (let round = 0; round < workerData.rounds; round++) {
  table.softmax(out, x, n, cols, 1);
  if (out[(n - 1) * cols] !== want[(n - 1) * cols]) wrong++;
}
parentPort.postMessage(wrong);
