/** docs/drafters.md shows rounds that were decoded: what is here decoded again is what stands there. */
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { pageFiles, shippedFiles } from '../../scripts/drafters-page.ts';

/** Beliefs are left out: between instruction sets their last places differ (docs/kernels.md). Tokens, trees and what stands do not. */
const withoutBeliefs = (content: string): string => content.replace(/-?\d+\.\d+/g, '#');

it('is what its script makes of the model', async () => {
  for (const [path, content] of await pageFiles(shippedFiles()))
    expect(withoutBeliefs(readFileSync(path, 'utf8')), path).toBe(withoutBeliefs(content));
});
