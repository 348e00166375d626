// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// The gradient of softmax, row by row.
#pragma once

#include <cmath>
#include <limits>

#include "window_attention/windows_cpu.h"

namespace vitadapter::VITADAPTER_ISA::window_attention {

// Logits to probabilities, and gradients of probabilities to gradients of logits: each less their
// mean, times the probability. `count` are real, up to `width` there is room.
// Probabilities are made to add up to one again, and the mean is taken over them rather than from
// the output: so neither the rounding of a large logsumexp nor two roundings of one sum shows.
template <typename C>
inline void differentiate(C* logits, C* gradients, int64_t count, int64_t width, C padding,
                          C logsumexp) {
  using V = LogitVec<C>;
  for (int64_t j = count; j < width; ++j) {
    logits[j] = -std::numeric_limits<C>::infinity();
    gradients[j] = 0;
  }
  V total[kTileVecs], product[kTileVecs];
  for (int v = 0; v < kTileVecs; ++v) total[v] = product[v] = V::set(0);
  for (int64_t j = 0; j < width; j += kTileVecs * V::kLanes) {
    for (int v = 0; v < kTileVecs; ++v) {
      C* at = logits + j + v * V::kLanes;
      const V probability = V::exp(V::load(at) - V::set(logsumexp));
      probability.store(at);
      total[v] = total[v] + probability;
      product[v] = V::fma(probability, V::load(gradients + j + v * V::kLanes), product[v]);
    }
  }
  const C shares = padding > 0 ? padding * std::exp(-logsumexp) : 0;
  const C inverse = 1 / (add_lanes<C>(total[0] + total[1]) + shares);
  const C mean = add_lanes<C>(product[0] + product[1]) * inverse;
  for (int64_t j = 0; j < width; j += V::kLanes) {
    const V probability = V::load(logits + j) * V::set(inverse);
    probability.store(logits + j);
    (probability * (V::load(gradients + j) - V::set(mean))).store(gradients + j);
  }
}

}  // namespace vitadapter::VITADAPTER_ISA::window_attention
