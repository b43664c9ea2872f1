// Attention of single query tokens (decode): the query heads of neighbouring KV heads against a
// span of the sequence's paged KV. Keys and values are read once, straight from the pool and over
// all those heads at a time, because the heads of a slot are neighbours in memory; while a block
// of positions is worked on the next one is prefetched, because slots need not be neighbours.
#pragma once

#include <vector>

#include "kernels.h"
#include "registers.h"

namespace sgl {

constexpr int64_t kBlock = 64;  // positions worked on at a time

// Running softmax of one token: per query head the largest score, the sum of exponentials and the
// weighted sum of values, all in float32.
struct Partial {
  float* max;  // [heads]
  float* sum;  // [heads]
  float* acc;  // [heads][v_pad]
};

SGL_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Columns of a row of sums: whole pairs of registers.
SGL_INLINE int64_t padded(int64_t size) { return round_up(size, 2 * kLanes); }

// Scratch memory of one thread, reused from item to item.
struct Scratch {
  std::vector<float> a, b, c, d, e, f;
  template <class T>
  static T* get(std::vector<float>& buffer, int64_t count) {
    const size_t floats = (size_t(count) * sizeof(T) + 3) / 4 + 16;
    if (buffer.size() < floats) buffer.resize(floats);
    return reinterpret_cast<T*>(
        round_up(reinterpret_cast<intptr_t>(buffer.data()), 64));  // 16 spare floats: one line
  }
};

// How a KV dtype is multiplied: as float32, or, where the CPU has dot products of bf16 pairs, as
// those. `Element` is the type of queries and softmax weights.
template <class T>
struct Arithmetic {
  using Element = float;
  static constexpr int64_t kPerStep = 1;  // positions one step of add_values handles

  static void copy_row(float* to, const T* from, int64_t size) {
    for_lanes(size, [&](int64_t i, auto n) SGL_LAMBDA { store(to + i, load_n(from + i, n)); });
  }
  static SGL_INLINE f32x16 dots(const float* q, const T* const* keys, int64_t size) {
    List<f32x16, kLanes> acc{};
    for_lanes(size, [&](int64_t i, auto n) SGL_LAMBDA {
      const f32x16 query = load(q + i);
      each(acc, [&](int t, f32x16& sum) SGL_LAMBDA { sum += query * load_n(keys[t] + i, n); });
    });
    return sums(acc);
  }
  template <int N>
  static SGL_INLINE auto value_step(const T* const* rows, int64_t column, int64_t width) {
    List<f32x16, N> value;
    each(value, [&](int j, f32x16& v) SGL_LAMBDA {
      const T* p = rows[0] + column + j * kLanes;
      const int64_t n = std::clamp<int64_t>(width - j * kLanes, 0, kLanes);
      v = n == kLanes ? load(p) : load_first(p, n);
    });
    return value;
  }
  static SGL_INLINE f32x16 weight(const float* w) { return splat(*w); }
  static SGL_INLINE f32x16 multiply(f32x16 acc, f32x16 a, f32x16 b) { return acc + a * b; }
};

#if SGL_BF16_DOT
template <>
struct Arithmetic<bf16> {
  using Element = bf16;
  static constexpr int64_t kPerStep = 2;

  static void copy_row(bf16* to, const bf16* from, int64_t size) {
    std::memset(to, 0, size_t(padded(size)) * sizeof(bf16));
    std::memcpy(to, from, size_t(size) * sizeof(bf16));
  }
  static SGL_INLINE f32x16 dots(const bf16* q, const bf16* const* keys, int64_t size) {
    List<f32x16, kLanes> acc{};
    const auto step = [&](int64_t i, auto... mask) SGL_LAMBDA {
      const __m512i query = _mm512_loadu_si512(q + i);
      each(acc, [&](int t, f32x16& sum) SGL_LAMBDA {
        sum = dot2(sum, query, load_pairs(keys[t] + i, mask...));
      });
    };
    int64_t i = 0;
    for (; i + 2 * kLanes <= size; i += 2 * kLanes) step(i);
    if (i < size) step(i, first_pairs(size - i));
    return sums(acc);
  }
  template <int N>
  static SGL_INLINE auto value_step(const bf16* const* rows, int64_t column, int64_t width) {
    static_assert(N % 2 == 0, "pairs of registers");
    const u16x32 low = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                        8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    List<__m512i, N> value;
    __m512i a{}, b{};
    each(value, [&](int j, __m512i& v) SGL_LAMBDA {
      if (j % 2 == 0) {
        const int64_t at = column + j * kLanes, n = width - j * kLanes;
        const __mmask32 mask = first_pairs(std::clamp<int64_t>(n, 0, 2 * kLanes));
        a = n >= 2 * kLanes ? load_pairs(rows[0] + at) : load_pairs(rows[0] + at, mask);
        b = n >= 2 * kLanes ? load_pairs(rows[1] + at) : load_pairs(rows[1] + at, mask);
        v = _mm512_permutex2var_epi16(a, (__m512i)low, b);
      } else {
        v = _mm512_permutex2var_epi16(a, (__m512i)(low + 16), b);
      }
    });
    return value;
  }
  static SGL_INLINE __m512i weight(const bf16* w) {
    int32_t pair;
    std::memcpy(&pair, w, sizeof(pair));
    return _mm512_set1_epi32(pair);
  }
  static SGL_INLINE f32x16 multiply(f32x16 acc, __m512i a, __m512i b) { return dot2(acc, a, b); }
};
#endif

// acc[g][..] = acc * decay[g] + sum over the block of weight[g][t] * value row t, for G query heads
// at once and 16 N columns from `column`, of which `width` exist.
template <int G, int N, class T>
SGL_INLINE void add_columns(const T* const* rows, int64_t count, int64_t column, int64_t width,
                            const typename Arithmetic<T>::Element* weight, const float* decay,
                            float* acc, int64_t v_pad) {
  using A = Arithmetic<T>;
  Tile<G, N> sums;
  each(sums.rows, [&](int g, auto& row) SGL_LAMBDA {
    each(row, [&](int j, f32x16& v) SGL_LAMBDA {
      v = load(acc + g * v_pad + column + j * kLanes) * decay[g];
    });
  });
  for (int64_t t = 0; t < count; t += A::kPerStep) {
    const auto value = A::template value_step<N>(rows + t, column, width);
    each(sums.rows, [&](int g, auto& row) SGL_LAMBDA {
      const auto w = A::weight(weight + g * kBlock + t);
      each_pair(row, value, [&](f32x16& sum, auto v) SGL_LAMBDA { sum = A::multiply(sum, w, v); });
    });
  }
  each(sums.rows, [&](int g, auto& row) SGL_LAMBDA {
    float* to = acc + g * v_pad + column;
    each(row, [&](int j, f32x16& v) SGL_LAMBDA { store(to + j * kLanes, v); });
  });
}

template <int G, class T>
void add_values(const T* const* rows, int64_t count, int64_t v_size,
                const typename Arithmetic<T>::Element* weight, const float* decay, float* acc) {
  const int64_t v_pad = padded(v_size);
  int64_t d = 0;
#if SGL_HALVES
  for (; d < v_size; d += kLanes) {  // two registers a head: more have no room
    add_columns<G, 1>(rows, count, d, std::min(kLanes, v_size - d), weight, decay, acc, v_pad);
  }
#else
  constexpr int64_t kWide = 4 * kLanes, v_pair = 2 * kLanes;
  for (; d + kWide <= v_size; d += kWide) {
    add_columns<G, 4>(rows, count, d, kWide, weight, decay, acc, v_pad);
  }
  for (; d < v_size; d += v_pair) {
    add_columns<G, 2>(rows, count, d, v_size - d, weight, decay, acc, v_pad);
  }
#endif
}

// Softmax weights of one query head over `count` positions of a block: exp(score - max), zero up
// to the next pair; moves the running maximum and sum on and returns the factor by which older
// sums decay.
template <class Element>
SGL_INLINE float softmax_step(float* scores, int64_t count, float scale, float& max, float& sum,
                              Element* weights) {
  const f32x16 minus_infinity = splat(-std::numeric_limits<float>::infinity());
  if (count % kLanes != 0) store_first(scores + count, minus_infinity, kLanes - count % kLanes);
  f32x16 top = minus_infinity;
  for (int64_t i = 0; i < count; i += kLanes) top = sgl::max(top, load(scores + i) * scale);
  const float new_max = std::max(max, hmax(top));
  const float decay = sum == 0.0f ? 0.0f : std::exp(max - new_max);
  f32x16 total = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const f32x16 w = exp(load(scores + i) * scale - new_max);
    store(weights + i, w);
    total += w;
  }
  max = new_max;
  sum = sum * decay + hsum(total);
  return decay;
}

// Into the second-level cache: the first has no room for two blocks.
template <class T>
SGL_INLINE void prefetch_row(const T* row, int64_t size) {
  const char* p = reinterpret_cast<const char*>(row);
  for (int64_t i = 0; i < size * int64_t(sizeof(T)); i += 64) __builtin_prefetch(p + i, 0, 2);
}

// Fold positions [begin, end) of a sequence into `partial` (which starts at sum 0), for the query
// heads of KV heads [kv_head, kv_head + kv_count). `q` is the token's first head, `slots` the
// sequence's row of the request table.
template <class T>
void attend_rows(const AttentionArgs& a, const T* q, int64_t kv_head, int64_t kv_count,
                 const int32_t* slots, int64_t begin, int64_t end, Scratch& scratch,
                 const Partial& partial) {
  using A = Arithmetic<T>;
  using Element = typename A::Element;
  const int64_t group = a.heads / a.kv_heads, heads = group * kv_count;
  const int64_t q_pad = padded(a.k_size), v_pad = padded(a.v_size);
  auto* query = Scratch::get<Element>(scratch.a, heads * q_pad);
  auto* scores = Scratch::get<float>(scratch.b, heads * kBlock);
  auto* weights = Scratch::get<Element>(scratch.c, heads * kBlock);
  auto* decay = Scratch::get<float>(scratch.d, heads);
  for (int64_t h = 0; h < heads; ++h) {
    A::copy_row(query + h * q_pad, q + (kv_head * group + h) * a.k_size, a.k_size);
  }
  const T* keys = static_cast<const T*>(a.k) + kv_head * a.k_size;
  const T* values = static_cast<const T*>(a.v) + kv_head * a.v_size;

  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    const T* v_rows[kBlock];
    for (int64_t t0 = 0; t0 < count; t0 += kLanes) {
      const T* k_rows[kLanes];
      for (int64_t t = t0; t < t0 + kLanes; ++t) {
        const int64_t position = first + std::min(t, count - 1);
        const int64_t slot = slots[position];
        k_rows[t - t0] = keys + slot * a.k_stride;
        v_rows[t] = values + slot * a.v_stride;
      }
      for (int64_t kv = 0; kv < kv_count; ++kv) {
        for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
          // A share of the next block with each head: all at once, they would be waited for.
          for (int64_t t = t0 + kLanes * h / heads; t < t0 + kLanes * (h + 1) / heads; ++t) {
            const int64_t next = slots[std::min(first + t + kBlock, end - 1)];
            prefetch_row(keys + next * a.k_stride, kv_count * a.k_size);
            prefetch_row(values + next * a.v_stride, kv_count * a.v_size);
          }
          store(scores + h * kBlock + t0, A::dots(query + h * q_pad, k_rows, a.k_size));
        }
        for (auto& row : k_rows) row += a.k_size;
      }
    }
    for (int64_t h = 0; h < heads; ++h) {
      decay[h] = softmax_step(scores + h * kBlock, count, a.scale, partial.max[h], partial.sum[h],
                              weights + h * kBlock);
    }
    for (int64_t kv = 0; kv < kv_count; ++kv) {
      for (int64_t h = kv * group; h < (kv + 1) * group; h += 4) {
        const Element* w = weights + h * kBlock;
        float* acc = partial.acc + h * v_pad;
        switch (std::min<int64_t>(4, (kv + 1) * group - h)) {
          case 1: add_values<1>(v_rows, count, a.v_size, w, decay + h, acc); break;
          case 2: add_values<2>(v_rows, count, a.v_size, w, decay + h, acc); break;
          case 3: add_values<3>(v_rows, count, a.v_size, w, decay + h, acc); break;
          default: add_values<4>(v_rows, count, a.v_size, w, decay + h, acc); break;
        }
      }
      for (int64_t t = 0; t < round_up(count, kLanes); ++t) v_rows[t] += a.v_size;
    }
  }
}

}  // namespace sgl
