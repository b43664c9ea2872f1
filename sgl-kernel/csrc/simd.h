// Sixteen float lanes, written once in the compiler's vector extension: it becomes one AVX-512
// register, two AVX2 or four SSE/NEON ones. Only conversions and bf16 dot products use intrinsics,
// each behind the macro of the instruction set it needs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define SGL_BF16_DOT 1
#else
#define SGL_BF16_DOT 0
#endif

#define SGL_INLINE inline __attribute__((always_inline))
#define SGL_LAMBDA __attribute__((always_inline))

namespace sgl {

constexpr int64_t kLanes = 16;
using f32x16 = float __attribute__((vector_size(64)));
using i32x16 = int32_t __attribute__((vector_size(64)));
using u32x16 = uint32_t __attribute__((vector_size(64)));
using u16x16 = uint16_t __attribute__((vector_size(32)));
using u16x32 = uint16_t __attribute__((vector_size(64)));

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class To, class From>
SGL_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class V, class P>
SGL_INLINE V load_raw(const P* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

SGL_INLINE f32x16 splat(float x) { return f32x16{} + x; }

// GCC splits sums and products of sixteen lanes into two AVX2 registers, but comparisons, selections,
// shuffles and conversions of them into sixteen single lanes: those are written by halves.
#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
#define SGL_HALVES 1
struct Halves {
  __m256 low, high;
};
template <class V>
SGL_INLINE Halves halves(const V& v) {
  return bit_cast<Halves>(v);
}
template <class V>
SGL_INLINE V whole(__m256 low, __m256 high) {
  return bit_cast<V>(Halves{low, high});
}
#else
#define SGL_HALVES 0
#endif

// ---- conversions -------------------------------------------------------------------------------

#if !defined(__AVX512F__) && !defined(__F16C__)
inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
  if (exponent == 0) {
    const float value = std::ldexp(float(mantissa), -24);
    return sign ? -value : value;
  }
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

inline uint16_t float_to_half(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x47800000) return uint16_t(sign | 0x7c00);
  if (magnitude < 0x38800000) {  // subnormal half: let the FPU round to a multiple of 2^-24
    const float rounded = bit_cast<float>(magnitude) + bit_cast<float>(0x3f000000u);
    return uint16_t(sign | (bit_cast<uint32_t>(rounded) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000u;
  return uint16_t(sign | (rounded >> 13));
}
#endif

SGL_INLINE f32x16 load(const float* p) { return load_raw<f32x16>(p); }

#if SGL_HALVES
SGL_INLINE f32x16 load(const bf16* p) {
  const auto half = [](const bf16* from) SGL_LAMBDA {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_raw<__m128i>(from)), 16));
  };
  return whole<f32x16>(half(p), half(p + 8));
}
#else
SGL_INLINE f32x16 load(const bf16* p) {
  return bit_cast<f32x16>(__builtin_convertvector(load_raw<u16x16>(p), u32x16) << 16);
}
#endif

SGL_INLINE f32x16 load(const f16* p) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_cvtph_ps(load_raw<__m256i>(p));
#elif defined(__F16C__)
  float lanes[kLanes];
  _mm256_storeu_ps(lanes, _mm256_cvtph_ps(load_raw<__m128i>(p)));
  _mm256_storeu_ps(lanes + 8, _mm256_cvtph_ps(load_raw<__m128i>(p + 8)));
  return load(lanes);
#else
  f32x16 v;
  for (int i = 0; i < kLanes; ++i) v[i] = half_to_float(p[i].bits);
  return v;
#endif
}

SGL_INLINE void store(float* p, f32x16 v) { std::memcpy(p, &v, sizeof(v)); }

// Round to nearest, ties to even; every NaN becomes a quiet one.
SGL_INLINE void store(bf16* p, f32x16 v) {
#if SGL_BF16_DOT
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &rounded, sizeof(rounded));
#else
  const u32x16 bits = bit_cast<u32x16>(v);
  u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const i32x16 nan = (v != v);
  rounded = (rounded & ~(u32x16)nan) | ((u32x16)nan & 0x7fc0u);
  const u16x16 out = __builtin_convertvector(rounded, u16x16);
  std::memcpy(p, &out, sizeof(out));
#endif
}

SGL_INLINE void store(f16* p, f32x16 v) {
#if defined(__AVX512F__)
  const __m256i out = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(p, &out, sizeof(out));
#elif defined(__F16C__)
  float lanes[kLanes];
  store(lanes, v);
  for (int half = 0; half < 2; ++half) {
    const __m128i out = _mm256_cvtps_ph(_mm256_loadu_ps(lanes + 8 * half), 0);
    std::memcpy(p + 8 * half, &out, sizeof(out));
  }
#else
  for (int i = 0; i < kLanes; ++i) p[i].bits = float_to_half(v[i]);
#endif
}

// The first n of sixteen lanes; the others read as zero.
template <class T>
SGL_INLINE f32x16 load_first(const T* p, int64_t n) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, p, size_t(n) * sizeof(T));
  return load(lanes);
}

template <class T>
SGL_INLINE void store_first(T* p, f32x16 v, int64_t n) {
  T lanes[kLanes];
  store(lanes, v);
  std::memcpy(p, lanes, size_t(n) * sizeof(T));
}

// Call body(first lane, number of lanes) for 0..n in steps of sixteen; a full step passes the
// constant 16, so that the compiler can drop the partial load from it.
template <class Body>
SGL_INLINE void for_lanes(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, std::integral_constant<int64_t, kLanes>{});
  if (i < n) body(i, n - i);
}
template <class T>
SGL_INLINE f32x16 load_n(const T* p, std::integral_constant<int64_t, kLanes>) { return load(p); }
template <class T>
SGL_INLINE f32x16 load_n(const T* p, int64_t n) { return load_first(p, n); }
template <class T>
SGL_INLINE void store_n(T* p, f32x16 v, std::integral_constant<int64_t, kLanes>) { store(p, v); }
template <class T>
SGL_INLINE void store_n(T* p, f32x16 v, int64_t n) { store_first(p, v, n); }

// v rounded to T and back: where stock torch code rounds between two operations, so do we.
template <class T>
SGL_INLINE f32x16 rounded_to(f32x16 v) {
  T lanes[kLanes];
  store(lanes, v);
  return load(lanes);
}
template <>
SGL_INLINE f32x16 rounded_to<float>(f32x16 v) { return v; }

// ---- arithmetic --------------------------------------------------------------------------------

#if SGL_HALVES
SGL_INLINE f32x16 max(f32x16 a, f32x16 b) {
  const Halves x = halves(a), y = halves(b);
  return whole<f32x16>(_mm256_max_ps(x.low, y.low), _mm256_max_ps(x.high, y.high));
}
#else
SGL_INLINE f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }
#endif

#if SGL_HALVES
SGL_INLINE __m256 exp_half(__m256 x) {
  const __m256 least = _mm256_set1_ps(-87.0f);
  const __m256 tiny = _mm256_cmp_ps(x, least, _CMP_LT_OQ);
  x = _mm256_blendv_ps(x, least, tiny);
  const __m256 magic = _mm256_set1_ps(12582912.0f);
  const __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(1.44269504f), magic);
  const __m256 n = _mm256_sub_ps(shifted, magic);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(2.12194440e-4f), r);
  __m256 y = _mm256_set1_ps(1.9875691500e-4f);
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.3981999507e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(8.3334519073e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(4.1665795894e-2f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.6666665459e-1f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(5.0000001201e-1f));
  y = _mm256_add_ps(_mm256_fmadd_ps(y, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
  const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), power));
  return _mm256_andnot_ps(tiny, y);
}
// e^x to about 2 ulp for x <= 88; below -87 it is 0, which the softmax wants of masked lanes.
SGL_INLINE f32x16 exp(f32x16 x) {
  const Halves h = halves(x);
  return whole<f32x16>(exp_half(h.low), exp_half(h.high));
}
#else
// e^x to about 2 ulp for x <= 88; below -87 it is 0, which the softmax wants of masked lanes.
SGL_INLINE f32x16 exp(f32x16 x) {
  const i32x16 tiny = (x < -87.0f);
  x = tiny ? splat(-87.0f) : x;
  const f32x16 shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const f32x16 n = shifted - 12582912.0f;
  const f32x16 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  f32x16 y = splat(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const i32x16 power = bit_cast<i32x16>(shifted) << 23;
  y = bit_cast<f32x16>(bit_cast<i32x16>(y) + power);
  return tiny ? splat(0.0f) : y;
}
#endif

// Lanes with bit S clear from a, the others from b shifted by S; `odd` is the complement. Applied
// for S = 1, 2, 4, 8 over index pairs (i, i + S) the two transpose a 16 x 16 block.
#if SGL_HALVES
template <int S>
SGL_INLINE __m256 even_half(__m256 a, __m256 b) {
  if constexpr (S == 4) return _mm256_permute2f128_ps(a, b, 0x20);
  if constexpr (S == 2) return _mm256_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 1, 0));
  return _mm256_blend_ps(a, _mm256_moveldup_ps(b), 0xaa);
}
template <int S>
SGL_INLINE __m256 odd_half(__m256 a, __m256 b) {
  if constexpr (S == 4) return _mm256_permute2f128_ps(a, b, 0x31);
  if constexpr (S == 2) return _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 2, 3, 2));
  return _mm256_blend_ps(_mm256_movehdup_ps(a), b, 0xaa);
}
template <int S, class V>
SGL_INLINE V even(V a, V b) {
  const Halves x = halves(a), y = halves(b);
  if constexpr (S == 8) return whole<V>(x.low, y.low);
  return whole<V>(even_half<S>(x.low, y.low), even_half<S>(x.high, y.high));
}
template <int S, class V>
SGL_INLINE V odd(V a, V b) {
  const Halves x = halves(a), y = halves(b);
  if constexpr (S == 8) return whole<V>(x.high, y.high);
  return whole<V>(odd_half<S>(x.low, y.low), odd_half<S>(x.high, y.high));
}
#else
template <int S, class V>
SGL_INLINE V even(V a, V b) {
#define SGL_E(l) ((l) & S ? 16 + (l) - S : (l))
  return __builtin_shufflevector(a, b, SGL_E(0), SGL_E(1), SGL_E(2), SGL_E(3), SGL_E(4), SGL_E(5),
                                 SGL_E(6), SGL_E(7), SGL_E(8), SGL_E(9), SGL_E(10), SGL_E(11),
                                 SGL_E(12), SGL_E(13), SGL_E(14), SGL_E(15));
#undef SGL_E
}
template <int S, class V>
SGL_INLINE V odd(V a, V b) {
#define SGL_O(l) ((l) & S ? 16 + (l) : (l) + S)
  return __builtin_shufflevector(a, b, SGL_O(0), SGL_O(1), SGL_O(2), SGL_O(3), SGL_O(4), SGL_O(5),
                                 SGL_O(6), SGL_O(7), SGL_O(8), SGL_O(9), SGL_O(10), SGL_O(11),
                                 SGL_O(12), SGL_O(13), SGL_O(14), SGL_O(15));
#undef SGL_O
}

#endif

template <int S>
SGL_INLINE f32x16 sum_pair(f32x16 a, f32x16 b) { return even<S>(a, b) + odd<S>(a, b); }

SGL_INLINE float hsum(f32x16 v) {
  v = sum_pair<8>(v, v);
  v = sum_pair<4>(v, v);
  v = sum_pair<2>(v, v);
  return sum_pair<1>(v, v)[0];
}

SGL_INLINE float hmax(f32x16 v) {
  v = max(v, odd<8>(v, v));
  v = max(v, odd<4>(v, v));
  v = max(v, odd<2>(v, v));
  return max(v, odd<1>(v, v))[0];
}

template <int S, class V>
SGL_INLINE void transpose_step(V (&v)[16]) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i & S) continue;
    const V a = v[i], b = v[i + S];
    v[i] = even<S>(a, b);
    v[i + S] = odd<S>(a, b);
  }
}
template <class V>
SGL_INLINE void transpose(V (&v)[16]) {
  transpose_step<1>(v);
  transpose_step<2>(v);
  transpose_step<4>(v);
  transpose_step<8>(v);
}

#if SGL_BF16_DOT
SGL_INLINE __m512i load_pairs(const bf16* p) { return _mm512_loadu_si512(p); }
SGL_INLINE __m512i load_pairs(const bf16* p, __mmask32 mask) {
  return _mm512_maskz_loadu_epi16(mask, p);
}
SGL_INLINE __mmask32 first_pairs(int64_t n) { return __mmask32((uint64_t(1) << n) - 1); }

// acc + a[2i] * b[2i] + a[2i + 1] * b[2i + 1] in each lane i: products exact, sums in float32.
SGL_INLINE f32x16 dot2(f32x16 acc, __m512i a, __m512i b) {
  return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
}
#endif

}  // namespace sgl
