// Weights in kernel layout: float32 [S, B, kh, kw] of any strides becomes dense [S, kh, kw, B] of
// the data's type, many weights in one launch.
//
//              taps                      B
//   source  +---------+   shared      +------+  target     A block moves one S, kPackBig of B and
//         B | (s)     | ----------> t | (s)  |             kPackTaps taps: it reads along the
//           +---------+               +------+             source's denser axis, writes along B.
//
// Grid: one axis, the weights' tiles one after the other. Masks: B and taps past the last.
#include <algorithm>

#include "elements.cuh"
#include "launch.cuh"

namespace fastgan::cuda {
namespace {

constexpr int kPackThreads = 256;
constexpr int kPackBig = 64, kPackTaps = 16;

// Passed by value: what a launch knows fits into its arguments (4 KB).
struct Weights {
  WeightToPack items[kWeightsOfOneLaunch];
  int first_block[kWeightsOfOneLaunch + 1];
  int count;
};
static_assert(sizeof(Weights) <= 4096);

__host__ __device__ int64_t tiles_of_one_small(const WeightToPack& weight) {
  const int taps = weight.kernel_height * weight.kernel_width;
  return ceil_div(weight.big_channels, kPackBig) * ceil_div(taps, kPackTaps);
}

template <class T>
__global__ void __launch_bounds__(kPackThreads)
    pack_weights_kernel(const __grid_constant__ Weights weights) {
  float* tile = reinterpret_cast<float*>(block_memory);  // [kPackTaps][kPackBig + 1]
  constexpr int kRow = kPackBig + 1;
  const int grid_block = static_cast<int>(blockIdx.x);
  int item = 0;
  while (item + 1 < weights.count && grid_block >= weights.first_block[item + 1]) ++item;
  const WeightToPack& weight = weights.items[item];
  const int big_tiles = static_cast<int>(ceil_div(weight.big_channels, kPackBig));
  const int tiles = static_cast<int>(tiles_of_one_small(weight));
  const int block = grid_block - weights.first_block[item];
  const int64_t small = block / tiles;
  const int first_big = block % tiles % big_tiles * kPackBig;
  const int first_tap = block % tiles / big_tiles * kPackTaps;
  const int taps = weight.kernel_height * weight.kernel_width;
  const int big_count = min(weight.big_channels - first_big, kPackBig);
  const int tap_count = min(taps - first_tap, kPackTaps);
  const bool along_big = weight.strides[1] < weight.strides[3];
  for (int i = threadIdx.x; i < big_count * tap_count; i += kPackThreads) {
    const int big = along_big ? i % big_count : i / tap_count;
    const int tap = along_big ? i / big_count : i % tap_count;
    const int64_t at = small * weight.strides[0] + (first_big + big) * weight.strides[1] +
                       (first_tap + tap) / weight.kernel_width * weight.strides[2] +
                       (first_tap + tap) % weight.kernel_width * weight.strides[3];
    tile[tap * kRow + big] = weight.source[at];
  }
  __syncthreads();
  T* target = static_cast<T*>(weight.target);
  for (int i = threadIdx.x; i < big_count * tap_count; i += kPackThreads) {
    const int big = i % big_count, tap = i / big_count;
    target[(small * taps + first_tap + tap) * weight.big_channels + first_big + big] =
        narrow<T>(tile[tap * kRow + big]);
  }
}

}  // namespace

cudaError_t pack_weights(DataType type, const WeightToPack* weights, int count,
                         cudaStream_t stream) {
  for (int done = 0; done < count; done += kWeightsOfOneLaunch) {
    Weights group = {};
    group.count = std::min(count - done, kWeightsOfOneLaunch);
    int64_t blocks = 0;
    for (int i = 0; i < group.count; ++i) {
      group.items[i] = weights[done + i];
      group.first_block[i] = static_cast<int>(blocks);
      blocks += group.items[i].small_channels * tiles_of_one_small(group.items[i]);
      if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    }
    if (blocks == 0) continue;
    const size_t shared_bytes = sizeof(float) * kPackTaps * (kPackBig + 1);
    const cudaError_t failed = with_type(type, [&]<class T>() {
      return launch<pack_weights_kernel<T>>({blocks, kPackThreads, shared_bytes, stream}, group);
    });
    if (failed != cudaSuccess) return failed;
  }
  return cudaSuccess;
}

}  // namespace fastgan::cuda
