// Weights from file layouts to tiles, single rows back to f32, and KV rows from slot to slot. Runs at load or on few rows, so it
// is plain C++ without instruction-set variants.
#include <cmath>
#include <cstring>

#include "half.h"
#include "kernels.h"
#include "threads.h"

namespace eaglet {
namespace {

int64_t sourceRowBytes(SourceType type, int32_t cols) {
  switch (type) {
    case SourceType::F32: return int64_t(cols) * 4;
    case SourceType::F16:
    case SourceType::BF16: return int64_t(cols) * 2;
    case SourceType::Q8_0: return int64_t(cols) / kBlock * 34;
    case SourceType::Q4_0: return int64_t(cols) / kBlock * 18;
    case SourceType::Q4_1: return int64_t(cols) / kBlock * 20;
  }
  return 0;
}

uint16_t read16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}

void dequantiseRow(float* out, const uint8_t* row, SourceType type, int32_t cols) {
  switch (type) {
    case SourceType::F32: std::memcpy(out, row, size_t(cols) * 4); return;
    case SourceType::F16:
      for (int32_t i = 0; i < cols; i++) out[i] = halfToFloat(read16(row + 2 * i));
      return;
    case SourceType::BF16:
      for (int32_t i = 0; i < cols; i++) out[i] = bfloatToFloat(read16(row + 2 * i));
      return;
    case SourceType::Q8_0:
      for (int32_t b = 0; b < cols / kBlock; b++, row += 34) {
        const float d = halfToFloat(read16(row));
        for (int i = 0; i < kBlock; i++) *out++ = d * float(int8_t(row[2 + i]));
      }
      return;
    case SourceType::Q4_0:
    case SourceType::Q4_1: {
      const bool hasMinimum = type == SourceType::Q4_1;
      for (int32_t b = 0; b < cols / kBlock; b++) {
        const float d = halfToFloat(read16(row));
        const float m = hasMinimum ? halfToFloat(read16(row + 2)) : -8 * d;
        const uint8_t* q = row + (hasMinimum ? 4 : 2);
        for (int i = 0; i < 16; i++) {
          out[i] = d * float(q[i] & 15) + m;
          out[i + 16] = d * float(q[i] >> 4) + m;
        }
        out += kBlock;
        row = q + 16;
      }
      return;
    }
  }
}

// Where block b of output lane `lane` of a tile lies.
struct TileView {
  uint8_t* tile;
  int32_t blocks;
  uint8_t* q8(int32_t b, int lane) const { return tile + int64_t(b) * 512 + lane * 4; }      // groups 64 bytes apart
  uint8_t* q4(int32_t b, int lane) const { return tile + int64_t(b) * 256 + lane * 4; }      // groups 64 bytes apart
  uint16_t* q8Scale(int32_t b, int lane) const { return reinterpret_cast<uint16_t*>(tile + int64_t(blocks) * 512) + b * 16 + lane; }
  uint16_t* q4Scale(int32_t b, int lane) const { return reinterpret_cast<uint16_t*>(tile + int64_t(blocks) * 256) + b * 32 + lane; }
};

void writeQ8(const TileView& view, int32_t b, int lane, uint16_t scale, const int8_t* q) {
  *view.q8Scale(b, lane) = scale;
  uint8_t* to = view.q8(b, lane);
  for (int g = 0; g < 8; g++)
    for (int i = 0; i < 4; i++) to[g * 64 + i] = uint8_t(int(q[4 * g + i]) + 128);
}

void quantiseQ8(const TileView& view, int32_t b, int lane, const float* x) {
  float largest = 0;
  for (int i = 0; i < kBlock; i++) largest = std::fmax(largest, std::fabs(x[i]));
  const uint16_t scale = floatToHalf(largest / 127.0f);
  const float d = halfToFloat(scale);
  int8_t q[kBlock];
  for (int i = 0; i < kBlock; i++) {
    const float r = d == 0 ? 0 : std::nearbyintf(x[i] / d);
    q[i] = int8_t(std::fmin(127.0f, std::fmax(-127.0f, r)));
  }
  writeQ8(view, b, lane, scale, q);
}

void quantiseQ4(const TileView& view, int32_t b, int lane, const float* x) {
  float low = x[0], high = x[0];
  for (int i = 1; i < kBlock; i++) {
    low = std::fmin(low, x[i]);
    high = std::fmax(high, x[i]);
  }
  const uint16_t minimum = floatToHalf(low), scale = floatToHalf((high - low) / 15.0f);
  const float m = halfToFloat(minimum), d = halfToFloat(scale);
  uint8_t q[kBlock];
  for (int i = 0; i < kBlock; i++) {
    const float r = d == 0 ? 0 : std::nearbyintf((x[i] - m) / d);
    q[i] = uint8_t(std::fmin(15.0f, std::fmax(0.0f, r)));
  }
  view.q4Scale(b, lane)[0] = scale;
  view.q4Scale(b, lane)[16] = minimum;
  uint8_t* to = view.q4(b, lane);
  for (int g = 0; g < 4; g++)
    for (int i = 0; i < 4; i++) to[g * 64 + i] = uint8_t(q[4 * g + i] | (q[16 + 4 * g + i] << 4));
}

void packRow(const Matrix& m, int32_t row, const uint8_t* from, SourceType type) {
  uint8_t* tile = m.data + int64_t(row / kTileRows) * m.tileBytes();
  const int lane = row % kTileRows;
  const int32_t blocks = m.blocks();
  const TileView view{tile, blocks};

  if (m.dtype == Dtype::Q8 && type == SourceType::Q8_0) {
    for (int32_t b = 0; b < blocks; b++, from += 34) writeQ8(view, b, lane, read16(from), reinterpret_cast<const int8_t*>(from + 2));
    return;
  }
  if (m.dtype == Dtype::Q4 && (type == SourceType::Q4_0 || type == SourceType::Q4_1)) {
    const bool hasMinimum = type == SourceType::Q4_1;
    for (int32_t b = 0; b < blocks; b++) {
      const uint16_t d = read16(from);
      view.q4Scale(b, lane)[0] = d;
      view.q4Scale(b, lane)[16] = hasMinimum ? read16(from + 2) : floatToHalf(-8 * halfToFloat(d));
      from += hasMinimum ? 4 : 2;
      // The file's nibble order is ours: byte 4g+i holds inputs 4g+i (low) and 16+4g+i (high).
      for (int g = 0; g < 4; g++) std::memcpy(view.q4(b, lane) + g * 64, from + 4 * g, 4);
      from += 16;
    }
    return;
  }

  float* values = static_cast<float*>(scratch(1, size_t(blocks) * kBlock * 4));
  dequantiseRow(values, from, type, m.cols);
  if (m.dtype == Dtype::F32) {
    float* to = reinterpret_cast<float*>(tile) + lane;
    for (int32_t i = 0; i < m.cols; i++) to[int64_t(i) * kTileRows] = values[i];
    return;
  }
  std::memset(values + m.cols, 0, size_t(blocks * kBlock - m.cols) * 4);
  for (int32_t b = 0; b < blocks; b++) {
    if (m.dtype == Dtype::Q8) quantiseQ8(view, b, lane, values + b * kBlock);
    else quantiseQ4(view, b, lane, values + b * kBlock);
  }
}

template <class T>
void moveRows(const KvLayer& kv, const int32_t* from, const int32_t* to, int32_t count) {
  T* keys = static_cast<T*>(kv.keys);
  T* values = static_cast<T*>(kv.values);
  const int64_t width = int64_t(kv.kvHeads) * kv.headDim;
  for (int32_t i = 0; i < count; i++) {
    if (from[i] == to[i]) continue;
    std::memmove(values + to[i] * width, values + from[i] * width, size_t(width) * sizeof(T));
    const T* keyFrom = keys + (from[i] / kKvTile) * width * kKvTile + from[i] % kKvTile;
    T* keyTo = keys + (to[i] / kKvTile) * width * kKvTile + to[i] % kKvTile;
    for (int64_t d = 0; d < width; d++) keyTo[d * kKvTile] = keyFrom[d * kKvTile];
  }
}

// A quantised row lies in all lines of its tile, 153 at 576 inputs: fetched as they are needed, too few are under way at once.
void prefetchTile(const Matrix& m, int32_t row) {
  if (m.dtype == Dtype::F32) return;
  const uint8_t* tile = m.data + int64_t(row / kTileRows) * m.tileBytes();
  for (int64_t at = 0; at < m.tileBytes(); at += 64) __builtin_prefetch(tile + at);
}

void gatherRow(float* out, const Matrix& m, int32_t row) {
  uint8_t* tile = m.data + int64_t(row / kTileRows) * m.tileBytes();
  const int lane = row % kTileRows;
  if (m.dtype == Dtype::F32) {
    for (int32_t i = 0; i < m.cols; i++) out[i] = reinterpret_cast<const float*>(tile)[int64_t(i) * kTileRows + lane];
    return;
  }
  const TileView view{tile, m.blocks()};
  float block[kBlock];
  for (int32_t b = 0, left = m.cols; left > 0; b++, left -= kBlock, out += kBlock) {
    if (m.dtype == Dtype::Q8) {
      const float d = halfToFloat(*view.q8Scale(b, lane));
      const uint8_t* q = view.q8(b, lane);
      for (int g = 0; g < 8; g++)
        for (int i = 0; i < 4; i++) block[4 * g + i] = d * float(int(q[g * 64 + i]) - 128);
    } else {
      const uint16_t* scale = view.q4Scale(b, lane);
      const float d = halfToFloat(scale[0]), minimum = halfToFloat(scale[16]);
      const uint8_t* q = view.q4(b, lane);
      for (int g = 0; g < 4; g++)
        for (int i = 0; i < 4; i++) {
          block[4 * g + i] = d * float(q[g * 64 + i] & 15) + minimum;
          block[16 + 4 * g + i] = d * float(q[g * 64 + i] >> 4) + minimum;
        }
    }
    std::memcpy(out, block, size_t(left < kBlock ? left : kBlock) * sizeof(float));
  }
}

}  // namespace

void pack(const Matrix& m, int32_t firstRow, const uint8_t* source, SourceType type, const int32_t* rowMap, int32_t count) {
  const int64_t rowBytes = sourceRowBytes(type, m.cols);
  constexpr int32_t kRows = kTileRows;  // enough work to outweigh handing out a chunk
  // Two threads may write different lanes of one tile: different bytes, so no race.
  auto body = [&](int chunk) {
    const int32_t end = chunk * kRows + kRows < count ? chunk * kRows + kRows : count;
    for (int32_t i = chunk * kRows; i < end; i++) packRow(m, firstRow + i, source + rowMap[i] * rowBytes, type);
  };
  parallel((count + kRows - 1) / kRows, body);
}

void gatherRows(float* out, int32_t outStride, const Matrix& m, const int32_t* ids, int32_t count) {
  if (count > 0) prefetchTile(m, ids[0]);
  for (int32_t n = 0; n < count; n++, out += outStride) {
    if (n + 1 < count) prefetchTile(m, ids[n + 1]);
    gatherRow(out, m, ids[n]);
  }
}

void moveKv(const KvLayer& kv, const int32_t* from, const int32_t* to, int32_t count) {
  if (kv.half) moveRows<uint16_t>(kv, from, to, count);
  else moveRows<float>(kv, from, to, count);
}

}  // namespace eaglet
