// Soft-max attention over a row's logical positions: the contiguous prefix of its sequence, then its extra slots (tree ancestors
// and itself). Scores are computed where keys lie, sixteen slots at a time, then put into logical order; soft-max and the weighted
// sum of values walk that order. So the bits depend on logical positions only, not on slots, neighbours or threads.

constexpr int32_t kAttentionRows = 4;       // rows of one sequence that share a pass over the keys
constexpr int32_t kValuePositions = 128;    // positions whose values (64 · 2 bytes each) stay in the first-level cache for all queries

// Fetched ahead, tiles and positions: about a memory latency at the rate of one row.
constexpr int32_t kTilesAhead = kScoreTiles > 2 ? kScoreTiles : 2;
constexpr int32_t kValuesAhead = 64;

inline V16f loadElements(const float* p) { return load(p); }
inline V16f loadElements(const uint16_t* p) { return loadHalf(p); }
inline V16f loadElementsN(const float* p, int n) { return loadN(p, n, 0); }
inline V16f loadElementsN(const uint16_t* p, int n) {
  uint16_t lanes[16] = {0};
  __builtin_memcpy(lanes, p, size_t(n) * 2);
  return loadHalf(lanes);
}

// The query heads of a few rows of one sequence that read one KV head.
struct QueryBlock {
  const float* qkv;  // row `first`, first head of the group
  float* out;        // the same
  int32_t qkvStride, outStride, headDim;
  int32_t group;     // query heads per row
  int32_t count;     // rows · group
  float* scores;     // [count][scoreStride] over the prefix, then in logical order
  int64_t scoreStride;
  float* extraScores;  // [count][extraStride] by tile that holds an extra slot
  int64_t extraStride;

  const float* query(int32_t q) const { return qkv + int64_t(q / group) * qkvStride + q % group * headDim; }
  float* output(int32_t q) const { return out + int64_t(q / group) * outStride + q % group * headDim; }
  // Of Q from `first` on, with one division for all.
  template <int Q>
  void queries(int32_t first, const float** to) const { spread<Q>(qkv, qkvStride, first, to); }
  template <int Q>
  void outputs(int32_t first, float** to) const { spread<Q>(out, outStride, first, to); }

  template <int Q, class P>
  void spread(P start, int32_t stride, int32_t first, P* to) const {
    for (int q = 0, row = first / group, head = first % group; q < Q; q++) {
      to[q] = start + int64_t(row) * stride + head * headDim;
      if (++head == group) head = 0, row++;
    }
  }
};

// to[q][0 .. 16·NT) for Q queries and NT key tiles.
template <class T, int Q, int NT>
inline void scoreTiles(const T* keys, int64_t tileStride, const QueryBlock& b, int32_t first, float* to, int64_t toStride) {
  V16f acc[Q][NT];
  const float* queries[Q];
  b.queries<Q>(first, queries);
  for (int q = 0; q < Q; q++)
    for (int t = 0; t < NT; t++) acc[q][t] = set1(0);
  for (int32_t d = 0; d < b.headDim; d++, keys += kKvTile) {
    V16f k[NT];
#pragma GCC unroll 4
    for (int t = 0; t < NT; t++) {
      prefetch(keys + (t + kTilesAhead) * tileStride);
      k[t] = loadElements(keys + t * tileStride);
    }
#pragma GCC unroll 16
    for (int q = 0; q < Q; q++) {
      const V16f x = set1(queries[q][d]);
#pragma GCC unroll 4
      for (int t = 0; t < NT; t++) acc[q][t] = fma(x, k[t], acc[q][t]);
    }
  }
  for (int q = 0; q < Q; q++)
    for (int t = 0; t < NT; t++) store(to + (first + q) * toStride + t * kKvTile, acc[q][t]);
}

// So many tiles of keys, as many queries at a time as registers hold: many over few tiles, which are then read for all of them at once, and
// the rest over all tiles.
template <class T, int NT, int Q = kQueriesTogether>
inline void scoreQueries(const T* keys, int64_t tileStride, const QueryBlock& b, float* to, int64_t toStride, int32_t first = 0) {
  if constexpr (kManyQueries > 0 && Q == kQueriesTogether && NT > 2) {
    for (; first + kManyQueries <= b.count; first += kManyQueries)
      for (int t = 0; t < NT; t += 2) scoreTiles<T, kManyQueries, 2>(keys + t * tileStride, tileStride, b, first, to + t * kKvTile, toStride);
  }
  for (; first + Q <= b.count; first += Q) scoreTiles<T, Q, NT>(keys, tileStride, b, first, to, toStride);
  if constexpr (Q > 1)
    if (first < b.count) scoreQueries<T, NT, Q - 1>(keys, tileStride, b, to, toStride, first);
}

// output[q][d .. d + 16·ND) += weights[q][at + j] · values of slot + j, j ascending. Only the first `lanes` of the last vector exist.
template <class T, int Q, int ND>
inline void weighValues(const T* values, int64_t width, int32_t count, const QueryBlock& b, int32_t first, const float* weights, int64_t weightStride,
                        int32_t d, int lanes) {
  V16f acc[Q][ND];
  const float* p[Q];
  float* outputs[Q];
  b.outputs<Q>(first, outputs);
  for (int q = 0; q < Q; q++) {
    p[q] = weights + (first + q) * weightStride;
    for (int v = 0; v < ND; v++) acc[q][v] = lanes < 16 ? loadN(outputs[q] + d, lanes, 0) : load(outputs[q] + d + v * 16);
  }
  for (int32_t j = 0; j < count; j++, values += width) {
    V16f v[ND];
#pragma GCC unroll 4
    for (int i = 0; i < ND * 16; i += 64 / int(sizeof(T))) prefetch(values + kValuesAhead * width + i);
#pragma GCC unroll 4
    for (int i = 0; i < ND; i++) v[i] = lanes < 16 ? loadElementsN(values, lanes) : loadElements(values + i * 16);
#pragma GCC unroll 16
    for (int q = 0; q < Q; q++) {
      const V16f weight = set1(p[q][j]);
#pragma GCC unroll 4
      for (int i = 0; i < ND; i++) acc[q][i] = fma(weight, v[i], acc[q][i]);
    }
  }
  for (int q = 0; q < Q; q++)
    for (int i = 0; i < ND; i++) {
      if (lanes < 16) storeN(outputs[q] + d, acc[q][i], lanes);
      else store(outputs[q] + d + i * 16, acc[q][i]);
    }
}

template <class T, int ND, int Q = kQueriesTogether>
inline void weighQueries(const T* values, int64_t width, int32_t count, const QueryBlock& b, int32_t first, int32_t end, const float* weights,
                         int64_t weightStride, int32_t d, int lanes) {
  if constexpr (kManyQueries > 0 && Q == kQueriesTogether && ND > 2) {
    for (; first + kManyQueries <= end; first += kManyQueries)
      for (int i = 0; i < ND; i += 2)
        weighValues<T, kManyQueries, 2>(values + i * 16, width, count, b, first, weights, weightStride, d + i * 16, lanes);
  }
  for (; first + Q <= end; first += Q) weighValues<T, Q, ND>(values, width, count, b, first, weights, weightStride, d, lanes);
  if constexpr (Q > 1)
    if (first < end) weighQueries<T, ND, Q - 1>(values, width, count, b, first, end, weights, weightStride, d, lanes);
}

// Dimensions [from, to) of queries [first, end): adds positions at .. at + count, which lie in slots from `slot` on.
template <class T>
inline void weigh(const KvLayer& kv, int32_t head, int32_t slot, int32_t count, const QueryBlock& b, int32_t first, int32_t end, const float* weights,
                  int64_t weightStride, int32_t from, int32_t to) {
  const int64_t width = int64_t(kv.kvHeads) * kv.headDim;
  const T* values = static_cast<const T*>(kv.values) + slot * width + int64_t(head) * kv.headDim;
  int32_t d = from;
  for (; d + 16 * kValueVectors <= to; d += 16 * kValueVectors)
    weighQueries<T, kValueVectors>(values + d, width, count, b, first, end, weights, weightStride, d, 16);
  if constexpr (kValueVectors > 2)
    for (; d + 32 <= to; d += 32) weighQueries<T, 2>(values + d, width, count, b, first, end, weights, weightStride, d, 16);
  for (; d < to; d += 16) weighQueries<T, 1>(values + d, width, count, b, first, end, weights, weightStride, d, to - d < 16 ? to - d : 16);
}

// What one block of rows [first, first + rows) looks at.
struct Reach {
  int32_t first, rows, base, shortest, longest, mostExtras;
  // Each tile that holds an extra slot of the block, once; and per extra (counted over the whole layout) where its score stands.
  const int32_t *extraTiles, *extraColumns;
  int32_t extraTileCount;
  int32_t tiles() const { return (longest + kKvTile - 1) / kKvTile; }
  int64_t scoreStride() const { return (int64_t(tiles()) * kKvTile + mostExtras + 15) / 16 * 16; }
  int64_t extraStride() const { return int64_t(extraTileCount) * kKvTile; }
  int64_t floats(int32_t group) const { return rows * group * (scoreStride() + extraStride()); }
};

// `tiles` and `columns` have room for every extra of the layout: a block's part starts at its first extra.
inline Reach reachOf(const Layout& layout, int32_t first, int32_t rows, int32_t* tiles, int32_t* columns) {
  const int32_t start = layout.extrasStart[first], end = layout.extrasStart[first + rows];
  Reach reach{first, rows, layout.base[first], layout.prefix[first], 0, 0, tiles + start, columns, 0};
  for (int32_t r = first; r < first + rows; r++) {
    const int32_t extras = layout.extrasStart[r + 1] - layout.extrasStart[r], prefix = layout.prefix[r];
    if (prefix > reach.longest) reach.longest = prefix;
    if (prefix < reach.shortest) reach.shortest = prefix;
    if (extras > reach.mostExtras) reach.mostExtras = extras;
  }
  for (int32_t e = start; e < end; e++) {
    const int32_t tile = layout.extras[e] / kKvTile;
    int32_t i = 0;
    while (i < reach.extraTileCount && tiles[start + i] != tile) i++;
    if (i == reach.extraTileCount) tiles[start + reach.extraTileCount++] = tile;
    columns[e] = i * kKvTile + layout.extras[e] % kKvTile;
  }
  return reach;
}

// Scores of one KV head: tiles of the prefix that are this part's, and with the last part the tiles of extra slots, each once.
template <class T>
inline void scorePart(const KvLayer& kv, int32_t head, const Reach& reach, const QueryBlock& b, int32_t part, int32_t parts) {
  const int64_t tileStride = int64_t(kv.kvHeads) * kv.headDim * kKvTile;
  const T* keys = static_cast<const T*>(kv.keys) + int64_t(head) * kv.headDim * kKvTile;
  const T* prefixKeys = keys + reach.base / kKvTile * tileStride;
  const int32_t end = int32_t(int64_t(reach.tiles()) * (part + 1) / parts);
  int32_t t = int32_t(int64_t(reach.tiles()) * part / parts);
  for (; t + kScoreTiles <= end; t += kScoreTiles)
    scoreQueries<T, kScoreTiles>(prefixKeys + t * tileStride, tileStride, b, b.scores + int64_t(t) * kKvTile, b.scoreStride);
  for (; t < end; t++) scoreQueries<T, 1>(prefixKeys + t * tileStride, 0, b, b.scores + int64_t(t) * kKvTile, b.scoreStride);
  if (part != parts - 1) return;
  for (int32_t i = 0; i < reach.extraTileCount; i++)
    scoreQueries<T, 1>(keys + reach.extraTiles[i] * tileStride, 0, b, b.extraScores + int64_t(i) * kKvTile, b.extraStride);
}

// Scores of query q in logical order, those of extra slots behind the prefix's; returns how many.
inline int32_t inLogicalOrder(const Layout& layout, const Reach& reach, const QueryBlock& b, int32_t q) {
  const int32_t r = reach.first + q / b.group, prefix = layout.prefix[r], start = layout.extrasStart[r], extras = layout.extrasStart[r + 1] - start;
  float* row = b.scores + q * b.scoreStride;
  for (int32_t e = 0; e < extras; e++) row[prefix + e] = b.extraScores[q * b.extraStride + reach.extraColumns[start + e]];
  return prefix + extras;
}

// Soft-max of queries [first, end), in logical order, in place of their scores.
inline void softmaxPart(const Layout& layout, const Reach& reach, const QueryBlock& b, int32_t first, int32_t end) {
  const float scale = 1.0f / std::sqrt(float(b.headDim));
  for (int32_t q = first; q < end; q++) {
    const int32_t count = inLogicalOrder(layout, reach, b, q);
    float* row = b.scores + q * b.scoreStride;
    int32_t whole = count;  // vectors, which a row has room for: masked ones take longer than all else
    for (; whole % 16 != 0; whole++) row[whole] = -std::numeric_limits<float>::infinity();
    softmaxRow(row, row, whole, scale);
  }
}

// visit(slot, count, first, end, at): queries [first, end) look at `count` slots from `slot` on, which are logical positions from `at` on;
// first what all rows see, then row by row what only that row does.
template <class F>
inline void eachRun(const Layout& layout, const Reach& reach, int32_t group, F&& visit) {
  for (int32_t at = 0; at < reach.shortest; at += kValuePositions)
    visit(reach.base + at, reach.shortest - at < kValuePositions ? reach.shortest - at : kValuePositions, 0, reach.rows * group, at);
  for (int32_t i = 0; i < reach.rows; i++) {
    const int32_t r = reach.first + i, prefix = layout.prefix[r], first = i * group, end = first + group;
    if (prefix > reach.shortest) visit(reach.base + reach.shortest, prefix - reach.shortest, first, end, reach.shortest);
    for (int32_t e = layout.extrasStart[r], at = prefix; e < layout.extrasStart[r + 1]; e++, at++) visit(layout.extras[e], 1, first, end, at);
  }
}

inline void clearOutputs(const QueryBlock& b, int32_t from, int32_t to) {
  for (int32_t q = 0; q < b.count; q++) {
    float* output = b.output(q);
    for (int32_t d = from; d < to; d++) output[d] = 0;
  }
}

// Adds dimensions [from, to) of the weighted sum of values.
template <class T>
inline void weighPart(const KvLayer& kv, int32_t head, const Layout& layout, const Reach& reach, const QueryBlock& b, int32_t from, int32_t to) {
  eachRun(layout, reach, b.group, [&](int32_t slot, int32_t count, int32_t first, int32_t end, int32_t at) {
    weigh<T>(kv, head, slot, count, b, first, end, b.scores + at, b.scoreStride, from, to);
  });
}

// Blocks of consecutive rows of one sequence, of up to `most` rows; every row of a block shares `base`.
struct Blocks {
  const Reach* reaches;
  int32_t count;
  int32_t longest;     // prefix
  int64_t mostFloats;  // scores of the largest
};

inline Blocks blocksOf(const Layout& layout, int32_t group, int32_t most) {
  const int32_t extras = layout.extrasStart[layout.rows];
  Reach* reaches = static_cast<Reach*>(scratch(2, size_t(layout.rows) * sizeof(Reach) + size_t(extras) * 8));
  int32_t* extraTiles = reinterpret_cast<int32_t*>(reaches + layout.rows);
  Blocks blocks{reaches, 0, 0, 0};
  for (int32_t r = 0; r < layout.rows;) {
    int32_t end = r + 1;
    while (end < layout.rows && end - r < most && layout.base[end] == layout.base[r]) end++;
    const Reach reach = reachOf(layout, r, end - r, extraTiles, extraTiles + extras);
    if (reach.longest > blocks.longest) blocks.longest = reach.longest;
    if (reach.floats(group) > blocks.mostFloats) blocks.mostFloats = reach.floats(group);
    reaches[blocks.count++] = reach;
    r = end;
  }
  return blocks;
}

// Keys and values that a thread reads while the others wait for each other twice.
constexpr int64_t kWaitBytes = 64 << 10;

template <class T>
inline void attend(float* out, const float* qkv, int32_t stride, int32_t heads, const KvLayer& kv, const Layout& layout) {
  const int32_t group = heads / kv.kvHeads, headDim = kv.headDim;
  // Rows share their keys and values as far as that leaves a block for every thread and more: blocks need not wait for each other.
  const int32_t threads = threadCount(), wanted = 2 * threads;
  int32_t rows = kAttentionRows;
  while (rows > 1 && (layout.rows + rows - 1) / rows * kv.kvHeads < wanted) rows /= 2;
  const Blocks blocks = blocksOf(layout, group, rows);
  const Reach* reaches = blocks.reaches;
  const int64_t most = blocks.mostFloats;
  auto queryBlock = [&](const Reach& reach, int32_t head, float* scores) {
    const int32_t count = reach.rows * group;
    const int64_t at = int64_t(head) * group * headDim;
    return QueryBlock{qkv + int64_t(reach.first) * stride + at, out + int64_t(reach.first) * heads * headDim + at, stride, heads * headDim, headDim, group,
                      count, scores, reach.scoreStride(), scores + count * reach.scoreStride(), reach.extraStride()};
  };

  const int32_t pieces = blocks.count * kv.kvHeads, vectors = (headDim + 15) / 16;
  // Where pieces do not come out even, some threads have none of the last turn.
  const int32_t idle = (threads - pieces % threads) % threads;
  const int64_t pieceBytes = int64_t(blocks.longest) * headDim * 2 * sizeof(T);
  if (pieces >= wanted || (pieces >= threads && idle * pieceBytes / threads <= kWaitBytes)) {
    auto body = [&](int piece) {
      const Reach& reach = reaches[piece / kv.kvHeads];
      const int32_t head = piece % kv.kvHeads;
      const QueryBlock b = queryBlock(reach, head, static_cast<float*>(scratch(1, size_t(most) * 4)));
      scorePart<T>(kv, head, reach, b, 0, 1);
      softmaxPart(layout, reach, b, 0, b.count);
      clearOutputs(b, 0, headDim);
      weighPart<T>(kv, head, layout, reach, b, 0, headDim);
    };
    return parallel(pieces, body);
  }
  // Few pieces: threads share each, by positions, then by queries, then by dimensions.
  const int32_t share = (wanted + pieces - 1) / pieces, parts = share < vectors ? share : vectors;
  float* scores = static_cast<float*>(scratch(0, size_t(pieces) * size_t(most) * 4));
  auto inParts = [&](auto&& compute) {  // compute(reach, head, queries, part)
    auto body = [&](int chunk) {
      const int32_t piece = chunk / parts, head = piece % kv.kvHeads;
      const Reach& reach = reaches[piece / kv.kvHeads];
      compute(reach, head, queryBlock(reach, head, scores + piece * most), chunk % parts);
    };
    parallel(pieces * parts, body);
  };
  inParts([&](const Reach& reach, int32_t head, const QueryBlock& b, int32_t part) { scorePart<T>(kv, head, reach, b, part, parts); });
  inParts([&](const Reach& reach, int32_t, const QueryBlock& b, int32_t part) {
    softmaxPart(layout, reach, b, b.count * part / parts, b.count * (part + 1) / parts);
  });
  inParts([&](const Reach& reach, int32_t head, const QueryBlock& b, int32_t part) {
    const int32_t from = vectors * part / parts * 16, upTo = vectors * (part + 1) / parts * 16, to = upTo < headDim ? upTo : headDim;
    clearOutputs(b, from, to);
    weighPart<T>(kv, head, layout, reach, b, from, to);
  });
}

void attention(float* out, const float* qkv, int32_t stride, int32_t heads, const KvLayer& kv, const Layout& layout, const KvLayer* next) {
  upcoming.set(next, layout);
  if (layout.rows == 0) return;
  if (kv.half) attend<uint16_t>(out, qkv, stride, heads, kv, layout);
  else attend<float>(out, qkv, stride, heads, kv, layout);
}
