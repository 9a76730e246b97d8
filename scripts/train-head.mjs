// npm run train:head -- --out DIRECTORY [--then FILES… [--then FILES…]…] [any other option of `eaglet train eagle`]: the recipe of the head that
// ships. EAGLE-1's own training first, which is most of what is to be learned at a third of the cost; then three steps on the head's own features,
// on answers alone, and the same again from a lower rate; and with every `--then` once more on conversations that were not there before. Without
// --conversations or --features the model writes its text first. Each stage has a directory of its own, in --work if there is one. Interrupted
// anywhere, the same command goes on.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const { values, tokens } = parseArgs({
  options: {
    out: { type: 'string', short: 'o' },
    work: { type: 'string' },
    // biome-ignore lint/suspicious/noThenProperty: an option's name; nobody awaits this object.
    then: { type: 'string', multiple: true },
    features: { type: 'string' },
    'live-features': { type: 'boolean' },
  },
  allowPositionals: true,
  strict: false,
  tokens: true,
});
if (typeof values.out !== 'string') refuse('say where the head shall go: --out DIRECTORY');
if (values.work === true) refuse('say where everything on the way shall go: --work DIRECTORY');
const head = resolve(values.out); // `head/` is `head`
if (values.work !== undefined && `${resolve(values.work)}${sep}`.startsWith(`${head}${sep}`))
  refuse('--work must not lie in --out, which is made at the end');

const eaglet = fileURLToPath(new URL('../bin/eaglet.js', import.meta.url));

process.on('SIGINT', () => {}); // the command saves, and is waited for

const SHARED = ['--batch-tokens', '2048', '--evaluate-every', '200'];
const ONE_STEP = '--epochs 3 --prompt-epochs 2 --steps 1 --classification 0.2 --learning-rate 0.002 --warmup 100';
const THREE_STEPS = '--prompt-epochs 0 --steps 3 --classification 0.5 --warmup 50';

const TEXT = ['conversations', 'features', 'live-features', 'prompts', 'count'];
const options = grouped();
const passedOn = options.filter(({ name }) => name !== 'out' && name !== 'work' && name !== 'then');
const argsWithout = (names) => passedOn.filter(({ name }) => !names.includes(name)).flatMap(({ args }) => args);
const given = argsWithout([]);
const kept = values.features === undefined && !values['live-features'];
const features = kept ? ['--features', join(workOf(stageOut(0), 0), 'features')] : [];
// What the model wrote for the first stage is the text of the others.
const again = [...argsWithout(['prompts', 'count']), ...features];
const later = options.filter(({ name }) => name === 'then').map(({ found }) => found);

const stages = [
  { args: given, settings: ONE_STEP },
  { args: again, settings: `${THREE_STEPS} --epochs 2 --learning-rate 0.001` },
  { args: again, settings: `${THREE_STEPS} --epochs 2 --learning-rate 0.0007` },
  ...later.map((files, i) => ({
    args: [...argsWithout(TEXT), '--conversations', ...files],
    settings: `${THREE_STEPS} --epochs ${i === 0 ? 3 : 2} --learning-rate 0.0006`,
  })),
];
for (const [i, { args, settings }] of stages.entries()) {
  const last = i === stages.length - 1;
  const out = last ? head : stageOut(i);
  if (!last && existsSync(out)) continue;
  train(out, workOf(out, i), i === 0 ? args : [...args, '--start', stageOut(i - 1)], settings);
  if (!existsSync(out)) process.exit(0); // interrupted: it has said so
}

/** The head of a stage that others go on from. */
function stageOut(i) {
  return `${head}.stage-${i + 1}`;
}

/** What a stage needs on the way: stages have settings of their own, and a directory of other settings is refused. */
function workOf(out, i) {
  return values.work === undefined ? `${out}.training` : join(values.work, `stage-${i + 1}`);
}

/** What was given, option by option: as it stood there (`args`), and all its values (`found`). */
function grouped() {
  const groups = [{ name: undefined, args: [], found: [] }]; // what stands before the first option
  for (const { kind, name, rawName, value, inlineValue } of tokens) {
    if (kind === 'option') groups.push({ name, args: [inlineValue ? `${rawName}=${value}` : rawName], found: [] });
    if (value === undefined) continue;
    groups.at(-1).found.push(value);
    if (!inlineValue) groups.at(-1).args.push(value);
  }
  return groups;
}

function refuse(why) {
  process.stderr.write(`train:head: ${why}\n`);
  process.exit(2);
}

function train(out, work, args, settings) {
  const command = [eaglet, 'train', 'eagle', '--out', out, '--work', work, ...SHARED, ...settings.split(' '), ...args];
  const { status } = spawnSync(process.execPath, command, { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}
