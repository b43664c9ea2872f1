// RMSNorm, SiLU-and-multiply and rotary embedding, each in one pass over its rows. They round
// where SGLang's torch formulation rounds, so switching them on does not change results.
#include "kernels.h"

#include "simd.h"

namespace sgl {
namespace {

constexpr int64_t kSerial = 32768;  // elements below which threads cost more than they bring

template <class Body>
void for_rows(int64_t rows, int64_t size, int threads, Body body) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 1 && rows * size > kSerial)
  for (int64_t row = 0; row < rows; ++row) body(row);
}

template <class F>
void dispatch(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f32: return f(float{});
    case Dtype::bf16: return f(bf16{});
    case Dtype::f16: return f(f16{});
  }
}

template <class T, class W>
void rms_norm_rows(const NormArgs& a) {
  for_rows(a.rows, a.size, a.threads, [&](int64_t row) {
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
    const T* residual = static_cast<const T*>(a.residual) + row * a.size;
    const W* weight = static_cast<const W*>(a.weight);
    T* sum = static_cast<T*>(a.sum) + row * a.size;
    T* out = static_cast<T*>(a.out) + row * a.size;
    const auto value = [&](int64_t i, auto n) SGL_LAMBDA {
      const f32x16 v = load_n(x + i, n);
      return a.residual == nullptr ? v : v + load_n(residual + i, n);
    };
    f32x16 squares = {};
    for_lanes(a.size, [&](int64_t i, auto n) SGL_LAMBDA {
      const f32x16 v = value(i, n);
      squares += v * v;
    });
    const float factor = 1.0f / std::sqrt(hsum(squares) / float(a.size) + a.epsilon);
    for_lanes(a.size, [&](int64_t i, auto n) SGL_LAMBDA {
      const f32x16 v = value(i, n), w = load_n(weight + i, n);
      const f32x16 scaled = v * factor;
      store_n(out + i, w * (a.cast_first ? rounded_to<T>(scaled) : scaled), n);
      if (a.sum != nullptr) store_n(sum + i, v, n);
    });
  });
}

template <class T>
SGL_INLINE void rotate(f32x16& x1, f32x16& x2, f32x16 cos, f32x16 sin) {
  const auto r = [](f32x16 v) SGL_LAMBDA { return rounded_to<T>(v); };
  const f32x16 first = r(x1 * cos) - r(x2 * sin);
  x2 = r(x2 * cos) + r(x1 * sin);
  x1 = first;
}

template <class T>
void rotate_head(const T* x, T* out, const float* cos, const float* sin, const RotaryArgs& a) {
  const int64_t half = a.rotary / 2;
  for_lanes(half, [&](int64_t i, auto n) SGL_LAMBDA {
    const f32x16 c = load_n(cos + i, n), s = load_n(sin + i, n);
    if (a.neox) {
      f32x16 x1 = load_n(x + i, n), x2 = load_n(x + half + i, n);
      rotate<T>(x1, x2, c, s);
      store_n(out + i, x1, n);
      store_n(out + half + i, x2, n);
    } else {
      T first[kLanes] = {}, second[kLanes] = {};
      for (int64_t j = 0; j < n; ++j) {
        first[j] = x[2 * (i + j)];
        second[j] = x[2 * (i + j) + 1];
      }
      f32x16 x1 = load(first), x2 = load(second);
      rotate<T>(x1, x2, c, s);
      store(first, x1);
      store(second, x2);
      for (int64_t j = 0; j < n; ++j) {
        out[2 * (i + j)] = first[j];
        out[2 * (i + j) + 1] = second[j];
      }
    }
  });
  std::memcpy(out + a.rotary, x + a.rotary, size_t(a.head_size - a.rotary) * sizeof(T));
}

template <class T, class C>
void rotary_rows(const RotaryArgs& a) {
  const int64_t width = (a.heads + a.kv_heads) * a.head_size;
  for_rows(a.tokens, width, a.threads, [&](int64_t token) {
    const int64_t half = a.rotary / 2;
    const C* table = static_cast<const C*>(a.cos_sin) + a.positions[token] * a.rotary;
    float cos[256], sin[256];  // bindings.cpp limits the rotary size to 512
    for_lanes(half, [&](int64_t i, auto n) SGL_LAMBDA {
      store_n(cos + i, rounded_to<T>(load_n(table + i, n)), n);
      store_n(sin + i, rounded_to<T>(load_n(table + half + i, n)), n);
    });
    const auto heads = [&](const void* in, void* out, int64_t count, int64_t stride) {
      const T* x = static_cast<const T*>(in) + token * stride;
      T* y = static_cast<T*>(out) + token * count * a.head_size;
      for (int64_t h = 0; h < count; ++h) {
        rotate_head(x + h * a.head_size, y + h * a.head_size, cos, sin, a);
      }
    };
    heads(a.q, a.q_out, a.heads, a.q_stride);
    heads(a.k, a.k_out, a.kv_heads, a.k_stride);
  });
}

}  // namespace

void rms_norm(Dtype dtype, const NormArgs& args) {
  dispatch(dtype, [&](auto t) {
    using T = decltype(t);
    args.weight_f32 ? rms_norm_rows<T, float>(args) : rms_norm_rows<T, T>(args);
  });
}

void silu_and_mul(Dtype dtype, const GateArgs& a) {
  dispatch(dtype, [&](auto t) {
    using T = decltype(t);
    for_rows(a.rows, a.size, a.threads, [&](int64_t row) {
      const T* gate = static_cast<const T*>(a.x) + row * a.x_stride;
      T* out = static_cast<T*>(a.out) + row * a.size;
      for_lanes(a.size, [&](int64_t i, auto n) SGL_LAMBDA {
        const f32x16 g = load_n(gate + i, n), up = load_n(gate + a.size + i, n);
        // exp(-g) saturates at e^87: the quotient is then below every half or bf16 subnormal.
        const f32x16 e = exp(g < -87.0f ? splat(87.0f) : -g);
        store_n(out + i, rounded_to<T>(g / (1.0f + e)) * up, n);
      });
    });
  });
}

void rotary(Dtype dtype, const RotaryArgs& args) {
  dispatch(dtype, [&](auto t) {
    using T = decltype(t);
    args.cache_f32 ? rotary_rows<T, float>(args) : rotary_rows<T, T>(args);
  });
}

}  // namespace sgl
