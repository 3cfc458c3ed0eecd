// The part of CUDA's runtime that the kernels in csrc/cuda use, for a host without a GPU: tests
// compile the unchanged .cu files with this header in the place of CUDA's.
//
// simt.cpp runs the threads; this file only gives CUDA's names to what is there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
// All shared memory is dynamic: one array, which simt.cpp fills with NaN before each block.
#define __shared__

struct uint3 {
  unsigned x, y, z;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};
using cudaStream_t = void*;

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2 };
union cudaLaunchAttributeValue {
  int cooperative;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
// A small device, so that small tensors are cut into several blocks and some do not fit.
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 4 : 100 * 1024;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error);
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
constexpr int cudaSharedmemCarveoutMaxShared = 100;  // percent

// What the shim says of every kernel.
struct cudaFuncAttributes {
  size_t sharedSizeBytes, localSizeBytes;
  int numRegs, maxThreadsPerBlock;
};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {16, 8, 40, 512};
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetName(const char** name, const void*) {
  *name = "_ZN7fastgan4cuda14example_kernelINS_8BFloat16ELi8EEEvPKT_";
  return cudaSuccess;
}

using std::min;

namespace simt {

// Runs `kernel` once for every thread of every block. `together`: all blocks are alive at once.
cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, bool together,
                   const std::function<void()>& kernel);
void wait_for_block();
void wait_for_grid();

// Waits for the lanes of `mask`; what lane `source` gave, and the lanes that gave other than 0.
struct Exchanged {
  uint64_t value;
  uint32_t nonzero;
};
Exchanged exchange(uint32_t mask, uint64_t value, unsigned source);
unsigned lane();

template <class T>
T shuffle(uint32_t mask, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = exchange(mask, bits, source).value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace simt

inline void __stwb(uint4* address, uint4 value) { *address = value; }

inline void __syncthreads() { simt::wait_for_block(); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) { simt::exchange(mask, 0, simt::lane()); }

template <class T>
T __shfl_sync(uint32_t mask, T value, int source) {
  return simt::shuffle(mask, value, static_cast<unsigned>(source) % 32);
}

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int other) {
  return simt::shuffle(mask, value, simt::lane() ^ static_cast<unsigned>(other));
}

template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned distance) {
  const unsigned source = simt::lane() + distance;
  return simt::shuffle(mask, value, source < 32 ? source : simt::lane());
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  return simt::exchange(mask, predicate != 0, simt::lane()).nonzero;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  bool together = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    together |= config->attrs[i].id == cudaLaunchAttributeCooperative &&
                config->attrs[i].val.cooperative != 0;
  }
  return simt::launch(config->gridDim, config->blockDim, config->dynamicSmemBytes, together,
                      [&] { kernel(static_cast<Parameters>(arguments)...); });
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  constexpr int kLargestBlock = 227 * 1024;  // sm_90 and sm_100
  return bytes <= kLargestBlock ? cudaSuccess : cudaErrorInvalidConfiguration;
}
