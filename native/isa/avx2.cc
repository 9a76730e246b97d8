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

// 16 registers: two rows keep f32 and int32 accumulators (8) beside the weights and what the signed product needs.
constexpr int kRowsPerPass = 2;

inline V16f load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, V16f v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
inline V16f loadN(const float* p, int n, float fill) {
  alignas(64) float lanes[16];
  for (int i = 0; i < 16; i++) lanes[i] = i < n ? p[i] : fill;
  return load(lanes);
}
inline void storeN(float* p, V16f v, int n) {
  alignas(64) float lanes[16];
  store(lanes, v);
  for (int i = 0; i < n; i++) p[i] = lanes[i];
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
inline uint32_t greater(V16f x, V16f y) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ))) |
         uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))) << 8;
}
inline V16f zeroWhere(uint32_t lanes, V16f x) {
  if (lanes == 0) return x;
  alignas(64) float v[16];
  store(v, x);
  for (int i = 0; i < 16; i++)
    if (lanes >> i & 1) v[i] = 0;
  return load(v);
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

inline V16i set1i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline V16f toFloat(V16i x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline V16i toInt(V16f x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline void storeBytes(int8_t* p, V16i x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline int32_t sum(V16i x) {
  const __m256i s = _mm256_add_epi32(x.a, x.b);
  __m128i r = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  r = _mm_add_epi32(r, _mm_shuffle_epi32(r, 0x4e));
  r = _mm_add_epi32(r, _mm_shuffle_epi32(r, 0xb1));
  return _mm_cvtsi128_si32(r);
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

inline __m256i quads(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
// Nibbles: 2·15·127 stays far below the 16-bit saturation of the pairwise product.
inline V16i dotUnsigned(V16i acc, V64b w, int32_t x) {
  const __m256i xs = _mm256_set1_epi32(x);
  return {_mm256_add_epi32(acc.a, quads(_mm256_maddubs_epi16(w.a, xs))), _mm256_add_epi32(acc.b, quads(_mm256_maddubs_epi16(w.b, xs)))};
}
// Bytes 0..255 would saturate, so the sign moves from weight to input: |w| <= 128, 2·128·127 < 2^15.
inline __m256i dotSigned(__m256i acc, __m256i offsetWeights, __m256i x) {
  const __m256i w = _mm256_xor_si256(offsetWeights, _mm256_set1_epi8(char(0x80)));
  return _mm256_add_epi32(acc, quads(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))));
}
inline V16i dotOffset(V16i acc, V64b w, int32_t x) {
  const __m256i xs = _mm256_set1_epi32(x);
  return {dotSigned(acc.a, w.a, xs), dotSigned(acc.b, w.b, xs)};
}
inline int32_t offsetStart(int32_t) { return 0; }

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#include "../rows-inl.h"

#include "../matmul-inl.h"

#include "../attention-inl.h"

}  // namespace

const Kernels kAvx2 = {"avx2", matmul, rmsNorm, rope, storeKv, attention, swiglu, softmax, argmax, topK, readAll};

}  // namespace eaglet
#endif
