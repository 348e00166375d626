// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Bindings of the launchers that work on rows of tokens one by one.
#include <pybind11/stl.h>

#include <array>

#include "bindings.h"
#include "build_facts.h"
#include "half_conv/params.h"
#include "half_linear/params.h"
#include "int8_linear/params.h"
#include "rope/params.h"
#include "token_rows/params.h"

namespace vitadapter {
namespace {

void normalize_rows(Address rows, Address weight, Address bias, std::pair<int64_t, int64_t> shape,
                    double eps, Address out, Address mean, Address rstd, Address grad, Address plus,
                    Address grad_weight, Address grad_bias, int num_threads) {
  const auto at = pointer<float>;
  const NormalizeRowsParams p{at(rows),      at(weight),
                              at(bias),      shape.first,
                              shape.second,  eps,
                              at(out),       at(mean),
                              at(rstd),      at(grad),
                              at(plus),      at(grad_weight),
                              at(grad_bias), threads(num_threads)};
  WithoutLock without_lock;
  normalize_rows_cpu(p);
}

void transpose_rows(Address rows, int64_t stride, std::pair<int64_t, int64_t> shape, Address out,
                    int out_dtype, int num_threads) {
  const TransposeRowsParams p{pointer<float>(rows), stride,       shape.first,
                              shape.second,         pointer(out), dtype_of(out_dtype),
                              threads(num_threads)};
  WithoutLock without_lock;
  transpose_rows_cpu(p);
}

void gelu_rows(Address rows, int64_t count, Address out, Address grad, int num_threads) {
  const GeluRowsParams p{pointer<float>(rows), count, pointer<float>(out), pointer<float>(grad),
                         threads(num_threads)};
  WithoutLock without_lock;
  gelu_rows_cpu(p);
}

void int8_linear(Address x, Address weight, Address scales, Address bias, Address plus,
                 bool has_gelu, const std::array<int64_t, 3>& shape, Address steps, Address out,
                 int num_threads) {
  const auto at = pointer<float>;
  const auto [num_rows, num_inputs, num_outputs] = shape;
  const Int8LinearParams p{at(x),       pointer<int8_t>(weight),
                           at(scales),  at(bias),
                           at(plus),    has_gelu,
                           num_rows,    num_inputs,
                           num_outputs, pointer(steps),
                           at(out),     threads(num_threads)};
  WithoutLock without_lock;
  int8_linear_cpu(p);
}

void half_linear(Address x, int x_dtype, std::pair<int64_t, int64_t> x_strides, Address weight,
                 int weight_dtype, std::pair<int64_t, int64_t> weight_strides, Address gamma,
                 Address bias, Address plus, int plus_dtype, bool has_gelu, Address norm_weight,
                 Address norm_bias, double eps, Address mean, Address rstd, Address sums,
                 const std::array<int64_t, 3>& shape, Address halves, Address out, int out_dtype,
                 int num_threads) {
  const auto [num_rows, num_inputs, num_outputs] = shape;
  const HalfLinearParams p{
      {pointer(x), dtype_of(x_dtype), x_strides.first, x_strides.second},
      {pointer(weight), dtype_of(weight_dtype), weight_strides.first, weight_strides.second},
      pointer<float>(gamma),
      pointer<float>(bias),
      pointer(plus),
      dtype_of(plus_dtype),
      has_gelu,
      {pointer<float>(norm_weight), pointer<float>(norm_bias), eps, pointer<float>(mean),
       pointer<float>(rstd)},
      pointer<float>(sums),
      num_rows,
      num_inputs,
      num_outputs,
      pointer(halves),
      pointer(out),
      dtype_of(out_dtype),
      threads(num_threads)};
  WithoutLock without_lock;
  half_linear_cpu(p);
}

// Of a convolution or the gradient of its weights.
template <typename Params>
Params conv_params(const std::array<int64_t, 3>& channels, std::pair<int32_t, int32_t> hw,
                   int64_t stride) {
  Params p{};
  p.batch = channels[0];
  p.num_inputs = channels[1];
  p.num_outputs = channels[2];
  p.hw = {hw.first, hw.second};
  p.stride = stride;
  return p;
}

HalfConvParams half_conv_params(const std::array<int64_t, 3>& channels,
                                std::pair<int32_t, int32_t> hw, int64_t stride, bool pads_rows) {
  auto p = conv_params<HalfConvParams>(channels, hw, stride);
  p.pads_rows = pads_rows;
  return p;
}

void half_conv(Address x, int x_dtype, std::pair<int64_t, int64_t> x_strides, Address weight,
               Address bias, bool has_relu, const std::array<int64_t, 3>& channels,
               std::pair<int32_t, int32_t> hw, int64_t stride, bool pads_rows, Address halves,
               int64_t halves_bytes, Address out, int out_dtype, int num_threads) {
  HalfConvParams p = half_conv_params(channels, hw, stride, pads_rows);
  p.x = pointer(x);
  p.x_dtype = dtype_of(x_dtype);
  p.stride_b = x_strides.first;
  p.stride_h = x_strides.second;
  p.weight = pointer<float>(weight);
  p.bias = pointer<float>(bias);
  p.has_relu = has_relu;
  p.halves = pointer(halves);
  p.halves_bytes = halves_bytes;
  p.out = pointer(out);
  p.out_dtype = dtype_of(out_dtype);
  p.num_threads = threads(num_threads);
  WithoutLock without_lock;
  half_conv_cpu(p);
}

void half_conv_gradient(Address x, int x_dtype, std::pair<int64_t, int64_t> x_strides, Address grad,
                        int grad_dtype, std::pair<int64_t, int64_t> grad_strides,
                        const std::array<int64_t, 3>& channels, std::pair<int32_t, int32_t> hw,
                        int64_t stride, Address parts, int64_t parts_bytes, Address out,
                        int num_threads) {
  auto p = conv_params<HalfConvGradientParams>(channels, hw, stride);
  p.x = pointer(x);
  p.x_dtype = dtype_of(x_dtype);
  p.stride_b = x_strides.first;
  p.stride_h = x_strides.second;
  p.grad = pointer(grad);
  p.grad_dtype = dtype_of(grad_dtype);
  p.grad_stride_b = grad_strides.first;
  p.grad_stride_h = grad_strides.second;
  p.parts = pointer<float>(parts);
  p.parts_bytes = parts_bytes;
  p.out = pointer<float>(out);
  p.num_threads = threads(num_threads);
  WithoutLock without_lock;
  half_conv_gradient_cpu(p);
}

template <void (*launch)(const RopeParams&)>
void def_rope(py::module_& module, const char* name) {
  using py::literals::operator""_a;
  using Strides = std::pair<int64_t, int64_t>;
  auto run = [](Address qkv, int dtype, Strides qkv_strides,
                const std::array<int64_t, 4>& qkv_shape, std::pair<int32_t, int32_t> hw,
                Address tables, bool is_inverse, Address out, Strides out_strides, int num_threads,
                int device, Address stream) {
    const auto [batch, tokens, heads, channels] = qkv_shape;
    const RopeParams p{pointer(qkv),
                       qkv_strides.first,
                       qkv_strides.second,
                       dtype_of(dtype),
                       batch,
                       tokens,
                       heads,
                       channels,
                       {hw.first, hw.second},
                       pointer(tables),
                       is_inverse,
                       pointer(out),
                       out_strides.first,
                       out_strides.second,
                       threads(num_threads),
                       device,
                       pointer(stream)};
    WithoutLock without_lock;
    launch(p);
  };
  module.def(name, run, py::kw_only(), "qkv"_a, "dtype"_a, "qkv_strides"_a, "qkv_shape"_a, "hw"_a,
             "tables"_a, "is_inverse"_a, "out"_a, "out_strides"_a, "num_threads"_a = 1,
             "device"_a = 0, "stream"_a = 0);
}

}  // namespace

void define_rows(py::module_& module) {
  using py::literals::operator""_a;
  module.def("normalize_rows_cpu", &normalize_rows, py::kw_only(), "rows"_a, "weight"_a, "bias"_a,
             "shape"_a, "eps"_a, "out"_a, "mean"_a, "rstd"_a, "grad"_a = 0, "plus"_a = 0,
             "grad_weight"_a = 0, "grad_bias"_a = 0, "num_threads"_a = 1);
  module.def("transpose_rows_cpu", &transpose_rows, py::kw_only(), "rows"_a, "stride"_a, "shape"_a,
             "out"_a, "out_dtype"_a, "num_threads"_a = 1);
  module.def("gelu_rows_cpu", &gelu_rows, py::kw_only(), "rows"_a, "count"_a, "out"_a, "grad"_a = 0,
             "num_threads"_a = 1);
  module.def("has_int8_products", &has_int8_products);
  module.def("int8_linear_cpu", &int8_linear, py::kw_only(), "x"_a, "weight"_a, "scales"_a,
             "bias"_a = 0, "plus"_a = 0, "has_gelu"_a, "shape"_a, "steps"_a, "out"_a,
             "num_threads"_a = 1);
  module.def("has_half_products", &has_half_products);
  module.def("half_linear_cpu", &half_linear, py::kw_only(), "x"_a, "x_dtype"_a, "x_strides"_a,
             "weight"_a, "weight_dtype"_a, "weight_strides"_a, "gamma"_a = 0, "bias"_a = 0,
             "plus"_a = 0, "plus_dtype"_a = 0, "has_gelu"_a = false, "norm_weight"_a = 0,
             "norm_bias"_a = 0, "eps"_a = 0.0, "mean"_a = 0, "rstd"_a = 0, "sums"_a = 0, "shape"_a,
             "halves"_a, "out"_a, "out_dtype"_a, "num_threads"_a = 1);
  module.def(
      "half_conv_bytes",
      [](const std::array<int64_t, 3>& channels, std::pair<int32_t, int32_t> hw, int64_t stride,
         bool pads_rows) {
        return half_conv_bytes(half_conv_params(channels, hw, stride, pads_rows));
      },
      py::kw_only(), "channels"_a, "hw"_a, "stride"_a, "pads_rows"_a);
  module.def("half_conv_cpu", &half_conv, py::kw_only(), "x"_a, "x_dtype"_a, "x_strides"_a,
             "weight"_a, "bias"_a = 0, "has_relu"_a, "channels"_a, "hw"_a, "stride"_a,
             "pads_rows"_a, "halves"_a, "halves_bytes"_a, "out"_a, "out_dtype"_a,
             "num_threads"_a = 1);
  module.def(
      "half_conv_gradient_bytes",
      [](const std::array<int64_t, 3>& channels, std::pair<int32_t, int32_t> hw, int64_t stride) {
        return half_conv_gradient_bytes(conv_params<HalfConvGradientParams>(channels, hw, stride));
      },
      py::kw_only(), "channels"_a, "hw"_a, "stride"_a);
  module.def("half_conv_gradient_cpu", &half_conv_gradient, py::kw_only(), "x"_a, "x_dtype"_a,
             "x_strides"_a, "grad"_a, "grad_dtype"_a, "grad_strides"_a, "channels"_a, "hw"_a,
             "stride"_a, "parts"_a, "parts_bytes"_a, "out"_a, "num_threads"_a = 1);
  def_rope<rope_cpu>(module, "rope_cpu");
#if VITADAPTER_CUDA_KERNELS
  def_rope<rope_cuda>(module, "rope_cuda");
#endif
}

}  // namespace vitadapter
