// y = x Wᵀ over packed tiles. One pass streams a tile once for up to kRowsF32 or kRowsInt rows; further rows find it in cache.
// An output element is accumulated over its inputs in ascending order in one lane of one register, whatever the number of rows,
// tiles or threads: that is the batch-invariance contract.
//
// Inputs are laid out for the pass that reads them, f32 as [pass][k][R], integers by blocks: a kernel walks one pointer and broadcasts.

struct Inputs {           // of one matmul call, in scratch memory
  const float* f32;       // [pass][cols][R]
  const int32_t* quads;   // [pass][blocks][R][8], four int8 inputs each
  const float* scales;    // [pass][blocks][R]
  const int32_t* starts;  // [pass][blocks][R] q8: -128 · sum of the int8 inputs takes the weights' offset off
  const float* sums;      // [pass][blocks][R] q4: scale · sum of the int8 inputs, what the minimum is multiplied by
};

struct Output {
  float* out;
  const float* residual;
  int32_t cols;  // = W.rows
};

constexpr int32_t kBesideFrom = 3;  // passes: fewer wait for memory themselves and fetch nothing else

inline void finish(const Output& o, int32_t row, int32_t tile, V16f acc) {
  const int32_t col = tile * kTileRows;
  const int64_t at = int64_t(row) * o.cols + col;
  const int32_t left = o.cols - col;
  storeUpTo16(o.out + at, o.residual ? add(loadUpTo16(o.residual + at, left, 0), acc) : acc, left);
}

// NT tiles side by side share each broadcast input: half the loads, and enough independent sums when rows are few.
template <int R, int NT>
inline void tilesF32(const float* w, int64_t tileFloats, const float* x, int32_t cols, const Output& o, int32_t row, int32_t tile, Ahead ahead) {
  V16f acc[NT][R];
  for (int t = 0; t < NT; t++)
    for (int r = 0; r < R; r++) acc[t][r] = set1(0);
  for (int32_t k = 0; k < cols; k++, w += 16, x += R) {
    V16f wt[NT];
#pragma GCC unroll 8
    for (int t = 0; t < NT; t++) {
      wt[t] = load(w + t * tileFloats);
      prefetch(ahead.next + t * tileFloats * 4);
    }
    ahead.advance();
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const V16f xr = set1(x[r]);
#pragma GCC unroll 8
      for (int t = 0; t < NT; t++) acc[t][r] = fma(wt[t], xr, acc[t][r]);
    }
  }
  for (int t = 0; t < NT; t++)
    for (int r = 0; r < R; r++) finish(o, row + r, tile + t, acc[t][r]);
}

template <int R>
inline void tileQ8(const uint8_t* w, int32_t blocks, const int32_t* x, const float* scales, const int32_t* starts, const Output& o, int32_t row, int32_t tile,
                   Ahead ahead) {
  V16f acc[R];
  for (int r = 0; r < R; r++) acc[r] = set1(0);
  const uint16_t* weightScales = reinterpret_cast<const uint16_t*>(w + int64_t(blocks) * 512);
  for (int32_t b = 0; b < blocks; b++, w += 512, x += 8 * R, scales += R, starts += R, weightScales += 16) {
    ahead.fetchBeside();
    ahead.fetchLine(8);  // a block and its scales are eight lines and a half
    V16i dots[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      if (R > 2) park(acc[r]);
      dots[r] = set1i(starts[r]);
    }
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
      ahead.fetchLine(g);
      const V64b wg = load64(w + g * 64);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) dots[r] = dotBytes(dots[r], wg, x[r * 8 + g]);
    }
    ahead.advance();
    const V16f ws = loadHalf(weightScales);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) acc[r] = fma(toFloat(dots[r]), mul(ws, set1(scales[r])), acc[r]);
  }
  for (int r = 0; r < R; r++) finish(o, row + r, tile, acc[r]);
}

template <int R>
inline void tileQ4(const uint8_t* w, int32_t blocks, const int32_t* x, const float* scales, const float* sums, const Output& o, int32_t row, int32_t tile,
                   Ahead ahead) {
  V16f acc[R];
  for (int r = 0; r < R; r++) acc[r] = set1(0);
  const uint16_t* weightScales = reinterpret_cast<const uint16_t*>(w + int64_t(blocks) * 256);
  for (int32_t b = 0; b < blocks; b++, w += 256, x += 8 * R, scales += R, sums += R, weightScales += 32) {
    NibbleDots dots[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      if (R > 2) park(acc[r]);
      dots[r] = noNibbles();
    }
#pragma GCC unroll 8
    for (int g = 0; g < 4; g++) {
      ahead.fetchLine(g);
      const V64b both = load64(w + g * 64);
      const V64b low = lowNibbles(both), high = highNibbles(both);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) dots[r] = dotNibbles(dots[r], low, x[r * 8 + g]);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) dots[r] = dotNibbles(dots[r], high, x[r * 8 + g + 4]);
    }
    ahead.fetchLine(4);
    ahead.fetchBeside();
    ahead.advance();
    const V16f d = loadHalf(weightScales), m = loadHalf(weightScales + 16);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) acc[r] = fma(m, set1(sums[r]), fma(toFloat(total(dots[r])), mul(d, set1(scales[r])), acc[r]));
  }
  for (int r = 0; r < R; r++) finish(o, row + r, tile, acc[r]);
}

// One pass of rows over a group of tiles, out of `passes` over the same group.
struct Pass {
  int32_t row;  // its first
  int32_t index, passes;
  const Upcoming* upcoming;  // what the product fetches, from `at` on; null where it fetches nothing
  int64_t at;
};

template <int R>
inline void passOverF32(const Matrix& w, const Inputs& in, Pass p, int32_t first, int32_t end, const Output& o) {
  constexpr int kTogether = R == 1 ? 4 : R <= kF32TwoTiles ? 2 : 1;
  const int64_t bytes = w.tileBytes();
  const uint8_t* tile = w.data + first * bytes;
  const float* x = in.f32 + int64_t(p.row) * w.cols;
  // One pass runs a little ahead of itself; of several, each fetches its share of the next group.
  const int32_t step = 64 / p.passes;
  const int64_t distance = p.passes == 1 ? kF32Ahead : (end - first) * bytes + int64_t(p.index) * step * w.cols;
  int32_t t = first;
  for (; t + kTogether <= end; t += kTogether, tile += kTogether * bytes)
    tilesF32<R, kTogether>(reinterpret_cast<const float*>(tile), bytes / 4, x, w.cols, o, p.row, t, {tile + distance, step});
  for (; t < end; t++, tile += bytes) tilesF32<R, 1>(reinterpret_cast<const float*>(tile), 0, x, w.cols, o, p.row, t, {tile + distance, step});
}

template <int R>
inline void passOverBlocks(const Matrix& w, const Inputs& in, Pass p, int32_t first, int32_t end, const Output& o) {
  const int64_t bytes = w.tileBytes();
  const int32_t blocks = w.blocks();
  const uint8_t* tile = w.data + first * bytes;
  const int64_t at = int64_t(p.row) * blocks;
  const int32_t step = int32_t(bytes / p.passes / blocks);
  const int64_t distance = (p.passes == 1 ? 1 : end - first) * bytes + int64_t(p.index) * step * blocks;
  for (int32_t t = first; t < end; t++, tile += bytes) {
    const uint8_t* beside = p.upcoming == nullptr ? nullptr : p.upcoming->find(p.at + (int64_t(t) * p.passes + p.index) * blocks * kBesideBytes);
    const bool none = beside == nullptr;  // then lines that are there anyway
    const Ahead ahead{tile + distance, step, none ? tile : beside, none ? 0 : kBesideBytes};
    if (w.dtype == Dtype::Q8) tileQ8<R>(tile, blocks, in.quads + at * 8, in.scales + at, in.starts + at, o, p.row, t, ahead);
    else tileQ4<R>(tile, blocks, in.quads + at * 8, in.scales + at, in.sums + at, o, p.row, t, ahead);
  }
}

// Only the numbers of rows that rowsPerPass can give are compiled.
template <int R>
inline void passOver(const Matrix& w, const Inputs& in, Pass p, int32_t first, int32_t end, const Output& o) {
  if (w.dtype == Dtype::F32) {
    if constexpr (R <= kRowsF32) passOverF32<R>(w, in, p, first, end, o);
  } else {
    if constexpr (R <= kRowsInt) passOverBlocks<R>(w, in, p, first, end, o);
  }
}

template <int R>
inline void passOrFewer(int rows, const Matrix& w, const Inputs& in, Pass p, int32_t first, int32_t end, const Output& o) {
  if (rows == R) return passOver<R>(w, in, p, first, end, o);
  if constexpr (R > 1) passOrFewer<R - 1>(rows, w, in, p, first, end, o);
}

constexpr int64_t kFirstLevel = 20 << 10;  // bytes: what 32 kB hold beside the inputs of one pass and what is fetched ahead

constexpr int kMostRowsPerPass = kRowsInt > kRowsF32 ? kRowsInt : kRowsF32;

// As few passes as registers allow, and those alike.
inline int32_t rowsPerPass(Dtype dtype, int32_t n) {
  const int32_t most = dtype == Dtype::F32 ? kRowsF32 : kRowsInt, passes = (n + most - 1) / most;
  return (n + passes - 1) / passes;
}

// Rows of the pass that `row` belongs to.
inline int32_t passRows(int32_t n, int32_t row, int32_t most) {
  const int32_t start = row / most * most;
  return n - start < most ? n - start : most;
}

// NaN becomes -127, and so what overflows (127 / max|x| is infinite below 4e-37) stays a byte.
inline V16i toByteRange(V16f x) { return toInt(min(max(x, set1(-127)), set1(127))); }

constexpr int32_t kPieceInputs = 256;  // 8 kB of 8 rows

// body(row, rows, first, end) for every pass and piece of its inputs. A piece is neighbouring inputs of all rows of a pass, not a row of
// the pass: rows lie side by side, and two threads that write one cache line would wait for each other.
template <class F>
inline void forPieces(int32_t n, int32_t most, int32_t cols, F& body) {
  const int32_t pieces = (cols + kPieceInputs - 1) / kPieceInputs, passes = (n + most - 1) / most;
  auto piece = [&](int index) {
    const int32_t row = index / pieces * most, first = index % pieces * kPieceInputs;
    body(row, passRows(n, row, most), first, first + kPieceInputs < cols ? first + kPieceInputs : cols);
  };
  if (n * int64_t(cols) <= kSerialElements)
    for (int index = 0; index < passes * pieces; index++) piece(index);
  else parallel(passes * pieces, piece);
}

// x as [pass][cols][R], where a pass has up to `most` rows.
inline void interleavePasses(float* to, const float* x, int32_t cols, int32_t n, int32_t most) {
  auto interleave = [&](int32_t row, int32_t rows, int32_t first, int32_t end) {
    const float* from = x + int64_t(row) * cols;
    float* out = to + int64_t(row) * cols + int64_t(first) * rows;
    for (int32_t k = first; k < end; k++, out += rows)
      for (int32_t r = 0; r < rows; r++) out[r] = from[int64_t(r) * cols + k];
  };
  forPieces(n, most, cols, interleave);
}

constexpr int kRounded = 16;  // blocks rounded together: what there is one of per block fills a register

// A block of 32 inputs, `left` of which are there.
struct InputBlock {
  const float* x;
  int32_t left;
  V16f low() const { return loadUpTo16(x, left, 0); }
  V16f high() const { return left > 16 ? loadUpTo16(x + 16, left - 16, 0) : set1(0); }
};

// Up to kRounded blocks as int8: scale max|x|/127 or, where bytes are to be multiplied, what the table's products can hold (`byteReach`);
// rounded half to even. put(i, low, high) takes the integers of block i; `sums` are theirs. Alone, a block would spend more on folding its
// maximum and its sum and on dividing than on all else.
template <class Put>
inline void roundBlocks(const InputBlock* blocks, int count, bool bytes, V16f& scales, V16i& sums, Put put) {
  auto reach = [bytes](V16f x) { return bytes ? byteReach(x) : abs(x); };
  V16f largest[kRounded];
  for (int i = 0; i < kRounded; i++) largest[i] = i < count ? max(reach(blocks[i].low()), reach(blocks[i].high())) : set1(0);
  const V16f most = maxOfEach(largest), byteRange = set1(127);
  scales = div(most, byteRange);
  alignas(64) float inverses[kRounded];
  store(inverses, whereGreater(most, set1(0), div(byteRange, most)));
  V16i total[kRounded];
  for (int i = 0; i < kRounded; i++) {
    total[i] = set1i(0);
    if (i >= count) continue;
    const V16f inverse = set1(inverses[i]);
    const V16i low = toByteRange(mul(blocks[i].low(), inverse)), high = toByteRange(mul(blocks[i].high(), inverse));
    put(i, low, high);
    total[i] = add(low, high);
  }
  sums = sumOfEach(total);
}

// x [n, cols] as the passes read it, in scratch memory (one f32 row needs no copy).
inline Inputs layOut(const float* x, const Matrix& w, int32_t n) {
  Inputs in{};
  const int32_t most = rowsPerPass(w.dtype, n), cols = w.cols, blocks = w.blocks();
  if (w.dtype == Dtype::F32) {
    in.f32 = x;
    if (n == 1) return in;
    float* xs = static_cast<float*>(scratch(0, size_t(n) * cols * 4));
    interleavePasses(xs, x, cols, n, most);
    in.f32 = xs;
    return in;
  }
  const bool bytes = w.dtype == Dtype::Q8;
  const int64_t count = int64_t(n) * blocks;
  int32_t* quads = static_cast<int32_t*>(scratch(0, size_t(count) * (kBlock + 8)));
  float* scales = reinterpret_cast<float*>(quads + count * 8);
  float* sums = scales + count;
  int32_t* starts = reinterpret_cast<int32_t*>(sums);
  auto lay = [=](int32_t row, int32_t rows, int32_t first, int32_t end) {
    const int32_t firstBlock = first / kBlock, endBlock = (end + kBlock - 1) / kBlock;
    int64_t at = int64_t(row) * blocks + int64_t(firstBlock) * rows;
    InputBlock next{x + int64_t(row) * cols + firstBlock * kBlock, cols - firstBlock * kBlock};
    int32_t r = 0;
    for (int32_t rest = (endBlock - firstBlock) * rows; rest > 0; rest -= kRounded, at += kRounded) {
      const int count = rest < kRounded ? rest : kRounded;
      InputBlock from[kRounded];
      for (int i = 0; i < count; i++) {
        from[i] = next;
        next.x += cols;
        if (++r < rows) continue;
        r = 0;
        next.x += kBlock - int64_t(rows) * cols;
        next.left -= kBlock;
      }
      V16f scale;
      V16i sum;
      roundBlocks(from, count, bytes, scale, sum,
                  [=](int i, V16i low, V16i high) { storeBytes(reinterpret_cast<int8_t*>(quads + (at + i) * 8), low, high); });
      storeUpTo16(scales + at, scale, count);
      const V16f total = toFloat(sum);
      if (bytes) storeUpTo16(reinterpret_cast<float*>(starts + at), bitsAsFloat(toInt(mul(total, set1(-128)))), count);
      else storeUpTo16(sums + at, mul(scale, total), count);
    }
  };
  forPieces(n, most, cols, lay);
  in.quads = quads;
  in.scales = scales;
  in.starts = starts;
  in.sums = sums;
  return in;
}

// Many rows of many inputs (a gradient that comes back through an LM head): of more than kLongFrom inputs two tiles do not fit the
// second-level cache beside the rows. So rows come in groups and inputs in blocks, and a group's block of inputs stays there while tiles
// pass over it. Sums go on from block to block in scratch memory, which changes no bit of them.

constexpr int32_t kLongFrom = 2048;      // inputs: two tiles are 256 kB
constexpr int32_t kLongRowsFrom = 48;    // rows; fewer are a matter of reading the weights
constexpr int32_t kGroupRows = 96;       // whole passes (2, 6 or 8)
constexpr int32_t kGroupInputs = 768;    // 288 kB of a group, 48 kB of a tile
constexpr int32_t kGroupTiles = 4;       // of a chunk: their sums are 24 kB
constexpr int64_t kLaidOutBytes = 16 << 20;  // of inputs at a time
constexpr int kTogether = kRowsF32 <= kF32TwoTiles ? 2 : 1;  // tiles side by side in registers

// sums[t][r] += Σ w[t][k] · x[k][r], k ascending, for NT tiles of 16 and R rows; of the last tile only the first lanes are stored. Meanwhile
// what comes next is fetched, `ahead.step` bytes for every 16 inputs.
template <int R, int NT>
inline void addProducts(float* sums, int64_t sumsTile, const float* w, int64_t wTile, const float* x, int32_t count, int32_t lanes, Ahead ahead) {
  V16f acc[NT][R];
  for (int t = 0; t < NT; t++)
    for (int r = 0; r < R; r++) acc[t][r] = load(sums + t * sumsTile + r * kTileRows);
  for (int32_t k = 0; k < count;) {
    ahead.fetch();
    for (const int32_t stop = count - k < 16 ? count : k + 16; k < stop; k++, w += kTileRows, x += R) {
      V16f wt[NT];
#pragma GCC unroll 8
      for (int t = 0; t < NT; t++) wt[t] = load(w + t * wTile);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const V16f xr = set1(x[r]);
#pragma GCC unroll 8
        for (int t = 0; t < NT; t++) acc[t][r] = fma(wt[t], xr, acc[t][r]);
      }
    }
  }
  for (int t = 0; t < NT; t++)
    for (int r = 0; r < R; r++) storeUpTo16(sums + t * sumsTile + r * kTileRows, acc[t][r], t == NT - 1 ? lanes : kTileRows);
}

template <int R, int NT>
inline void addProductsOrFewer(int32_t rows, float* sums, int64_t sumsTile, const float* w, int64_t wTile, const float* x, int32_t count, int32_t lanes,
                               Ahead ahead) {
  if (rows == R) return addProducts<R, NT>(sums, sumsTile, w, wTile, x, count, lanes, ahead);
  if constexpr (R > 1) addProductsOrFewer<R - 1, NT>(rows, sums, sumsTile, w, wTile, x, count, lanes, ahead);
}

// Tiles [first, end) for the group of rows [row, row + rows).
inline void groupProducts(const Matrix& w, const float* x, int32_t row, int32_t rows, int32_t first, int32_t end, const Output& o) {
  const int32_t cols = w.cols;
  const int64_t tileFloats = int64_t(cols) * kTileRows, sumsTile = int64_t(rows) * kTileRows;
  float* sums = static_cast<float*>(scratch(1, size_t(end - first) * sumsTile * 4));
  // The block of the next tile, 1 kB for every 16 inputs, is fetched by all passes together.
  constexpr int32_t kShare = 16 * kTileRows * 4 * kRowsF32 / kGroupRows;
  for (int32_t k = 0; k < cols; k += kGroupInputs) {
    const int32_t count = cols - k < kGroupInputs ? cols - k : kGroupInputs;
    for (int32_t t = first; t < end;) {
      const int32_t together = t + kTogether <= end ? kTogether : 1;
      const float* tile = reinterpret_cast<const float*>(w.data) + t * tileFloats + int64_t(k) * kTileRows;
      const float* after = t + together < end ? tile + together * tileFloats : tile + (first - t) * tileFloats + count * kTileRows;
      const uint8_t* next = reinterpret_cast<const uint8_t*>(after);
      for (int32_t r = 0; r < rows; r += kRowsF32) {
        const int32_t width = rows - r < kRowsF32 ? rows - r : kRowsF32;
        const float* inputs = x + int64_t(row + r) * cols + int64_t(k) * width;
        const Ahead ahead{next + r / kRowsF32 * kShare * (kGroupInputs / 16), kShare};
        float* to = sums + (t - first) * sumsTile + r * kTileRows;
        if (k == 0)
          for (int32_t i = 0; i < together; i++)
            for (int32_t j = 0; j < width; j++) store(to + i * sumsTile + j * kTileRows, set1(0));
        if (together == kTogether) addProductsOrFewer<kRowsF32, kTogether>(width, to, sumsTile, tile, tileFloats, inputs, count, kTileRows, ahead);
        else addProductsOrFewer<kRowsF32, 1>(width, to, sumsTile, tile, tileFloats, inputs, count, kTileRows, ahead);
        if (k + count == cols)
          for (int32_t i = 0; i < together; i++)
            for (int32_t j = 0; j < width; j++) finish(o, row + r + j, t + i, load(to + i * sumsTile + j * kTileRows));
      }
      t += together;
    }
  }
}

void matmulLong(float* out, const float* x, const Matrix& w, int32_t n, const float* residual) {
  const int64_t fit = kLaidOutBytes / (int64_t(w.cols) * 4) / kGroupRows * kGroupRows;
  const int32_t most = n < fit ? n : fit < kGroupRows ? kGroupRows : int32_t(fit), chunks = (w.tiles() + kGroupTiles - 1) / kGroupTiles;
  float* xs = static_cast<float*>(scratch(0, size_t(most) * w.cols * 4));
  for (int32_t start = 0; start < n; start += most) {
    const int32_t rows = n - start < most ? n - start : most;
    const int64_t at = int64_t(start) * w.rows;
    const Output output{out + at, residual ? residual + at : nullptr, w.rows};
    interleavePasses(xs, x + int64_t(start) * w.cols, w.cols, rows, kRowsF32);
    auto body = [&](int piece) {
      const int32_t row = piece / chunks * kGroupRows, first = piece % chunks * kGroupTiles;
      groupProducts(w, xs, row, rows - row < kGroupRows ? rows - row : kGroupRows, first, first + kGroupTiles < w.tiles() ? first + kGroupTiles : w.tiles(), output);
    };
    parallel((rows + kGroupRows - 1) / kGroupRows * chunks, body);
  }
}

void matmul(float* out, const float* x, const Matrix& w, int32_t n, const float* residual) {
  if (n == 0) return;
  if (w.dtype == Dtype::F32 && w.cols > kLongFrom && n >= kLongRowsFrom) return matmulLong(out, x, w, n, residual);
  const Inputs in = layOut(x, w, n);
  const Output output{out, residual, w.rows};
  const int32_t tiles = w.tiles(), most = rowsPerPass(w.dtype, n), passes = (n + most - 1) / most;
  // About eight chunks per thread, so that a core that is held up does not hold up the other; whole groups of tiles side by side.
  const int32_t group = w.dtype == Dtype::F32 ? (n == 1 ? 4 : 2) : 1, fair = tiles / (threadCount() * 8);
  const int32_t perChunk = fair < group ? group : fair / group * group;
  // Tiles that stay in cache while all rows pass over them. One of bytes or nibbles fits the first level. So many rows that they do not fit
  // come from the second once per tile: then two share the way, if both fit. f32 is computed in pairs.
  const bool pairs = w.dtype == Dtype::F32 || (int64_t(n) * w.cols > kFirstLevel && 2 * w.tileBytes() <= kFirstLevel);
  const int32_t together = passes == 1 ? perChunk : pairs ? 2 : 1;
  Upcoming* const next = w.dtype == Dtype::F32 || passes < kBesideFrom || upcoming.bytes() == 0 ? nullptr : &upcoming;
  const int64_t at = next == nullptr ? 0 : next->take(int64_t(tiles) * passes * w.blocks() * kBesideBytes);
  auto body = [&](int chunk) {
    const int32_t first = chunk * perChunk, end = first + perChunk < tiles ? first + perChunk : tiles;
    for (int32_t t = first; t < end; t += together) {
      const int32_t stop = t + together < end ? t + together : end;
      for (int32_t pass = 0; pass < passes; pass++)
        passOrFewer<kMostRowsPerPass>(passRows(n, pass * most, most), w, in, {pass * most, pass, passes, next, at}, t, stop, output);
    }
  };
  parallel((tiles + perChunk - 1) / perChunk, body);
}
