/** Runs the real command, `bin/eaglet.js` over dist/, in a process of its own. */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('../../', import.meta.url));
export const HEAD = 'heads/smollm2-135m-instruct/eagle';
/** A model without a tokenizer, small enough to load in no time. */
export const TINY = 'test/golden/eagle-tiny/target';

/** Compiles dist/ unless it is newer than every source file: a test of yesterday's build would prove nothing. */
export function ensureBuilt(): void {
  const built = join(ROOT, 'dist/cli/main.js');
  const src = join(ROOT, 'src');
  const newest = readdirSync(src, { recursive: true, encoding: 'utf8' }).map(
    (file) => statSync(join(src, file)).mtimeMs,
  );
  if (existsSync(built) && statSync(built).mtimeMs > Math.max(...newest)) return;
  const tsc = join(ROOT, 'node_modules/.bin/tsc');
  const { status, stdout } = spawnSync(tsc, ['-p', 'tsconfig.build.json'], { cwd: ROOT, encoding: 'utf8' });
  if (status !== 0) throw new Error(`tsc failed:\n${stdout}`);
}

export interface Run {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly input?: string;
  readonly env?: Readonly<Record<string, string>>;
}

export function eaglet(args: readonly string[], { input = '', env = {} }: RunOptions = {}): Promise<Run> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [join(ROOT, 'bin/eaglet.js'), ...args], {
      cwd: ROOT,
      env: { ...process.env, NO_COLOR: '', ...env },
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, stdout, stderr }));
    child.stdin.end(input);
  });
}

/** A conversation about each word, one JSON line each. */
export function conversationsAbout(words: readonly string[]): string {
  const line = (word: string): string =>
    JSON.stringify({
      messages: [
        { role: 'user', content: `What is ${word}?` },
        { role: 'assistant', content: `I like ${word}, and I know that ${word} is what many people like too.` },
      ],
    });
  return words.map((word) => `${line(word)}\n`).join('');
}

export const lines = (text: string): string[] => text.split('\n').filter((line) => line !== '');
