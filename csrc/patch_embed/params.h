// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What the launches around the patch GEMM need: pointers, sizes, strides, dtypes.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace vitadapter {

// One axis of a bicubic resize: output i lies at input coordinate (i + 1/2) * num / den - 1/2. 32
// bits, for a GPU divides 64 slowly.
struct Bicubic {
  int inputs, outputs, num, den;
  bool is_antialiased;

  // Half the cubic kernel is two of these wide, in units of 1 / den of an input pixel: it widens
  // with the outputs under antialias, and spans two inputs otherwise.
  int unit;
  // How many inputs an output reaches to either side, and outputs an input; rounded up.
  int input_radius, output_radius;
};

// Resizes a position table to the token grid and adds it, with the bias, to tokens; or, transposed,
// sums the gradient of what was added into that of the table.
struct ResizeAddParams {
  const void* source;  // [pixels of the source, C]
  const void* tokens;  // [B, pixels of the target, C], or null for zeros; may be out itself
  const void* bias;    // [C] in the dtype of tokens, or null
  void* out;           // [B, pixels of the target, C]
  DType source_dtype, tokens_dtype, out_dtype;
  Bicubic y, x;        // from the table to the grid, in either direction
  bool is_transposed;  // the source is the grid and the target the table
  int64_t batch, channels;

  int num_threads;  // CPU
  int device;       // CUDA
  void* stream;
};

// Copies the patches of images to the rows of a matrix, bytes as they are.
struct PatchColumnsParams {
  const void* image;                               // [B, I, H, W]
  int64_t stride_b, stride_i, stride_y, stride_x;  // in elements
  void* columns;                                   // [B * grid_h * grid_w, I * patch_h * patch_w]
  int64_t batch, in_chans, grid_h, grid_w, patch_h, patch_w, element_bytes;
  int device;
  void* stream;
};

void patch_embed_resize_add_cpu(const ResizeAddParams& params);
void patch_embed_resize_add_cuda(const ResizeAddParams& params);
void patch_embed_columns_cuda(const PatchColumnsParams& params);

}  // namespace vitadapter
