/**
 * Runs a Jinja template that nobody has looked at. Templates come with model files and `@huggingface/jinja` has no limits, so
 * three stand here: a budget of evaluated nodes and of the text and items they make, a cap on every single value, and a
 * time-out for what happens inside one node (`tojson` of a list that holds itself doubled forty times).
 */
import { createContext, Script } from 'node:vm';
import * as jinja from '@huggingface/jinja';

/** A parsed template, for `runTemplate` only. */
export type Program = TemplateNode & { readonly type: 'Program' };

interface TemplateNode {
  readonly type: string;
}

interface TemplateValue {
  readonly value: unknown;
}

interface Environment {
  set(name: string, value: unknown): unknown;
}

interface Interpreter {
  run(program: Program): TemplateValue;
  evaluate(node: TemplateNode | undefined, environment: Environment): TemplateValue;
}

/** @huggingface/jinja 0.5.11's declarations import each other without file extensions, so these parts come without types. */
const { Environment, Interpreter, parse, tokenize } = jinja as unknown as {
  readonly Environment: new () => Environment;
  readonly Interpreter: new (globals: Environment) => Interpreter;
  readonly tokenize: (source: string, options: { lstrip_blocks: boolean; trim_blocks: boolean }) => unknown;
  readonly parse: (tokens: unknown) => Program;
};

/** Nodes in use: about a hundred for each message. A million takes about 0.3 s. */
const MAX_WORK = 2_000_000;
/** Characters made that cost as much as one node. */
const CHARACTERS_PER_WORK = 32;
/** UTF-16 units of any one value, the rendered text included: some four times what fits a context of 128k tokens. */
const MAX_CHARACTERS = 2 ** 21;
/** Items of any one list. */
const MAX_ITEMS = 2 ** 16;
/** Templates in use count to the number of messages at most. */
const MAX_RANGE = 10_000;
/** Rendering takes milliseconds. Of the clock: a machine that stands still for a moment is no fault of the template's, so it is tried again. */
const TIMEOUT_MS = 1000;
const TRIES = 2;

/** A template asked for more than a template may. */
export class TemplateLimitError extends Error {
  override readonly name = 'TemplateLimitError';
}

/** A template ran out of time, as often as it was tried: its own fault, or that of a machine under load. It says nothing about the messages. */
export class TemplateTimeoutError extends Error {
  override readonly name = 'TemplateTimeoutError';
}

export function parseTemplate(source: string): Program {
  return withTimeout(() => parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true })));
}

export function runTemplate(program: Program, variables: Readonly<Record<string, unknown>>): string {
  return withTimeout(() => {
    const globals = new Environment(); // a template may set them
    for (const [name, value] of Object.entries({ ...GLOBALS, ...variables })) globals.set(name, value);
    return String(new BoundedInterpreter(globals).run(program).value);
  });
}

/** As `Template.render` sets them up, but for `range`. */
const GLOBALS: Readonly<Record<string, unknown>> = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
  raise_exception: (message: unknown) => {
    throw new Error(String(message));
  },
  range: boundedRange,
  // The library keeps its strftime to itself, but for templates.
  strftime_now: (format: unknown) =>
    new jinja.Template('{{ strftime_now(format) }}').render({ format: String(format) }),
};

function boundedRange(first: unknown, second?: unknown, step: unknown = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  if (typeof start !== 'number' || typeof stop !== 'number' || typeof step !== 'number' || step === 0) {
    throw new Error('range() takes numbers and a step other than 0');
  }
  const count = Math.max(0, Math.ceil((stop - start) / step));
  if (!(count <= MAX_RANGE)) throw new TemplateLimitError(`range() may have ${MAX_RANGE} items, got ${count}`);
  return Array.from({ length: count }, (_, i) => start + i * step);
}

class BoundedInterpreter extends Interpreter {
  #work = 0;

  override evaluate(node: TemplateNode | undefined, environment: Environment): TemplateValue {
    this.#spend(1);
    const value = super.evaluate(node, environment);
    // Looking a variable up makes nothing new.
    if (node?.type !== 'Identifier') this.#spend(sizeOf(value.value));
    return value;
  }

  #spend(work: number): void {
    this.#work += work;
    if (this.#work > MAX_WORK) throw new TemplateLimitError(`takes more than ${MAX_WORK} steps`);
  }
}

/** The work that making a value stands for. */
function sizeOf(value: unknown): number {
  if (typeof value === 'string') {
    if (value.length <= MAX_CHARACTERS) return value.length / CHARACTERS_PER_WORK;
    throw new TemplateLimitError(`text may have ${MAX_CHARACTERS} UTF-16 units, got ${value.length}`);
  }
  const items = Array.isArray(value) ? value.length : value instanceof Map ? value.size : 0;
  if (items > MAX_ITEMS) throw new TemplateLimitError(`lists may have ${MAX_ITEMS} items, got ${items}`);
  return items;
}

/** `vm` stops any synchronous code that a script calls, also code from outside its context. */
const sandbox = createContext({ work: undefined });
const callWork = new Script('work()');

/** @param work may be called more than once. */
function withTimeout<T>(work: () => T): T {
  let result: { readonly value: T } | undefined;
  sandbox.work = () => {
    result = { value: work() };
  };
  try {
    for (let attempt = 1; result === undefined; attempt++) attemptWork(attempt);
  } finally {
    sandbox.work = undefined;
  }
  return result.value;
}

/** @param attempt from 1; out of time, the last one throws. */
function attemptWork(attempt: number): void {
  try {
    callWork.runInContext(sandbox, { timeout: TIMEOUT_MS });
  } catch (error) {
    const code = typeof error === 'object' && error !== null && 'code' in error ? error.code : undefined;
    if (code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error;
    if (attempt === TRIES)
      throw new TemplateTimeoutError(`takes longer than ${TIMEOUT_MS} ms, ${TRIES} times`, { cause: error });
  }
}
