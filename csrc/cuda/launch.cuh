// Launching a kernel: one-dimensional grids, dynamic shared memory, grids that are alive together.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "known_kernels.h"

namespace fastgan::cuda {

// The block's shared memory. All of it is dynamic, so that a launcher alone says how much there is.
extern __shared__ __align__(128) unsigned char block_memory[];

struct Launch {
  int64_t blocks;
  int threads;
  size_t shared_bytes;
  cudaStream_t stream;
  bool together = false;  // all blocks are alive at once and may wait for the grid
};

template <auto kernel, class... Arguments>
cudaError_t launch(const Launch& how, Arguments&&... arguments) {
  static_cast<void>(Known<kernel>::listed);
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
  constexpr size_t kSharedWithoutAsking = 48 * 1024;
  if (how.blocks > kMostBlocks) return cudaErrorInvalidConfiguration;
  if (how.shared_bytes > kSharedWithoutAsking) {
    const cudaError_t refused =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(how.shared_bytes));
    if (refused != cudaSuccess) return refused;
  }
  if (how.together) {  // several blocks must fit: all of the memory that can be shared memory is
    const cudaError_t refused = cudaFuncSetAttribute(
        kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (refused != cudaSuccess) return refused;
  }
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(how.blocks));
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  config.attrs = &cooperative;
  config.numAttrs = how.together ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

__host__ __device__ constexpr int64_t ceil_div(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace fastgan::cuda
