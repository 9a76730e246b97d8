// Row-wise kernels: norm, rotary positions, SwiGLU, soft-max, arg-max, top-k, KV stores. Written once against V16f (sixteen
// floats) and compiled per instruction set inside its own anonymous namespace. Sums run over 16 lanes and are folded in one fixed
// order, so a row's bits never depend on its neighbours.

constexpr int kRowsPerChunk = 4;           // rows handed to a thread at a time, fewer where they are long
constexpr int32_t kSerialElements = 8192;  // up to here, handing out the work, and handing its results from core to core, costs more than the work

template <class F>
inline void forRows(int32_t n, int32_t cols, F& body) {  // body(firstRow, endRow)
  const int32_t fit = cols < kSerialElements ? kSerialElements / cols : 1, rows = fit < kRowsPerChunk ? fit : kRowsPerChunk;
  if (n <= fit) return body(0, n);
  auto chunk = [&](int c) { body(c * rows, n < (c + 1) * rows ? n : (c + 1) * rows); };
  parallel((n + rows - 1) / rows, chunk);
}

// Up to 16 of the floats that are left. Whole registers go the plain way: some machines (AMD's before Zen 4) store under a mask very slowly.
inline V16f loadUpTo16(const float* p, int32_t left, float fill) { return left >= 16 ? load(p) : loadN(p, left, fill); }
inline void storeUpTo16(float* p, V16f a, int32_t left) {
  if (left >= 16) store(p, a);
  else storeN(p, a, left);
}

// e^x: x = n·ln 2 + r, |r| <= ln 2 / 2, Taylor to r^7 (remainder below 2^-26), ln 2 in two parts (Cody and Waite).
// Up to -87.3 (the smallest normal number), and of no number, it is 0; from 88.4 on, where n is 128, Infinity.
inline V16f exponential(V16f x) {
  const V16f lowest = set1(-87.3f), within = min(max(x, lowest), set1(89.0f));
  const V16f n = roundEven(mul(within, set1(1.44269504f)));
  V16f r = fma(n, set1(-0.693359375f), within);
  r = fma(n, set1(2.12194440e-4f), r);
  V16f p = set1(1.0f / 5040);
  p = fma(p, r, set1(1.0f / 720));
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return whereGreater(x, lowest, timesPow2(p, n));
}

// Sums of squares of R rows: one after another, each would wait for its own additions.
template <int R>
inline void sumSquares(const float* x, int32_t cols, float* to) {
  V16f squares[R];
  for (int r = 0; r < R; r++) squares[r] = set1(0);
  for (int32_t i = 0; i < cols; i += 16)
    for (int r = 0; r < R; r++) {
      const V16f v = loadUpTo16(x + int64_t(r) * cols + i, cols - i, 0);
      squares[r] = fma(v, v, squares[r]);
    }
  for (int r = 0; r < R; r++) to[r] = foldSum(squares[r]);
}

void rmsNorm(float* out, const float* x, const float* weight, int32_t n, int32_t cols, float eps) {
  auto body = [&](int32_t first, int32_t end) {
    for (int32_t row = first; row < end;) {
      const float* from = x + int64_t(row) * cols;
      float* to = out + int64_t(row) * cols;
      float squares[kRowsPerChunk];
      const int32_t rows = row + kRowsPerChunk <= end ? kRowsPerChunk : 1;
      if (rows == 1) sumSquares<1>(from, cols, squares);
      else sumSquares<kRowsPerChunk>(from, cols, squares);
      for (int32_t r = 0; r < rows; r++, row++, from += cols, to += cols) {
        const V16f scale = set1(1.0f / std::sqrt(squares[r] / float(cols) + eps));
        for (int32_t i = 0; i < cols; i += 16) {
          const int32_t left = cols - i;
          storeUpTo16(to + i, mul(mul(loadUpTo16(from + i, left, 0), scale), loadUpTo16(weight + i, left, 0)), left);
        }
      }
    }
  };
  forRows(n, cols, body);
}

void rope(float* x, int32_t stride, int32_t n, int32_t heads, int32_t headDim, const int32_t* positions, const float* cos, const float* sin) {
  const int32_t half = headDim / 2;
  auto body = [&](int32_t first, int32_t end) {
    for (int32_t row = first; row < end; row++) {
      const float* c = cos + int64_t(positions[row]) * half;
      const float* s = sin + int64_t(positions[row]) * half;
      for (int32_t h = 0; h < heads; h++) {
        float* a = x + int64_t(row) * stride + int64_t(h) * headDim;
        float* b = a + half;
        for (int32_t i = 0; i < half; i += 16) {
          const int32_t left = half - i;
          const V16f ca = loadUpTo16(c + i, left, 0), sa = loadUpTo16(s + i, left, 0);
          const V16f va = loadUpTo16(a + i, left, 0), vb = loadUpTo16(b + i, left, 0);
          storeUpTo16(a + i, sub(mul(va, ca), mul(vb, sa)), left);
          storeUpTo16(b + i, add(mul(vb, ca), mul(va, sa)), left);
        }
      }
    }
  };
  forRows(n, heads * headDim, body);
}

void swiglu(float* out, const float* x, int32_t n, int32_t cols) {
  auto body = [&](int32_t first, int32_t end) {
    const V16f one = set1(1), zero = set1(0);
    for (int32_t row = first; row < end; row++) {
      const float* gate = x + int64_t(row) * 2 * cols;
      const float* up = gate + cols;
      float* to = out + int64_t(row) * cols;
      for (int32_t i = 0; i < cols; i += 16) {
        const int32_t left = cols - i;
        const V16f g = loadUpTo16(gate + i, left, 0), u = loadUpTo16(up + i, left, 0);
        storeUpTo16(to + i, mul(div(g, add(one, exponential(sub(zero, g)))), u), left);
      }
    }
  };
  forRows(n, cols, body);
}

// softmax(x · factor) of `count` values, 16-lane partial sums. Where none is above -Infinity there is no law: all 0.
inline void softmaxRow(float* out, const float* x, int32_t count, float factor) {
  const float lowest = -std::numeric_limits<float>::infinity();
  const int32_t whole = count / 16 * 16, rest = count - whole;
  V16f largest = set1(lowest);
  for (int32_t i = 0; i < whole; i += 16) largest = max(load(x + i), largest);
  if (rest) largest = max(loadN(x + whole, rest, lowest), largest);
  const float most = foldMax(largest);
  if (!(most > lowest)) {
    for (int32_t i = 0; i < count; i++) out[i] = 0;
    return;
  }
  const V16f top = set1(most), scale = set1(factor);
  V16f sums = set1(0);
  for (int32_t i = 0; i < whole; i += 16) {
    const V16f e = exponential(mul(sub(load(x + i), top), scale));
    store(out + i, e);
    sums = add(sums, e);
  }
  if (rest) {
    const V16f e = exponential(mul(sub(loadN(x + whole, rest, lowest), top), scale));
    storeN(out + whole, e, rest);
    sums = add(sums, e);
  }
  const V16f inverse = set1(1.0f / foldSum(sums));
  for (int32_t i = 0; i < whole; i += 16) store(out + i, mul(load(out + i), inverse));
  if (rest) storeN(out + whole, mul(loadN(out + whole, rest, 0), inverse), rest);
}

void softmax(float* out, const float* x, int32_t n, int32_t cols, float inverseTemperature) {
  auto body = [&](int32_t first, int32_t end) {
    for (int32_t row = first; row < end; row++) softmaxRow(out + int64_t(row) * cols, x + int64_t(row) * cols, cols, inverseTemperature);
  };
  forRows(n, cols, body);
}

void argmax(int32_t* out, const float* x, int32_t n, int32_t cols) {
  auto body = [&](int32_t first, int32_t end) {
    for (int32_t row = first; row < end; row++) {
      const float* v = x + int64_t(row) * cols;
      float best = -std::numeric_limits<float>::infinity();
      int32_t at = 0;
      bool found = false;  // so that a row of -Infinity after a NaN still names its first number
      for (int32_t i = 0; i < cols; i += 16) {
        const int lanes = cols - i < 16 ? cols - i : 16;
        if (found && greater(loadUpTo16(v + i, lanes, best), set1(best)) == 0) continue;
        for (int32_t j = i; j < i + lanes; j++) {
          if (found ? v[j] > best : v[j] == v[j]) {
            best = v[j];
            at = j;
            found = true;
          }
        }
      }
      out[row] = at;
    }
  };
  forRows(n, cols, body);
}

void topK(int32_t* ids, float* values, const float* x, int32_t n, int32_t cols, int32_t k) {
  auto body = [&](int32_t first, int32_t end) {
    for (int32_t row = first; row < end; row++) {
      const float* v = x + int64_t(row) * cols;
      int32_t* id = ids + int64_t(row) * k;
      float* value = values + int64_t(row) * k;
      int32_t held = 0;
      for (int32_t i = 0; i < cols; i += 16) {
        const int lanes = cols - i < 16 ? cols - i : 16;
        if (held == k && greater(loadUpTo16(v + i, lanes, value[k - 1]), set1(value[k - 1])) == 0) continue;
        for (int32_t j = i; j < i + lanes; j++) {
          if (!(held < k ? v[j] == v[j] : v[j] > value[k - 1])) continue;
          int32_t at = held < k ? held++ : k - 1;
          for (; at > 0 && v[j] > value[at - 1]; at--) {
            value[at] = value[at - 1];
            id[at] = id[at - 1];
          }
          value[at] = v[j];
          id[at] = j;
        }
      }
      for (int32_t j = 0; held < k; j++) {  // fewer numbers than k: the NaNs, in order
        if (v[j] == v[j]) continue;
        value[held] = v[j];
        id[held++] = j;
      }
    }
  };
  forRows(n, cols, body);
}

// An exponential race: in every row, column i arrives after an exponential time of rate rates[i]. Its number is that of its label, or of i:
// 53 bits of a hash of label and key. The same integers everywhere, so every table runs the same race.

inline uint32_t mixed(uint32_t x) {  // Murmur3's finaliser (Appleby, public domain)
  x = (x ^ x >> 16) * 0x85ebca6bu;
  x = (x ^ x >> 13) * 0xc2b2ae35u;
  return x ^ x >> 16;
}
inline V16i mixed(V16i x) {
  x = mulLow(flip(x, shiftRight<16>(x)), set1i(int32_t(0x85ebca6bu)));
  x = mulLow(flip(x, shiftRight<13>(x)), set1i(int32_t(0xc2b2ae35u)));
  return flip(x, shiftRight<16>(x));
}

// -ln(1 - v), v in (0, 1).
inline double raceTime(uint32_t label, uint32_t a, uint32_t b) {
  const uint32_t high = mixed(mixed(label ^ a) + b), low = mixed(mixed(label + b) ^ a);
  return -std::log1p(-(double(high) * 2097152.0 + double(low >> 11) + 0.5) / 9007199254740992.0);
}

void race(int32_t* ids, float* times, const float* rates, int32_t n, int32_t cols, int32_t k, const int32_t* key, const int32_t* labels) {
  alignas(64) int32_t firstLabels[16];
  for (int i = 0; i < 16; i++) firstLabels[i] = i;
  auto body = [&](int32_t first, int32_t end) {
    double* best = static_cast<double*>(scratch(1, size_t(k) * sizeof(double)));
    const V16i a = set1i(key[0]), b = set1i(key[1]);
    // Who can still be among the first k: -ln(1 - v) >= v, and 24 bits of v are no more than v. The logarithm is for those few. Rounding of
    // the product is allowed for.
    const V16f unit = set1(1.0f / 16777216);
    for (int32_t row = first; row < end; row++) {
      const float* w = rates + int64_t(row) * cols;
      int32_t* id = ids + int64_t(row) * k;
      int32_t held = 0;
      V16f last = set1(std::numeric_limits<float>::infinity());
      for (int32_t i = 0; i < cols; i += 16) {
        const int32_t left = cols - i;
        alignas(64) int32_t label[16] = {0};
        V16i l;
        if (labels == nullptr) l = add(loadInts(firstLabels), set1i(i));
        else if (left >= 16) l = loadInts(labels + i);
        else {
          for (int j = 0; j < left; j++) label[j] = labels[i + j];
          l = loadInts(label);
        }
        const V16i high = mixed(add(mixed(flip(l, a)), b));
        uint32_t lanes = greater(mul(loadUpTo16(w + i, left, 0), last), mul(toFloat(shiftRight<8>(high)), unit));
        while (lanes != 0) {
          const int32_t j = i + __builtin_ctz(lanes);
          lanes &= lanes - 1;
          const uint32_t name = labels == nullptr ? uint32_t(j) : uint32_t(labels[j]);
          const double time = raceTime(name, uint32_t(key[0]), uint32_t(key[1])) / double(w[j]);
          if (held == k && !(time < best[k - 1])) continue;
          int32_t at = held < k ? held++ : k - 1;
          for (; at > 0 && time < best[at - 1]; at--) {
            best[at] = best[at - 1];
            id[at] = id[at - 1];
          }
          best[at] = time;
          id[at] = j;
          if (held == k) last = set1(float(best[k - 1]) * 1.00001f);
        }
      }
      for (int32_t j = 0; held < k; j++) {  // fewer runners than k: those of the lowest ids that stand still
        if (w[j] > 0) continue;
        best[held] = std::numeric_limits<double>::infinity();
        id[held++] = j;
      }
      for (int32_t j = 0; j < k; j++) times[int64_t(row) * k + j] = float(best[j]);
    }
  };
  forRows(n, cols, body);
}

double readAll(const float* data, int64_t count) {
  // Eight independent sums of one vector each: enough loads in flight to be limited by memory, not by latency.
  V16f s[8];
  for (int i = 0; i < 8; i++) s[i] = set1(0);
  for (int64_t i = 0; i + 128 <= count; i += 128) {
    prefetch(data + i + 1024);
    prefetch(data + i + 1040);
    for (int j = 0; j < 8; j++) s[j] = add(s[j], load(data + i + 16 * j));
  }
  double total = 0;
  for (int i = 0; i < 8; i++) total += foldSum(s[i]);
  return total;
}

inline void storeRow(float* to, const float* from, int32_t n) {
  for (int32_t i = 0; i < n; i++) to[i] = from[i];
}
inline void storeRow(uint16_t* to, const float* from, int32_t n) {
  int32_t i = 0;
  for (; i + 16 <= n; i += 16) storeHalf(to + i, load(from + i));
  if (i < n) {
    uint16_t lanes[16];
    storeHalf(lanes, loadN(from + i, n - i, 0));
    for (int32_t j = i; j < n; j++) to[j] = lanes[j - i];
  }
}

// Features [from, to) of one slot.
template <class T>
inline void storeFeatures(const KvLayer& kv, const float* key, const float* value, int32_t slot, int32_t from, int32_t to) {
  const int32_t width = kv.kvHeads * kv.headDim, count = to - from;
  storeRow(static_cast<T*>(kv.values) + int64_t(slot) * width + from, value + from, count);
  T* row = static_cast<T*>(scratch(1, size_t(count) * sizeof(T)));
  storeRow(row, key + from, count);
  T* keys = static_cast<T*>(kv.keys) + (int64_t(slot / kKvTile) * width + from) * kKvTile + slot % kKvTile;
  for (int32_t i = 0; i < count; i++) keys[int64_t(i) * kKvTile] = row[i];
}

constexpr int32_t kStoredAlone = 2048;   // elements: eleven rows of 192; fewer are stored sooner by one thread
constexpr int32_t kStoredTogether = 32;  // features: whole cache lines of keys, and of values where rows are aligned

void storeKv(const KvLayer& kv, const float* qkv, int32_t stride, int32_t keyOffset, int32_t valueOffset, const Layout& layout) {
  // Threads share the features, not the rows: rows of one tile share cache lines.
  const int32_t width = kv.kvHeads * kv.headDim, most = (width + kStoredTogether - 1) / kStoredTogether;
  const int32_t parts = layout.rows * int64_t(width) < kStoredAlone ? 1 : threadCount() < most ? threadCount() : most;
  auto part = [&](int index) {
    const int32_t from = most * index / parts * kStoredTogether, end = most * (index + 1) / parts * kStoredTogether, to = end < width ? end : width;
    for (int32_t row = 0; row < layout.rows; row++) {
      const float *start = qkv + int64_t(row) * stride, *key = start + keyOffset, *value = start + valueOffset;
      if (kv.half) storeFeatures<uint16_t>(kv, key, value, layout.slots[row], from, to);
      else storeFeatures<float>(kv, key, value, layout.slots[row], from, to);
    }
  };
  if (parts == 1) return part(0);
  parallel(parts, part);
}
