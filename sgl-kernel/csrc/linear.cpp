// out = x W^T + bias for bf16 weights as SGLang holds them: [out features][in features], unpacked.
//
// A decode step reads every weight once for a handful of rows. The dot products run along the
// contiguous in-features, so a weight row streams from memory in order and needs no repacking; the
// horizontal sums are shared by sixteen dot products (see `sums`) and cost a few per cent.
#include "kernels.h"

#include <vector>

#include "simd.h"

namespace sgl {

#if SGL_BF16_DOT
namespace {

constexpr int64_t kColumns = 4;       // weight rows of one register tile
constexpr int64_t kRows = 6;          // token rows of one register tile: 24 accumulators
constexpr int64_t kChunk = 32;        // weight rows a thread takes at a time
constexpr int64_t kPair = 2 * kLanes; // bf16 values of one register

SGL_INLINE __m512i load_pairs(const bf16* p) { return _mm512_loadu_si512(p); }
SGL_INLINE __m512i load_pairs(const bf16* p, __mmask32 mask) {
  return _mm512_maskz_loadu_epi16(mask, p);
}

// out[R][4] = x[R] . w[4] + bias; `columns` of the four are stored.
template <int64_t R>
void tile(const LinearArgs& a, const bf16* x, const bf16* w, bf16* out, const float* bias,
          int64_t columns) {
  f32x16 acc[R * kColumns] = {};
  const bf16* row[kColumns];
  for (int64_t n = 0; n < kColumns; ++n) row[n] = w + std::min(n, columns - 1) * a.in;
  int64_t k = 0;
  const auto step = [&](auto... mask) SGL_LAMBDA {
    __m512i xs[R];
#pragma GCC unroll 8
    for (int64_t m = 0; m < R; ++m) {
      xs[m] = load_pairs(x + m * a.x_stride + k, mask...);
      asm("" : "+v"(xs[m]));  // else the compiler loads it again for every weight row
    }
#pragma GCC unroll 4
    for (int64_t n = 0; n < kColumns; ++n) {
      const __m512i ws = load_pairs(row[n] + k, mask...);
#pragma GCC unroll 8
      for (int64_t m = 0; m < R; ++m) acc[m * kColumns + n] = dot2(acc[m * kColumns + n], xs[m], ws);
    }
  };
  for (; k + kPair <= a.in; k += kPair) step();
  if (k < a.in) step(__mmask32((uint64_t(1) << (a.in - k)) - 1));

  constexpr int64_t kPerSum = kLanes / kColumns;  // rows whose sums one register holds
  for (int64_t first = 0; first < R; first += kPerSum) {
    f32x16 group[kLanes] = {};
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) {
      if (first * kColumns + i < R * kColumns) group[i] = acc[first * kColumns + i];
    }
    bf16 lanes[kLanes];
    store(lanes, sums(group) + load(bias));
    for (int64_t m = first; m < std::min(first + kPerSum, R); ++m) {
      std::memcpy(out + m * a.out_stride, lanes + (m - first) * kColumns, columns * sizeof(bf16));
    }
  }
}

void rows_tile(int64_t rows, const LinearArgs& a, const bf16* x, const bf16* w, bf16* out,
               const float* bias, int64_t columns) {
  switch (rows) {
    case 1: return tile<1>(a, x, w, out, bias, columns);
    case 2: return tile<2>(a, x, w, out, bias, columns);
    case 3: return tile<3>(a, x, w, out, bias, columns);
    case 4: return tile<4>(a, x, w, out, bias, columns);
    case 5: return tile<5>(a, x, w, out, bias, columns);
    default: return tile<6>(a, x, w, out, bias, columns);
  }
}

}  // namespace

bool has_linear() { return true; }

void linear(const LinearArgs& a) {
  const auto* x = static_cast<const bf16*>(a.x);
  const auto* w = static_cast<const bf16*>(a.weight);
  auto* out = static_cast<bf16*>(a.out);
  const int64_t chunks = (a.features + kChunk - 1) / kChunk;
#pragma omp parallel for schedule(dynamic, 4) num_threads(a.threads) if (a.threads > 1)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, a.features);
    // Token rows outside: their tile stays in the first-level cache while the chunk's weights,
    // read from memory for the first tile, come from the second level for the others.
    for (int64_t m = 0; m < a.rows; m += kRows) {
      for (int64_t n = begin; n < end; n += kColumns) {
        const int64_t columns = std::min(kColumns, end - n);
        float bias[kLanes] = {};  // repeated for each row of the sum
        if (a.bias != nullptr) {
          const f32x16 four = load_first(static_cast<const bf16*>(a.bias) + n, columns);
          for (int64_t i = 0; i < kLanes; ++i) bias[i] = four[i % kColumns];
        }
        rows_tile(std::min(kRows, a.rows - m), a, x + m * a.x_stride, w + n * a.in,
                  out + m * a.out_stride + n, bias, columns);
      }
    }
  }
}

#else

bool has_linear() { return false; }
void linear(const LinearArgs&) {}

#endif

}  // namespace sgl
