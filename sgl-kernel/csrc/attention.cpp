// One call per layer: cut the batch into independent pieces of work, largest first, run them on
// all threads, merge the pieces of sequences that were split.
#include <vector>

#include "attention_tile.h"

namespace sgl {
namespace {

constexpr int64_t kTileTokens = 4;   // fewer new tokens than this are handled one by one
constexpr int64_t kTileRowsAim = 128;  // query rows (tokens x group) of a tile
constexpr int64_t kSplitMin = 256;   // positions of the smallest piece of a split sequence
constexpr int64_t kRowBytes = 1024;  // of one slot's keys to read at a time, over several KV heads

struct Item {
  int64_t sequence, kv_head, kv_count;
  int64_t token, tokens;   // first query token, counted over the batch, and how many
  int64_t visible;         // positions the first token sees
  int64_t begin, end;      // positions to attend to (single tokens only)
  int64_t partial;         // index of the partial result, or -1: write the output
  int64_t cost;
};

// Partial results [first, first + pieces) belong to one token and its KV heads.
struct Merge {
  int64_t token, kv_head, kv_count, first, pieces;
};

struct Plan {
  std::vector<Item> items;
  std::vector<Merge> merges;
  int64_t partials = 0;
};

// Positions a piece may have: with more pieces than threads need, splitting only costs.
int64_t piece_length(const AttentionArgs& a, int64_t heads_parts) {
  if (a.threads == 1) return int64_t(1) << 40;
  int64_t total = 0;
  for (int64_t s = 0; s < a.sequences; ++s) {
    total += a.new_lens[s] * a.seq_lens[s];
  }
  const int64_t fair = total * heads_parts / (4 * a.threads);
  return round_up(std::max(fair, kSplitMin), kBlock);
}

void plan_token(Plan& plan, Item item, int64_t piece) {
  const int64_t length = item.visible;
  const int64_t pieces = length > piece + piece / 2 ? (length + piece - 1) / piece : 1;
  if (pieces > 1) {
    plan.merges.push_back({item.token, item.kv_head, item.kv_count, plan.partials, pieces});
  }
  const int64_t each = round_up((length + pieces - 1) / pieces, kBlock);
  for (int64_t i = 0; i < pieces; ++i) {
    item.begin = std::min(i * each, length);
    item.end = std::min(item.begin + each, length);
    item.partial = pieces > 1 ? plan.partials++ : -1;
    item.cost = item.end - item.begin;
    plan.items.push_back(item);
  }
}

Plan make_plan(const AttentionArgs& a, int64_t item_bytes) {
  Plan plan;
  const int64_t tile = std::max<int64_t>(1, kTileRowsAim / (a.heads / a.kv_heads));
  const int64_t together = std::clamp<int64_t>(kRowBytes / item_bytes, 1, a.kv_heads);
  const int64_t piece = piece_length(a, (a.kv_heads + together - 1) / together);
  int64_t token = 0;
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t fresh = a.new_lens[s], prefix = a.seq_lens[s] - fresh;
    const bool single = fresh < kTileTokens;
    const int64_t tokens = single ? 1 : tile, heads = single ? together : 1;
    for (int64_t h = 0; h < a.kv_heads; h += heads) {
      for (int64_t t = 0; t < fresh; t += tokens) {
        const int64_t visible = a.causal ? prefix + t + 1 : a.seq_lens[s];
        Item item{s, h, std::min(heads, a.kv_heads - h), token + t, std::min(tokens, fresh - t),
                  visible, 0, 0, -1, 0};
        if (single) {
          plan_token(plan, item, piece);
        } else {
          item.cost = (visible + item.tokens) * item.tokens;
          plan.items.push_back(item);
        }
      }
    }
    token += fresh;
  }
  std::stable_sort(plan.items.begin(), plan.items.end(),
                   [](const Item& x, const Item& y) { return x.cost > y.cost; });
  return plan;
}

// Memory of the partial results: a maximum, a sum and v_pad values per query head.
struct Partials {
  std::vector<float> memory;
  int64_t heads, v_pad;
  Partials(int64_t count, int64_t heads, int64_t v_pad)
      : memory(size_t(count * heads * (v_pad + 2))), heads(heads), v_pad(v_pad) {}
  Partial at(int64_t i) {
    float* base = memory.data() + i * heads * (v_pad + 2);
    return {base, base + heads, base + 2 * heads};
  }
};

void clear(const Partial& p, int64_t heads, int64_t v_pad) {
  std::fill(p.max, p.max + heads, -std::numeric_limits<float>::infinity());
  std::fill(p.sum, p.sum + heads, 0.0f);
  std::fill(p.acc, p.acc + heads * v_pad, 0.0f);
}

// Write the result of a token's `heads` query heads from `head` on.
template <class T>
void write(const AttentionArgs& a, int64_t token, int64_t head, int64_t heads, const Partial& p) {
  const int64_t v_pad = padded(a.v_size);
  T* out = static_cast<T*>(a.out) + (token * a.heads + head) * a.v_size;
  for (int64_t h = 0; h < heads; ++h) {
    const float inverse = p.sum[h] == 0.0f ? 0.0f : 1.0f / p.sum[h];
    for_lanes(a.v_size, [&](int64_t d, auto n) SGL_LAMBDA {
      store_n(out + h * a.v_size + d, load(p.acc + h * v_pad + d) * inverse, n);
    });
  }
}

// Fold `from` into `into`.
void merge(const Partial& into, const Partial& from, int64_t heads, int64_t v_pad) {
  for (int64_t g = 0; g < heads; ++g) {
    if (from.sum[g] == 0.0f) continue;
    const float top = std::max(into.max[g], from.max[g]);
    const float keep = into.sum[g] == 0.0f ? 0.0f : std::exp(into.max[g] - top);
    const float add = std::exp(from.max[g] - top);
    into.max[g] = top;
    into.sum[g] = into.sum[g] * keep + from.sum[g] * add;
    for (int64_t d = g * v_pad; d < (g + 1) * v_pad; d += kLanes) {
      store(into.acc + d, load(into.acc + d) * keep + load(from.acc + d) * add);
    }
  }
}

template <class T>
void run(const AttentionArgs& a) {
  const Plan plan = make_plan(a, a.k_size * int64_t(sizeof(T)));
  const int64_t group = a.heads / a.kv_heads, v_pad = padded(a.v_size);
  Partials partials(plan.partials, a.heads, v_pad);
  const int64_t items = int64_t(plan.items.size()), merges = int64_t(plan.merges.size());
#pragma omp parallel num_threads(a.threads) if (a.threads > 1 && items > 1)
  {
    Scratch scratch;
    Partials own(1, a.heads, v_pad);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < items; ++i) {
      const Item& item = plan.items[i];
      const int32_t* slots = a.req_to_token + a.requests[item.sequence] * a.table_stride;
      const T* q = static_cast<const T*>(a.q) + item.token * a.q_stride;
      if (item.end == 0) {
        T* out = static_cast<T*>(a.out) + item.token * a.heads * a.v_size;
        attend_tile(a, q, out, item.kv_head, slots, item.visible, item.tokens, scratch);
        continue;
      }
      const Partial partial = item.partial < 0 ? own.at(0) : partials.at(item.partial);
      const int64_t heads = item.kv_count * group;
      clear(partial, heads, v_pad);
      attend_rows(a, q, item.kv_head, item.kv_count, slots, item.begin, item.end, scratch,
                  partial);
      if (item.partial < 0) write<T>(a, item.token, item.kv_head * group, heads, partial);
    }
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < merges; ++i) {
      const Merge& m = plan.merges[i];
      const int64_t heads = m.kv_count * group;
      const Partial whole = partials.at(m.first);
      for (int64_t j = 1; j < m.pieces; ++j) merge(whole, partials.at(m.first + j), heads, v_pad);
      write<T>(a, m.token, m.kv_head * group, heads, whole);
    }
  }
}

}  // namespace

void paged_attention(Dtype dtype, const AttentionArgs& args) {
  switch (dtype) {
    case Dtype::f32: return run<float>(args);
    case Dtype::bf16: return run<bf16>(args);
    case Dtype::f16: return run<f16>(args);
  }
}

}  // namespace sgl
