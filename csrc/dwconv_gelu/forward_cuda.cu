// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Forward: one launch over all grids of all images.
#include "dwconv_gelu/rows_cuda.cuh"

namespace vitadapter {

void dwconv_gelu_forward_cuda(const DwconvGeluParams& p) {
  using namespace VITADAPTER_ISA;
  using namespace VITADAPTER_ISA::dwconv_gelu;
  const DeviceGuard guard(p.device);
  dispatch_vector(p, [&](auto type, auto vec) {
    using T = decltype(type);
    launch_tiles("dwconv_gelu forward", convolve_kernel<T, vec(), Then::kGelu>,
                 kernel_params(p, vec, kRows, 0), 1, p);
  });
}

}  // namespace vitadapter
