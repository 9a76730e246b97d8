/** docs/drafters.md shows rounds that were decoded: what is here decoded again is what stands there. */
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { pageFiles, shipped } from '../../scripts/drafters-page.ts';

it('is what its script makes of the model', async () => {
  for (const [path, content] of await pageFiles(shipped())) expect(readFileSync(path, 'utf8'), path).toBe(content);
});
