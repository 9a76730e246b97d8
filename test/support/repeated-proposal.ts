/** One prefix, again and again: the drafter proposes below its last token as if it had just been drawn. */
import type { DraftSampling } from '../../src/draft/draft-laws.ts';
import type { EagleDrafter } from '../../src/draft/eagle.ts';
import type { DraftTree } from '../../src/draft/tree.ts';
import { COMMITTED, ForwardBatch } from '../../src/model/forward-batch.ts';
import type { KvCache } from '../../src/model/kv-cache.ts';
import type { TargetModel } from '../../src/model/target.ts';
import { ScratchTensor } from '../../src/tensor/tensor.ts';

/** Commits the prefix but for its last token to `cache`. A call resumes the drafter after it and proposes. */
export function proposalsAfter(
  target: TargetModel,
  cache: KvCache,
  drafter: EagleDrafter,
  prefix: readonly number[],
): (sampling: DraftSampling | undefined, maxDepth: number) => DraftTree {
  const last = prefix.length - 1;
  const batch = new ForwardBatch(last);
  for (let i = 0, parent = COMMITTED; i < last; i++)
    parent = batch.append(cache.sequences[0]!, prefix[i]!, parent, false);
  const output = target.forward(batch, cache);
  const features = new ScratchTensor().reshape(last, output.features.cols);
  features.data.set(output.features.data.subarray(0, last * features.cols));
  cache.sequences[0]!.commitAll();
  const rows = Int32Array.from({ length: last }, (_, i) => i);
  return (sampling, maxDepth) => {
    const kept = drafter.resume(prefix, last, sampling);
    drafter.observe(batch.tokens, features, rows.subarray(kept), last - kept);
    return drafter.propose(prefix[last]!, maxDepth);
  };
}
