// Portable C++: the same kernels on arrays of 16, for any machine; compilers turn the loops into whatever the machine has.
#include <cmath>
#include <cstring>
#include <limits>

#include "../half.h"
#include "../kernels.h"
#include "../threads.h"

namespace eaglet {
namespace {

struct V16f { float v[16]; };
struct V16i { int32_t v[16]; };
struct V64b { uint8_t v[64]; };

constexpr int kRowsInt = 2;
constexpr int kRowsF32 = 2;
constexpr int kF32TwoTiles = 2;

#define EACH(expression)                   \
  V16f r;                                  \
  for (int i = 0; i < 16; i++) r.v[i] = (expression); \
  return r

inline V16f load(const float* p) { EACH(p[i]); }
inline V16f loadN(const float* p, int n, float fill) { EACH(i < n ? p[i] : fill); }
inline void storeN(float* p, V16f a, int n) {
  for (int i = 0; i < n; i++) p[i] = a.v[i];
}
inline void store(float* p, V16f a) { storeN(p, a, 16); }
inline V16f set1(float x) { EACH(x); }
inline V16f add(V16f a, V16f b) { EACH(a.v[i] + b.v[i]); }
inline V16f sub(V16f a, V16f b) { EACH(a.v[i] - b.v[i]); }
inline V16f mul(V16f a, V16f b) { EACH(a.v[i] * b.v[i]); }
inline V16f div(V16f a, V16f b) { EACH(a.v[i] / b.v[i]); }
// Two roundings: a library fma would be slow where the machine has none. The order is the same for every row, so the bits are.
inline V16f fma(V16f a, V16f b, V16f c) { EACH(a.v[i] * b.v[i] + c.v[i]); }
inline V16f max(V16f a, V16f b) { EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline V16f min(V16f a, V16f b) { EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline V16f abs(V16f a) { EACH(std::fabs(a.v[i])); }
inline float foldMax(V16f a) {
  float largest = a.v[0];
  for (int i = 1; i < 16; i++)
    if (a.v[i] > largest) largest = a.v[i];
  return largest;
}
// Lanes folded in halves, quarters and so on: in every table the same order.
inline float foldSum(V16f a) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) a.v[i] += a.v[i + width];
  return a.v[0];
}
inline uint32_t greater(V16f a, V16f b) {
  uint32_t lanes = 0;
  for (int i = 0; i < 16; i++) lanes |= uint32_t(a.v[i] > b.v[i]) << i;
  return lanes;
}
// x where a > b, else 0.
inline V16f whereGreater(V16f a, V16f b, V16f x) { EACH(a.v[i] > b.v[i] ? x.v[i] : 0.0f); }
// 1.5·2^23 pushes the fraction out of the mantissa; |a| stays below 2^22 where this is used.
inline V16f roundEven(V16f a) {
  volatile float magic = 12582912.0f;
  const float m = magic;
  EACH((a.v[i] + m) - m);
}
inline V16f timesPow2(V16f a, V16f n) { EACH(a.v[i] * bitsToFloat(uint32_t(int32_t(n.v[i]) + 127) << 23)); }

inline V16f loadHalf(const uint16_t* p) { EACH(halfToFloat(p[i])); }
inline void storeHalf(uint16_t* p, V16f a) {
  for (int i = 0; i < 16; i++) p[i] = floatToHalf(a.v[i]);
}

inline V16i add(V16i a, V16i b) {
  for (int i = 0; i < 16; i++) a.v[i] = int32_t(uint32_t(a.v[i]) + uint32_t(b.v[i]));
  return a;
}
#define EACH_INT(expression)                 \
  V16i r;                                    \
  for (int i = 0; i < 16; i++) r.v[i] = int32_t(expression); \
  return r

inline V16i loadInts(const int32_t* p) { EACH_INT(p[i]); }
inline V16i mulLow(V16i a, V16i b) { EACH_INT(uint32_t(a.v[i]) * uint32_t(b.v[i])); }
inline V16i flip(V16i a, V16i b) { EACH_INT(a.v[i] ^ b.v[i]); }
template <int N>
inline V16i shiftRight(V16i a) { EACH_INT(uint32_t(a.v[i]) >> N); }

#undef EACH_INT

inline V16i set1i(int32_t x) {
  V16i r;
  for (int i = 0; i < 16; i++) r.v[i] = x;
  return r;
}
inline V16f toFloat(V16i a) { EACH(float(a.v[i])); }
inline V16i toInt(V16f a) {
  const V16f rounded = roundEven(a);
  V16i r;
  // NaN has no integer: it becomes 0 here rather than undefined behaviour.
  for (int i = 0; i < 16; i++) r.v[i] = rounded.v[i] >= -2e9f && rounded.v[i] <= 2e9f ? int32_t(rounded.v[i]) : 0;
  return r;
}
inline V16f bitsAsFloat(V16i a) {
  V16f r;
  std::memcpy(r.v, a.v, sizeof r.v);
  return r;
}
// 32 bytes of what fits them.
inline void storeBytes(int8_t* p, V16i low, V16i high) {
  for (int i = 0; i < 16; i++) p[i] = int8_t(low.v[i]), p[16 + i] = int8_t(high.v[i]);
}
// Lane i: of all lanes of v[i].
inline V16f maxOfEach(const V16f* v) { EACH(foldMax(v[i])); }
inline V16i sumOfEach(const V16i* v) {
  V16i r = set1i(0);
  for (int i = 0; i < 16; i++)
    for (int lane = 0; lane < 16; lane++) r.v[i] += v[i].v[lane];
  return r;
}

inline V64b load64(const uint8_t* p) {
  V64b r;
  for (int i = 0; i < 64; i++) r.v[i] = p[i];
  return r;
}
inline V64b lowNibbles(V64b a) {
  for (int i = 0; i < 64; i++) a.v[i] &= 15;
  return a;
}
inline V64b highNibbles(V64b a) {
  for (int i = 0; i < 64; i++) a.v[i] >>= 4;
  return a;
}

inline V16f byteReach(V16f x) { return abs(x); }  // sums of 32 bits hold any bytes
inline void park(V16f&) {}  // registers suffice
// acc + sum of four products per lane.
inline V16i dotBytes(V16i acc, const V64b& w, const int32_t& x) {
  int8_t xs[4];
  std::memcpy(xs, &x, 4);
  for (int i = 0; i < 16; i++)
    acc.v[i] += int(w.v[4 * i]) * xs[0] + int(w.v[4 * i + 1]) * xs[1] + int(w.v[4 * i + 2]) * xs[2] + int(w.v[4 * i + 3]) * xs[3];
  return acc;
}

using NibbleDots = V16i;
inline NibbleDots noNibbles() { return set1i(0); }
inline NibbleDots dotNibbles(NibbleDots acc, const V64b& w, const int32_t& x) { return dotBytes(acc, w, x); }
inline V16i total(NibbleDots x) { return x; }

constexpr int kScoreTiles = 1;    // attention: key tiles or value vectors by queries are sums in registers
constexpr int kQueriesTogether = 4;
constexpr int kManyQueries = 0;
constexpr int kValueVectors = 1;
constexpr int64_t kF32Ahead = 4096;  // bytes: about a memory latency at full bandwidth
inline void prefetch(const void*) {}

#undef EACH

#include "../rows-inl.h"

#include "../ahead-inl.h"

#include "../matmul-inl.h"

#include "../attention-inl.h"

#include "../grad-inl.h"

}  // namespace

const Kernels kGeneric = {"generic", matmul, rmsNorm, rope, storeKv, attention, swiglu, softmax, argmax, topK, race, transpose, accumulateOuter, scatterAddRows,
                        rmsNormBackward, swigluBackward, attentionBackward, softCrossEntropy, readAll, multiplyAdds};

}  // namespace eaglet
