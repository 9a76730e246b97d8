/** Rounds written down, read back with suspicion, and drawn. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { finished } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { beforeAll, describe, expect, test } from 'vitest';
import { displayWidth, escapeControls, truncate } from '../../src/cli/terminal-text.ts';
import { readTrace, type TracedRound } from '../../src/cli/trace-file.ts';
import { withProgress } from '../../src/cli/trace-rounds.ts';
import { describeRound, drawTree } from '../../src/cli/trace-tree.ts';
import { Viewer } from '../../src/cli/trace-viewer.ts';
import { smolPath } from '../support/model.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { eaglet, ensureBuilt, lines, TINY } from './support.ts';

const TINY_HEAD = 'test/golden/eagle-tiny/eagle1-head';
const scratch = temporaryDirectory();

beforeAll(async () => {
  await smolPath();
  ensureBuilt();
});

describe('generate --trace and --prompt-ids', () => {
  const args = ['generate', '-m', TINY, '--head', TINY_HEAD, '--prompt-ids', '1,7,300', '-n', '24'];
  const dynamic = ['--tree', 'dynamic:3,3,8'];

  test('a model without a tokenizer answers in ids; every round is a line, and they add up to the text', async () => {
    const file = join(scratch, 'tiny.jsonl');
    const [plain, traced, structured] = await Promise.all([
      eaglet([...args, '--drafter', 'none']),
      eaglet([...args, ...dynamic, '--trace', file]),
      eaglet([...args, ...dynamic, '--json']),
    ]);
    expect(plain).toMatchObject({ code: 0, stderr: '', stdout: expect.stringMatching(/^\d+(,\d+){23}\n$/) });
    expect(traced.stdout).toBe(plain.stdout);
    const { newIds, stats } = JSON.parse(structured.stdout) as { newIds: number[]; stats: { rounds: number } };
    expect(`${newIds.join()}\n`).toBe(plain.stdout);

    const written = lines(readFileSync(file, 'utf8')).map((line) => JSON.parse(line) as TracedRound);
    expect(written).toHaveLength(stats.rounds);
    const fields = ['round', 'committed', 'tokens', 'parents', 'positions', 'logProbs', 'acceptedPath', 'bonus', 'ms'];
    let text = newIds.slice(0, 1); // of prefill
    for (const [i, round] of written.entries()) {
      expect(Object.keys(round)).toEqual(fields);
      expect(round.round).toBe(i + 1);
      expect(round.committed).toBe(3 + text.length - 1);
      expect(round.tokens[0]).toBe(text.at(-1));
      expect(round.ms).toBeGreaterThan(0);
      const accepted = round.acceptedPath.slice(1).map((node) => round.tokens[node]!);
      text = [...text, ...accepted, round.bonus];
    }
    expect(text).toEqual(newIds);
    expect(readTrace(file)).toEqual(written);
    expect(written.some(({ acceptedPath }) => acceptedPath.length > 1)).toBe(true);
    expect(written.some(({ logProbs }) => logProbs.slice(1).every((p) => p !== null && p < 0))).toBe(true);
  });

  test('several answers say whose rounds they are; an end within a path says how much was text', async () => {
    const prompts = join(scratch, 'prompts.jsonl');
    const file = join(scratch, 'several.jsonl');
    const entries = [
      { id: 'talk', turns: ['Say hello.', 'And again?'] },
      { id: 'one', prompt: 'What is the capital of France?' },
    ];
    writeFileSync(prompts, entries.map((entry) => JSON.stringify(entry)).join('\n'));
    const run = await eaglet([
      'generate',
      '--prompts',
      prompts,
      '-n',
      '40',
      '--tree-size',
      '8',
      '--trace',
      file,
      '--json',
    ]);
    expect(run.code).toBe(0);
    const answers = lines(run.stdout).map((line) => JSON.parse(line) as { newIds: number[] });
    const rounds = readTrace(file);
    expect([...new Set(rounds.map(({ id, turn }) => `${id} ${turn}`))]).toEqual(['talk 1', 'talk 2', 'one undefined']);
    const emitted = rounds.map((round) => round.emitted ?? round.acceptedPath.length).reduce((a, b) => a + b);
    expect(emitted).toBe(answers.reduce((sum, { newIds }) => sum + newIds.length - 1, 0));
  });

  test.runIf(existsSync('/dev/full'))('a disk that is full ends the run, and says so', async () => {
    const { code, stderr } = await eaglet([...args, '--trace', '/dev/full']);
    expect(code).toBe(1);
    expect(stderr).toContain('--trace: /dev/full cannot be written: ENOSPC');
  });

  test.each([
    [['--prompt-ids', '1,x'], 'expected token ids, such as 5,17: expected a whole number, got "x"'],
    [['--prompt-ids', ''], 'expected a whole number, got ""'],
    [['--prompt-ids', '1,512'], 'prompt: token ids are 0..511, got 512'],
    [['--prompt-ids', '1', '--prompt', 'x'], 'give one of --prompt, --prompts and --prompt-ids'],
    [['--prompt-ids', '1', '--system', 'x'], '--prompt-ids is the whole of the prompt'],
    [['--prompt-ids', '1', '--trace', '/no/such/file'], '"/no/such/file" cannot be written: ENOENT'],
  ])('%j is refused: %s', async (more, message) => {
    const { code, stdout, stderr } = await eaglet(['generate', '-m', TINY, ...more]);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toContain(message);
  });
});

/** The tree of docs/decoding.md: ` is` → ` blue` → ` because`. */
const ROUND: TracedRound = {
  round: 3,
  committed: 41,
  tokens: [338, 4461, 253, 975, 30],
  parents: [-1, 0, 0, 1, 1],
  positions: [41, 42, 42, 43, 43],
  logProbs: [0, -0.25, -2.5, -0.5, null],
  acceptedPath: [0, 1, 3],
  bonus: 282,
  ms: 8.26,
};
const text = (round: TracedRound, columns: number, name: (token: number) => string = String): string[] =>
  drawTree(round, columns, name).map((line) => line.text);

describe('a trace file is not trusted', () => {
  const broken: readonly (readonly [message: string, line: unknown])[] = [
    ['is not JSON, got "{"', '{'],
    ['the line: Invalid input: expected object, received number, got 7', 7],
    ['tokens: Invalid input: expected array, received undefined, got nothing', { ...ROUND, tokens: undefined }],
    ['tokens[1]: Too small: expected number to be >=0, got -4', { ...ROUND, tokens: [338, -4, 0, 0, 0] }],
    ['tokens: Too big: expected array to have <=1024 items', { ...ROUND, tokens: Array(1025).fill(1) }],
    ['parents: must have an entry for each of the 5 tokens, got 4', { ...ROUND, parents: [-1, 0, 0, 1] }],
    ["parents[0]: must be -1, the root's, got 0", { ...ROUND, parents: [0, 0, 0, 1, 1] }],
    ['parents[3]: must be a node before it, 0..2, got 3', { ...ROUND, parents: [-1, 0, 0, 3, 1] }],
    ['parents[2]: must be a node before it, 0..1, got -1', { ...ROUND, parents: [-1, 0, -1, 1, 1] }],
    ['positions[0]: must be `committed`, 41, got 40', { ...ROUND, positions: [40, 42, 42, 43, 43] }],
    ['positions[3]: must be one more than its parent’s, 43, got 42', { ...ROUND, positions: [41, 42, 42, 42, 43] }],
    ['acceptedPath[0]: must be the root, 0, got 1', { ...ROUND, acceptedPath: [1, 3] }],
    ['acceptedPath[1]: must be a child of node 0, got 3', { ...ROUND, acceptedPath: [0, 3] }],
    ['acceptedPath[1]: must be a node, 0..4, got 5', { ...ROUND, acceptedPath: [0, 5] }],
    ['emitted: must be at most the length of acceptedPath, 3, got 4', { ...ROUND, emitted: 4 }],
    ['bonus: Invalid input: expected int, received number, got 1.5', { ...ROUND, bonus: 1.5 }],
    ['ms: Invalid input: expected number, received string, got "\\u001b[2J"', { ...ROUND, ms: '\u001b[2J' }],
  ];

  test.each(broken)('%s', (message, line) => {
    const file = join(scratch, 'broken.jsonl');
    writeFileSync(file, `${JSON.stringify(ROUND)}\n${typeof line === 'string' ? line : JSON.stringify(line)}\n`);
    expect(() => readTrace(file)).toThrow(`${file}:2: ${message}`);
  });

  test('an endless line, an empty file, no file', () => {
    const file = join(scratch, 'long.jsonl');
    writeFileSync(file, `{"id":"${'x'.repeat(2 ** 18)}"}`);
    expect(() => readTrace(file)).toThrow(`${file}:1: a line has at most 262144 characters`);
    writeFileSync(file, '\n\n');
    expect(() => readTrace(file)).toThrow(`${file}: has no rounds`);
    expect(() => readTrace(scratch)).toThrow(`${scratch}: cannot be read as JSON lines`);
    expect(() => readTrace(join(scratch, 'nothing'))).toThrow('ENOENT');
  });
});

describe('a round is drawn', () => {
  test('accepted path as the trunk, rejected branches beside it, the bonus below', () => {
    expect(text(ROUND, 80)).toEqual([
      'pos   log p  token',
      ' 41          ● 338',
      ' 42   -2.50  ├─○ 253',
      ' 42   -0.25  ● 4461',
      ' 43          ├─○ 30',
      ' 43   -0.50  ● 975',
      ' 44          ★ 282',
    ]);
    const kinds = drawTree(ROUND, 80, String).map(({ kind }) => kind);
    expect(kinds).toEqual(['heading', 'accepted', 'rejected', 'accepted', 'rejected', 'accepted', 'bonus']);
    expect(describeRound(ROUND)).toBe('round 3 · 2 of 4 drafted nodes accepted · 8.3 ms');
  });

  test('below a rejected node its own branches', () => {
    expect(text({ ...ROUND, acceptedPath: [0, 2] }, 80)).toEqual([
      'pos   log p  token',
      ' 41          ● 338',
      ' 42   -0.25  ├─○ 4461',
      ' 43          │ ├─○ 30',
      ' 43   -0.50  │ ○ 975',
      ' 42   -2.50  ● 253',
      ' 43          ★ 282',
    ]);
  });

  test('what stands behind the end of the text is told apart', () => {
    const kinds = drawTree({ ...ROUND, emitted: 1 }, 80, String).map(({ kind }) => kind);
    expect(kinds).toEqual(['heading', 'accepted', 'rejected', 'accepted', 'rejected', 'unemitted', 'unemitted']);
    expect(describeRound({ ...ROUND, emitted: 1 })).toContain('the text ended after 1 of 3 tokens');
    expect(
      drawTree({ ...ROUND, emitted: 2 }, 80, String)
        .map(({ kind }) => kind)
        .slice(-2),
    ).toEqual(['accepted', 'unemitted']);
  });

  const chain = (size: number): TracedRound => ({
    ...ROUND,
    tokens: Array.from({ length: size }, (_, node) => node),
    parents: Array.from({ length: size }, (_, node) => node - 1),
    positions: Array.from({ length: size }, (_, node) => 41 + node),
    logProbs: Array<number>(size).fill(-1),
    acceptedPath: [0],
  });
  /** Every node the second child of the one before: as crooked as a tree can be. */
  const crooked = (size: number): TracedRound => {
    const parents = Array.from({ length: size }, (_, node) =>
      node === 0 ? -1 : node <= 2 ? 0 : 2 * ((node - 1) >> 1),
    );
    const positions = [41];
    for (const parent of parents.slice(1)) positions.push(positions[parent]! + 1);
    return { ...chain(size), parents, positions };
  };
  const wide = (token: number): string => `"${'日本語🎉'.repeat(token)}"`;

  test.each([
    [40, chain(26)],
    [80, chain(26)],
    [40, chain(1024)],
    [40, crooked(1023)],
    [80, crooked(61)],
    [20, crooked(61)],
  ])('%d columns are enough for any tree', (columns, round) => {
    for (const name of [String, wide]) {
      const drawn = text(round, columns, name);
      expect(drawn).toHaveLength(round.tokens.length + 2);
      for (const line of drawn) expect(displayWidth(line)).toBeLessThanOrEqual(Math.max(columns, 24));
    }
  });

  test('a chain stays straight', () => {
    expect(text(chain(26), 40).at(-2)).toBe(' 66   -1.00  │ ○ 25');
  });
});

describe('text of tokens', () => {
  test.each([
    ['\n\r\t', '\\n\\r\\t'],
    ['\u001b[31mred\u0007', '\\u{1b}[31mred\\u{7}'],
    ['\u009b2J', '\\u{9b}2J'],
    ['\u202egnp.exe', '\\u{202e}gnp.exe'],
    ['a\u200bb\ufeff', 'a\\u{200b}b\\u{feff}'],
    ['\u2028', '\\u{2028}'],
    [' blue, naïve 日本 🎉', ' blue, naïve 日本 🎉'],
  ])('%j is written as %s', (raw, safe) => {
    expect(escapeControls(raw)).toBe(safe);
  });

  test.each([
    ['blue', 4],
    ['日本語', 6],
    ['한국', 4],
    ['🎉', 2],
    ['e\u0301', 1],
    ['├─○ ●★…', 7],
    ['｡ｱ', 2],
  ])('%s takes %d columns', (raw, columns) => {
    expect(displayWidth(raw)).toBe(columns);
  });

  test('cut to fit, never within a character', () => {
    expect(truncate('日本語', 6)).toBe('日本語');
    expect(truncate('日本語', 5)).toBe('日本…');
    expect(truncate('日本語', 4)).toBe('日…');
    expect(truncate('🎉🎉', 3)).toBe('🎉…');
    expect(truncate('abc', 1)).toBe('…');
    expect(truncate('abc', 0)).toBe('');
  });
});

describe('trace', () => {
  const file = join(scratch, 'round.jsonl');
  const rounds = [{ ...ROUND, round: 1 }, { ...ROUND, round: 2, acceptedPath: [0] }, ROUND];

  beforeAll(() => writeFileSync(file, rounds.map((round) => JSON.stringify(round)).join('\n')));

  test('into a pipe: all rounds, one below the other, with the text of their tokens', async () => {
    // Node says by itself, from 24 on, which of the two it obeys.
    const env = { NO_COLOR: '1', FORCE_COLOR: '1', NODE_NO_WARNINGS: '1' };
    const { code, stdout, stderr } = await eaglet(['trace', file], { env });
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).not.toContain('\u001b');
    expect(stdout).toContain('text by the tokenizer of smollm2-135m-instruct');
    expect(stdout.match(/round \d/g)).toEqual(['round 1', 'round 2', 'round 3']);
    // Tokens over rounds: 3, 3 + 1, 3 + 1 + 3.
    expect(stdout.match(/so far [\d.]+/g)).toEqual(['so far 3.00', 'so far 2.00', 'so far 2.33']);
    expect(stdout).toContain(' 43   -0.50  ● " because"\n 44          ★ " of"\n');
  });

  test('--round picks one; accepted bright, rejected dim, where colour is wanted', async () => {
    const { stdout } = await eaglet(['trace', file, '--round', '3', '--ids'], { env: { FORCE_COLOR: '1' } });
    expect(stdout).toContain('so far 2.33'); // counted from the first round all the same
    expect(stdout).not.toContain('round 2');
    expect(stdout).toContain('\u001b[1m\u001b[32m 43   -0.50  ● 975\u001b[39m\u001b[22m\n');
    expect(stdout).toContain('\u001b[2m 42   -2.50  ├─○ 253\u001b[22m\n');
  });

  test('ids where there is no tokenizer to be had', async () => {
    const nowhere = await eaglet(['trace', file], { env: { EAGLET_CACHE: scratch } });
    expect(nowhere).toMatchObject({ code: 0, stdout: expect.stringContaining('● 975') });
    const tiny = await eaglet(['trace', file, '-m', TINY]);
    expect(tiny).toMatchObject({ code: 1, stderr: expect.stringContaining('has no tokenizer: --ids') });
  });

  test.each([
    [['trace'], "missing required argument 'file'"],
    [['trace', 'no-such-file'], 'no-such-file: cannot be read'],
    [['trace', file, '--round', '4'], `--round: ${file} has rounds 1..3, got 4`],
    [['trace', file, '--ids', '-m', 'x'], 'cannot be used with'],
  ])('%j is refused: %s', async (args, message) => {
    const { code, stdout, stderr } = await eaglet(args);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toContain(message);
  });
});

describe('on a terminal', () => {
  const rounds = Array.from({ length: 12 }, (_, i) => ({ ...ROUND, round: i + 1 }));
  const KEYS = {
    right: '\u001b[C',
    left: '\u001b[D',
    up: '\u001b[A',
    down: '\u001b[B',
    end: '\u001b[F',
    home: '\u001b[H',
  };

  /** The last screen after these keys, and what the terminal was left with. */
  async function press(
    keys: readonly string[],
    rows = 24,
  ): Promise<{ readonly screen: string; readonly rest: string }> {
    const input = new PassThrough();
    const output = Object.assign(new PassThrough(), { columns: 80, rows });
    let written = '';
    output.setEncoding('utf8').on('data', (text: string) => {
      written += text;
    });
    const viewer = new Viewer(withProgress(rounds), String, 'ids', input, output).run();
    for (const key of keys) input.write(key);
    const screens = (): string[] => written.split('\u001b[H').slice(1);
    while (screens().length < keys.length + 1) await delay(1); // one to begin with, and one after each key
    const screen = screens().at(-1)!;
    written = '';
    input.write('q');
    await viewer;
    output.end();
    await finished(output);
    return { screen, rest: written };
  }

  test.each([
    ['the first round', [], 1],
    ['space and arrows', [' ', KEYS.right, KEYS.right, KEYS.left], 3],
    ['no round before the first', [KEYS.left, KEYS.left], 1],
    ['End, and no round behind it', [KEYS.end, KEYS.right], 12],
    ['Home', [KEYS.end, KEYS.home], 1],
    ['a number and Enter', ['1', '0', '\r'], 10],
    ['a number beyond the last', ['9', '9', '\r'], 12],
    ['a number given up for another key', ['1', '1', KEYS.right, '\r'], 2],
  ])('%s', async (_, keys, round) => {
    const { screen } = await press(keys);
    expect(screen).toContain(`round ${round} ·`);
    expect(screen).toContain(`${round}/12`);
  });

  test('what does not fit is scrolled to, and counted', async () => {
    // Title and tree have 8 lines, of which 5 fit above the last line but one.
    const [top, down, bottom] = await Promise.all([
      press([], 7),
      press([KEYS.down, KEYS.down, KEYS.up], 7),
      press(Array<string>(9).fill(KEYS.down), 7),
    ]);
    expect(top.screen).toContain('↓ 3 more lines');
    expect(down.screen).toContain('↑ 1 · ↓ 2 more lines');
    expect(bottom.screen).toContain('★ 282');
    expect(bottom.screen).toContain('↑ 3 · ←');
    expect(bottom.screen).not.toContain('round 1');
  });

  test('is left as it was found', async () => {
    expect((await press([])).rest).toBe('\u001b[?25h\u001b[?1049l');
  });
});
