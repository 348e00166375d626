// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Which pixels one axis of a bicubic resize ties together, and with what weight, on host and
// device. Distances are ratios of integers, so that no rounded coordinate moves a weight.
#pragma once

#include "common/convert.h"
#include "patch_embed/params.h"

namespace vitadapter::VITADAPTER_ISA {

struct Range {
  int first, last;  // empty where last < first
};

// The pixels within `radius` of the coordinate a / (2 b), kept inside 0 ... size - 1.
VITADAPTER_HD inline Range pixels_about(int a, int b, int radius, int size) {
  const int below = a >= 0 ? a / (2 * b) : -((2 * b - 1 - a) / (2 * b));
  const int first = below - radius + 1, last = below + radius;
  return {first > 0 ? first : 0, last < size - 1 ? last : size - 1};
}

// The inputs that an output reads; never empty.
VITADAPTER_HD inline Range inputs_of(const Bicubic& axis, int output) {
  return pixels_about((2 * output + 1) * axis.num - axis.den, axis.den, axis.input_radius,
                      axis.inputs);
}

// The outputs that may read an input: outside them weights are zero, and inside some may be. Those
// that read beyond a border are within reach of the border pixel, which stands for it.
VITADAPTER_HD inline Range outputs_of(const Bicubic& axis, int input) {
  return pixels_about((2 * input + 1) * axis.den - axis.num, axis.num, axis.output_radius,
                      axis.outputs);
}

// Keys' cubic kernel, as torch has it: a = -3/4, and -1/2 with antialias.
template <typename C>
VITADAPTER_HD inline C cubic(const Bicubic& axis, int output, int input) {
  const int apart = (2 * input + 1) * axis.den - (2 * output + 1) * axis.num;
  const C d = static_cast<C>(apart < 0 ? -apart : apart) / static_cast<C>(2 * axis.unit);
  const C a = axis.is_antialiased ? C(-0.5) : C(-0.75);
  if (d >= C(2)) return C(0);
  return d <= C(1) ? ((a + C(2)) * d - (a + C(3))) * d * d + C(1)
                   : ((a * d - C(5) * a) * d + C(8) * a) * d - C(4) * a;
}

// What an output takes of an input.
template <typename C>
VITADAPTER_HD inline C weight_of(const Bicubic& axis, int output, int input) {
  C weight = cubic<C>(axis, output, input);
  if (!axis.is_antialiased) {
    if (input == 0) weight += cubic<C>(axis, output, -1) + cubic<C>(axis, output, -2);
    if (input == axis.inputs - 1)
      weight += cubic<C>(axis, output, input + 1) + cubic<C>(axis, output, input + 2);
    return weight;
  }
  C total = 0;
  const Range range = inputs_of(axis, output);
  for (int i = range.first; i <= range.last; ++i) total += cubic<C>(axis, output, i);
  return weight / total;
}

// The same, asked from either side: transposed, targets are inputs.
VITADAPTER_HD inline Range sources_of(const Bicubic& axis, bool is_transposed, int target) {
  return is_transposed ? outputs_of(axis, target) : inputs_of(axis, target);
}

template <typename C>
VITADAPTER_HD inline C share_of(const Bicubic& axis, bool is_transposed, int target, int source) {
  return is_transposed ? weight_of<C>(axis, source, target) : weight_of<C>(axis, target, source);
}

VITADAPTER_HD inline int targets(const Bicubic& axis, bool is_transposed) {
  return is_transposed ? axis.inputs : axis.outputs;
}

VITADAPTER_HD inline int sources(const Bicubic& axis, bool is_transposed) {
  return is_transposed ? axis.outputs : axis.inputs;
}

// Calls run(type of the source, of the tokens, of the output) for the combinations that exist; a
// table that is narrower than its image is cast before. Returns whether there was one.
template <typename Run>
bool dispatch_types(const ResizeAddParams& p, Run&& run) {
  auto are = [&](DType source, DType tokens, DType out) {
    return p.source_dtype == source && p.tokens_dtype == tokens && p.out_dtype == out;
  };
  const DType f32 = DType::kFloat32, f16 = DType::kFloat16, bf16 = DType::kBFloat16,
              f64 = DType::kFloat64;
  if (are(f32, f32, f32)) return run(float{}, float{}, float{}), true;
  if (are(f16, f16, f16)) return run(Half{}, Half{}, Half{}), true;
  if (are(bf16, bf16, bf16)) return run(BFloat16{}, BFloat16{}, BFloat16{}), true;
  if (are(f64, f64, f64)) return run(double{}, double{}, double{}), true;
  // Tokens of 16 bits under a table of 32, as autocast makes them.
  if (are(f32, f16, f32)) return run(float{}, Half{}, float{}), true;
  if (are(f32, bf16, f32)) return run(float{}, BFloat16{}, float{}), true;
  // The gradient of a 16-bit table.
  if (are(f32, f32, f16)) return run(float{}, float{}, Half{}), true;
  if (are(f32, f32, bf16)) return run(float{}, float{}, BFloat16{}), true;
  return false;
}

}  // namespace vitadapter::VITADAPTER_ISA
