// Soft-max attention over a row's logical positions: the contiguous prefix of its sequence, then its extra slots (tree ancestors
// and itself). Scores are computed where keys lie, sixteen slots at a time, then put into logical order; soft-max and the weighted
// sum of values walk that order. So the bits depend on logical positions only, not on slots, neighbours or threads.

constexpr int32_t kAttentionRows = 4;  // rows of one sequence that share a pass over the keys

inline V16f loadElements(const float* p) { return load(p); }
inline V16f loadElements(const uint16_t* p) { return loadHalf(p); }
inline V16f loadElementsN(const float* p, int n) { return loadN(p, n, 0); }
inline V16f loadElementsN(const uint16_t* p, int n) {
  uint16_t lanes[16] = {0};
  __builtin_memcpy(lanes, p, size_t(n) * 2);
  return loadHalf(lanes);
}

// scores[q][t] for Q queries and NT key tiles.
template <class T, int Q, int NT>
inline void scoreTiles(const T* keys, int64_t tileStride, int32_t headDim, const float* const* queries, float* const* scores, int64_t at) {
  V16f acc[Q][NT];
  for (int q = 0; q < Q; q++)
    for (int t = 0; t < NT; t++) acc[q][t] = set1(0);
  for (int32_t d = 0; d < headDim; d++, keys += kKvTile) {
    V16f k[NT];
#pragma GCC unroll 4
    for (int t = 0; t < NT; t++) k[t] = loadElements(keys + t * tileStride);
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++) {
      const V16f x = set1(queries[q][d]);
#pragma GCC unroll 4
      for (int t = 0; t < NT; t++) acc[q][t] = fma(x, k[t], acc[q][t]);
    }
  }
  for (int q = 0; q < Q; q++)
    for (int t = 0; t < NT; t++) store(scores[q] + at + t * kKvTile, acc[q][t]);
}

template <class T, int NT>
inline void scoreQueries(int32_t count, const T* keys, int64_t tileStride, int32_t headDim, const float* const* queries, float* const* scores, int64_t at) {
  int32_t q = 0;
  for (; q + 4 <= count; q += 4) scoreTiles<T, 4, NT>(keys, tileStride, headDim, queries + q, scores + q, at);
  switch (count - q) {
    case 3: scoreTiles<T, 3, NT>(keys, tileStride, headDim, queries + q, scores + q, at); break;
    case 2: scoreTiles<T, 2, NT>(keys, tileStride, headDim, queries + q, scores + q, at); break;
    case 1: scoreTiles<T, 1, NT>(keys, tileStride, headDim, queries + q, scores + q, at); break;
  }
}

// out[q][first .. first + 16·ND) += weights · values, positions in logical order. The last vector may be partial.
template <class T, int Q, int ND>
inline void weighValues(const KvLayer& kv, int32_t head, int32_t first, int32_t lastLanes, int32_t base, int32_t prefix, const int32_t* extras,
                        int32_t extraCount, float* const* weights, float* const* out) {
  const int64_t width = int64_t(kv.kvHeads) * kv.headDim;
  const T* values = static_cast<const T*>(kv.values) + int64_t(head) * kv.headDim + first;
  V16f acc[Q][ND];
  for (int q = 0; q < Q; q++)
    for (int d = 0; d < ND; d++) acc[q][d] = set1(0);
  for (int32_t j = 0; j < prefix + extraCount; j++) {
    const T* row = values + int64_t(j < prefix ? base + j : extras[j - prefix]) * width;
    V16f v[ND];
#pragma GCC unroll 4
    for (int d = 0; d < ND; d++) v[d] = d == ND - 1 && lastLanes < 16 ? loadElementsN(row + d * 16, lastLanes) : loadElements(row + d * 16);
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++) {
      const V16f p = set1(weights[q][j]);
#pragma GCC unroll 4
      for (int d = 0; d < ND; d++) acc[q][d] = fma(p, v[d], acc[q][d]);
    }
  }
  for (int q = 0; q < Q; q++)
    for (int d = 0; d < ND; d++) storeN(out[q] + first + d * 16, acc[q][d], d == ND - 1 ? lastLanes : 16);
}

template <class T, int Q>
inline void weighAll(const KvLayer& kv, int32_t head, int32_t base, int32_t prefix, const int32_t* extras, int32_t extraCount, float* const* weights,
                     float* const* out) {
  int32_t d = 0;
  for (; d + 64 <= kv.headDim; d += 64) weighValues<T, Q, 4>(kv, head, d, 16, base, prefix, extras, extraCount, weights, out);
  for (; d < kv.headDim; d += 16)
    weighValues<T, Q, 1>(kv, head, d, kv.headDim - d < 16 ? kv.headDim - d : 16, base, prefix, extras, extraCount, weights, out);
}

// Rows [first, first + rows) of one sequence, one KV head.
template <class T>
inline void attendBlock(float* out, const float* qkv, int32_t stride, int32_t heads, const KvLayer& kv, const Layout& layout, int32_t first, int32_t rows,
                        int32_t head) {
  const int32_t group = heads / kv.kvHeads, queryCount = rows * group, headDim = kv.headDim;
  const int32_t base = layout.base[first];
  int32_t longest = 0, extraTotal = 0, mostExtras = 0;
  for (int32_t r = first; r < first + rows; r++) {
    const int32_t extras = layout.extrasStart[r + 1] - layout.extrasStart[r];
    if (layout.prefix[r] > longest) longest = layout.prefix[r];
    if (extras > mostExtras) mostExtras = extras;
    extraTotal += extras;
  }
  const int32_t prefixTiles = (longest + kKvTile - 1) / kKvTile;
  const int64_t logicalLength = int64_t(prefixTiles) * kKvTile + mostExtras;
  const int64_t scoreStride = (logicalLength + 15) / 16 * 16, extraStride = int64_t(extraTotal) * kKvTile;

  const size_t pointerBytes = size_t(queryCount) * 4 * sizeof(void*), tileListBytes = (size_t(extraTotal) * 4 + 63) / 64 * 64;
  uint8_t* memory = static_cast<uint8_t*>(scratch(1, (pointerBytes + 63) / 64 * 64 + tileListBytes + size_t(queryCount) * (scoreStride + extraStride) * 4));
  const float** queries = reinterpret_cast<const float**>(memory);
  float** scores = reinterpret_cast<float**>(memory) + queryCount;
  float** extraScores = scores + queryCount;
  float** outputs = extraScores + queryCount;
  int32_t* tiles = reinterpret_cast<int32_t*>(memory + (pointerBytes + 63) / 64 * 64);
  float* floats = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(tiles) + tileListBytes);
  for (int32_t r = 0; r < rows; r++)
    for (int32_t g = 0; g < group; g++) {
      const int32_t q = r * group + g, queryHead = head * group + g;
      queries[q] = qkv + int64_t(first + r) * stride + int64_t(queryHead) * headDim;
      outputs[q] = out + (int64_t(first + r) * heads + queryHead) * headDim;
      scores[q] = floats + q * scoreStride;
      extraScores[q] = floats + queryCount * scoreStride + q * extraStride;
    }

  const int64_t tileStride = int64_t(kv.kvHeads) * headDim * kKvTile;
  const T* keys = static_cast<const T*>(kv.keys) + int64_t(head) * headDim * kKvTile;
  const T* prefixKeys = keys + base / kKvTile * tileStride;
  int32_t t = 0;
  for (; t + 4 <= prefixTiles; t += 4) scoreQueries<T, 4>(queryCount, prefixKeys + t * tileStride, tileStride, headDim, queries, scores, int64_t(t) * kKvTile);
  for (; t < prefixTiles; t++) scoreQueries<T, 1>(queryCount, prefixKeys + t * tileStride, 0, headDim, queries, scores, int64_t(t) * kKvTile);

  // Each tile that holds an extra slot is scored once for all queries of the block.
  int32_t tileCount = 0;
  auto tileIndex = [&](int32_t slot) {
    int32_t i = 0;
    while (i < tileCount && tiles[i] != slot / kKvTile) i++;
    return i;
  };
  for (int32_t e = layout.extrasStart[first]; e < layout.extrasStart[first + rows]; e++) {
    const int32_t i = tileIndex(layout.extras[e]);
    if (i < tileCount) continue;
    tiles[tileCount++] = layout.extras[e] / kKvTile;
    scoreQueries<T, 1>(queryCount, keys + tiles[i] * tileStride, 0, headDim, queries, extraScores, int64_t(i) * kKvTile);
  }

  const float scale = 1.0f / std::sqrt(float(headDim));
  for (int32_t r = 0; r < rows; r++) {
    const int32_t prefix = layout.prefix[first + r];
    const int32_t* extras = layout.extras + layout.extrasStart[first + r];
    const int32_t extraCount = layout.extrasStart[first + r + 1] - layout.extrasStart[first + r];
    for (int32_t q = r * group; q < (r + 1) * group; q++) {
      for (int32_t e = 0; e < extraCount; e++) scores[q][prefix + e] = extraScores[q][tileIndex(extras[e]) * kKvTile + extras[e] % kKvTile];
      softmaxRow(scores[q], scores[q], prefix + extraCount, scale);
    }
    int32_t g = 0;
    for (; g + 4 <= group; g += 4) weighAll<T, 4>(kv, head, base, prefix, extras, extraCount, scores + r * group + g, outputs + r * group + g);
    switch (group - g) {
      case 3: weighAll<T, 3>(kv, head, base, prefix, extras, extraCount, scores + r * group + g, outputs + r * group + g); break;
      case 2: weighAll<T, 2>(kv, head, base, prefix, extras, extraCount, scores + r * group + g, outputs + r * group + g); break;
      case 1: weighAll<T, 1>(kv, head, base, prefix, extras, extraCount, scores + r * group + g, outputs + r * group + g); break;
    }
  }
}

void attention(float* out, const float* qkv, int32_t stride, int32_t heads, const KvLayer& kv, const Layout& layout) {
  // Blocks of consecutive rows of one sequence; every row of a block shares `base`.
  int32_t* starts = static_cast<int32_t*>(scratch(0, size_t(layout.rows + 1) * 4));
  int32_t blocks = 0;
  for (int32_t r = 0; r < layout.rows; r++)
    if (blocks == 0 || r - starts[blocks - 1] == kAttentionRows || layout.base[r] != layout.base[r - 1]) starts[blocks++] = r;
  starts[blocks] = layout.rows;
  auto body = [&](int chunk) {
    const int32_t block = chunk / kv.kvHeads, head = chunk % kv.kvHeads, rows = starts[block + 1] - starts[block];
    if (kv.half) attendBlock<uint16_t>(out, qkv, stride, heads, kv, layout, starts[block], rows, head);
    else attendBlock<float>(out, qkv, stride, heads, kv, layout, starts[block], rows, head);
  };
  parallel(blocks * kv.kvHeads, body);
}
