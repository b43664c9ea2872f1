// Attention of many query tokens of one sequence (prefill): a tile of query rows (tokens x query
// heads of one KV head) against blocks of 64 positions. Each block of keys and values is packed
// once and then shared by all rows of the tile, as two small matrix products.
#pragma once

#include "attention_rows.h"

namespace sgl {

// How operands of the matrix products are held. B panels have 64 or v_pad columns; A rows are read
// one unit (an element, or a pair of bf16) at a time and broadcast.
template <class T>
struct Panel {
  using Element = float;  // of A
  using Unit = float;     // of B
  using Vector = f32x16;
  static void pack_keys(Unit* panel, const T* const* rows, int64_t size) {
    for (int64_t t0 = 0; t0 < kBlock; t0 += kLanes) {
      for (int64_t d = 0; d < size; d += kLanes) {
        f32x16 block[kLanes];
        const int64_t n = std::min(kLanes, size - d);
        for (int64_t t = 0; t < kLanes; ++t) {
          block[t] = n == kLanes ? load(rows[t0 + t] + d) : load_first(rows[t0 + t] + d, n);
        }
        transpose(block);
        for (int64_t i = 0; i < n; ++i) store(panel + (d + i) * kBlock + t0, block[i]);
      }
    }
  }
  static void pack_values(Unit* panel, const T* const* rows, int64_t size, int64_t pad) {
    for (int64_t t = 0; t < kBlock; ++t) {
      for_lanes(size, [&](int64_t d, auto n) SGL_LAMBDA {
        store(panel + t * pad + d, load_n(rows[t] + d, n));
      });
    }
  }
};

#if SGL_BF16_DOT
template <>
struct Panel<bf16> {
  using Element = bf16;
  using Unit = uint32_t;
  using Vector = __m512i;
  static void pack_keys(uint32_t* panel, const bf16* const* rows, int64_t size) {
    for (int64_t t0 = 0; t0 < kBlock; t0 += kLanes) {
      for (int64_t d = 0; d < size; d += 2 * kLanes) {
        u32x16 block[kLanes];
        const int64_t n = std::min(2 * kLanes, size - d);
        for (int64_t t = 0; t < kLanes; ++t) {
          block[t] = (u32x16)load_pairs(rows[t0 + t] + d, first_pairs(n));
        }
        transpose(block);
        for (int64_t i = 0; i < (n + 1) / 2; ++i) {
          std::memcpy(panel + (d / 2 + i) * kBlock + t0, &block[i], sizeof(block[i]));
        }
      }
    }
  }
  static void pack_values(uint32_t* panel, const bf16* const* rows, int64_t size, int64_t pad) {
    for (int64_t t = 0; t < kBlock; t += 2) {
      for (int64_t d = 0; d < size; d += kLanes) {
        const __mmask16 mask = __mmask16((1u << std::min(kLanes, size - d)) - 1);
        const auto widened = [&](const bf16* row) SGL_LAMBDA {
          return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + d));
        };
        const __m512i pair =
            _mm512_or_si512(widened(rows[t]), _mm512_slli_epi32(widened(rows[t + 1]), 16));
        _mm512_storeu_si512(panel + t / 2 * pad + d, pair);
      }
    }
  }
};
#endif

#if defined(__AVX512F__)
constexpr int kTileRows = 6;  // with four registers a row: 24 of the 32 hold sums
#else
constexpr int kTileRows = 6;
#endif

// c[R][16 N] (+)= a[R][units] x b[units][16 N].
template <class T, int R, int N>
SGL_INLINE void product_tile(const typename Panel<T>::Element* a, int64_t a_stride,
                             const typename Panel<T>::Unit* b, int64_t b_stride, int64_t units,
                             float* c, int64_t c_stride, bool add) {
  using A = Arithmetic<T>;
  Tile<R, N> acc;
  if (add) {
    each(acc.rows, [&](int r, auto& row) SGL_LAMBDA {
      each(row, [&](int j, f32x16& v) SGL_LAMBDA { v = load(c + r * c_stride + j * kLanes); });
    });
  }
  for (int64_t u = 0; u < units; ++u) {
    List<typename Panel<T>::Vector, N> columns;
    each(columns, [&](int j, auto& v) SGL_LAMBDA {
      std::memcpy(&v, b + u * b_stride + j * kLanes, sizeof(v));
    });
    each(acc.rows, [&](int r, auto& row) SGL_LAMBDA {
      const auto factor = A::weight(a + r * a_stride + u * A::kPerStep);
      each_pair(row, columns, [&](f32x16& sum, auto v) SGL_LAMBDA {
        sum = A::multiply(sum, factor, v);
      });
    });
  }
  each(acc.rows, [&](int r, auto& row) SGL_LAMBDA {
    each(row, [&](int j, f32x16& v) SGL_LAMBDA { store(c + r * c_stride + j * kLanes, v); });
  });
}

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
#define SGL_AVX2_TILE 1
// The same of 16 columns of floats, by hand: GCC takes a vector of sixteen apart through memory.
template <int R>
SGL_INLINE void product_tile_avx2(const float* a, int64_t a_stride, const float* b,
                                  int64_t b_stride, int64_t units, float* c, int64_t c_stride,
                                  bool add) {
  __m256 acc[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    acc[r][0] = add ? _mm256_loadu_ps(c + r * c_stride) : _mm256_setzero_ps();
    acc[r][1] = add ? _mm256_loadu_ps(c + r * c_stride + 8) : _mm256_setzero_ps();
  }
  for (int64_t u = 0; u < units; ++u) {
    const __m256 low = _mm256_loadu_ps(b + u * b_stride);
    const __m256 high = _mm256_loadu_ps(b + u * b_stride + 8);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m256 factor = _mm256_broadcast_ss(a + r * a_stride + u);
      acc[r][0] = _mm256_fmadd_ps(factor, low, acc[r][0]);
      acc[r][1] = _mm256_fmadd_ps(factor, high, acc[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    _mm256_storeu_ps(c + r * c_stride, acc[r][0]);
    _mm256_storeu_ps(c + r * c_stride + 8, acc[r][1]);
  }
}
#else
#define SGL_AVX2_TILE 0
#endif

template <class T, int N>
void product_rows(int64_t rows, const typename Panel<T>::Element* a, int64_t a_stride,
                  const typename Panel<T>::Unit* b, int64_t b_stride, int64_t units, float* c,
                  int64_t c_stride, bool add) {
  int64_t r = 0;
#if SGL_AVX2_TILE
  static_assert(std::is_same_v<typename Panel<T>::Unit, float> && N == 1);
  for (; r + kTileRows <= rows; r += kTileRows) {
    product_tile_avx2<kTileRows>(a + r * a_stride, a_stride, b, b_stride, units, c + r * c_stride,
                                 c_stride, add);
  }
  for (; r < rows; ++r) {
    product_tile_avx2<1>(a + r * a_stride, a_stride, b, b_stride, units, c + r * c_stride, c_stride,
                         add);
  }
  return;
#endif
  for (; r + kTileRows <= rows; r += kTileRows) {
    product_tile<T, kTileRows, N>(a + r * a_stride, a_stride, b, b_stride, units,
                                  c + r * c_stride, c_stride, add);
  }
  for (; r < rows; ++r) {
    product_tile<T, 1, N>(a + r * a_stride, a_stride, b, b_stride, units, c + r * c_stride,
                          c_stride, add);
  }
}

// c[rows][columns] (+)= a x b, columns a multiple of 16.
template <class T>
void product(int64_t rows, int64_t columns, const typename Panel<T>::Element* a, int64_t a_stride,
             const typename Panel<T>::Unit* b, int64_t units, float* c, bool add) {
#if SGL_AVX2_TILE
  for (int64_t j = 0; j < columns; j += kLanes) {
    product_rows<T, 1>(rows, a, a_stride, b + j, columns, units, c + j, columns, add);
  }
#else
  for (int64_t j = 0; j < columns; j += 64) {
    const auto run = [&](auto n) {
      product_rows<T, n()>(rows, a, a_stride, b + j, columns, units, c + j, columns, add);
    };
    switch (std::min<int64_t>(4, (columns - j) / kLanes)) {
      case 1: run(std::integral_constant<int, 1>{}); break;
      case 2: run(std::integral_constant<int, 2>{}); break;
      case 3: run(std::integral_constant<int, 3>{}); break;
      default: run(std::integral_constant<int, 4>{}); break;
    }
  }
#endif
}

// `tokens` consecutive query tokens of a sequence, all heads of one KV head. The first of them sees
// the sequence's first `visible` positions; the others see one more each, or as many if not causal.
template <class T>
void attend_tile(const AttentionArgs& a, const T* q, T* out, int64_t kv_head, const int32_t* slots,
                 int64_t visible, int64_t tokens, Scratch& scratch) {
  using P = Panel<T>;
  using A = Arithmetic<T>;
  const int64_t group = a.heads / a.kv_heads, rows = tokens * group;
  const int64_t k_pad = padded(a.k_size), v_pad = padded(a.v_size);
  const int64_t out_stride = a.heads * a.v_size;
  auto* query = Scratch::get<typename P::Element>(scratch.a, rows * k_pad);
  auto* scores = Scratch::get<float>(scratch.b, rows * kBlock);
  auto* weights = Scratch::get<typename P::Element>(scratch.c, rows * kBlock);
  auto* panel = Scratch::get<typename P::Unit>(scratch.d, kBlock * std::max(k_pad, v_pad));
  auto* acc = Scratch::get<float>(scratch.e, rows * v_pad);
  auto* running = Scratch::get<float>(scratch.f, 2 * rows);
  float *max = running, *sum = running + rows;
  std::fill(acc, acc + rows * v_pad, 0.0f);
  std::fill(max, max + rows, -std::numeric_limits<float>::infinity());
  std::fill(sum, sum + rows, 0.0f);
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = q + r / group * a.q_stride + (kv_head * group + r % group) * a.k_size;
    A::copy_row(query + r * k_pad, row, a.k_size);
  }

  const T* keys = static_cast<const T*>(a.k) + kv_head * a.k_size;
  const T* values = static_cast<const T*>(a.v) + kv_head * a.v_size;
  const int64_t step = a.causal ? 1 : 0, end = visible + step * (tokens - 1);
  const int64_t k_units = (a.k_size + A::kPerStep - 1) / A::kPerStep;
  std::fill(panel, panel + kBlock * std::max(k_pad, v_pad), typename P::Unit{});
  for (int64_t first = 0; first < end; first += kBlock) {
    const T *k_rows[kBlock], *v_rows[kBlock];
    for (int64_t t = 0; t < kBlock; ++t) {
      const int64_t slot = slots[std::min(first + t, end - 1)];
      k_rows[t] = keys + slot * a.k_stride;
      v_rows[t] = values + slot * a.v_stride;
    }
    P::pack_keys(panel, k_rows, a.k_size);
    product<T>(rows, kBlock, query, k_pad, panel, k_units, scores, false);
    for (int64_t r = 0; r < rows; ++r) {
      float* s = scores + r * kBlock;
      const int64_t seen = std::clamp<int64_t>(visible + step * (r / group) - first, 0, kBlock);
      auto* w = weights + r * kBlock;
      const float decay = seen == 0 ? 1.0f : softmax_step(s, seen, a.scale, max[r], sum[r], w);
      for (int64_t t = round_up(seen, kLanes); t < kBlock; t += kLanes) store(w + t, f32x16{});
      if (decay != 1.0f) {
        float* row = acc + r * v_pad;
        for (int64_t d = 0; d < v_pad; d += kLanes) store(row + d, load(row + d) * decay);
      }
    }
    P::pack_values(panel, v_rows, a.v_size, v_pad);
    product<T>(rows, v_pad, weights, kBlock, panel, kBlock / A::kPerStep, acc, true);
  }
  for (int64_t r = 0; r < rows; ++r) {
    T* row = out + r / group * out_stride + (kv_head * group + r % group) * a.v_size;
    const float inverse = 1.0f / sum[r];
    for_lanes(a.v_size, [&](int64_t d, auto n) SGL_LAMBDA {
      store_n(row + d, load(acc + r * v_pad + d) * inverse, n);
    });
  }
}

}  // namespace sgl
