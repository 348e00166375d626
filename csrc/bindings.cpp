// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// The Python module vitadapter_fast._C: one def per launcher, plus the facts of the build. Tensors
// arrive as addresses; vitadapter_fast/native/extension.py is the only caller and has checked them.
#include "bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "batch_norm/params.h"
#include "build_facts.h"
#include "build_info.h"
#include "common/isa.h"
#include "common/kept_memory.h"
#include "common/pages.h"
#include "dwconv_gelu/params.h"
#include "ms_deform_attn/params.h"
#include "patch_embed/params.h"
#include "window_attention/params.h"

namespace vitadapter {
namespace {

std::vector<SizeHW> sizes(const std::vector<int32_t>& flat) {
  VITADAPTER_CHECK(flat.size() % 2 == 0, "sizes must come as (h, w) pairs");
  std::vector<SizeHW> result;
  for (size_t i = 0; i < flat.size(); i += 2) result.push_back({flat[i], flat[i + 1]});
  return result;
}

using Launcher = void (*)(const MsDeformAttnParams&);

template <Launcher launch>
void ms_deform_attn(Address value, Address points, Address weights, int value_dtype,
                    int points_dtype, int weights_dtype, std::pair<int64_t, int64_t> value_strides,
                    std::pair<int64_t, int64_t> points_strides,
                    std::pair<int64_t, int64_t> weights_strides,
                    const std::vector<int64_t>& value_shape, int64_t queries, int64_t num_points,
                    const std::vector<int32_t>& level_hw, const std::vector<int32_t>& query_hw,
                    Address out, Address grad_out, std::pair<int64_t, int64_t> grad_out_strides,
                    Address grad_value, Address grad_points, Address grad_weights, int num_threads,
                    int device, Address stream, bool sums_by_records, Address cell_of_point,
                    Address rank_of_point, Address points_in_cell, Address records,
                    Address cell_end, Address sorted_records) {
  VITADAPTER_CHECK(value_shape.size() == 4, "value_shape must be [B, S, M, D]");
  const std::vector<SizeHW> levels = sizes(level_hw), grids = sizes(query_hw);
  MsDeformAttnParams p{};
  p.value = pointer(value);
  p.points = pointer(points);
  p.weights = pointer(weights);
  p.value_dtype = dtype_of(value_dtype);
  p.points_dtype = dtype_of(points_dtype);
  p.weights_dtype = dtype_of(weights_dtype);
  std::tie(p.value_stride_b, p.value_stride_s) = value_strides;
  std::tie(p.points_stride_b, p.points_stride_q) = points_strides;
  std::tie(p.weights_stride_b, p.weights_stride_q) = weights_strides;
  std::tie(p.grad_out_stride_b, p.grad_out_stride_q) = grad_out_strides;
  p.batch = value_shape[0];
  p.tokens = value_shape[1];
  p.heads = value_shape[2];
  p.channels = value_shape[3];
  p.queries = queries;
  p.num_points = num_points;
  p.levels = static_cast<int64_t>(levels.size());
  p.level_hw = levels.data();
  p.query_hw = grids.empty() ? nullptr : grids.data();
  p.query_grids = static_cast<int64_t>(grids.size());
  p.out = pointer(out);
  p.grad_out = pointer(grad_out);
  p.grad_value = pointer(grad_value);
  p.grad_points = pointer(grad_points);
  p.grad_weights = pointer(grad_weights);
  p.num_threads = threads(num_threads);
  p.device = device;
  p.stream = pointer(stream);
  using Sum = MsDeformAttnParams::Sum;
  p.sum = sums_by_records ? Sum::kRecords : Sum::kAtomic;
  p.cell_of_point = pointer<int32_t>(cell_of_point);
  p.rank_of_point = pointer<int32_t>(rank_of_point);
  p.points_in_cell = pointer<int32_t>(points_in_cell);
  p.records = pointer(records);
  p.cell_end = pointer<int32_t>(cell_end);
  p.sorted_records = pointer(sorted_records);
  WithoutLock without_lock;
  launch(p);
}

template <Launcher launch>
void def_ms_deform_attn(py::module_& module, const char* name) {
  using py::literals::operator""_a;
  const std::pair<int64_t, int64_t> unused{0, 0};
  module.def(name, &ms_deform_attn<launch>, py::kw_only(), "value"_a, "points"_a, "weights"_a,
             "value_dtype"_a, "points_dtype"_a, "weights_dtype"_a, "value_strides"_a,
             "points_strides"_a, "weights_strides"_a, "value_shape"_a, "queries"_a, "num_points"_a,
             "level_hw"_a, "query_hw"_a, "out"_a = 0, "grad_out"_a = 0,
             "grad_out_strides"_a = unused, "grad_value"_a = 0, "grad_points"_a = 0,
             "grad_weights"_a = 0, "num_threads"_a = 1, "device"_a = 0, "stream"_a = 0,
             "sums_by_records"_a = false, "cell_of_point"_a = 0, "rank_of_point"_a = 0,
             "points_in_cell"_a = 0, "records"_a = 0, "cell_end"_a = 0, "sorted_records"_a = 0);
}

using DwconvGeluLauncher = void (*)(const DwconvGeluParams&);

template <DwconvGeluLauncher launch>
void dwconv_gelu(Address tokens, Address weight, Address bias, int dtype,
                 std::pair<int64_t, int64_t> tokens_strides,
                 const std::vector<int64_t>& tokens_shape, const std::vector<int32_t>& grid_hw,
                 Address out, Address grad_out, std::pair<int64_t, int64_t> grad_out_strides,
                 Address grad_tokens, Address grad_weight, Address grad_bias, int num_threads,
                 int device, Address stream, Address grad_sum, Address partial_sums,
                 int64_t tiles) {
  VITADAPTER_CHECK(tokens_shape.size() == 3, "tokens_shape must be [B, N, C]");
  const std::vector<SizeHW> grids = sizes(grid_hw);
  DwconvGeluParams p{};
  p.tokens = pointer(tokens);
  p.weight = pointer(weight);
  p.bias = pointer(bias);
  std::tie(p.tokens_stride_b, p.tokens_stride_n) = tokens_strides;
  std::tie(p.grad_out_stride_b, p.grad_out_stride_n) = grad_out_strides;
  p.dtype = dtype_of(dtype);
  p.batch = tokens_shape[0];
  p.num_tokens = tokens_shape[1];
  p.channels = tokens_shape[2];
  p.grid_hw = grids.data();
  p.grids = static_cast<int64_t>(grids.size());
  p.out = pointer(out);
  p.grad_out = pointer(grad_out);
  p.grad_tokens = pointer(grad_tokens);
  p.grad_weight = pointer(grad_weight);
  p.grad_bias = pointer(grad_bias);
  p.num_threads = threads(num_threads);
  p.device = device;
  p.stream = pointer(stream);
  p.grad_sum = pointer(grad_sum);
  p.partial_sums = pointer(partial_sums);
  p.tiles = tiles;
  WithoutLock without_lock;
  launch(p);
}

template <DwconvGeluLauncher launch>
void def_dwconv_gelu(py::module_& module, const char* name) {
  using py::literals::operator""_a;
  const std::pair<int64_t, int64_t> unused{0, 0};
  module.def(name, &dwconv_gelu<launch>, py::kw_only(), "tokens"_a, "weight"_a, "bias"_a, "dtype"_a,
             "tokens_strides"_a, "tokens_shape"_a, "grid_hw"_a, "out"_a = 0, "grad_out"_a = 0,
             "grad_out_strides"_a = unused, "grad_tokens"_a = 0, "grad_weight"_a = 0,
             "grad_bias"_a = 0, "num_threads"_a = 1, "device"_a = 0, "stream"_a = 0,
             "grad_sum"_a = 0, "partial_sums"_a = 0, "tiles"_a = 0);
}

template <void (*launch)(const WindowAttentionParams&)>
void def_window_attention(py::module_& module, const char* name) {
  using py::literals::operator""_a;
  using Strides = std::pair<int64_t, int64_t>;
  auto run = [](Address qkv, int dtype, Strides qkv_strides, int64_t batch, int64_t heads,
                int64_t channels, std::pair<int32_t, int32_t> hw, int64_t window_size,
                Address logsumexp, Address out, Address grad_out, Strides grad_out_strides,
                Address grad_qkv, int num_threads) {
    const WindowAttentionParams p{pointer(qkv),
                                  qkv_strides.first,
                                  qkv_strides.second,
                                  dtype_of(dtype),
                                  batch,
                                  heads,
                                  channels,
                                  {hw.first, hw.second},
                                  window_size,
                                  pointer(out),
                                  pointer(logsumexp),
                                  pointer(grad_out),
                                  grad_out_strides.first,
                                  grad_out_strides.second,
                                  pointer(grad_qkv),
                                  threads(num_threads)};
    WithoutLock without_lock;
    launch(p);
  };
  module.def(name, run, py::kw_only(), "qkv"_a, "dtype"_a, "qkv_strides"_a, "batch"_a, "heads"_a,
             "channels"_a, "hw"_a, "window_size"_a, "logsumexp"_a, "out"_a = 0, "grad_out"_a = 0,
             "grad_out_strides"_a = Strides{0, 0}, "grad_qkv"_a = 0, "num_threads"_a = 1);
}

template <void (*launch)(const BatchNormParams&)>
void def_batch_norm(py::module_& module, const char* name) {
  using py::literals::operator""_a;
  using Strides = std::pair<int64_t, int64_t>;
  auto run = [](Address tokens, Strides tokens_strides, int dtype,
                const std::array<int64_t, 3>& tokens_shape, Address weight, Address bias,
                double eps, bool has_relu, bool has_planes, Address mean, Address variance,
                Address out, Address grad_out, Strides grad_out_strides, Address grad_tokens,
                Address grad_weight, Address grad_bias, int num_threads) {
    const BatchNormParams p{pointer(tokens),
                            tokens_strides.first,
                            tokens_strides.second,
                            dtype_of(dtype),
                            tokens_shape[0],
                            tokens_shape[1],
                            tokens_shape[2],
                            pointer(weight),
                            pointer(bias),
                            eps,
                            has_relu,
                            has_planes,
                            pointer(mean),
                            pointer(variance),
                            pointer(out),
                            pointer(grad_out),
                            grad_out_strides.first,
                            grad_out_strides.second,
                            pointer(grad_tokens),
                            pointer(grad_weight),
                            pointer(grad_bias),
                            threads(num_threads)};
    WithoutLock without_lock;
    launch(p);
  };
  module.def(name, run, py::kw_only(), "tokens"_a, "tokens_strides"_a, "dtype"_a, "tokens_shape"_a,
             "weight"_a, "bias"_a, "eps"_a, "has_relu"_a, "has_planes"_a, "mean"_a, "variance"_a,
             "out"_a = 0, "grad_out"_a = 0, "grad_out_strides"_a = Strides{0, 0},
             "grad_tokens"_a = 0, "grad_weight"_a = 0, "grad_bias"_a = 0, "num_threads"_a = 1);
}

// The fields of Bicubic but for antialias.
using Axis = std::array<int, 7>;

Bicubic bicubic(const Axis& axis, bool is_antialiased) {
  const auto [inputs, outputs, num, den, unit, input_radius, output_radius] = axis;
  return {inputs, outputs, num, den, is_antialiased, unit, input_radius, output_radius};
}

template <void (*launch)(const ResizeAddParams&)>
void def_resize_add(py::module_& module, const char* name) {
  using py::literals::operator""_a;
  auto run = [](Address source, Address tokens, Address bias, Address out, int source_dtype,
                int tokens_dtype, int out_dtype, const Axis& y, const Axis& x, bool is_antialiased,
                bool is_transposed, int64_t batch, int64_t channels, int num_threads, int device,
                Address stream) {
    const ResizeAddParams p{pointer(source),
                            pointer(tokens),
                            pointer(bias),
                            pointer(out),
                            dtype_of(source_dtype),
                            dtype_of(tokens_dtype),
                            dtype_of(out_dtype),
                            bicubic(y, is_antialiased),
                            bicubic(x, is_antialiased),
                            is_transposed,
                            batch,
                            channels,
                            threads(num_threads),
                            device,
                            pointer(stream)};
    WithoutLock without_lock;
    launch(p);
  };
  module.def(name, run, py::kw_only(), "source"_a, "tokens"_a, "bias"_a, "out"_a, "source_dtype"_a,
             "tokens_dtype"_a, "out_dtype"_a, "y"_a, "x"_a, "is_antialiased"_a, "is_transposed"_a,
             "batch"_a, "channels"_a, "num_threads"_a = 1, "device"_a = 0, "stream"_a = 0);
}

void def_kept_memory(py::module_& module) {
  using py::literals::operator""_a;
  // Local: a process may load a second build, as tests do.
  py::class_<KeptBlock>(module, "KeptBlock", py::buffer_protocol(), py::module_local())
      .def_buffer([](const KeptBlock& block) {
        return py::buffer_info(static_cast<uint8_t*>(block.data()),
                               static_cast<py::ssize_t>(block.bytes()));
      });
  module.def("take_block", &take_block, "bytes"_a);
  module.def("limit_kept", &limit_kept, "unused_bytes"_a);
  module.def("free_kept", &free_kept);
  module.def("kept_bytes", [] {
    const KeptBytes all = kept_bytes();
    return std::pair(all.in_use, all.unused);
  });
}

#if VITADAPTER_CUDA_KERNELS
void patch_columns(Address image, const std::array<int64_t, 4>& strides, Address columns,
                   int64_t batch, int64_t in_chans, std::pair<int64_t, int64_t> grid_hw,
                   std::pair<int64_t, int64_t> patch_hw, int64_t element_bytes, int device,
                   Address stream) {
  const PatchColumnsParams p{pointer(image), strides[0],       strides[1],     strides[2],
                             strides[3],     pointer(columns), batch,          in_chans,
                             grid_hw.first,  grid_hw.second,   patch_hw.first, patch_hw.second,
                             element_bytes,  device,           pointer(stream)};
  WithoutLock without_lock;
  patch_embed_columns_cuda(p);
}
#endif

}  // namespace

// Kernels share nothing but facts found once: threads may call them without a lock on Python.
PYBIND11_MODULE(_C, module, py::mod_gil_not_used()) {
  using py::literals::operator""_a;
  module.doc() = "Compiled kernels of vitadapter_fast; call them through vitadapter_fast.ops.";
  module.def("build_info", &build_info, "Facts of this build.");
  module.def(
      "has_low_products", [](int dtype) { return has_low_products(dtype_of(dtype)); }, "dtype"_a);
  module.def("prefer_huge_pages", &prefer_huge_pages, "begin"_a, "bytes"_a);
  module.def("prefer_huge_pages_next", &prefer_huge_pages_next, "bytes"_a);
  def_kept_memory(module);
  def_ms_deform_attn<ms_deform_attn_forward_cpu>(module, "ms_deform_attn_forward_cpu");
  def_ms_deform_attn<ms_deform_attn_backward_cpu>(module, "ms_deform_attn_backward_cpu");
  def_dwconv_gelu<dwconv_gelu_forward_cpu>(module, "dwconv_gelu_forward_cpu");
  def_dwconv_gelu<dwconv_gelu_backward_cpu>(module, "dwconv_gelu_backward_cpu");
  def_resize_add<patch_embed_resize_add_cpu>(module, "patch_embed_resize_add_cpu");
  def_window_attention<window_attention_forward_cpu>(module, "window_attention_forward_cpu");
  def_window_attention<window_attention_backward_cpu>(module, "window_attention_backward_cpu");
  def_batch_norm<batch_norm_forward_cpu>(module, "batch_norm_forward_cpu");
  def_batch_norm<batch_norm_backward_cpu>(module, "batch_norm_backward_cpu");
  define_rows(module);
#if VITADAPTER_CUDA_KERNELS
  def_dwconv_gelu<dwconv_gelu_forward_cuda>(module, "dwconv_gelu_forward_cuda");
  def_dwconv_gelu<dwconv_gelu_backward_cuda>(module, "dwconv_gelu_backward_cuda");
  def_ms_deform_attn<ms_deform_attn_forward_cuda>(module, "ms_deform_attn_forward_cuda");
  def_ms_deform_attn<ms_deform_attn_points_backward_cuda>(module,
                                                          "ms_deform_attn_points_backward_cuda");
  def_ms_deform_attn<ms_deform_attn_place_cuda>(module, "ms_deform_attn_place_cuda");
  def_ms_deform_attn<ms_deform_attn_gather_cuda>(module, "ms_deform_attn_gather_cuda");
  def_resize_add<patch_embed_resize_add_cuda>(module, "patch_embed_resize_add_cuda");
  module.def("patch_embed_columns_cuda", &patch_columns, py::kw_only(), "image"_a, "strides"_a,
             "columns"_a, "batch"_a, "in_chans"_a, "grid_hw"_a, "patch_hw"_a, "element_bytes"_a,
             "device"_a, "stream"_a);
#endif
}

}  // namespace vitadapter
