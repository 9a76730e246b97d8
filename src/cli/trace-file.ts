/** Rounds from a file that `generate --trace` wrote, or anybody else: every line is held against the format before anything is drawn. */
import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { z } from 'zod';
import type { RoundTrace } from '../decode/trace.ts';
import { MAX_TREE_NODES } from '../draft/tree.ts';
import { RequestError } from '../errors.ts';

export interface TracedRound extends RoundTrace {
  /** Which answer it belongs to, where a file has several. */
  readonly id?: string | undefined;
  readonly turn?: number | undefined;
}

/** A day's worth of rounds of sixty nodes; the whole is held in memory. */
const MAX_FILE_BYTES = 2 ** 28;
/** A tree of MAX_TREE_NODES nodes takes some 60 bytes a node. */
const MAX_LINE = 2 ** 18;

const count = z
  .int()
  .min(0)
  .max(2 ** 31 - 1);
const perNode = <T extends z.ZodType>(item: T) => z.array(item).min(1).max(MAX_TREE_NODES);
const format = z.object({
  id: z.string().max(1000).optional(),
  turn: count.optional(),
  round: count,
  committed: count,
  tokens: perNode(count),
  parents: perNode(z.int().min(-1).max(MAX_TREE_NODES)),
  positions: perNode(count),
  logProbs: perNode(z.number().nullable()),
  acceptedPath: perNode(count),
  bonus: count,
  ms: z.number().min(0),
  emitted: count.min(1).optional(),
});

/** @throws RequestError naming file, line, field, rule and value of the first line that breaks one. */
export function readTrace(path: string): TracedRound[] {
  const lines = readText(path).split('\n');
  const rounds = lines.flatMap((line, i) => (line.trim() === '' ? [] : [readRound(line, `${path}:${i + 1}`)]));
  if (rounds.length === 0) throw new RequestError(path, 'has no rounds');
  return rounds;
}

function readText(path: string): string {
  let file: number | undefined;
  try {
    file = openSync(path, 'r');
    const { size } = fstatSync(file);
    if (size > MAX_FILE_BYTES) throw new RangeError(`at most ${MAX_FILE_BYTES} bytes, got ${size}`);
    return readFileSync(file, 'utf8');
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new RequestError(path, `cannot be read as JSON lines of \`generate --trace\`: ${reason}`, { cause });
  } finally {
    if (file !== undefined) closeSync(file);
  }
}

function readRound(line: string, where: string): TracedRound {
  if (line.length > MAX_LINE)
    throw new RequestError(where, `a line has at most ${MAX_LINE} characters, got ${line.length}`);
  let json: unknown;
  try {
    json = JSON.parse(line);
  } catch (cause) {
    throw new RequestError(where, `is not JSON, got ${show(line)}`, { cause });
  }
  const parsed = format.safeParse(json);
  if (!parsed.success) {
    const { path, message } = parsed.error.issues[0]!;
    const field = path.reduce<string>(
      (text, key) => text + (typeof key === 'number' ? `[${key}]` : `${text && '.'}${String(key)}`),
      '',
    );
    throw new RequestError(where, `${field || 'the line'}: ${message}, got ${show(valueAt(json, path))}`);
  }
  checkTree(parsed.data, where);
  const { emitted, ...round } = parsed.data;
  return emitted === undefined ? round : { ...round, emitted };
}

/** What no single field says: the lists belong to one tree, and the path leads down it. */
function checkTree(round: z.infer<typeof format>, where: string): void {
  const { committed, tokens, parents, positions, logProbs, acceptedPath, emitted } = round;
  const fail = (field: string, rule: string, got: unknown): never => {
    throw new RequestError(where, `${field}: ${rule}, got ${show(got)}`);
  };
  const size = tokens.length;
  for (const [field, list] of Object.entries({ parents, positions, logProbs }))
    if (list.length !== size) fail(field, `must have an entry for each of the ${size} tokens`, list.length);
  for (const [node, parent] of parents.entries()) {
    const isRoot = node === 0;
    if (isRoot && parent !== -1) fail('parents[0]', "must be -1, the root's", parent);
    if (!isRoot && (parent < 0 || parent >= node))
      fail(`parents[${node}]`, `must be a node before it, 0..${node - 1}`, parent);
    const position = isRoot ? committed : positions[parent]! + 1;
    const rule = isRoot ? 'must be `committed`' : 'must be one more than its parent’s';
    if (positions[node] !== position) fail(`positions[${node}]`, `${rule}, ${position}`, positions[node]);
  }
  for (const [i, node] of acceptedPath.entries()) {
    if (i === 0 && node !== 0) fail('acceptedPath[0]', 'must be the root, 0', node);
    if (node >= size) fail(`acceptedPath[${i}]`, `must be a node, 0..${size - 1}`, node);
    if (i > 0 && parents[node] !== acceptedPath[i - 1])
      fail(`acceptedPath[${i}]`, `must be a child of node ${acceptedPath[i - 1]}`, node);
  }
  if (emitted !== undefined && emitted > acceptedPath.length)
    fail('emitted', `must be at most the length of acceptedPath, ${acceptedPath.length}`, emitted);
}

function valueAt(json: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>((value, key) => {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, key)) return undefined;
    return (value as Readonly<Record<PropertyKey, unknown>>)[key];
  }, json);
}

/** Short, and without control characters. */
function show(value: unknown): string {
  const text = JSON.stringify(value) ?? 'nothing';
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}
