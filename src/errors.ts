/**
 * The errors a caller can act on. Everything else is a `TypeError` or a `RangeError`.
 * A leaf: every module may import it. Messages say where, the rule, and what was got.
 */

/** A value of unknown origin, short enough for a message: 60 characters name any honest setting. */
export function show(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'an array' : 'an object';
  return (typeof value === 'string' ? JSON.stringify(value) : String(value)).slice(0, 60);
}

/** Of a message's part that may hold names from a file: those may have megabytes. */
const MOST_CHARACTERS = 1000;

const cut = (text: string): string => (text.length > MOST_CHARACTERS ? `${text.slice(0, MOST_CHARACTERS)}…` : text);

/** A model, head or tokenizer file is malformed, unsupported, or does not fit its partner. */
export class CheckpointError extends Error {
  override readonly name = 'CheckpointError';
  readonly file: string;
  readonly field: string;
  readonly rule: string;
  /** @param file the file's path; @param field the key or tensor; @param rule what must hold, with what was got. */
  constructor(file: string, field: string, rule: string, options?: ErrorOptions) {
    super(`${file}: ${cut(field)}: ${cut(rule)}`, options);
    this.file = file;
    this.field = field;
    this.rule = rule;
  }
}

/** A model could not be found or fetched; `failures` holds one line for every source that was tried. */
export class ModelNotFoundError extends Error {
  override readonly name = 'ModelNotFoundError';
  readonly reference: string;
  readonly failures: readonly string[];
  constructor(reference: string, failures: readonly string[], options?: ErrorOptions) {
    super(`no source has the model "${reference}":\n${failures.map((line) => `  - ${line}`).join('\n')}`, options);
    this.reference = reference;
    this.failures = failures;
  }
}

/** What was asked for cannot be done as it stands: an option out of range, a prompt longer than the context, a training file's line. */
export class RequestError extends Error {
  override readonly name = 'RequestError';
  readonly param: string;
  /** @param param the option at fault, or the file, with its line. */
  constructor(param: string, rule: string, options?: ErrorOptions) {
    super(`${param}: ${rule}`, options);
    this.param = param;
  }
}

/** An object was used after its `[Symbol.dispose]()`. */
export class DisposedError extends Error {
  override readonly name = 'DisposedError';
  constructor(what: string, options?: ErrorOptions) {
    super(`${what} was used after it was disposed`, options);
  }
}
