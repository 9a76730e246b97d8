// y = x Wᵀ over packed tiles. One pass streams a tile once for up to kRowsPerPass rows; further rows find it in cache.
// An output element is accumulated over its inputs in ascending order in one lane of one register, whatever the number of rows,
// tiles or threads: that is the batch-invariance contract.
//
// Inputs are laid out for the pass that reads them: [pass][k][R], so a kernel walks one pointer and broadcasts R neighbours.

struct Inputs {         // of one matmul call, in scratch memory
  const float* f32;     // [pass][cols][R]
  const int32_t* quads; // [pass][blocks][8][R]: four int8 inputs each
  const float* scales;  // [pass][blocks][R]
  const int32_t* starts;// [pass][blocks][R] q8: what takes the weights' offset of 128 off
  const float* sums;    // [pass][blocks][R] q4: scale · sum of the int8 inputs, what the minimum is multiplied by
};

struct Output {
  float* out;
  const float* residual;
  int32_t cols;  // = W.rows
};

inline void finish(const Output& o, int32_t row, int32_t tile, V16f acc) {
  const int32_t col = tile * kTileRows;
  const int64_t at = int64_t(row) * o.cols + col;
  const int lanes = o.cols - col;
  if (lanes >= 16) {
    store(o.out + at, o.residual ? add(load(o.residual + at), acc) : acc);
  } else {
    storeN(o.out + at, o.residual ? add(loadN(o.residual + at, lanes, 0), acc) : acc, lanes);
  }
}

// NT tiles side by side share each broadcast input: half the loads, and enough independent sums when rows are few.
template <int R, int NT>
inline void tilesF32(const float* w, int64_t tileFloats, const float* x, int32_t cols, const Output& o, int32_t row, int32_t tile) {
  V16f acc[NT][R];
  for (int t = 0; t < NT; t++)
    for (int r = 0; r < R; r++) acc[t][r] = set1(0);
  for (int32_t k = 0; k < cols; k++, w += 16, x += R) {
    V16f wt[NT];
#pragma GCC unroll 8
    for (int t = 0; t < NT; t++) wt[t] = load(w + t * tileFloats);
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
inline void tileQ8(const uint8_t* w, int32_t blocks, const int32_t* x, const float* scales, const int32_t* starts, const Output& o, int32_t row,
                   int32_t tile) {
  V16f acc[R];
  for (int r = 0; r < R; r++) acc[r] = set1(0);
  const uint16_t* weightScales = reinterpret_cast<const uint16_t*>(w + int64_t(blocks) * 512);
  for (int32_t b = 0; b < blocks; b++, w += 512, x += 8 * R, scales += R, starts += R, weightScales += 16) {
    V16i dots[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) dots[r] = set1i(starts[r]);
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
      const V64b wg = load64(w + g * 64);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) dots[r] = dotOffset(dots[r], wg, x[g * R + r]);
    }
    const V16f ws = loadHalf(weightScales);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) acc[r] = fma(toFloat(dots[r]), mul(ws, set1(scales[r])), acc[r]);
  }
  for (int r = 0; r < R; r++) finish(o, row + r, tile, acc[r]);
}

template <int R>
inline void tileQ4(const uint8_t* w, int32_t blocks, const int32_t* x, const float* scales, const float* sums, const Output& o, int32_t row, int32_t tile) {
  V16f acc[R];
  for (int r = 0; r < R; r++) acc[r] = set1(0);
  const uint16_t* weightScales = reinterpret_cast<const uint16_t*>(w + int64_t(blocks) * 256);
  for (int32_t b = 0; b < blocks; b++, w += 256, x += 8 * R, scales += R, sums += R, weightScales += 32) {
    V16i dots[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) dots[r] = set1i(0);
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
      const V64b both = load64(w + g * 64);
      const V64b low = lowNibbles(both), high = highNibbles(both);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) dots[r] = dotUnsigned(dots[r], low, x[g * R + r]);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) dots[r] = dotUnsigned(dots[r], high, x[(g + 4) * R + r]);
    }
    const V16f d = loadHalf(weightScales), m = loadHalf(weightScales + 16);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) acc[r] = fma(m, set1(sums[r]), fma(toFloat(dots[r]), mul(d, set1(scales[r])), acc[r]));
  }
  for (int r = 0; r < R; r++) finish(o, row + r, tile, acc[r]);
}

// All rows of one pass over tiles [first, end).
template <int R>
inline void passOver(const Matrix& w, const Inputs& in, int32_t row, int32_t first, int32_t end, const Output& o) {
  const int64_t bytes = w.tileBytes();
  const int32_t blocks = w.blocks();
  const uint8_t* tile = w.data + first * bytes;
  switch (w.dtype) {
    case Dtype::F32: {
      constexpr int kTogether = R == 1 ? 4 : 2;
      const float* x = in.f32 + int64_t(row) * w.cols;
      int32_t t = first;
      for (; t + kTogether <= end; t += kTogether, tile += kTogether * bytes)
        tilesF32<R, kTogether>(reinterpret_cast<const float*>(tile), bytes / 4, x, w.cols, o, row, t);
      for (; t < end; t++, tile += bytes) tilesF32<R, 1>(reinterpret_cast<const float*>(tile), 0, x, w.cols, o, row, t);
      break;
    }
    case Dtype::Q8:
      for (int32_t t = first; t < end; t++, tile += bytes)
        tileQ8<R>(tile, blocks, in.quads + int64_t(row) * blocks * 8, in.scales + int64_t(row) * blocks, in.starts + int64_t(row) * blocks, o, row, t);
      break;
    case Dtype::Q4:
      for (int32_t t = first; t < end; t++, tile += bytes)
        tileQ4<R>(tile, blocks, in.quads + int64_t(row) * blocks * 8, in.scales + int64_t(row) * blocks, in.sums + int64_t(row) * blocks, o, row, t);
      break;
  }
}

template <int R>
inline void passOrFewer(int rows, const Matrix& w, const Inputs& in, int32_t row, int32_t first, int32_t end, const Output& o) {
  if (rows == R) return passOver<R>(w, in, row, first, end, o);
  if constexpr (R > 1) passOrFewer<R - 1>(rows, w, in, row, first, end, o);
}

// Rows of the pass that `row` belongs to.
inline int32_t passRows(int32_t n, int32_t row) {
  const int32_t start = row / kRowsPerPass * kRowsPerPass;
  return n - start < kRowsPerPass ? n - start : kRowsPerPass;
}

// int8 inputs per block of 32: scale max|x|/127, rounded half to even.
inline void quantiseInputs(const float* x, int32_t cols, int32_t blocks, int32_t rows, int32_t lane, int32_t* quads, float* scales, int32_t* starts,
                           float* sums) {
  for (int32_t b = 0; b < blocks; b++) {
    const float* from = x + int64_t(b) * kBlock;
    const int32_t left = cols - b * kBlock;
    const V16f low = left >= 16 ? load(from) : loadN(from, left, 0);
    const V16f high = left >= 32 ? load(from + 16) : left > 16 ? loadN(from + 16, left - 16, 0) : set1(0);
    const float largest = foldMax(max(abs(low), abs(high)));
    const float scale = largest / 127.0f;
    const V16f inverse = set1(largest > 0 ? 127.0f / largest : 0);
    const V16i a = toInt(mul(low, inverse)), c = toInt(mul(high, inverse));
    alignas(32) int8_t bytes[kBlock];
    storeBytes(bytes, a);
    storeBytes(bytes + 16, c);
    int32_t words[8];
    __builtin_memcpy(words, bytes, 32);
    for (int g = 0; g < 8; g++) quads[(int64_t(b) * 8 + g) * rows + lane] = words[g];
    const int32_t total = sum(a) + sum(c);
    scales[int64_t(b) * rows + lane] = scale;
    starts[int64_t(b) * rows + lane] = offsetStart(total);
    sums[int64_t(b) * rows + lane] = scale * float(total);
  }
}

void matmul(float* out, const float* x, const Matrix& w, int32_t n, const float* residual) {
  if (n == 0) return;
  const int64_t blocks = w.blocks();
  Inputs in{};
  if (w.dtype == Dtype::F32) {
    if (n == 1) {
      in.f32 = x;
    } else {
      float* xs = static_cast<float*>(scratch(0, size_t(n) * w.cols * 4));
      auto interleave = [&](int32_t first, int32_t end) {
        for (int32_t row = first; row < end; row++) {
          const int32_t rows = passRows(n, row), lane = row % kRowsPerPass;
          float* to = xs + int64_t(row - lane) * w.cols + lane;
          const float* from = x + int64_t(row) * w.cols;
          for (int32_t k = 0; k < w.cols; k++) to[int64_t(k) * rows] = from[k];
        }
      };
      forRows(n, interleave);
      in.f32 = xs;
    }
  } else {
    const int64_t perRow = blocks * (32 + 4 + 4 + 4);
    uint8_t* memory = static_cast<uint8_t*>(scratch(0, size_t(n * perRow)));
    int32_t* quads = reinterpret_cast<int32_t*>(memory);
    float* scales = reinterpret_cast<float*>(memory + n * blocks * 32);
    int32_t* starts = reinterpret_cast<int32_t*>(memory + n * blocks * 36);
    float* sums = reinterpret_cast<float*>(memory + n * blocks * 40);
    auto quantise = [&](int32_t first, int32_t end) {
      for (int32_t row = first; row < end; row++) {
        const int32_t rows = passRows(n, row), lane = row % kRowsPerPass;
        const int64_t pass = int64_t(row - lane) * blocks;
        quantiseInputs(x + int64_t(row) * w.cols, w.cols, int32_t(blocks), rows, lane, quads + pass * 8, scales + pass, starts + pass, sums + pass);
      }
    };
    forRows(n, quantise);
    in.quads = quads;
    in.scales = scales;
    in.starts = starts;
    in.sums = sums;
  }

  const Output output{out, residual, w.rows};
  const int32_t tiles = w.tiles();
  // About eight chunks per thread, so that a core that is held up does not hold up the other; a multiple of 4 tiles where possible.
  int32_t perChunk = tiles / (threadCount() * 8);
  perChunk = perChunk < 4 ? (tiles < 16 ? 1 : 4) : perChunk / 4 * 4;
  auto body = [&](int chunk) {
    const int32_t first = chunk * perChunk, end = first + perChunk < tiles ? first + perChunk : tiles;
    if (n <= kRowsPerPass) return passOrFewer<kRowsPerPass>(n, w, in, 0, first, end, output);
    // Several passes: four tiles at a time stay in the first-level or second-level cache for all rows.
    for (int32_t t = first; t < end; t += 4) {
      const int32_t stop = t + 4 < end ? t + 4 : end;
      for (int32_t row = 0; row < n; row += kRowsPerPass) passOrFewer<kRowsPerPass>(passRows(n, row), w, in, row, t, stop, output);
    }
  };
  parallel((tiles + perChunk - 1) / perChunk, body);
}
