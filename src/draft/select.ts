/** The `count` largest of scores[first..end), largest first, ties to the lower index: their indices to `best`. count <= end - first. */
export function selectBest(scores: Float64Array, first: number, end: number, best: Int32Array, count: number): void {
  let filled = 0;
  for (let index = first; index < end && count > 0; index++) {
    const score = scores[index]!;
    if (filled === count && !(score > scores[best[count - 1]!]!)) continue;
    let at = filled < count ? filled++ : count - 1;
    for (; at > 0 && score > scores[best[at - 1]!]!; at--) best[at] = best[at - 1]!;
    best[at] = index;
  }
}

/**
 * The tree of the candidates best[0..chosen), each of which has its parent among them. A parent is found before its children, so in order
 * of finding it also comes before them in the tree.
 * @param nodes receives a candidate's node, 0 where it has none. @param parents candidates, -1 the root. The first `count` count.
 */
export function plantBest(
  tree: { size: number; tokens: Int32Array; parents: Int32Array; logProbabilities: Float64Array },
  nodes: Int32Array,
  tokens: Int32Array,
  parents: Int32Array,
  logProbabilities: Float64Array,
  count: number,
  best: Int32Array,
  chosen: number,
): void {
  nodes.fill(0, 0, count);
  for (let i = 0; i < chosen; i++) nodes[best[i]!] = 1;
  tree.size = 1;
  for (let candidate = 0; candidate < count; candidate++) {
    if (nodes[candidate] === 0) continue;
    const parent = parents[candidate]!;
    nodes[candidate] = tree.size;
    tree.tokens[tree.size] = tokens[candidate]!;
    tree.logProbabilities[tree.size] = logProbabilities[candidate]!;
    tree.parents[tree.size++] = parent < 0 ? 0 : nodes[parent]!;
  }
}
