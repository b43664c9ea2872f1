// Lists of vectors that the compiler keeps in registers. An array of vectors would do, if compilers
// did not move arrays to memory as soon as a loop over them is unrolled late or a lambda sees them;
// a chain of named members they take apart every time.
#pragma once

#include "simd.h"

namespace sgl {

template <class V, int N>
struct List {
  V first;
  List<V, N - 1> rest;
};
template <class V>
struct List<V, 0> {};

// Element-wise: call op(i, element) for i = 0..N.
template <class V, int N, class Op>
SGL_INLINE void each(List<V, N>& list, Op op, int i = 0) {
  if constexpr (N > 0) {
    op(i, list.first);
    each(list.rest, op, i + 1);
  }
}

// Element-wise over two lists: op(a, b).
template <class A, class B, int N, class Op>
SGL_INLINE void each_pair(List<A, N>& a, const List<B, N>& b, Op op) {
  if constexpr (N > 0) {
    op(a.first, b.first);
    each_pair(a.rest, b.rest, op);
  }
}

// Rows of columns: R lists of N vectors, all zero.
template <int R, int N>
struct Tile {
  List<List<f32x16, N>, R> rows;
  SGL_INLINE Tile() {
    each(rows, [](int, auto& row) SGL_LAMBDA {
      each(row, [](int, f32x16& v) SGL_LAMBDA { v = f32x16{}; });
    });
  }
};

template <class V, int N, int M>
SGL_INLINE auto joined(const List<V, N>& a, const List<V, M>& b) {
  if constexpr (N == 0) {
    return b;
  } else {
    return List<V, N + M>{a.first, joined(a.rest, b)};
  }
}

// A tile's vectors row by row.
template <int R, int N>
SGL_INLINE auto flat(const List<List<f32x16, N>, R>& rows) {
  if constexpr (R == 0) {
    return List<f32x16, 0>{};
  } else {
    return joined(rows.first, flat(rows.rest));
  }
}

template <int S, int N>
SGL_INLINE List<f32x16, (N + 1) / 2> halved(const List<f32x16, N>& v) {
  if constexpr (N == 0) {
    return {};
  } else if constexpr (N == 1) {
    return {sum_pair<S>(v.first, v.first), {}};
  } else {
    return {sum_pair<S>(v.first, v.rest.first), halved<S>(v.rest.rest)};
  }
}

// Lane i of the result is the sum of the lanes of element i (N of the lanes, N at most 16).
template <int N>
SGL_INLINE f32x16 sums(const List<f32x16, N>& v) {
  static_assert(N <= kLanes, "more sums than lanes");
  return halved<8>(halved<4>(halved<2>(halved<1>(v)))).first;
}

}  // namespace sgl
