// What the runtime says of each kernel on the current device, for Python (fastgan/native_cuda.py).
#include "kernels.h"
#include "known_kernels.h"

#define FASTGAN_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Attributes {
  const char* name;  // mangled
  int64_t registers, static_shared_bytes, local_bytes, most_threads;  // the last: of a block
};

}  // namespace

// How many kernels there are.
FASTGAN_EXPORT int fastgan_cuda_kernel_count() {
  return static_cast<int>(fastgan::cuda::known_kernels().size());
}

// Fills `result` for a kernel below the count; why it could not, or null.
FASTGAN_EXPORT const char* fastgan_cuda_kernel_attributes(int index, Attributes* result) {
  const void* kernel = fastgan::cuda::known_kernels().at(static_cast<size_t>(index));
  cudaFuncAttributes found = {};
  cudaError_t error = cudaFuncGetAttributes(&found, kernel);
  if (error == cudaSuccess) error = cudaFuncGetName(&result->name, kernel);
  if (error != cudaSuccess) {
    cudaGetLastError();  // or torch's next launch would report it
    return cudaGetErrorString(error);
  }
  result->registers = found.numRegs;
  result->static_shared_bytes = static_cast<int64_t>(found.sharedSizeBytes);
  result->local_bytes = static_cast<int64_t>(found.localSizeBytes);
  result->most_threads = found.maxThreadsPerBlock;
  return nullptr;
}
