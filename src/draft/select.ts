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
