// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Images in, one row for each patch out, for the GEMM. A block reads one line of one channel, which
// lies in one piece, and deals it out in runs of a patch's width.
#include "common/device.cuh"
#include "common/dispatch.h"
#include "patch_embed/checks.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

constexpr int kThreads = 128;

struct KernelParams {
  const void* image;
  void* columns;
  int64_t stride_b, stride_i, stride_y,
      stride_x;  // in copies, as are widths; stride_x is 1 if dense
  int in_chans, grid_h, grid_w, patch_h, patch_w, first_image;
};

// A block is one line of one channel of an image, a thread every kThreads-th unit of it.
// Registers, at most: 42.
template <typename Unit>
__global__ void __launch_bounds__(kThreads) columns_kernel(const __grid_constant__ KernelParams p) {
  const int line = blockIdx.x % (p.grid_h * p.patch_h);
  const int channel = blockIdx.x / (p.grid_h * p.patch_h), image = p.first_image + blockIdx.y;
  const int i = line / p.patch_h, ky = line % p.patch_h;
  const Unit* from = static_cast<const Unit*>(p.image) + image * p.stride_b + channel * p.stride_i +
                     line * p.stride_y;
  const int64_t row = static_cast<int64_t>(p.in_chans) * p.patch_h * p.patch_w;
  Unit* to = static_cast<Unit*>(p.columns) +
             (static_cast<int64_t>(image) * p.grid_h + i) * p.grid_w * row +
             (static_cast<int64_t>(channel) * p.patch_h + ky) * p.patch_w;
  for (int x = threadIdx.x; x < p.grid_w * p.patch_w; x += kThreads)
    to[x / p.patch_w * row + x % p.patch_w] = from[x * p.stride_x];
}

// The largest copy, of 16 bytes or less, that runs and addresses are whole multiples of.
int64_t unit_bytes(const PatchColumnsParams& p) {
  if (p.stride_x != 1) return p.element_bytes;
  int64_t all = 16 | reinterpret_cast<intptr_t>(p.image) | reinterpret_cast<intptr_t>(p.columns);
  for (int64_t size : {p.patch_w, p.stride_b, p.stride_i, p.stride_y})
    all |= size * p.element_bytes;
  return all & -all;
}

}  // namespace
}  // namespace vitadapter::VITADAPTER_ISA

namespace vitadapter {

void patch_embed_columns_cuda(const PatchColumnsParams& p) {
  using namespace VITADAPTER_ISA;
  const int64_t lines = p.in_chans * p.grid_h * p.patch_h;
  for (int64_t size : {p.batch, lines, p.grid_w * p.patch_w})
    VITADAPTER_CHECK(size >= 0 && size < int64_t(1) << 31,
                     "patch_embed: an image exceeds 32-bit indices");
  const int64_t unit = unit_bytes(p), per_unit = unit / p.element_bytes;
  const DeviceGuard guard(p.device);
  for (int64_t first = 0; first < p.batch; first += kMaxGridYZ) {
    const KernelParams k{p.image,
                         p.columns,
                         p.stride_b / per_unit,
                         p.stride_i / per_unit,
                         p.stride_y / per_unit,
                         p.stride_x,
                         static_cast<int>(p.in_chans),
                         static_cast<int>(p.grid_h),
                         static_cast<int>(p.grid_w),
                         static_cast<int>(p.patch_h),
                         static_cast<int>(p.patch_w / per_unit),
                         static_cast<int>(first)};
    const Grid grid{lines, p.batch - first < kMaxGridYZ ? p.batch - first : kMaxGridYZ, 1};
    auto copy = [&](auto kernel) {
      launch("patch_embed columns", kernel, grid, kThreads, k, p.device, p.stream);
    };
    if (unit == 16) copy(columns_kernel<uint4>);
    if (unit == 8) copy(columns_kernel<uint64_t>);
    if (unit == 4) copy(columns_kernel<uint32_t>);
    if (unit == 2) copy(columns_kernel<uint16_t>);
  }
}

}  // namespace vitadapter
