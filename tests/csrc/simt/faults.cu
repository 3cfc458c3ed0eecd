// Kernels that are wrong on purpose, and small right ones, to see that the shim tells them apart.
#include "../../../csrc/cuda/launch.cuh"

namespace fastgan::cuda {
namespace {

// out[block, thread] = the value that thread `threads - 1 - thread` has put into shared memory.
__global__ void reverse_kernel(const float* in, float* out, bool waits) {
  float* shared = reinterpret_cast<float*>(block_memory);
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
  shared[threadIdx.x] = in[at];
  if (waits) __syncthreads();
  out[at] = shared[blockDim.x - 1 - threadIdx.x];
}

// out[thread] = the sum over its warp of in.
__global__ void warp_sum_kernel(const float* in, float* out) {
  float value = in[threadIdx.x];
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  out[threadIdx.x] = value;
}

// Half of the threads go to a barrier that the others never reach.
__global__ void divergent_kernel() {
  if (threadIdx.x % 2) __syncthreads();
}

__global__ void beyond_shared_kernel() { block_memory[blockDim.x + threadIdx.x] = 0; }

__global__ void shift_kernel(const float* in, float* out, int64_t from, int64_t to) {
  out[threadIdx.x + to] = in[threadIdx.x + from];
}

}  // namespace
}  // namespace fastgan::cuda

using namespace fastgan::cuda;

extern "C" {

int run_reverse(const float* in, float* out, int blocks, int threads, bool waits) {
  const size_t shared_bytes = threads * sizeof(float);
  return launch<reverse_kernel>({blocks, threads, shared_bytes, nullptr}, in, out, waits);
}
int run_warp_sum(const float* in, float* out, int threads) {
  return launch<warp_sum_kernel>({1, threads, 0, nullptr}, in, out);
}
int run_divergent(int threads) { return launch<divergent_kernel>({1, threads, 0, nullptr}); }
int run_beyond_shared(int threads) {
  return launch<beyond_shared_kernel>({1, threads, static_cast<size_t>(threads), nullptr});
}
int run_shift(const float* in, float* out, int threads, int64_t from, int64_t to) {
  return launch<shift_kernel>({1, threads, 0, nullptr}, in, out, from, to);
}
}
