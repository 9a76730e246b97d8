/** A file's tensors under other names: heads are saved as parts of wrappers, whose names stand in front. */
import { CheckpointError } from '../errors.ts';
import type { TensorSource } from '../tensor/source.ts';

/**
 * @param nameOf a tensor's name here; undefined leaves it out. @param prefix what stands in front of some names, for messages.
 * @throws CheckpointError where two tensors would have one name; the source stays open.
 */
export function renamedSource(
  source: TensorSource,
  prefix: string,
  nameOf: (original: string) => string | undefined,
): TensorSource {
  const originals = new Map<string, string>();
  for (const original of source.entries.keys()) {
    const name = nameOf(original);
    if (name === undefined) continue;
    if (originals.has(name))
      throw new CheckpointError(source.path, name, `is there twice, with "${prefix}" in front and without`);
    originals.set(name, original);
  }
  return {
    path: source.path,
    entries: new Map(
      Array.from(originals, ([name, original]) => [name, { ...source.entries.get(original)!, name }] as const),
    ),
    read: (name, firstRow, rows) => source.read(originals.get(name) ?? name, firstRow, rows),
    [Symbol.dispose]: () => source[Symbol.dispose](),
  };
}
