// npm run train:head -- --out DIRECTORY [--then FILES… [--then FILES…]…] [any other option of `eaglet train eagle`]: the recipe of the head that
// ships. EAGLE-1's own training first, which is most of what is to be learned at a third of the cost; then three steps on the head's own features,
// on answers alone, and the same again from a lower rate; and with every `--then` once more on conversations that were not there before. Without
// --conversations or --features the model writes its text first. Interrupted anywhere, the same command goes on.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const { values, tokens } = parseArgs({
  options: {
    out: { type: 'string', short: 'o' },
    // biome-ignore lint/suspicious/noThenProperty: an option's name; nobody awaits this object.
    then: { type: 'string', multiple: true },
    features: { type: 'string' },
    'live-features': { type: 'boolean' },
  },
  allowPositionals: true,
  strict: false,
  tokens: true,
});
if (typeof values.out !== 'string') {
  process.stderr.write('train:head: say where the head shall go: --out DIRECTORY\n');
  process.exit(2);
}

const eaglet = fileURLToPath(new URL('../bin/eaglet.js', import.meta.url));

process.on('SIGINT', () => {}); // the command saves, and is waited for

const SHARED = ['--batch-tokens', '2048', '--evaluate-every', '200'];
const ONE_STEP = '--epochs 3 --prompt-epochs 2 --steps 1 --classification 0.2 --learning-rate 0.002 --warmup 100';
const THREE_STEPS = '--prompt-epochs 0 --steps 3 --classification 0.5 --warmup 50';

const TEXT = ['conversations', 'features', 'live-features', 'prompts', 'count'];
const options = grouped();
const passedOn = options.filter(({ name }) => name !== 'out' && name !== 'then');
const given = passedOn.flatMap(({ args }) => args);
const kept = values.features === undefined && !values['live-features'];
const features = kept ? ['--features', join(`${stageOut(0)}.training`, 'features')] : [];
const untexted = passedOn.filter(({ name }) => !TEXT.includes(name)).flatMap(({ args }) => args);
const later = options.filter(({ name }) => name === 'then').map(({ found }) => found);

const stages = [
  { args: given, settings: ONE_STEP },
  { args: [...given, ...features], settings: `${THREE_STEPS} --epochs 2 --learning-rate 0.001` },
  { args: [...given, ...features], settings: `${THREE_STEPS} --epochs 2 --learning-rate 0.0007` },
  ...later.map((files, i) => ({
    args: [...untexted, '--conversations', ...files],
    settings: `${THREE_STEPS} --epochs ${i === 0 ? 3 : 2} --learning-rate 0.0006`,
  })),
];
for (const [i, { args, settings }] of stages.entries()) {
  const last = i === stages.length - 1;
  const out = last ? values.out : stageOut(i);
  if (!last && existsSync(out)) continue;
  train(out, i === 0 ? args : [...args, '--start', stageOut(i - 1)], settings);
  if (!existsSync(out)) process.exit(0); // interrupted: it has said so
}

/** The head of a stage that others go on from. */
function stageOut(i) {
  return `${values.out}.stage-${i + 1}`;
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

function train(out, args, settings) {
  const command = [eaglet, 'train', 'eagle', '--out', out, ...SHARED, ...settings.split(' '), ...args];
  const { status } = spawnSync(process.execPath, command, { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}
