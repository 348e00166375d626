// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What one launch of a linear layer with weights of 8 bits needs: pointers and sizes.
#pragma once

#include <cstdint>

namespace vitadapter {

// The weights lie as vpdpbusd reads them: a vector has a group of inputs of each channel of a
// block.
constexpr int64_t kInt8Channels = 16, kInt8Group = 4;
// Rows of a tile of the result.
constexpr int64_t kInt8Rows = 8;

struct Int8LinearParams {
  const float* x;        // [N, K], dense
  const int8_t* weight;  // [ceil(C / 16), ceil(K / 4), 16, 4], zero beyond C and K
  const float* scales;   // [C], what a weight of 1 stands for
  const float* bias;     // [C] or null
  const float* plus;     // [N, C], dense, added to the result; or null
  bool has_gelu;         // GELU of x is multiplied, not x
  int64_t num_rows, num_inputs, num_outputs;  // N K C
  void* steps;  // memory for the rows in 8 bits, each with its scale behind it; those of whole
                // tiles: [ceil(N / 8) * 8, ceil(K / 4) * 4 + 8] bytes
  float* out;   // [N, C], dense
  int num_threads;
};

// Whether this processor multiplies 8 bits faster than float32, by a kernel that was compiled.
bool has_int8_products();
void int8_linear_cpu(const Int8LinearParams& params);

}  // namespace vitadapter
