/** Caches are allocated for the whole context and filled token by token: what is not filled yet costs nothing. */
import { expect, it } from 'vitest';
import { nativeTableList } from '../support/kernels.ts';

// Other systems do not map lazily.
it.runIf(process.platform === 'linux').each(nativeTableList())(
  '$isa: memory that is not dense costs what is used of it',
  ({ create }) => {
    const kernels = create(1);
    const before = process.memoryUsage.rss();
    const buffers = Array.from({ length: 16 }, () => kernels.allocate(8 * 2 ** 20));
    for (const buffer of buffers) {
      const view = new Uint8Array(buffer);
      for (let at = 0; at < view.length; at += 2 ** 21) view[at] = 1;
    }
    // 64 pages of 4 KiB are written to; large pages would make them all of the 128 MiB.
    expect(process.memoryUsage.rss() - before).toBeLessThan(32 * 2 ** 20);
    for (const buffer of buffers) kernels.release(buffer);
    kernels.dispose();
  },
);
