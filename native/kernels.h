// The table of function pointers: the entire native surface. Knows pointers, sizes and strides; knows nothing of models.
// Layouts and contracts are written down once, in src/kernels/kernels.ts; arguments were checked there.
#pragma once

#include <cstdint>

namespace eaglet {

constexpr int kTileRows = 16;  // outputs per tile: one AVX-512 register of f32
constexpr int kBlock = 32;     // inputs per quantisation block
constexpr int kKvTile = 16;    // slots per tile of the transposed key cache

enum class Dtype : int32_t { F32, Q8, Q4 };
enum class SourceType : int32_t { F32, F16, BF16, Q8_0, Q4_0, Q4_1 };

struct Matrix {  // W [rows, cols] in tiles of 16 rows
  Dtype dtype;
  int32_t rows, cols;
  uint8_t* data;

  int32_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  int32_t blocks() const { return (cols + kBlock - 1) / kBlock; }
  int64_t tileBytes() const {
    switch (dtype) {
      case Dtype::F32: return int64_t(cols) * kTileRows * 4;
      case Dtype::Q8: return (int64_t(blocks()) * 544 + 63) / 64 * 64;
      case Dtype::Q4: return int64_t(blocks()) * 320;
    }
    return 0;
  }
};

struct KvLayer {
  bool half;  // f16, else f32
  int32_t kvHeads, headDim, slots;
  void* keys;    // [slots/16][kvHeads][headDim][16]
  void* values;  // [slots][kvHeads][headDim]
};

struct Layout {
  int32_t rows;
  const int32_t *base, *prefix, *slots, *extrasStart, *extras;
};

struct Kernels {
  const char* isa;
  void (*matmul)(float* out, const float* x, const Matrix& w, int32_t n, const float* residual);
  void (*rmsNorm)(float* out, const float* x, const float* weight, int32_t n, int32_t cols, float eps);
  void (*rope)(float* x, int32_t stride, int32_t n, int32_t heads, int32_t headDim, const int32_t* positions, const float* cos,
               const float* sin);
  void (*storeKv)(const KvLayer& kv, const float* qkv, int32_t stride, int32_t keyOffset, int32_t valueOffset, const Layout& layout);
  void (*attention)(float* out, const float* qkv, int32_t stride, int32_t heads, const KvLayer& kv, const Layout& layout, const KvLayer* next);
  void (*swiglu)(float* out, const float* x, int32_t n, int32_t cols);
  void (*softmax)(float* out, const float* x, int32_t n, int32_t cols, float inverseTemperature);
  void (*argmax)(int32_t* out, const float* x, int32_t n, int32_t cols);
  void (*topK)(int32_t* ids, float* values, const float* x, int32_t n, int32_t cols, int32_t k);
  void (*race)(int32_t* ids, float* times, const float* rates, int32_t n, int32_t cols, int32_t k, const int32_t* key, const int32_t* labels);
  void (*transpose)(const Matrix& out, const Matrix& weight);
  void (*accumulateOuter)(const Matrix& gradient, const float* dy, const float* x, int32_t n);
  void (*scatterAddRows)(const Matrix& gradient, const int32_t* ids, const float* dy, int32_t count);
  void (*rmsNormBackward)(float* dx, float* dWeight, const float* dy, const float* x, const float* weight, int32_t n, int32_t cols, float eps);
  void (*swigluBackward)(float* dx, const float* dy, const float* x, int32_t n, int32_t cols);
  void (*attentionBackward)(float* dQkv, float* dKeys, float* dValues, const float* dOut, const float* qkv, int32_t stride, int32_t heads,
                            const KvLayer& kv, const Layout& layout);
  void (*softCrossEntropy)(float* losses, float* dLogits, const float* logits, const float* teacher, const float* weights, int32_t n, int32_t cols);
  double (*readAll)(const float* data, int64_t count);  // a sum, so that every byte is really read
  int64_t (*multiplyAdds)(int32_t rounds, float* result);        // how many; `result`, 0.5 on entry, so that they are really done
};

// Instruction-set independent (pack.cc): used at load, or on a few rows.
void pack(const Matrix& m, int32_t firstRow, const uint8_t* source, SourceType type, const int32_t* rowMap, int32_t count);
void gatherRows(float* out, int32_t outStride, const Matrix& m, const int32_t* ids, int32_t count);
void moveKv(const KvLayer& kv, const int32_t* from, const int32_t* to, int32_t count);

extern const Kernels kGeneric;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512Vnni;
#endif

// dispatch.cc: tables that this machine can run, best first.
int supportedTables(const Kernels** out, int capacity);

}  // namespace eaglet
