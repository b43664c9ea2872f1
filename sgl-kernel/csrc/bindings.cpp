// Checks what Python passes, allocates results, and calls the kernels with the GIL released.
// Not <torch/extension.h>: it takes three times as long to compile.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>

#include "kernels.h"

namespace {

using at::Tensor;

sgl::Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return sgl::Dtype::f32;
    case at::kBFloat16: return sgl::Dtype::bf16;
    case at::kHalf: return sgl::Dtype::f16;
    default: TORCH_CHECK(false, "dtype ", t.scalar_type(), ": use float32, bfloat16 or float16");
  }
}

void check_rows(const Tensor& t, const char* name, int64_t dim) {
  TORCH_CHECK(t.device().is_cpu(), name, " is not on the CPU");
  TORCH_CHECK(t.dim() == dim, name, " has ", t.dim(), " dimensions, expected ", dim);
  TORCH_CHECK(t.size(-1) <= 1 || t.stride(-1) == 1, name, ": the last dimension is not contiguous");
}

void check_like(const Tensor& t, const char* name, at::ScalarType dtype, at::IntArrayRef sizes) {
  TORCH_CHECK(t.device().is_cpu() && t.is_contiguous() && t.scalar_type() == dtype &&
                  t.sizes() == sizes,
              name, ": expected a contiguous ", dtype, " tensor of shape ", sizes,
              " on the CPU, got ", t.scalar_type(), " ", t.sizes());
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  TORCH_CHECK(sgl::has_linear(), "linear: this build has no bfloat16 dot products (AVX512_BF16)");
  check_rows(x, "x", 2);
  TORCH_CHECK(x.scalar_type() == at::kBFloat16, "x: expected bfloat16, got ", x.scalar_type());
  check_like(weight, "weight", at::kBFloat16, {weight.size(0), x.size(1)});
  if (bias) check_like(*bias, "bias", at::kBFloat16, {weight.size(0)});
  Tensor out = at::empty({x.size(0), weight.size(0)}, x.options());
  sgl::linear({x.data_ptr(), weight.data_ptr(), bias ? bias->data_ptr() : nullptr, out.data_ptr(),
               x.size(0), x.size(1), weight.size(0), x.stride(0), out.stride(0),
               at::get_num_threads()});
  return out;
}

std::tuple<Tensor, std::optional<Tensor>> rms_norm(const Tensor& x,
                                                   const std::optional<Tensor>& residual,
                                                   const Tensor& weight, double epsilon,
                                                   bool cast_first) {
  check_rows(x, "x", 2);
  TORCH_CHECK(x.size(1) > 0, "x has no columns");
  const bool weight_f32 = weight.scalar_type() == at::kFloat;
  check_like(weight, "weight", weight_f32 ? at::kFloat : x.scalar_type(), {x.size(1)});
  if (residual) check_like(*residual, "residual", x.scalar_type(), x.sizes());
  Tensor out = at::empty(x.sizes(), x.options());
  std::optional<Tensor> sum;
  if (residual) sum = at::empty(x.sizes(), x.options());
  sgl::rms_norm(dtype_of(x), {x.data_ptr(), residual ? residual->data_ptr() : nullptr,
                              weight.data_ptr(), out.data_ptr(), sum ? sum->data_ptr() : nullptr,
                              x.size(0), x.size(1), x.stride(0), float(epsilon), weight_f32,
                              cast_first, at::get_num_threads()});
  return {out, sum};
}

Tensor silu_and_mul(const Tensor& x) {
  check_rows(x, "x", 2);
  TORCH_CHECK(x.size(1) % 2 == 0, "x has an odd number of columns: ", x.size(1));
  Tensor out = at::empty({x.size(0), x.size(1) / 2}, x.options());
  sgl::silu_and_mul(dtype_of(x), {x.data_ptr(), out.data_ptr(), x.size(0), x.size(1) / 2,
                                  x.stride(0), at::get_num_threads()});
  return out;
}

std::tuple<Tensor, Tensor> rotary(const Tensor& positions, const Tensor& q, const Tensor& k,
                                  int64_t head_size, const Tensor& cos_sin, bool neox) {
  check_rows(q, "query", 2);
  check_rows(k, "key", 2);
  const int64_t tokens = q.size(0), size = cos_sin.size(1);
  check_like(positions, "positions", at::kLong, {tokens});
  TORCH_CHECK(k.size(0) == tokens && k.scalar_type() == q.scalar_type(), "query and key differ");
  TORCH_CHECK(head_size > 0 && q.size(1) % head_size == 0 && k.size(1) % head_size == 0,
              "query or key is no multiple of the head size ", head_size);
  TORCH_CHECK(size % 2 == 0 && size <= head_size && size <= 512, "rotary size ", size,
              ": expected an even one, at most the head size ", head_size, " and 512");
  const bool cache_f32 = cos_sin.scalar_type() == at::kFloat;
  check_like(cos_sin, "cos_sin_cache", cache_f32 ? at::kFloat : q.scalar_type(), cos_sin.sizes());
  const auto* place = positions.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < tokens; ++t) {
    TORCH_CHECK(place[t] >= 0 && place[t] < cos_sin.size(0), "position ", place[t],
                " lies outside the rotary cache of ", cos_sin.size(0));
  }
  Tensor q_out = at::empty(q.sizes(), q.options()), k_out = at::empty(k.sizes(), k.options());
  sgl::rotary(dtype_of(q), {place, cos_sin.data_ptr(), q.data_ptr(), k.data_ptr(),
                            q_out.data_ptr(), k_out.data_ptr(), tokens, q.size(1) / head_size,
                            k.size(1) / head_size, head_size, size, q.stride(0), k.stride(0), neox,
                            cache_f32, at::get_num_threads()});
  return {q_out, k_out};
}

Tensor paged_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                       const Tensor& req_to_token, const Tensor& requests, const Tensor& seq_lens,
                       const Tensor& new_lens, double scale, bool causal) {
  check_rows(q, "q", 3);
  check_rows(k, "k_buffer", 3);
  check_rows(v, "v_buffer", 3);
  check_rows(req_to_token, "req_to_token", 2);
  const int64_t heads = q.size(1), kv_heads = k.size(1), sequences = requests.numel();
  TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
              "q, k_buffer and v_buffer have different dtypes: ", q.scalar_type(), ", ",
              k.scalar_type(), ", ", v.scalar_type());
  TORCH_CHECK(k.size(0) == v.size(0) && v.size(1) == kv_heads && k.size(2) == q.size(2),
              "shapes do not fit: q ", q.sizes(), ", k_buffer ", k.sizes(), ", v_buffer ",
              v.sizes());
  TORCH_CHECK(kv_heads > 0 && heads % kv_heads == 0, heads, " query heads over ", kv_heads,
              " KV heads: not a multiple");
  TORCH_CHECK(q.stride(1) == q.size(2) && k.stride(1) == k.size(2) && v.stride(1) == v.size(2),
              "the heads of q, k_buffer or v_buffer are not contiguous");
  TORCH_CHECK(req_to_token.scalar_type() == at::kInt, "req_to_token: expected int32");
  check_like(requests, "req_pool_indices", at::kLong, {sequences});
  check_like(seq_lens, "seq_lens", at::kLong, {sequences});
  check_like(new_lens, "new_lens", at::kLong, {sequences});
  int64_t tokens = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t row = requests.const_data_ptr<int64_t>()[s];
    const int64_t length = seq_lens.const_data_ptr<int64_t>()[s];
    const int64_t fresh = new_lens.const_data_ptr<int64_t>()[s];
    TORCH_CHECK(row >= 0 && row < req_to_token.size(0) && fresh >= 0 && fresh <= length &&
                    length <= req_to_token.size(1),
                "sequence ", s, ": request ", row, " with ", length, " positions, ", fresh,
                " of them new, does not fit req_to_token ", req_to_token.sizes());
    tokens += fresh;
  }
  // A padded batch has more rows of q than the sequences have new tokens; they come out as zeros.
  TORCH_CHECK(tokens <= q.size(0), "the sequences have ", tokens, " new tokens, q has ", q.size(0));
  Tensor out = at::empty({q.size(0), heads, v.size(2)}, q.options());
  if (tokens < q.size(0)) out.narrow(0, tokens, q.size(0) - tokens).zero_();
  sgl::paged_attention(
      dtype_of(q),
      {q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), q.stride(0), k.stride(0),
       v.stride(0), heads, kv_heads, q.size(2), v.size(2), req_to_token.const_data_ptr<int32_t>(),
       req_to_token.stride(0), requests.const_data_ptr<int64_t>(),
       seq_lens.const_data_ptr<int64_t>(), new_lens.const_data_ptr<int64_t>(), sequences,
       float(scale), causal, at::get_num_threads()});
  return out;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  const auto free = pybind11::call_guard<pybind11::gil_scoped_release>();
  m.def("has_linear", &sgl::has_linear);
  m.def("linear", &linear, free);
  m.def("rms_norm", &rms_norm, free);
  m.def("silu_and_mul", &silu_and_mul, free);
  m.def("rotary", &rotary, free);
  m.def("paged_attention", &paged_attention, free);
}
