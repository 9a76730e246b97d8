/** Which model it is: text and heads that were made of one say so. */
import { createHash } from 'node:crypto';
import { createReadStream, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';

/**
 * sha256 of a file, lower-case hexadecimal; of a directory that of its files one after another, by name.
 * @param onBytes sees how many were read so far.
 */
export async function hashModel(path: string, onBytes?: (bytes: number) => void): Promise<string> {
  const files = statSync(path).isDirectory()
    ? readdirSync(path)
        .sort()
        .map((name) => join(path, name))
    : [path];
  const hash = createHash('sha256');
  let done = 0;
  for (const file of files.filter((file) => statSync(file).isFile())) {
    for await (const piece of createReadStream(file, { highWaterMark: 2 ** 20 }) as AsyncIterable<Uint8Array>) {
      hash.update(piece);
      done += piece.length;
      onBytes?.(done);
    }
  }
  return hash.digest('hex');
}
