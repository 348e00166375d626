// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What one launch of multi-scale deformable attention needs: pointers, sizes, strides, dtypes.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/size.h"

namespace vitadapter {

// Strides count elements. Everything to the right of a stride's dimension is contiguous.
struct MsDeformAttnParams {
  const void* value;    // [B, S, M, D]
  const void* points;   // [B, Q, M, L, P, 2]: locations, or pixel offsets where query_hw is given
  const void* weights;  // [B, Q, M, L, P]: weights, or logits where query_hw is given
  int64_t value_stride_b, value_stride_s;
  int64_t points_stride_b, points_stride_q;
  int64_t weights_stride_b, weights_stride_q;
  DType value_dtype, points_dtype, weights_dtype;

  int64_t batch, tokens, queries, heads, channels, levels, num_points;  // B S Q M D L P
  const SizeHW* level_hw;                                               // [levels]
  const SizeHW* query_hw;  // [query_grids]; null for ms_deform_attn
  int64_t query_grids;

  void* out;  // [B, Q, M * D], dense, dtype of value; unused in backward

  // Backward only. A null gradient is not computed.
  const void* grad_out;  // [B, Q, M * D], dtype of value
  int64_t grad_out_stride_b, grad_out_stride_q;
  void* grad_value;    // dense, dtype of value
  void* grad_points;   // dense, dtype of points
  void* grad_weights;  // dense, dtype of weights

  int num_threads;  // CPU

  // CUDA. All memory is the caller's: kernels allocate nothing, so launches can be captured.
  int device;
  void* stream;
  // How backward sums the value gradient: kAtomic adds to grad_value (in the compute type,
  // zero-filled); kRecords writes a record of every point and counts the points in each cell, of
  // which place and gather then make the gradient. With kRecords and no records it is left out.
  enum class Sum : int { kAtomic = 0, kRecords = 1 } sum;
  int32_t* cell_of_point;   // [B, Q, M, L, P]: cell of the image and head, or -1
  int32_t* rank_of_point;   // [B, Q, M, L, P]: number of earlier points in its cell, in any order
  int32_t* points_in_cell;  // [B, M, cells], zero-filled; cells: sum of (h + 1) * (w + 1)
  void* records;            // [B, Q, M, L, P] records
  const int32_t* cell_end;  // [B, M, cells]: inclusive sum of points_in_cell
  void* sorted_records;     // as many, those of a cell side by side
};

void ms_deform_attn_forward_cpu(const MsDeformAttnParams& params);
void ms_deform_attn_backward_cpu(const MsDeformAttnParams& params);
void ms_deform_attn_forward_cuda(const MsDeformAttnParams& params);
// The gradients of points and weights, and the first step of that of the value.
void ms_deform_attn_points_backward_cuda(const MsDeformAttnParams& params);
// records -> sorted_records.
void ms_deform_attn_place_cuda(const MsDeformAttnParams& params);
// sorted_records -> grad_value, in the dtype of value.
void ms_deform_attn_gather_cuda(const MsDeformAttnParams& params);

}  // namespace vitadapter
