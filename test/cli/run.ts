/** The command line as a user meets it: a process of its own, its two streams and its exit code. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

export interface Outcome {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** Runs from source, so that a stale dist/ is never what is tested; bin/eaglet.js calls the same `main`. */
export function eaglet(args: readonly string[], input = ''): Outcome {
  const script = `import { main } from './src/cli/main.ts'; await main(['node', 'eaglet', ...JSON.parse(process.env.ARGS)]);`;
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ['--import', 'tsx', '--input-type=module', '-e', script],
    { cwd: ROOT, input, encoding: 'utf8', env: { ...process.env, ARGS: JSON.stringify(args), NO_COLOR: '1' } },
  );
  return { code: status, out: stdout, err: stderr };
}

/** The last line of standard output, as JSON. */
export function json<T>({ out, err }: Outcome): T {
  const line = out.trim().split('\n').at(-1)!;
  try {
    return JSON.parse(line) as T;
  } catch (cause) {
    throw new Error(`not JSON: ${line}\n${err}`, { cause });
  }
}
