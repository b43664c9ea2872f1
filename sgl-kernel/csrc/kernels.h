// The kernels' plain interface: raw pointers, strides in elements, a number of threads. Nothing
// here knows torch; bindings.cpp checks shapes and fills these structs.
#pragma once

#include <cstdint>

namespace sgl {

enum class Dtype { f32, bf16, f16 };

struct LinearArgs {
  const void* x;       // [rows][x_stride], bf16
  const void* weight;  // [features][in], bf16
  const void* bias;    // [features], bf16, or null
  void* out;           // [rows][out_stride], bf16
  int64_t rows, in, features, x_stride, out_stride;
  int threads;
};
bool has_linear();  // whether this build has bf16 dot products; `linear` does nothing without
void linear(const LinearArgs&);

struct NormArgs {
  const void* x;         // [rows][x_stride]
  const void* residual;  // [rows][size], or null: no addition
  const void* weight;    // [size], Dtype or float32
  void* out;             // [rows][size]
  void* sum;             // [rows][size]: x + residual, or null
  int64_t rows, size, x_stride;
  float epsilon;
  bool weight_f32;   // the weight is float32 although x is not
  bool cast_first;   // round before multiplying with the weight (Hugging Face's order)
  int threads;
};
void rms_norm(Dtype, const NormArgs&);

struct GateArgs {
  const void* x;  // [rows][x_stride]: gate [size], then up [size]
  void* out;      // [rows][size]
  int64_t rows, size, x_stride;
  int threads;
};
void silu_and_mul(Dtype, const GateArgs&);

struct RotaryArgs {
  const int64_t* positions;  // [tokens]
  const void* cos_sin;       // [positions][rotary]: cosines, then sines
  const void *q, *k;         // [tokens][stride]
  void *q_out, *k_out;       // [tokens][heads][head_size]
  int64_t tokens, heads, kv_heads, head_size, rotary, q_stride, k_stride;
  bool neox;       // rotate halves (NeoX) instead of neighbours (GPT-J)
  bool cache_f32;  // cos_sin is float32 although q is not
  int threads;
};
void rotary(Dtype, const RotaryArgs&);

struct AttentionArgs {
  const void* q;  // [tokens][heads][k_size]
  const void *k, *v;  // [slots][kv_heads][size]
  void* out;          // [tokens][heads][v_size]
  int64_t q_stride, k_stride, v_stride;  // of a token or slot; heads are contiguous
  int64_t heads, kv_heads, k_size, v_size;
  const int32_t* req_to_token;  // [requests][table_stride]: slot of each position
  int64_t table_stride;
  const int64_t* requests;  // [sequences]: row of req_to_token
  const int64_t* seq_lens;  // [sequences]: positions, the new tokens included
  const int64_t* new_lens;  // [sequences]: new tokens (queries), the last of the sequence
  int64_t sequences;
  float scale;
  bool causal;  // a new token sees the positions up to its own, else all of its sequence
  int threads;
};
void paged_attention(Dtype, const AttentionArgs&);

}  // namespace sgl
