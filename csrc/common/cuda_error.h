// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What a failed call of the CUDA runtime tells the user: where, error, device, remedy. It needs no
// CUDA, so that tests read it where there is none.
#pragma once

#include <string>

namespace vitadapter::VITADAPTER_ISA {

// `name` and `text` as cudaGetErrorName and cudaGetErrorString give them; `arch` is 90 for sm_90, 0
// where the device does not tell.
inline std::string describe_cuda_error(const char* where, const std::string& name, const char* text,
                                       int device, int arch) {
  std::string message = std::string("vitadapter_fast: ") + where + ": " + name + ": " + text +
                        " on device " + std::to_string(device);
  if (arch > 0) message += " (sm_" + std::to_string(arch) + ")";
  if (name == "cudaErrorNoKernelImageForDevice" || name == "cudaErrorInvalidDeviceFunction" ||
      name == "cudaErrorUnsupportedPtxVersion")
    return message +
           "; rebuild with VITADAPTER_CUDA_ARCHS=" + (arch > 0 ? std::to_string(arch) : "native") +
           " pip install .";
  if (name == "cudaErrorInsufficientDriver")
    return message + "; update the NVIDIA driver, or use backend=\"reference\"";
  if (name == "cudaErrorMemoryAllocation")
    return message + "; the device has no memory left: use smaller batches or images";
  return message + "; an earlier kernel may be the cause: run again with CUDA_LAUNCH_BLOCKING=1";
}

}  // namespace vitadapter::VITADAPTER_ISA
