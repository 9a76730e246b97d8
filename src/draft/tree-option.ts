/** The tree a user asks for: as a value of the API, or as text of the command line. */
import { readFileSync, statSync } from 'node:fs';
import { checkDynamicTree, type DynamicTree } from './grow.ts';
import { MEDUSA_TREE_NAMES, type MedusaTreeName, medusaShape } from './medusa-tree.ts';
import { chainShape, MAX_CHILDREN, MAX_TREE_NODES, shapeFromPaths, staticShape, type TreeShape } from './tree.ts';

export type TreeOption =
  /** What pays on this machine and this text, round by round. */
  | { readonly kind: 'auto' }
  /** `depth` drafted tokens below each other. */
  | { readonly kind: 'chain'; readonly depth: number }
  /** EAGLE-1's static tree, or its likeliest `nodes` (root included). */
  | { readonly kind: 'static'; readonly nodes?: number }
  /** One that Medusa's authors published. */
  | { readonly kind: 'medusa'; readonly name: MedusaTreeName }
  /** EAGLE-2's, in its authors' meaning. */
  | DynamicTree
  /** A tree of one's own: child ranks from the root down, parents first. [0, 1] is the second guess below the first. */
  | { readonly kind: 'paths'; readonly paths: readonly (readonly number[])[] };

export const TREE_KINDS: readonly string[] = Object.keys({
  auto: true,
  chain: true,
  static: true,
  medusa: true,
  dynamic: true,
  paths: true,
} satisfies { [K in TreeOption['kind']]: true });

/** A thousand long paths are a few hundred kB. */
const MAX_FILE_BYTES = 2 ** 20;
const PUBLISHED = MEDUSA_TREE_NAMES.map((name) => `medusa:${name}`).join(', ');
const FORMS = `auto, chain:DEPTH, static, static:NODES, ${PUBLISHED}, dynamic:DEPTH,TOPK,TOTAL or a JSON file of paths`;

/**
 * @param text one of `FORMS`; anything that is no name of a kind is a file.
 * @throws RangeError saying what is wrong, for every tree that could not be drafted on any model.
 */
export function parseTreeOption(text: string): TreeOption {
  const [, name, settings] = /^(auto|chain|static|medusa|dynamic)(?::(.*))?$/s.exec(text) ?? [];
  const option =
    name === undefined ? { kind: 'paths' as const, paths: readTreeFile(text) } : readSettings(text, name, settings);
  treePolicy(option);
  return option;
}

/** Undefined leaves the tree to the budget. @throws RangeError where the option makes no tree. @param contextSize tokens of prompt and answer, which a path must fit in. */
export function treePolicy(
  option: TreeOption,
  contextSize = Number.POSITIVE_INFINITY,
): TreeShape | DynamicTree | undefined {
  if (option.kind === 'auto') return undefined;
  const policy = buildPolicy(option);
  const depth = policy.kind === 'fixed' ? policy.maxDepth : policy.depth + 1;
  // The static tree was not made for this context: of it, what fits is drafted.
  if (option.kind !== 'static' && depth >= contextSize)
    throw new RangeError(`tree: a path of ${depth} drafted tokens does not fit in a context of ${contextSize}`);
  return policy;
}

function buildPolicy(option: Exclude<TreeOption, { kind: 'auto' }>): TreeShape | DynamicTree {
  switch (option.kind) {
    case 'chain':
      if (!Number.isInteger(option.depth) || option.depth < 1 || option.depth >= MAX_TREE_NODES)
        throw new RangeError(`tree: a chain has a depth of 1..${MAX_TREE_NODES - 1}, got ${option.depth}`);
      return chainShape(option.depth);
    case 'static':
      return staticShape(option.nodes);
    case 'medusa':
      if (!MEDUSA_TREE_NAMES.includes(option.name))
        throw new RangeError(`tree: Medusa's trees are ${MEDUSA_TREE_NAMES.join(', ')}, got "${option.name}"`);
      return medusaShape(option.name);
    case 'dynamic':
      checkDynamicTree(option);
      return option;
    case 'paths':
      checkPaths(option.paths);
      return shapeFromPaths(option.paths);
    default:
      return option satisfies never;
  }
}

function readSettings(text: string, name: string, settings: string | undefined): TreeOption {
  const published = MEDUSA_TREE_NAMES.find((tree) => tree === settings);
  if (name === 'medusa' && published !== undefined) return { kind: 'medusa', name: published };
  const numbers = settings === undefined ? [] : settings.split(',').map(wholeNumber);
  const [first, topK, total] = numbers;
  if (numbers.every((number) => number !== undefined)) {
    if (name === 'auto' && numbers.length === 0) return { kind: 'auto' };
    if (name === 'chain' && numbers.length === 1) return { kind: 'chain', depth: first! };
    if (name === 'static' && numbers.length === 0) return { kind: 'static' };
    if (name === 'static' && numbers.length === 1) return { kind: 'static', nodes: first! };
    if (name === 'dynamic' && numbers.length === 3)
      return { kind: 'dynamic', depth: first!, topK: topK!, total: total! };
  }
  throw new RangeError(`tree: expected ${FORMS}, got "${text}"`);
}

const wholeNumber = (text: string): number | undefined => (/^\d{1,9}$/.test(text) ? Number(text) : undefined);

/** The paths of a JSON file. @throws RangeError naming the file. */
export function readTreeFile(file: string): readonly (readonly number[])[] {
  let text: string;
  try {
    const { size } = statSync(file);
    if (size > MAX_FILE_BYTES) throw new RangeError(`at most ${MAX_FILE_BYTES} bytes, got ${size}`);
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    throw new RangeError(`tree: expected ${FORMS}, got "${file}", which cannot be read (${messageOf(cause)})`, {
      cause,
    });
  }
  try {
    const paths: unknown = JSON.parse(text);
    checkPaths(paths);
    shapeFromPaths(paths);
    return paths;
  } catch (cause) {
    throw new RangeError(`${file}: ${messageOf(cause)}`, { cause });
  }
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** What `shapeFromPaths` cannot know: it takes any order, and any size. */
function checkPaths(paths: unknown): asserts paths is readonly (readonly number[])[] {
  if (!Array.isArray(paths)) throw new RangeError('tree: expected a list of paths, such as [[0], [1], [0, 0]]');
  if (paths.length < 1 || paths.length >= MAX_TREE_NODES)
    throw new RangeError(`tree: 1..${MAX_TREE_NODES - 1} nodes below the root, got ${paths.length}`);
  const seen = new Set<string>(['']);
  const given = new Set(paths.map(String));
  for (const path of paths as readonly unknown[]) {
    if (!isPath(path))
      throw new RangeError(`tree: a path is a list of child ranks of 0..${MAX_CHILDREN - 1}, got ${show(path)}`);
    const parent = path.slice(0, -1);
    if (!seen.has(parent.join()) && given.has(parent.join()))
      throw new RangeError(`tree: ${show(path)} comes before its parent ${show(parent)}`);
    seen.add(path.join());
  }
}

function isPath(path: unknown): path is readonly number[] {
  return (
    Array.isArray(path) &&
    path.length > 0 &&
    path.every((rank) => Number.isInteger(rank) && rank >= 0 && rank < MAX_CHILDREN)
  );
}

function show(value: unknown): string {
  const text = JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}
