// Gradients: of products, embeddings, norm, SwiGLU, attention and soft cross-entropy. Outputs are added to. Work is split over elements of
// outputs, each of which is one sum in one order, so bits do not depend on threads.

inline float* tileOf(const Matrix& m, int32_t tile) { return reinterpret_cast<float*>(m.data) + int64_t(tile) * m.cols * kTileRows; }

using V4f = float __attribute__((vector_size(16)));
inline V4f load4(const float* p) {
  V4f v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store4(float* p, V4f v) { __builtin_memcpy(p, &v, sizeof v); }

// to[r][c] = from[c][r], r and c < 16: 4 · 4 at a time.
inline void transpose16(float* to, int64_t toStride, const float* from, int64_t fromStride) {
  for (int r = 0; r < 16; r += 4)
    for (int c = 0; c < 16; c += 4) {
      const float* p = from + c * fromStride + r;
      const V4f a = load4(p), b = load4(p + fromStride), d = load4(p + 2 * fromStride), e = load4(p + 3 * fromStride);
      const V4f ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), de = __builtin_shufflevector(d, e, 0, 4, 1, 5);
      const V4f abHigh = __builtin_shufflevector(a, b, 2, 6, 3, 7), deHigh = __builtin_shufflevector(d, e, 2, 6, 3, 7);
      float* q = to + r * toStride + c;
      store4(q, __builtin_shufflevector(ab, de, 0, 1, 4, 5));
      store4(q + toStride, __builtin_shufflevector(ab, de, 2, 3, 6, 7));
      store4(q + 2 * toStride, __builtin_shufflevector(abHigh, deHigh, 0, 1, 4, 5));
      store4(q + 3 * toStride, __builtin_shufflevector(abHigh, deHigh, 2, 3, 6, 7));
    }
}

// out [weight.cols, weight.rows] = weightᵀ by blocks of 16 · 16, which are contiguous on both sides.
void transpose(const Matrix& out, const Matrix& weight) {
  auto body = [&](int tile) {
    const int32_t col = tile * kTileRows, cols = weight.cols - col < kTileRows ? weight.cols - col : kTileRows;
    for (int32_t t = 0; t < weight.tiles(); t++) {
      const float* from = tileOf(weight, t) + col * kTileRows;
      float* to = tileOf(out, tile) + int64_t(t) * kTileRows * kTileRows;
      const int32_t rows = weight.rows - t * kTileRows < kTileRows ? weight.rows - t * kTileRows : kTileRows;
      if (rows == kTileRows && cols == kTileRows) {
        transpose16(to, kTileRows, from, kTileRows);
        continue;
      }
      for (int32_t r = 0; r < rows; r++, to += kTileRows) {
        for (int32_t c = 0; c < cols; c++) to[c] = from[c * kTileRows + r];
        for (int32_t c = cols; c < kTileRows; c++) to[c] = 0;
      }
    }
  };
  parallel(out.tiles(), body);
}

constexpr int32_t kPackedCols = 96;     // read side by side when rows are packed: whole tiles and panels (2, 6 or 8), six cache lines
constexpr int32_t kOuterRows = 192;     // rows at a time: 16 outputs of so many (12 kB) stay in the first-level cache
constexpr int32_t kOuterPanels = 32;    // inputs, times kRowsF32, that stay in the second-level cache while tiles pass over them (144 kB)

// Columns [first, first + kPackedCols) of rows [0, count) of a [·, cols] matrix, as [cols / W][count][W]; the last W are padded with zeros, or
// as many as are left.
template <int W, bool kPadded>
inline void packColumns(float* to, const float* from, int32_t count, int32_t cols, int32_t first) {
  const int32_t end = first + kPackedCols < cols ? first + kPackedCols : cols;
  for (int32_t i = 0; i < count; i++, from += cols) {
    int32_t col = first;
    for (; col + W <= end; col += W) __builtin_memcpy(to + int64_t(col) * count + i * W, from + col, W * 4);
    if (col == end) continue;
    float* last = to + int64_t(col) * count + i * (kPadded ? W : end - col);
    for (int32_t c = 0; c < end - col; c++) last[c] = from[col + c];
    if (kPadded)
      for (int32_t c = end - col; c < W; c++) last[c] = 0;
  }
}

// One block of rows, packed as dys [tiles][count][16] and xs [panels][count][R], into tiles [first, end) of the gradient.
inline void outerBlock(const Matrix& gradient, const float* dys, const float* xs, int32_t count, int32_t first, int32_t end) {
  const int32_t cols = gradient.cols, panels = (cols + kRowsF32 - 1) / kRowsF32;
  const int64_t tileFloats = int64_t(cols) * kTileRows, dyFloats = int64_t(count) * kTileRows;
  for (int32_t group = 0; group < panels; group += kOuterPanels) {
    const int32_t stop = group + kOuterPanels < panels ? group + kOuterPanels : panels;
    for (int32_t t = first; t < end;) {
      const int32_t together = t + kTogether <= end ? kTogether : 1, left = gradient.rows - (t + together - 1) * kTileRows;
      const float* tile = dys + t * dyFloats;
      for (int32_t panel = group; panel < stop; panel++) {
        const int32_t col = panel * kRowsF32, width = cols - col < kRowsF32 ? cols - col : kRowsF32;
        float* to = tileOf(gradient, t) + int64_t(col) * kTileRows;
        const float* inputs = xs + int64_t(col) * count;
        if (together == kTogether) addProductsOrFewer<kRowsF32, kTogether>(width, to, tileFloats, tile, dyFloats, inputs, count, left, {nullptr, 0});
        else addProductsOrFewer<kRowsF32, 1>(width, to, tileFloats, tile, dyFloats, inputs, count, left, {nullptr, 0});
      }
      t += together;
    }
  }
}

void accumulateOuter(const Matrix& gradient, const float* dy, const float* x, int32_t n) {
  const int32_t tiles = gradient.tiles(), rows = gradient.rows, cols = gradient.cols, padded = tiles * kTileRows;
  const int64_t fit = kLaidOutBytes / (int64_t(padded + cols) * 4) / kOuterRows * kOuterRows;
  const int32_t most = n < fit ? n : fit < kOuterRows ? kOuterRows : int32_t(fit);
  float* dys = static_cast<float*>(scratch(0, size_t(padded) * most * 4));
  float* xs = static_cast<float*>(scratch(2, size_t(cols) * most * 4));
  const int32_t dyPieces = (rows + kPackedCols - 1) / kPackedCols, pieces = dyPieces + (cols + kPackedCols - 1) / kPackedCols;
  // About eight chunks per thread, so that a core that is held up does not hold up the other.
  int32_t perChunk = tiles / (threadCount() * 8) / kTogether * kTogether;
  if (perChunk < kTogether) perChunk = kTogether;
  for (int32_t start = 0; start < n; start += most) {
    const int32_t left = n - start < most ? n - start : most, blocks = (left + kOuterRows - 1) / kOuterRows;
    auto rowsOf = [&](int32_t block) { return left - block * kOuterRows < kOuterRows ? left - block * kOuterRows : kOuterRows; };
    auto pack = [&](int chunk) {
      const int32_t block = chunk / pieces, piece = chunk % pieces, count = rowsOf(block);
      const int64_t packed = int64_t(block) * kOuterRows, from = start + packed;
      if (piece < dyPieces) packColumns<kTileRows, true>(dys + packed * padded, dy + from * rows, count, rows, piece * kPackedCols);
      else packColumns<kRowsF32, false>(xs + packed * cols, x + from * cols, count, cols, (piece - dyPieces) * kPackedCols);
    };
    parallel(blocks * pieces, pack);
    auto multiply = [&](int chunk) {
      const int32_t first = chunk * perChunk, end = first + perChunk < tiles ? first + perChunk : tiles;
      for (int32_t block = 0; block < blocks; block++) {
        const int64_t packed = int64_t(block) * kOuterRows;
        outerBlock(gradient, dys + packed * padded, xs + packed * cols, rowsOf(block), first, end);
      }
    };
    parallel((tiles + perChunk - 1) / perChunk, multiply);
  }
}

void scatterAddRows(const Matrix& gradient, const int32_t* ids, const float* dy, int32_t count) {
  constexpr int32_t kCols = 64;
  const int32_t cols = gradient.cols;
  auto body = [&](int chunk) {
    const int32_t first = chunk * kCols, end = first + kCols < cols ? first + kCols : cols;
    for (int32_t i = 0; i < count; i++) {
      float* to = tileOf(gradient, ids[i] / kTileRows) + ids[i] % kTileRows;
      const float* from = dy + int64_t(i) * cols;
      for (int32_t k = first; k < end; k++) to[int64_t(k) * kTileRows] += from[k];
    }
  };
  parallel((cols + kCols - 1) / kCols, body);
}

// y = x·s·w with s = (mean(x²) + eps)^-½: dx = s·dy·w - x·s³·Σ(dy·w·x)/cols.
void rmsNormBackward(float* dx, float* dWeight, const float* dy, const float* x, const float* weight, int32_t n, int32_t cols, float eps) {
  float* scales = static_cast<float*>(scratch(0, size_t(n) * 4));
  auto rows = [&](int32_t first, int32_t end) {
    for (int32_t row = first; row < end; row++) {
      const float *xs = x + int64_t(row) * cols, *dys = dy + int64_t(row) * cols;
      float* to = dx + int64_t(row) * cols;
      V16f squares = set1(0), products = set1(0);
      for (int32_t i = 0; i < cols; i += 16) {
        const int32_t left = cols - i;
        const V16f v = loadUpTo16(xs + i, left, 0);
        squares = fma(v, v, squares);
        products = fma(mul(loadUpTo16(dys + i, left, 0), loadUpTo16(weight + i, left, 0)), v, products);
      }
      const float scale = 1.0f / std::sqrt(foldSum(squares) / float(cols) + eps);
      scales[row] = scale;
      const V16f s = set1(scale), back = set1(-scale * (scale * (foldSum(products) / float(cols))));  // in an order that does not underflow
      for (int32_t i = 0; i < cols; i += 16) {
        const int32_t left = cols - i;
        const V16f own = mul(mul(loadUpTo16(dys + i, left, 0), loadUpTo16(weight + i, left, 0)), s);
        storeUpTo16(to + i, add(loadUpTo16(to + i, left, 0), fma(mul(loadUpTo16(xs + i, left, 0), s), back, own)), left);
      }
    }
  };
  forRows(n, cols, rows);
  if (dWeight == nullptr) return;
  auto columns = [&](int chunk) {
    const int32_t at = chunk * 16, left = cols - at;
    V16f sum = loadUpTo16(dWeight + at, left, 0);
    for (int32_t row = 0; row < n; row++) {
      const int64_t from = int64_t(row) * cols + at;
      sum = fma(mul(loadUpTo16(dy + from, left, 0), loadUpTo16(x + from, left, 0)), set1(scales[row]), sum);
    }
    storeUpTo16(dWeight + at, sum, left);
  };
  parallel((cols + 15) / 16, columns);
}

// silu(g) = g·σ(g), silu′(g) = σ(g)·(1 + g·(1 - σ(g))).
void swigluBackward(float* dx, const float* dy, const float* x, int32_t n, int32_t cols) {
  auto body = [&](int32_t first, int32_t end) {
    const V16f one = set1(1), zero = set1(0);
    for (int32_t row = first; row < end; row++) {
      const float *gate = x + int64_t(row) * 2 * cols, *up = gate + cols, *d = dy + int64_t(row) * cols;
      float *dGate = dx + int64_t(row) * 2 * cols, *dUp = dGate + cols;
      for (int32_t i = 0; i < cols; i += 16) {
        const int32_t left = cols - i;
        const V16f g = loadUpTo16(gate + i, left, 0), v = loadUpTo16(d + i, left, 0);
        const V16f sigmoid = div(one, add(one, exponential(sub(zero, g))));
        const V16f slope = mul(sigmoid, fma(g, sub(one, sigmoid), one));
        storeUpTo16(dGate + i, fma(mul(v, loadUpTo16(up + i, left, 0)), slope, loadUpTo16(dGate + i, left, 0)), left);
        storeUpTo16(dUp + i, fma(v, mul(g, sigmoid), loadUpTo16(dUp + i, left, 0)), left);
      }
    }
  };
  forRows(n, cols, body);
}

// With t and l the rows' largest, a = e^(teacher - t) and b = e^(logits - l): the loss is Σ a·(l - logits) / Σ a + ln Σ b, two sums without
// cancellation. e^ of a whole row is computed once and kept: in dLogits, which may be the logits, and in scratch memory.
void softCrossEntropy(float* losses, float* dLogits, const float* logits, const float* teacher, const float* weights, int32_t n, int32_t cols) {
  const float lowest = -std::numeric_limits<float>::infinity();
  const V16f largest = set1(std::numeric_limits<float>::max());  // 0 · (l - -Infinity) is to be 0
  auto body = [&](int32_t first, int32_t end) {
    float* kept = static_cast<float*>(scratch(1, size_t(cols) * 4));
    for (int32_t row = first; row < end; row++) {
      const float *from = logits + int64_t(row) * cols, *wanted = teacher + int64_t(row) * cols;
      float* to = dLogits + int64_t(row) * cols;
      V16f tops = set1(lowest), wantedTops = tops;
      for (int32_t i = 0; i < cols; i += 16) {
        tops = max(loadUpTo16(from + i, cols - i, lowest), tops);
        wantedTops = max(loadUpTo16(wanted + i, cols - i, lowest), wantedTops);
      }
      const V16f top = set1(foldMax(tops)), wantedTop = set1(foldMax(wantedTops));
      V16f sums = set1(0), wantedSums = sums, distances = sums;
      for (int32_t i = 0; i < cols; i += 16) {
        const int32_t left = cols - i;
        const V16f logit = loadUpTo16(from + i, left, lowest);
        const V16f b = exponential(sub(logit, top)), a = exponential(sub(loadUpTo16(wanted + i, left, lowest), wantedTop));
        sums = add(sums, b);
        wantedSums = add(wantedSums, a);
        distances = fma(a, min(sub(top, logit), largest), distances);
        storeUpTo16(to + i, b, left);
        storeUpTo16(kept + i, a, left);
      }
      const float sum = foldSum(sums), wantedSum = foldSum(wantedSums);
      losses[row] = foldSum(distances) / wantedSum + std::log(sum);
      const V16f by = set1(1.0f / sum), wantedBy = set1(1.0f / wantedSum), weight = set1(weights[row]);
      for (int32_t i = 0; i < cols; i += 16) {
        const int32_t left = cols - i;
        const V16f difference = sub(mul(loadUpTo16(to + i, left, 0), by), mul(loadUpTo16(kept + i, left, 0), wantedBy));
        storeUpTo16(to + i, mul(weight, difference), left);
      }
    }
  };
  forRows(n, cols, body);
}

// Attention. dP = dOut · Vᵀ and dq = dS · K want what the cache does not have, values transposed and keys by row: both are copied once,
// and the forward's functions serve.

// Keys and values of the tiles that are looked at, the other way round.
inline void swapLayouts(const KvLayer& kv, const uint8_t* used, float* keyRows, float* valueTiles) {
  const int64_t width = int64_t(kv.kvHeads) * kv.headDim;
  auto body = [&](int tile) {
    if (!used[tile]) return;
    const float* keys = static_cast<const float*>(kv.keys) + tile * width * kKvTile;
    const float* values = static_cast<const float*>(kv.values) + tile * width * kKvTile;
    float *rows = keyRows + tile * width * kKvTile, *tiles = valueTiles + tile * width * kKvTile;
    for (int64_t i = 0; i < width; i++)
      for (int s = 0; s < kKvTile; s++) {
        rows[s * width + i] = keys[i * kKvTile + s];
        tiles[i * kKvTile + s] = values[s * width + i];
      }
  };
  parallel(kv.slots / kKvTile, body);
}

// gradients[slot + j][d .. d + 16) += weights[q][j] · vectors[q][d ..] for Q queries, q ascending.
template <int Q>
inline void spreadQueries(float* gradients, int64_t width, int32_t count, const QueryBlock& b, int32_t first, const float* weights, int32_t d, int32_t lanes) {
  V16f vectors[Q];
  const float* p[Q];
  for (int q = 0; q < Q; q++) {
    vectors[q] = loadUpTo16(b.query(first + q) + d, lanes, 0);
    p[q] = weights + (first + q) * b.scoreStride;
  }
  for (int32_t j = 0; j < count; j++, gradients += width) {
    V16f sum = loadUpTo16(gradients, lanes, 0);
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++) sum = fma(set1(p[q][j]), vectors[q], sum);
    storeUpTo16(gradients, sum, lanes);
  }
}

// gradients [slots, kvHeads · headDim] += weights [query][position] · the block's vectors, at every position looked at.
inline void spread(float* gradients, const KvLayer& kv, int32_t head, const Layout& layout, const Reach& reach, const QueryBlock& b, const float* weights) {
  const int64_t width = int64_t(kv.kvHeads) * kv.headDim;
  eachRun(layout, reach, b.group, [&](int32_t slot, int32_t count, int32_t first, int32_t end, int32_t at) {
    float* rows = gradients + slot * width + int64_t(head) * kv.headDim;
    for (int32_t d = 0; d < kv.headDim; d += 16) {
      int32_t q = first;
      for (; q + 4 <= end; q += 4) spreadQueries<4>(rows + d, width, count, b, q, weights + at, d, kv.headDim - d);
      for (; q < end; q++) spreadQueries<1>(rows + d, width, count, b, q, weights + at, d, kv.headDim - d);
    }
  });
}

// Blocks that look at a common slot add to the same gradients: they belong to one family, which one thread goes through in order.
// family[b] = the first block of b's.
inline void findFamilies(int32_t* family, const Reach* reaches, int32_t blocks, const Layout& layout, int32_t slots, int32_t* owner, int32_t* covered) {
  auto root = [&](int32_t b) {
    while (family[b] != b) b = family[b] = family[family[b]];
    return b;
  };
  auto claim = [&](int32_t slot, int32_t block) {
    if (owner[slot] < 0) owner[slot] = block;
    const int32_t a = root(owner[slot]), b = root(block);
    family[a < b ? b : a] = a < b ? a : b;
  };
  for (int32_t s = 0; s < slots; s++) owner[s] = -1;
  for (int32_t t = 0; t < slots / kKvTile; t++) covered[t] = 0;  // positions from this base that are claimed
  for (int32_t b = 0; b < blocks; b++) {
    const Reach& reach = reaches[b];
    family[b] = b;
    if (reach.longest > 0) {
      int32_t& claimed = covered[reach.base / kKvTile];
      claim(reach.base, b);
      for (; claimed < reach.longest; claimed++) claim(reach.base + claimed, b);
    }
    for (int32_t e = layout.extrasStart[reach.first]; e < layout.extrasStart[reach.first + reach.rows]; e++) claim(layout.extras[e], b);
  }
  for (int32_t b = 0; b < blocks; b++) family[b] = root(b);
}

// In place of dP: dS = P · (dP - Σ P·dP) · scale.
inline void softmaxBackward(const Layout& layout, const Reach& reach, const QueryBlock& p, const QueryBlock& d) {
  const V16f scale = set1(1.0f / std::sqrt(float(p.headDim)));
  for (int32_t q = 0; q < p.count; q++) {
    const int32_t count = inLogicalOrder(layout, reach, d, q);
    const float* probabilities = p.scores + q * p.scoreStride;
    float* gradients = d.scores + q * d.scoreStride;
    V16f sums = set1(0);
    for (int32_t j = 0; j < count; j += 16) sums = fma(loadUpTo16(probabilities + j, count - j, 0), loadUpTo16(gradients + j, count - j, 0), sums);
    const V16f mean = set1(foldSum(sums));
    for (int32_t j = 0; j < count; j += 16) {
      const int32_t left = count - j;
      storeUpTo16(gradients + j, mul(mul(loadUpTo16(probabilities + j, left, 0), sub(loadUpTo16(gradients + j, left, 0), mean)), scale), left);
    }
  }
}

void attentionBackward(float* dQkv, float* dKeys, float* dValues, const float* dOut, const float* qkv, int32_t stride, int32_t heads, const KvLayer& kv,
                       const Layout& layout) {
  if (layout.rows == 0) return;
  const int32_t group = heads / kv.kvHeads, headDim = kv.headDim, tiles = kv.slots / kKvTile;
  const Blocks blocks = blocksOf(layout, group, kAttentionRows);
  const size_t cached = size_t(kv.slots) * kv.kvHeads * headDim;
  float* keyRows = static_cast<float*>(scratch(0, cached * 8 + size_t(kv.slots) * 4 + size_t(tiles) * 5 + size_t(blocks.count) * 8));
  float* valueTiles = keyRows + cached;
  int32_t* owner = reinterpret_cast<int32_t*>(valueTiles + cached);
  int32_t *covered = owner + kv.slots, *family = covered + tiles, *families = family + blocks.count;
  uint8_t* used = reinterpret_cast<uint8_t*>(families + blocks.count);

  for (int32_t t = 0; t < tiles; t++) used[t] = 0;
  for (int32_t b = 0; b < blocks.count; b++) {
    const Reach& reach = blocks.reaches[b];
    for (int32_t t = 0; t < reach.tiles(); t++) used[reach.base / kKvTile + t] = 1;
    for (int32_t i = 0; i < reach.extraTileCount; i++) used[reach.extraTiles[i]] = 1;
  }
  swapLayouts(kv, used, keyRows, valueTiles);
  const KvLayer swapped{false, kv.kvHeads, headDim, kv.slots, valueTiles, keyRows};

  findFamilies(family, blocks.reaches, blocks.count, layout, kv.slots, owner, covered);
  int32_t count = 0;
  for (int32_t b = 0; b < blocks.count; b++)
    if (family[b] == b) families[count++] = b;

  auto body = [&](int piece) {
    const int32_t first = families[piece / kv.kvHeads], head = piece % kv.kvHeads;
    const int64_t at = int64_t(head) * group * headDim;
    float* scores = static_cast<float*>(scratch(1, size_t(blocks.mostFloats) * 8));
    for (int32_t b = first; b < blocks.count; b++) {
      if (family[b] != first) continue;
      const Reach& reach = blocks.reaches[b];
      const int32_t queries = reach.rows * group;
      const int64_t row = int64_t(reach.first) * stride + at, outRow = int64_t(reach.first) * heads * headDim + at;
      auto blockOf = [&](const float* vectors, int32_t vectorStride, float* out, float* to) {
        return QueryBlock{vectors, out, vectorStride, stride, headDim, group, queries, to, reach.scoreStride(), to + queries * reach.scoreStride(), reach.extraStride()};
      };
      const QueryBlock p = blockOf(qkv + row, stride, nullptr, scores);
      scorePart<float>(kv, head, reach, p, 0, 1);
      softmaxPart(layout, reach, p, 0, queries);
      const QueryBlock d = blockOf(dOut + outRow, heads * headDim, dQkv + row, scores + blocks.mostFloats);
      scorePart<float>(swapped, head, reach, d, 0, 1);
      softmaxBackward(layout, reach, p, d);
      weighPart<float>(swapped, head, layout, reach, d, 0, headDim);  // onto dQkv
      spread(dKeys, kv, head, layout, reach, p, d.scores);
      spread(dValues, kv, head, layout, reach, d, p.scores);
    }
  };
  parallel(count * kv.kvHeads, body);
}

// Multiply-adds on registers alone, as many sums as a product keeps: what no product can be faster than. Returns how many.
int64_t multiplyAdds(int32_t rounds, float* result) {
  V16f sums[kRowsF32];
  const V16f half = set1(*result), one = set1(1);
  for (int i = 0; i < kRowsF32; i++) sums[i] = set1(float(i));
  for (int32_t round = 0; round < rounds; round++) {
#pragma GCC unroll 8
    for (int i = 0; i < kRowsF32; i++) sums[i] = fma(sums[i], half, one);
  }
  V16f total = sums[0];
  for (int i = 1; i < kRowsF32; i++) total = add(total, sums[i]);
  *result = foldSum(total);
  return int64_t(rounds) * kRowsF32 * 16;
}
