// What memory brings while arithmetic keeps the cores busy: the weights that come next, and the next layer's keys and values.

constexpr int32_t kBesideBytes = 128;  // of keys and values, that a pass fetches with every block of weights

struct Ahead {
  const uint8_t* next;  // weights, `step` bytes per block or input
  int32_t step;
  const uint8_t* beside = nullptr;  // keys and values, `besideStep` bytes per block: kBesideBytes, or 0 where there are none
  int32_t besideStep = 0;

  inline void fetch() {
    for (int32_t i = 0; i < step; i += 64) prefetch(next + i);
    next += step;
  }
  // Where a step is long: a line at a time between the arithmetic, since few can be under way at once and whoever asks for more waits.
  inline void fetchLine(int32_t line) const {
    if (line * 64 < step) prefetch(next + line * 64);
  }
  inline void advance() { next += step; }
  inline void fetchBeside() {
    for (int32_t i = 0; i < kBesideBytes; i += 64) prefetch(beside + i);
    beside += besideStep;
  }
};

// Keys and values that the next call of attention reads. Attention waits for memory, products of several passes wait for arithmetic: so
// these fetch for that, each thread what comes with its tiles, into the cache that the threads share.
class Upcoming {
 public:
  // Of `kv`, what rows look at before this forward's own; nothing where there is no `kv`.
  void set(const KvLayer* kv, const Layout& layout) {
    count_ = 0;
    taken_ = 0;
    if (kv == nullptr) return;
    const int64_t slotBytes = int64_t(kv->kvHeads) * kv->headDim * (kv->half ? 2 : 4);
    for (int32_t row = 0; row < layout.rows && count_ + 2 <= kMostRanges && bytes() < kMostBytes; row++) {
      if (row > 0 && layout.base[row] == layout.base[row - 1]) continue;
      const int64_t first = layout.base[row] * slotBytes, tiles = (layout.prefix[row] + kKvTile - 1) / kKvTile;
      add(static_cast<const uint8_t*>(kv->keys) + first, tiles * kKvTile * slotBytes);
      add(static_cast<const uint8_t*>(kv->values) + first, layout.prefix[row] * slotBytes);
    }
  }

  int64_t bytes() const { return count_ == 0 ? 0 : ranges_[count_ - 1].end; }

  // Where the next `bytes` of them begin, which the caller fetches.
  int64_t take(int64_t bytes) {
    const int64_t at = taken_;
    taken_ += bytes;
    return at;
  }

  // Where byte `at` lies; null past the last.
  const uint8_t* find(int64_t at) const {
    if (at >= bytes()) return nullptr;
    int32_t low = 0, high = count_ - 1;
    while (low < high) {
      const int32_t middle = (low + high) / 2;
      if (at < ranges_[middle].end) high = middle;
      else low = middle + 1;
    }
    return ranges_[low].to + (at - ranges_[low].end);
  }

 private:
  static constexpr int32_t kMostRanges = 256;  // keys and values of 128 sequences
  static constexpr int64_t kMostBytes = 8 << 20;  // what a shared cache keeps beside all else until it is read

  struct Range {
    const uint8_t* to;  // behind its last byte
    int64_t end;        // counted over all ranges
  };

  void add(const uint8_t* from, int64_t count) {
    if (count == 0) return;
    const int64_t end = bytes() + count;
    ranges_[count_++] = {from + count, end};
  }

  Range ranges_[kMostRanges] = {};
  int32_t count_ = 0;
  int64_t taken_ = 0;
};

// Of the thread that calls the kernels.
thread_local Upcoming upcoming;
