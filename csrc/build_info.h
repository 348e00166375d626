// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What a build says of itself to Python.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "build_facts.h"
#include "common/dispatch.h"
#include "common/isa.h"

namespace vitadapter {

inline pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = VITADAPTER_VERSION;
  info["build_type"] = VITADAPTER_BUILD_TYPE;
  info["compiler"] = __VERSION__;
  info["cpu_isa"] = cpu_isa();
  const std::string cuda = VITADAPTER_CUDA_VERSION;
  info["cuda_compiler"] = cuda.empty() ? pybind11::object(pybind11::none()) : pybind11::str(cuda);
  info["cuda_archs"] = cuda.empty() ? "" : VITADAPTER_CUDA_ARCHS;
  info["cuda_kernels"] = VITADAPTER_CUDA_KERNELS != 0;
  info["no_cuda_reason"] = VITADAPTER_NO_CUDA_REASON;
  // Calls of the attention that have specialized CUDA kernels; and (bytes of an element, channels,
  // levels) of those whose backward has none.
  const std::vector<int> channels{VITADAPTER_HEAD_CHANNELS}, levels{VITADAPTER_LEVELS};
  std::vector<std::tuple<int, int, int>> generic_backward;
  for (int bytes : {2, 4})
    for (int D : channels)
      for (int L : levels)
        if (!has_specialized_backward(bytes, D, L)) generic_backward.emplace_back(bytes, D, L);
  info["head_channels"] = channels;
  info["levels"] = levels;
  info["points"] = kSpecializedPoints;
  info["generic_backward"] = generic_backward;
  return info;
}

}  // namespace vitadapter
