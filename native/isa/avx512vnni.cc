// AVX-512 (F, BW, VL, DQ) with VNNI: one register holds a tile's 16 outputs, one instruction multiplies 64 bytes.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <limits>

#include "../kernels.h"
#include "../threads.h"

namespace eaglet {
namespace {

struct V16f { __m512 v; };
struct V16i { __m512i v; };
struct V64b { __m512i v; };

// 32 registers: 8 rows of f32 and 8 of int32 accumulators, or two f32 tiles of 8 rows, the weights, and room to spare.
constexpr int kRowsInt = 8;
constexpr int kRowsF32 = 8;
constexpr int kF32TwoTiles = 8;

inline __mmask16 firstLanes(int n) { return __mmask16((1u << n) - 1); }

inline V16f load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline V16f loadN(const float* p, int n, float fill) { return {_mm512_mask_loadu_ps(_mm512_set1_ps(fill), firstLanes(n), p)}; }
inline void store(float* p, V16f a) { _mm512_storeu_ps(p, a.v); }
inline void storeN(float* p, V16f a, int n) { _mm512_mask_storeu_ps(p, firstLanes(n), a.v); }
inline V16f set1(float x) { return {_mm512_set1_ps(x)}; }
inline V16f add(V16f a, V16f b) { return {_mm512_add_ps(a.v, b.v)}; }
inline V16f sub(V16f a, V16f b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline V16f mul(V16f a, V16f b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline V16f div(V16f a, V16f b) { return {_mm512_div_ps(a.v, b.v)}; }
inline V16f fma(V16f a, V16f b, V16f c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline V16f max(V16f a, V16f b) { return {_mm512_max_ps(a.v, b.v)}; }
inline V16f min(V16f a, V16f b) { return {_mm512_min_ps(a.v, b.v)}; }
inline V16f abs(V16f a) { return {_mm512_abs_ps(a.v)}; }
inline float foldMax(V16f a) { return _mm512_reduce_max_ps(a.v); }
// Lanes folded in halves, quarters and so on: in every table the same order.
inline float foldSum(V16f a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline uint32_t greater(V16f a, V16f b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
// x where a > b, else 0.
inline V16f whereGreater(V16f a, V16f b, V16f x) { return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), x.v)}; }
inline V16f roundEven(V16f a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline V16f timesPow2(V16f a, V16f n) { return {_mm512_scalef_ps(a.v, n.v)}; }

inline V16f loadHalf(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline void storeHalf(uint16_t* p, V16f a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

inline V16i add(V16i a, V16i b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline V16i set1i(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline V16i loadInts(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline V16i mulLow(V16i a, V16i b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline V16i flip(V16i a, V16i b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int N>
inline V16i shiftRight(V16i a) { return {_mm512_srli_epi32(a.v, N)}; }
inline V16f toFloat(V16i a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline V16i toInt(V16f a) { return {_mm512_cvtps_epi32(a.v)}; }
inline V16f bitsAsFloat(V16i a) { return {_mm512_castsi512_ps(a.v)}; }
// 32 bytes of what fits them.
inline void storeBytes(int8_t* p, V16i low, V16i high) {
  const __m512i words = _mm512_packs_epi32(low.v, high.v), quads = _mm512_packs_epi16(words, words);  // of each quarter: four low, four high, again
  const __m512i inOrder = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0), quads);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(inOrder));
}

// Quarters P, Q of x and R, S of y.
template <int P, int Q, int R, int S>
inline __m512 quartersOf(__m512 x, __m512 y) {
  return _mm512_castsi512_ps(_mm512_shuffle_i32x4(_mm512_castps_si512(x), _mm512_castps_si512(y), P | Q << 2 | R << 4 | S << 6));
}
// Lane i: all lanes of v[i] folded by `op`, in halves, quarters and so on. Fifteen operations for all sixteen.
template <class Op>
inline __m512 foldEach(const __m512* v, Op op) {
  auto halves = [&](__m512 x, __m512 y) { return op(quartersOf<0, 1, 0, 1>(x, y), quartersOf<2, 3, 2, 3>(x, y)); };
  __m512 quarters[4];
  for (int i = 0; i < 4; i++) {  // the quarters of v[i], v[4 + i], v[8 + i], v[12 + i], folded
    const __m512 a = halves(v[i], v[4 + i]), b = halves(v[8 + i], v[12 + i]);
    quarters[i] = op(quartersOf<0, 2, 0, 2>(a, b), quartersOf<1, 3, 1, 3>(a, b));
  }
  const __m512 even = op(_mm512_unpacklo_ps(quarters[0], quarters[1]), _mm512_unpackhi_ps(quarters[0], quarters[1]));
  const __m512 odd = op(_mm512_unpacklo_ps(quarters[2], quarters[3]), _mm512_unpackhi_ps(quarters[2], quarters[3]));
  const __m512d e = _mm512_castps_pd(even), o = _mm512_castps_pd(odd);
  return op(_mm512_castpd_ps(_mm512_unpacklo_pd(e, o)), _mm512_castpd_ps(_mm512_unpackhi_pd(e, o)));
}
inline V16f maxOfEach(const V16f* v) {
  __m512 each[16];
  for (int i = 0; i < 16; i++) each[i] = v[i].v;
  return {foldEach(each, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); })};
}
inline V16i sumOfEach(const V16i* v) {
  __m512 each[16];
  for (int i = 0; i < 16; i++) each[i] = _mm512_castsi512_ps(v[i].v);
  auto sum = [](__m512 a, __m512 b) { return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b))); };
  return {_mm512_castps_si512(foldEach(each, sum))};
}

inline V64b load64(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline V64b lowNibbles(V64b a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline V64b highNibbles(V64b a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }

inline V16f byteReach(V16f x) { return abs(x); }  // sums of 32 bits hold any bytes
inline void park(V16f&) {}  // registers suffice
// acc + sum of four products per lane. Written out because GCC 12 does not fold the broadcast into the product: a broadcast for
// every product takes 13 to 15 % more time.
inline V16i dotBytes(V16i acc, V64b w, const int32_t& x) {
#if defined(EAGLET_EMULATED_AVX512)
  return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(x))};
#else
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc.v) : "v"(w.v), "m"(x));
  return acc;
#endif
}

using NibbleDots = V16i;
inline NibbleDots noNibbles() { return set1i(0); }
inline NibbleDots dotNibbles(NibbleDots acc, V64b w, const int32_t& x) { return dotBytes(acc, w, x); }
inline V16i total(NibbleDots x) { return x; }

constexpr int kScoreTiles = 4;    // attention: key tiles or value vectors by queries are sums in registers
constexpr int kQueriesTogether = 6;
constexpr int kManyQueries = 12;     // by two tiles or vectors
constexpr int kValueVectors = 4;
constexpr int64_t kF32Ahead = 4096;  // bytes: about a memory latency at full bandwidth
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

#include "../rows-inl.h"

#include "../ahead-inl.h"

#include "../matmul-inl.h"

#include "../attention-inl.h"

#include "../grad-inl.h"

}  // namespace

const Kernels kAvx512Vnni = {"avx512vnni", matmul, rmsNorm, rope, storeKv, attention, swiglu, softmax, argmax, topK, race, transpose, accumulateOuter, scatterAddRows,
                        rmsNormBackward, swigluBackward, attentionBackward, softCrossEntropy, readAll, multiplyAdds};

}  // namespace eaglet
#endif
