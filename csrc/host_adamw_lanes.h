// The vectors that host_adamw_kernel.h is written in: one element, and the 8 or 16 that AVX2 and AVX-512 have. What these
// operators cannot say is a function of the same name in each namespace. Included by host_adamw.cpp.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
// Vectors wider than the plain target's registers change the ABI of functions, but these are all inlined.
#pragma GCC diagnostic ignored "-Wpsabi"
// GCC 12 says it of its own AVX-512 intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace skytrain {

template <class To, class From>
INLINE To bit_cast(const From& from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}

namespace plain {
constexpr int64_t kLanes = 1, kAtOnce = 1;
typedef float Lanes;
typedef int32_t IntLanes;
typedef uint32_t UintLanes;

INLINE Lanes square_root(Lanes x) { return std::sqrt(x); }
INLINE Lanes to_float(IntLanes x) { return static_cast<float>(x); }
INLINE IntLanes truncated(Lanes x) { return x == x ? static_cast<int32_t>(x) : INT32_MIN; }
// Of two numbers the second where they cannot be compared.
INLINE Lanes larger(Lanes x, float y) { return x > y ? x : y; }
INLINE Lanes smaller(Lanes x, float y) { return x < y ? x : y; }
// Right to 2^-11 of itself.
INLINE Lanes inverse_root_guess(Lanes x) { return 1 / std::sqrt(x); }
INLINE bool any(bool x) { return x; }
INLINE IntLanes with_sign(IntLanes size, IntLanes of) { return of < 0 ? -size : size; }
INLINE int32_t largest(IntLanes x) { return x; }
INLINE IntLanes load(const int8_t* p) { return *p; }
INLINE IntLanes load(const uint8_t* p) { return *p; }
INLINE IntLanes load(const uint16_t* p) { return *p; }
INLINE void store(int8_t* p, const IntLanes (&x)[kAtOnce]) { *p = static_cast<int8_t>(std::clamp(x[0], -128, 127)); }
INLINE void store(uint8_t* p, const IntLanes (&x)[kAtOnce]) { *p = static_cast<uint8_t>(std::clamp(x[0], 0, 255)); }
INLINE void store(uint16_t* p, IntLanes x) { *p = static_cast<uint16_t>(x); }
}  // namespace plain

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
constexpr int64_t kLanes = 8, kAtOnce = 4;
typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t IntLanes __attribute__((vector_size(32)));
typedef uint32_t UintLanes __attribute__((vector_size(32)));

INLINE Lanes square_root(Lanes x) { return _mm256_sqrt_ps(x); }
INLINE Lanes to_float(IntLanes x) { return _mm256_cvtepi32_ps((__m256i)x); }
INLINE IntLanes truncated(Lanes x) { return (IntLanes)_mm256_cvttps_epi32(x); }
INLINE Lanes larger(Lanes x, float y) { return _mm256_max_ps(x, Lanes{} + y); }
INLINE Lanes smaller(Lanes x, float y) { return _mm256_min_ps(x, Lanes{} + y); }
INLINE Lanes inverse_root_guess(Lanes x) { return _mm256_rsqrt_ps(x); }
INLINE bool any(IntLanes x) { return _mm256_movemask_epi8((__m256i)x) != 0; }
INLINE IntLanes load(const int8_t* p) {
  return (IntLanes)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
INLINE IntLanes load(const uint8_t* p) {
  return (IntLanes)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
INLINE IntLanes load(const uint16_t* p) {
  return (IntLanes)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// `size`, negated where `of` is negative; where `of` is 0 so is `size`.
INLINE IntLanes with_sign(IntLanes size, IntLanes of) { return (IntLanes)_mm256_sign_epi32((__m256i)size, (__m256i)of); }
INLINE __m128i low(IntLanes x) { return _mm256_castsi256_si128((__m256i)x); }
INLINE __m128i high(IntLanes x) { return _mm256_extracti128_si256((__m256i)x, 1); }
INLINE int32_t largest(IntLanes x) {
  __m128i four = _mm_max_epi32(low(x), high(x));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}
// Packing works in halves of 16 bytes, so the fours of codes end in the order 0 2 4 6 1 3 5 7.
INLINE __m256i in_order(__m256i x) { return _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); }
INLINE __m256i words(IntLanes low, IntLanes high) { return _mm256_packs_epi32((__m256i)low, (__m256i)high); }
INLINE void store(int8_t* p, const IntLanes (&x)[kAtOnce]) {
  const __m256i codes = _mm256_packs_epi16(words(x[0], x[1]), words(x[2], x[3]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), in_order(codes));
}
INLINE void store(uint8_t* p, const IntLanes (&x)[kAtOnce]) {
  const __m256i codes = _mm256_packus_epi16(words(x[0], x[1]), words(x[2], x[3]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), in_order(codes));
}
INLINE void store(uint16_t* p, IntLanes x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low(x), high(x)));
}
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f")
namespace avx512 {
constexpr int64_t kLanes = 16, kAtOnce = 1;
typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t IntLanes __attribute__((vector_size(64)));
typedef uint32_t UintLanes __attribute__((vector_size(64)));

INLINE Lanes square_root(Lanes x) { return _mm512_sqrt_ps(x); }
INLINE Lanes to_float(IntLanes x) { return _mm512_cvtepi32_ps((__m512i)x); }
INLINE IntLanes truncated(Lanes x) { return (IntLanes)_mm512_cvttps_epi32(x); }
INLINE Lanes larger(Lanes x, float y) { return _mm512_max_ps(x, Lanes{} + y); }
INLINE Lanes smaller(Lanes x, float y) { return _mm512_min_ps(x, Lanes{} + y); }
INLINE Lanes inverse_root_guess(Lanes x) { return _mm512_rsqrt14_ps(x); }
INLINE bool any(IntLanes x) { return _mm512_test_epi32_mask((__m512i)x, (__m512i)x) != 0; }
INLINE IntLanes with_sign(IntLanes size, IntLanes of) { return of < 0 ? -size : size; }
INLINE int32_t largest(IntLanes x) { return _mm512_reduce_max_epi32((__m512i)x); }
INLINE IntLanes load(const int8_t* p) {
  return (IntLanes)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
INLINE IntLanes load(const uint8_t* p) {
  return (IntLanes)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
INLINE IntLanes load(const uint16_t* p) {
  return (IntLanes)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
INLINE void store(int8_t* p, const IntLanes (&x)[kAtOnce]) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8((__m512i)x[0]));
}
INLINE void store(uint8_t* p, const IntLanes (&x)[kAtOnce]) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8((__m512i)x[0]));
}
INLINE void store(uint16_t* p, IntLanes x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)x));
}
}  // namespace avx512
#pragma GCC pop_options
#endif

}  // namespace skytrain
