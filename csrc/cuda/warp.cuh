// Sums over the 32 lanes of a warp, in a fixed order.
#pragma once

#include "launch.cuh"

namespace fastgan::cuda {

constexpr int kLanes = 32;

// The sum over all lanes, for every lane. All 32 must call it.
__device__ __forceinline__ float sum_lanes(float value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

}  // namespace fastgan::cuda
