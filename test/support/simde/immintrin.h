// Stands in for the compiler's immintrin.h where npm run test:isa compiles native/isa/avx512vnni.cc for a machine without AVX-512:
// SIMDe's portable implementations under Intel's names, and in plain C++ the few that SIMDe 0.7.4 lacks.
#pragma once

#define SIMDE_NO_NATIVE  // never the compiler's own, whose types would be other ones of the same name
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "../../../native/half.h"

using __mmask16 = simde__mmask16;
#if !defined(_MM_FROUND_NO_EXC)
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC
#endif

namespace emulated {

struct Floats { float v[16]; };
struct Integers { int32_t v[16]; };
struct Halves { uint16_t v[16]; };

inline Floats lanes(__m512 a) {
  Floats r;
  _mm512_storeu_ps(r.v, a);
  return r;
}
inline Integers lanes(__m512i a) {
  Integers r;
  _mm512_storeu_si512(r.v, a);
  return r;
}
inline Halves lanes(__m256i a) {
  Halves r;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(r.v), a);
  return r;
}

inline __m512 cvtepi32_ps(__m512i a) {
  const Integers from = lanes(a);
  Floats r;
  for (int i = 0; i < 16; i++) r.v[i] = float(from.v[i]);
  return _mm512_loadu_ps(r.v);
}

// Half to even; what has no integer, NaN included, gives the smallest.
inline __m512i cvtps_epi32(__m512 a) {
  const Floats from = lanes(a);
  Integers r;
  for (int i = 0; i < 16; i++) {
    const float rounded = std::nearbyint(from.v[i]);
    r.v[i] = rounded >= -2147483648.0f && rounded < 2147483648.0f ? int32_t(rounded) : std::numeric_limits<int32_t>::min();
  }
  return _mm512_loadu_si512(r.v);
}

inline __m512 cvtph_ps(__m256i a) {
  const Halves from = lanes(a);
  Floats r;
  for (int i = 0; i < 16; i++) r.v[i] = halfToFloat(from.v[i]);
  return _mm512_loadu_ps(r.v);
}

// Half to even: the only rounding that kernels ask for.
inline __m256i cvtps_ph(__m512 a) {
  const Floats from = lanes(a);
  Halves r;
  for (int i = 0; i < 16; i++) r.v[i] = floatToHalf(from.v[i]);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(r.v));
}

// Memory of lanes outside the mask is not touched.
inline __m512 mask_loadu_ps(__m512 otherwise, __mmask16 mask, const void* p) {
  Floats r = lanes(otherwise);
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) r.v[i] = static_cast<const float*>(p)[i];
  return _mm512_loadu_ps(r.v);
}
inline void mask_storeu_ps(void* p, __mmask16 mask, __m512 a) {
  const Floats from = lanes(a);
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) static_cast<float*>(p)[i] = from.v[i];
}

inline int32_t reduce_add_epi32(__m512i a) {
  const Integers from = lanes(a);
  uint32_t sum = 0;  // wraps, as the instruction does
  for (int i = 0; i < 16; i++) sum += uint32_t(from.v[i]);
  return int32_t(sum);
}
// Folds halves with maxps as compilers do, whose second operand wins over NaN.
inline float reduce_max_ps(__m512 a) {
  Floats r = lanes(a);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) r.v[i] = r.v[i] > r.v[i + width] ? r.v[i] : r.v[i + width];
  return r.v[0];
}

}  // namespace emulated

#define _mm512_cvtepi32_ps(a) emulated::cvtepi32_ps(a)
#define _mm512_cvtps_epi32(a) emulated::cvtps_epi32(a)
#define _mm512_cvtph_ps(a) emulated::cvtph_ps(a)
#define _mm512_cvtps_ph(a, rounding) emulated::cvtps_ph(a)
#define _mm512_mask_loadu_ps(otherwise, mask, p) emulated::mask_loadu_ps(otherwise, mask, p)
#define _mm512_mask_storeu_ps(p, mask, a) emulated::mask_storeu_ps(p, mask, a)
#define _mm512_reduce_add_epi32(a) emulated::reduce_add_epi32(a)
#define _mm512_reduce_max_ps(a) emulated::reduce_max_ps(a)
