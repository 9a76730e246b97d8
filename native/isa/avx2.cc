// AVX2 with FMA and F16C: a tile's 16 outputs are two registers.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <limits>

#include "../kernels.h"
#include "../threads.h"

namespace eaglet {
namespace {

struct V16f { __m256 a, b; };
struct V16i { __m256i a, b; };
struct V64b { __m256i a, b; };

// 16 registers. Six rows of int32 or f32 accumulators are twelve of them; weights, a broadcast input and a temporary take the rest.
constexpr int kRowsInt = 6;
constexpr int kRowsF32 = 6;
constexpr int kF32TwoTiles = 2;  // up to here two tiles side by side fit

inline V16f load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, V16f v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
// 16 lanes on, then 16 off: a window over it is the mask of the first n lanes.
alignas(64) const int32_t kLanes[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
inline __m256i firstLanes(int n, int half) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLanes + 16 - n + 8 * half)); }
inline __m256 loadHalfN(const float* p, __m256i lanes, float fill) {
  return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, lanes), _mm256_castsi256_ps(lanes));
}
inline V16f loadN(const float* p, int n, float fill) {
  return {loadHalfN(p, firstLanes(n, 0), fill), loadHalfN(p + 8, firstLanes(n, 1), fill)};
}
inline void storeN(float* p, V16f v, int n) {
  _mm256_maskstore_ps(p, firstLanes(n, 0), v.a);
  _mm256_maskstore_ps(p + 8, firstLanes(n, 1), v.b);
}
inline V16f set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline V16f add(V16f x, V16f y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline V16f sub(V16f x, V16f y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline V16f mul(V16f x, V16f y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline V16f div(V16f x, V16f y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline V16f fma(V16f x, V16f y, V16f z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline V16f max(V16f x, V16f y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline V16f min(V16f x, V16f y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline V16f abs(V16f x) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
inline float foldMax(V16f x) {
  const __m256 m = _mm256_max_ps(x.a, x.b);
  __m128 r = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  r = _mm_max_ps(r, _mm_movehl_ps(r, r));
  return _mm_cvtss_f32(_mm_max_ss(r, _mm_movehdup_ps(r)));
}
// Lanes folded in halves, quarters and so on: in every table the same order.
inline float foldSum(V16f x) {
  const __m256 h = _mm256_add_ps(x.a, x.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline uint32_t greater(V16f x, V16f y) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ))) |
         uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))) << 8;
}
// x where a > b, else 0.
inline V16f whereGreater(V16f a, V16f b, V16f x) {
  return {_mm256_and_ps(_mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ), x.a), _mm256_and_ps(_mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ), x.b)};
}
inline V16f roundEven(V16f x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// n is integral and within -126..127.
inline V16f timesPow2(V16f x, V16f n) {
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i ea = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.a), bias), 23);
  const __m256i eb = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.b), bias), 23);
  return {_mm256_mul_ps(x.a, _mm256_castsi256_ps(ea)), _mm256_mul_ps(x.b, _mm256_castsi256_ps(eb))};
}

inline V16f loadHalf(const uint16_t* p) {
  const __m128i* from = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))};
}
inline void storeHalf(uint16_t* p, V16f x) {
  __m128i* to = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(to, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(to + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}

inline V16i add(V16i x, V16i y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline V16i set1i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline V16i loadInts(const int32_t* p) {
  const __m256i* from = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
inline V16i mulLow(V16i x, V16i y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
inline V16i flip(V16i x, V16i y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
template <int N>
inline V16i shiftRight(V16i x) { return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)}; }
inline V16f toFloat(V16i x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline V16i toInt(V16f x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline V16f bitsAsFloat(V16i x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline void storeBytes(int8_t* p, V16i x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
// 32 bytes of what fits them.
inline void storeBytes(int8_t* p, V16i low, V16i high) {
  storeBytes(p, low);
  storeBytes(p + 16, high);
}
inline int32_t sum(V16i x) {
  const __m256i s = _mm256_add_epi32(x.a, x.b);
  __m128i r = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  r = _mm_add_epi32(r, _mm_shuffle_epi32(r, 0x4e));
  r = _mm_add_epi32(r, _mm_shuffle_epi32(r, 0xb1));
  return _mm_cvtsi128_si32(r);
}

// Lane i: of all lanes of v[i].
inline V16f maxOfEach(const V16f* v) {
  alignas(64) float each[16];
  for (int i = 0; i < 16; i++) each[i] = foldMax(v[i]);
  return load(each);
}
inline V16i sumOfEach(const V16i* v) {
  alignas(64) int32_t each[16];
  for (int i = 0; i < 16; i++) each[i] = sum(v[i]);
  const __m256i* from = reinterpret_cast<const __m256i*>(each);
  return {_mm256_load_si256(from), _mm256_load_si256(from + 1)};
}

inline V64b load64(const uint8_t* p) {
  const __m256i* from = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
inline V64b lowNibbles(V64b x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
inline V64b highNibbles(V64b x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), mask)};
}

// Two byte products are added in 16 bits, which hold 255 · 128: so no two neighbouring int8 inputs may add up to more, whatever the weights.
// 127 of their sum, as of each alone, leaves room for both being rounded up. Of opposite signs they take from each other.
inline V16f byteReach(V16f x) {
  const V16f pairs = {_mm256_add_ps(x.a, _mm256_permute_ps(x.a, 0xb1)), _mm256_add_ps(x.b, _mm256_permute_ps(x.b, 0xb1))};
  return max(abs(x), abs(pairs));
}
// A running sum stays one: the compiler would add products to each other first, which needs more registers than there are.
inline void hold(__m256i& x) { asm("" : "+x"(x)); }
// Leaves a value in memory where registers are needed more: the compiler would rather spill what the inner loop uses.
inline void park(V16f& x) { asm volatile("" : "+m"(x.a), "+m"(x.b)); }
// acc + sum of four products per lane.
inline V16i dotBytes(V16i acc, V64b w, const int32_t& x) {
  const __m256i xs = _mm256_set1_epi32(x), one = _mm256_set1_epi16(1);
  acc.a = _mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(w.a, xs), one));
  hold(acc.a);
  acc.b = _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(w.b, xs), one));
  hold(acc.b);
  return acc;
}

// Nibbles fit the byte product, and a whole block its 16-bit sums: 8 groups · 2 · 15 · 128 = 30,720.
struct NibbleDots { __m256i a, b; };
inline NibbleDots noNibbles() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline NibbleDots dotNibbles(NibbleDots acc, V64b w, const int32_t& x) {
  const __m256i xs = _mm256_set1_epi32(x);
  acc.a = _mm256_add_epi16(acc.a, _mm256_maddubs_epi16(w.a, xs));
  hold(acc.a);
  acc.b = _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(w.b, xs));
  hold(acc.b);
  return acc;
}
inline V16i total(NibbleDots x) {
  const __m256i one = _mm256_set1_epi16(1);
  return {_mm256_madd_epi16(x.a, one), _mm256_madd_epi16(x.b, one)};
}

constexpr int kScoreTiles = 1;    // attention: key tiles or value vectors by queries are sums in registers
constexpr int kQueriesTogether = 6;
constexpr int kManyQueries = 0;
constexpr int kValueVectors = 1;
constexpr int64_t kF32Ahead = 4096;  // bytes: about a memory latency at full bandwidth
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#include "../rows-inl.h"

#include "../ahead-inl.h"

#include "../matmul-inl.h"

#include "../attention-inl.h"

#include "../grad-inl.h"

}  // namespace

const Kernels kAvx2 = {"avx2", matmul, rmsNorm, rope, storeKv, attention, swiglu, softmax, argmax, topK, race, transpose, accumulateOuter, scatterAddRows,
                        rmsNormBackward, swigluBackward, attentionBackward, softCrossEntropy, readAll, multiplyAdds};

}  // namespace eaglet
#endif
