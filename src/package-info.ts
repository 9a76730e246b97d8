import { readFileSync } from 'node:fs';
import { z } from 'zod';

const schema = z.object({ version: z.string(), engines: z.object({ node: z.string() }) });

/** Of eaglet's own package.json, found from src/ and from dist/ alike. */
export function packageInfo(): z.infer<typeof schema> {
  return schema.parse(JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')));
}
