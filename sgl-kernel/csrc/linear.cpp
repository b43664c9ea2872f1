// out = x W^T + bias for bf16 weights as SGLang holds them: [out features][in features], unpacked.
//
// A decode step reads every weight once for a handful of rows. The dot products run along the
// contiguous in-features, so a weight row streams from memory in order and needs no repacking; the
// horizontal sums are shared by sixteen dot products (see `sums`) and cost a few per cent.
#include "kernels.h"
#include "registers.h"

namespace sgl {

#if SGL_BF16_DOT
namespace {

constexpr int kColumns = 4;            // weight rows of one register tile
constexpr int kRows = 4;               // token rows of one register tile
constexpr int64_t kChunk = 32;         // weight rows that stay in the second-level cache
constexpr int64_t kPair = 2 * kLanes;  // bf16 values of one register
constexpr int64_t kLine = 64;          // bytes of a cache line
constexpr int64_t kBlockBytes = 384 * 1024;  // of token rows that share the second-level cache

// out[R][4] = x[R] . w[4] + bias; `columns` of the four are stored.
template <int R>
void tile(const LinearArgs& a, const bf16* x, const bf16* w, bf16* out, const bf16* bias,
          int64_t columns) {
  Tile<R, kColumns> acc;
  const bf16* w1 = w + std::min<int64_t>(1, columns - 1) * a.in;
  const bf16* w2 = w + std::min<int64_t>(2, columns - 1) * a.in;
  const bf16* w3 = w + std::min<int64_t>(3, columns - 1) * a.in;
  const auto step = [&](int64_t k, auto... mask) SGL_LAMBDA {
    const auto at = [&](const bf16* row) SGL_LAMBDA { return load_pairs(row + k, mask...); };
    const List<__m512i, kColumns> weights{at(w), {at(w1), {at(w2), {at(w3), {}}}}};
    each(acc.rows, [&](int m, auto& row) SGL_LAMBDA {
      const __m512i xs = load_pairs(x + m * a.x_stride + k, mask...);
      each_pair(row, weights, [&](f32x16& sum, __m512i ws) SGL_LAMBDA { sum = dot2(sum, xs, ws); });
    });
  };
  int64_t k = 0;
  for (; k + kPair <= a.in; k += kPair) step(k);
  if (k < a.in) step(k, first_pairs(a.in - k));

  f32x16 total = sums(flat(acc.rows));
  if (bias != nullptr) {
    bf16 repeated[kLanes] = {};
    for (bf16* four = repeated; four < repeated + kLanes; four += kColumns) {
      std::memcpy(four, bias, columns * sizeof(bf16));
    }
    total += load(repeated);
  }
  bf16 lanes[kLanes];
  store(lanes, total);
  for (int m = 0; m < R; ++m) {
    if (columns == kColumns) {
      std::memcpy(out + m * a.out_stride, lanes + m * kColumns, kColumns * sizeof(bf16));
    } else {
      std::memcpy(out + m * a.out_stride, lanes + m * kColumns, columns * sizeof(bf16));
    }
  }
}

// Fetches the weights of the next chunk, a few lines with each tile of the present one, so that
// memory and arithmetic are busy at once.
class Prefetch {
 public:
  Prefetch(const bf16* begin, const bf16* end, int64_t tiles)
      : at_(reinterpret_cast<const char*>(begin)), end_(reinterpret_cast<const char*>(end)) {
    const int64_t lines = (end_ - at_ + kLine - 1) / kLine;
    bytes_ = (lines + tiles - 1) / tiles * kLine;
  }
  void advance() {
    const char* stop = std::min(at_ + bytes_, end_);
    for (; at_ < stop; at_ += kLine) __builtin_prefetch(at_, 0, 2);
  }

 private:
  const char *at_, *end_;
  int64_t bytes_;
};

// Rows [top, bottom) and columns [begin, end) of the result.
void block(const LinearArgs& a, int64_t top, int64_t bottom, int64_t begin, int64_t end) {
  const auto* w = static_cast<const bf16*>(a.weight);
  for (int64_t first = begin; first < end; first += kChunk) {
    const int64_t last = std::min(first + kChunk, end), next = std::min(last + kChunk, end);
    const int64_t row_tiles = (bottom - top + kRows - 1) / kRows;
    const int64_t column_tiles = (last - first + kColumns - 1) / kColumns;
    Prefetch prefetch(w + last * a.in, w + next * a.in, row_tiles * column_tiles);
    // Token rows outside: their tile stays in the first-level cache, the chunk in the second.
    for (int64_t m = top; m < bottom; m += kRows) {
      const bf16* x = static_cast<const bf16*>(a.x) + m * a.x_stride;
      for (int64_t n = first; n < last; n += kColumns) {
        bf16* out = static_cast<bf16*>(a.out) + m * a.out_stride + n;
        const bf16* bias = a.bias == nullptr ? nullptr : static_cast<const bf16*>(a.bias) + n;
        const int64_t count = std::min<int64_t>(kColumns, last - n);
        prefetch.advance();
        switch (std::min<int64_t>(kRows, bottom - m)) {
          case 1: tile<1>(a, x, w + n * a.in, out, bias, count); break;
          case 2: tile<2>(a, x, w + n * a.in, out, bias, count); break;
          case 3: tile<3>(a, x, w + n * a.in, out, bias, count); break;
          default: tile<4>(a, x, w + n * a.in, out, bias, count); break;
        }
      }
    }
  }
}

// Columns [begin, end) of the result, in blocks of rows.
void columns(const LinearArgs& a, int64_t begin, int64_t end) {
  const int64_t fitting = kBlockBytes / int64_t(sizeof(bf16)) / std::max<int64_t>(a.in, 1);
  const int64_t rows = std::max<int64_t>(fitting / kRows * kRows, 8 * kRows);
  for (int64_t top = 0; top < a.rows; top += rows) {
    block(a, top, std::min(top + rows, a.rows), begin, end);
  }
}

}  // namespace

bool has_linear() { return true; }

void linear(const LinearArgs& a) {
  // A few parts for each thread: one that shares its core with another process takes fewer.
  const int64_t chunks = (a.features + kChunk - 1) / kChunk;
  const int64_t parts = a.threads == 1 ? 1 : std::min<int64_t>(chunks, 4 * a.threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(a.threads) if (parts > 1)
  for (int64_t part = 0; part < parts; ++part) {
    columns(a, chunks * part / parts * kChunk,
            std::min(chunks * (part + 1) / parts * kChunk, a.features));
  }
}

#else

bool has_linear() { return false; }
void linear(const LinearArgs&) {}

#endif

}  // namespace sgl
