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
  static constexpr int64_t kPerUnit = 1;

  static SGL_INLINE f32x16 multiply(f32x16 acc, const Element* a, const Unit* b) {
    return acc + *a * load(b);
  }
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
  static void copy_row(Element* to, const T* from, int64_t size) {
    for_lanes(size, [&](int64_t i, auto n) SGL_LAMBDA { store(to + i, load_n(from + i, n)); });
  }
};

#if SGL_BF16_DOT
template <>
struct Panel<bf16> {
  using Element = bf16;
  using Unit = uint32_t;
  static constexpr int64_t kPerUnit = 2;

  static SGL_INLINE f32x16 multiply(f32x16 acc, const bf16* a, const uint32_t* b) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof(pair));
    return dot2(acc, _mm512_set1_epi32(pair), _mm512_loadu_si512(b));
  }
  static void pack_keys(uint32_t* panel, const bf16* const* rows, int64_t size) {
    for (int64_t t0 = 0; t0 < kBlock; t0 += kLanes) {
      for (int64_t d = 0; d < size; d += 2 * kLanes) {
        u32x16 block[kLanes];
        const int64_t n = std::min(2 * kLanes, size - d);
        const __mmask32 mask = __mmask32((uint64_t(1) << n) - 1);
        for (int64_t t = 0; t < kLanes; ++t) {
          block[t] = (u32x16)_mm512_maskz_loadu_epi16(mask, rows[t0 + t] + d);
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
  static void copy_row(bf16* to, const bf16* from, int64_t size) {
    KeyDots<bf16>::copy_query(to, from, size);
  }
};
#endif

#if defined(__AVX512F__)
constexpr int kTileRows = 6;  // with four registers a row: 24 of the 32 hold sums
#else
constexpr int kTileRows = 2;
#endif

// c[R][16 N] (+)= a[R][units] x b[units][16 N].
template <class T, int R, int N>
SGL_INLINE void product_tile(const typename Panel<T>::Element* a, int64_t a_stride,
                             const typename Panel<T>::Unit* b, int64_t b_stride, int64_t units,
                             float* c, int64_t c_stride, bool add) {
  f32x16 acc[R][N] = {};
  if (add) {
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < N; ++j) acc[r][j] = load(c + r * c_stride + j * kLanes);
    }
  }
  for (int64_t u = 0; u < units; ++u) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        acc[r][j] = Panel<T>::multiply(acc[r][j], a + r * a_stride + u * Panel<T>::kPerUnit,
                                       b + u * b_stride + j * kLanes);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < N; ++j) store(c + r * c_stride + j * kLanes, acc[r][j]);
  }
}

template <class T, int N>
void product_rows(int64_t rows, const typename Panel<T>::Element* a, int64_t a_stride,
                  const typename Panel<T>::Unit* b, int64_t b_stride, int64_t units, float* c,
                  int64_t c_stride, bool add) {
  int64_t r = 0;
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
}

// `tokens` consecutive query tokens of a sequence, all heads of one KV head. The first of them sees
// the sequence's first `visible` positions; the others see one more each, or as many if not causal.
template <class T>
void attend_tile(const AttentionArgs& a, const T* q, T* out, int64_t kv_head, const int32_t* slots,
                 int64_t visible, int64_t tokens, Scratch& scratch) {
  using P = Panel<T>;
  const int64_t group = a.heads / a.kv_heads, rows = tokens * group;
  const int64_t k_pad = round_up(a.k_size, 2 * kLanes), v_pad = round_up(a.v_size, kLanes);
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
    P::copy_row(query + r * k_pad, row, a.k_size);
  }

  const T* keys = static_cast<const T*>(a.k) + kv_head * a.k_size;
  const T* values = static_cast<const T*>(a.v) + kv_head * a.v_size;
  const int64_t step = a.causal ? 1 : 0, end = visible + step * (tokens - 1);
  const int64_t k_units = (a.k_size + P::kPerUnit - 1) / P::kPerUnit;
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
      const float decay = seen == 0 ? 1.0f : softmax_step(s, seen, a.scale, max[r], sum[r]);
      if (seen < kBlock) std::fill(s + round_up(seen, kLanes), s + kBlock, 0.0f);
      for (int64_t t = 0; t < kBlock; t += kLanes) store(weights + r * kBlock + t, load(s + t));
      if (decay != 1.0f) {
        float* row = acc + r * v_pad;
        for (int64_t d = 0; d < v_pad; d += kLanes) store(row + d, load(row + d) * decay);
      }
    }
    P::pack_values(panel, v_rows, a.v_size, v_pad);
    product<T>(rows, v_pad, weights, kBlock, panel, kBlock / P::kPerUnit, acc, true);
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
