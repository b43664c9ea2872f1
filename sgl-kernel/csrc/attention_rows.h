// Attention of single query tokens (decode): all query heads of one KV head against a span of the
// sequence's paged KV. Keys and values are read once, straight from the pool; while a block of
// them is worked on, the next one is prefetched, because its slots need not be neighbours.
#pragma once

#include <vector>

#include "kernels.h"
#include "simd.h"

namespace sgl {

constexpr int64_t kBlock = 64;  // positions worked on at a time

// Running softmax of one (token, KV head): per query head the largest score, the sum of
// exponentials and the weighted sum of values, all in float32.
struct Partial {
  float* max;  // [group]
  float* sum;  // [group]
  float* acc;  // [group][v_pad]
};

SGL_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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

// Dot products of one query row with sixteen keys.
template <class T>
struct KeyDots {
  using Query = float;
  static int64_t padded(int64_t size) { return round_up(size, kLanes); }
  static void copy_query(float* to, const T* from, int64_t size) {
    for_lanes(size, [&](int64_t i, auto n) SGL_LAMBDA { store(to + i, load_n(from + i, n)); });
  }
  static SGL_INLINE f32x16 sixteen(const float* q, const T* const (&k)[kLanes], int64_t size) {
    f32x16 acc[kLanes] = {};
    for_lanes(size, [&](int64_t i, auto n) SGL_LAMBDA {
      const f32x16 query = load(q + i);
#pragma GCC unroll 16
      for (int64_t t = 0; t < kLanes; ++t) acc[t] += query * load_n(k[t] + i, n);
    });
    return sums(acc);
  }
};

#if SGL_BF16_DOT
template <>
struct KeyDots<bf16> {
  using Query = bf16;
  static int64_t padded(int64_t size) { return round_up(size, 2 * kLanes); }
  static void copy_query(bf16* to, const bf16* from, int64_t size) {
    std::memset(to, 0, size_t(padded(size)) * sizeof(bf16));
    std::memcpy(to, from, size_t(size) * sizeof(bf16));
  }
  static SGL_INLINE f32x16 sixteen(const bf16* q, const bf16* const (&k)[kLanes], int64_t size) {
    f32x16 acc[kLanes] = {};
    int64_t i = 0;
    for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
      const __m512i query = _mm512_loadu_si512(q + i);
#pragma GCC unroll 16
      for (int64_t t = 0; t < kLanes; ++t) acc[t] = dot2(acc[t], query, _mm512_loadu_si512(k[t] + i));
    }
    if (i < size) {
      const __mmask32 mask = __mmask32((uint64_t(1) << (size - i)) - 1);
      const __m512i query = _mm512_loadu_si512(q + i);
#pragma GCC unroll 16
      for (int64_t t = 0; t < kLanes; ++t) {
        acc[t] = dot2(acc[t], query, _mm512_maskz_loadu_epi16(mask, k[t] + i));
      }
    }
    return sums(acc);
  }
};
#endif

template <class T>
SGL_INLINE void prefetch_row(const T* row, int64_t size) {
  const char* p = reinterpret_cast<const char*>(row);
  for (int64_t i = 0; i < size * int64_t(sizeof(T)); i += 64) __builtin_prefetch(p + i);
}

// acc[g][0..v_size) = acc * decay[g] + sum over the block of weight[g][t] * value row t, for G
// query heads at once, so that each value is loaded and widened once for all of them.
template <int G, class T>
SGL_INLINE void add_values(const T* v, const int64_t* rows, int64_t count, int64_t v_size,
                           int64_t v_pad, const float* weight, const float* decay, float* acc) {
  constexpr int64_t kWide = 4;  // registers of one row handled together
  for (int64_t d0 = 0; d0 < v_size; d0 += kWide * kLanes) {
    const int64_t width = std::min(kWide * kLanes, v_size - d0);
    f32x16 a[G][kWide];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
      for (int j = 0; j < kWide; ++j) {
        if (j * kLanes < width) a[g][j] = load(acc + g * v_pad + d0 + j * kLanes) * decay[g];
      }
    }
    const auto add = [&](const f32x16* value, int64_t t, int wide) SGL_LAMBDA {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        const float w = weight[g * kBlock + t];
#pragma GCC unroll 4
        for (int j = 0; j < kWide; ++j) {
          if (j < wide) a[g][j] += w * value[j];
        }
      }
    };
    if (width == kWide * kLanes) {
      for (int64_t t = 0; t < count; ++t) {
        f32x16 value[kWide];
#pragma GCC unroll 4
        for (int j = 0; j < kWide; ++j) value[j] = load(v + rows[t] + d0 + j * kLanes);
        add(value, t, kWide);
      }
    } else {
      const int wide = int((width + kLanes - 1) / kLanes);
      for (int64_t t = 0; t < count; ++t) {
        f32x16 value[kWide];
        for (int j = 0; j < wide; ++j) {
          value[j] = load_first(v + rows[t] + d0 + j * kLanes,
                                std::min(kLanes, width - j * kLanes));
        }
        add(value, t, wide);
      }
    }
    for (int g = 0; g < G; ++g) {
      for (int j = 0; j * kLanes < width; ++j) store(acc + g * v_pad + d0 + j * kLanes, a[g][j]);
    }
  }
}

// Softmax weights of one query head over a block: scores -> exp(score - max), the running maximum
// and sum moved on; returns the factor by which older sums decay.
SGL_INLINE float softmax_step(float* scores, int64_t count, float scale, float& max, float& sum) {
  f32x16 top = splat(-std::numeric_limits<float>::infinity());
  for_lanes(count, [&](int64_t i, auto n) SGL_LAMBDA {
    f32x16 s = load(scores + i) * scale;
    for (int64_t j = n; j < kLanes; ++j) s[j] = -std::numeric_limits<float>::infinity();
    store(scores + i, s);
    top = sgl::max(top, s);
  });
  const float new_max = std::max(max, hmax(top));
  const float decay = sum == 0.0f ? 0.0f : std::exp(max - new_max);
  f32x16 total = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const f32x16 w = exp(load(scores + i) - new_max);
    store(scores + i, w);
    total += w;
  }
  max = new_max;
  sum = sum * decay + hsum(total);
  return decay;
}

// Fold positions [begin, end) of a sequence into `partial` (which starts at sum 0). `slots` is the
// sequence's row of the request table; q points at the first query head of `kv_head`.
template <class T>
void attend_rows(const AttentionArgs& a, const T* q, int64_t kv_head, const int32_t* slots,
                 int64_t begin, int64_t end, Scratch& scratch, const Partial& partial) {
  using Dots = KeyDots<T>;
  const int64_t group = a.heads / a.kv_heads, v_pad = round_up(a.v_size, kLanes);
  const int64_t q_pad = Dots::padded(a.k_size);
  auto* query = Scratch::get<typename Dots::Query>(scratch.a, group * q_pad);
  auto* scores = Scratch::get<float>(scratch.b, group * kBlock);
  auto* decay = Scratch::get<float>(scratch.c, group);
  for (int64_t g = 0; g < group; ++g) {
    Dots::copy_query(query + g * q_pad, q + g * a.k_size, a.k_size);
  }
  const T* keys = static_cast<const T*>(a.k) + kv_head * a.k_size;
  const T* values = static_cast<const T*>(a.v) + kv_head * a.v_size;

  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    int64_t v_rows[kBlock];
    for (int64_t t0 = 0; t0 < count; t0 += kLanes) {
      const T* k_rows[kLanes];
      for (int64_t t = t0; t < t0 + kLanes; ++t) {
        const int64_t position = first + std::min(t, count - 1);
        k_rows[t - t0] = keys + slots[position] * a.k_stride;
        v_rows[t] = slots[position] * a.v_stride;
        prefetch_row(values + v_rows[t], a.v_size);
        if (position + kBlock < end) {
          prefetch_row(keys + slots[position + kBlock] * a.k_stride, a.k_size);
        }
      }
      for (int64_t g = 0; g < group; ++g) {
        store(scores + g * kBlock + t0, Dots::sixteen(query + g * q_pad, k_rows, a.k_size));
      }
    }
    for (int64_t g = 0; g < group; ++g) {
      decay[g] = softmax_step(scores + g * kBlock, count, a.scale, partial.max[g], partial.sum[g]);
    }
    for (int64_t g = 0; g < group; g += 4) {
      const float* w = scores + g * kBlock;
      float* acc = partial.acc + g * v_pad;
      switch (std::min<int64_t>(4, group - g)) {
        case 1: add_values<1>(values, v_rows, count, a.v_size, v_pad, w, decay + g, acc); break;
        case 2: add_values<2>(values, v_rows, count, a.v_size, v_pad, w, decay + g, acc); break;
        case 3: add_values<3>(values, v_rows, count, a.v_size, v_pad, w, decay + g, acc); break;
        default: add_values<4>(values, v_rows, count, a.v_size, v_pad, w, decay + g, acc); break;
      }
    }
  }
}

}  // namespace sgl
