// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What the kernels ask of the toolkit, in a kernel that compiles in seconds: their header, with all
// of its instructions and conversions, and how they are declared and launched.
#include "common/device.cuh"

namespace vitadapter::VITADAPTER_ISA {

struct Params {
  const void* from;
  void* to;
  float* sum;
};

template <typename T>
__global__ void __launch_bounds__(256, 2) probe_kernel(const __grid_constant__ Params p) {
  float x[8];
  load8(static_cast<const T*>(p.from), x);
  load2(static_cast<const T*>(p.from) + 8, x);
  x[2] = quotient_of(exp2_of(x[0]), __shfl_xor_sync(0xffffffffu, x[1], 1));
  add8_if<4>(x[0] != 0.f, p.sum, x);
  store8(x, static_cast<T*>(p.to));
  store2(x[0], x[1], static_cast<T*>(p.to) + 8);
  from_compute(to_float(static_cast<const T*>(p.from)[10]), static_cast<T*>(p.to) + 10);
}

void launch_probes() {
  launch("probe", probe_kernel<float>, {}, 256, Params{}, 0, nullptr);
  launch("probe", probe_kernel<Half>, {}, 256, Params{}, 0, nullptr);
  launch("probe", probe_kernel<BFloat16>, {}, 256, Params{}, 0, nullptr);
}

}  // namespace vitadapter::VITADAPTER_ISA
