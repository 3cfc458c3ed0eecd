// dgrad to an image with 1 to 4 channels: big = act(transposed convolution(small, weight) + bias).
//
// By phases: output row o = th * stride + phase is reached by the taps k = (phase + padding) mod
// stride + j * stride alone, from row th + (phase + padding - k) / stride of the small side.
//
//   small [pixel, S] --16 bytes--> registers --+
//   weight of a phase [tap, S, 4] -> shared ---+-> kPositions x channels sums a thread -> big
//
// One block: kDgradThreads * kPositions output pixels of one phase; neighbouring threads have
// neighbouring pixels of that phase, all read the same weight. Grid: one axis, phases fastest, so
// that blocks that share pixels of the small side run together. Masks: positions past the last,
// taps that lie outside of the small side, S past the last.
#include "elements.cuh"
#include "launch.cuh"

namespace fastgan::cuda {
namespace {

constexpr int kDgradThreads = 128;
constexpr int kPositions = 4;
constexpr int kSmallChunk = 32, kTapChunk = 8;  // of the weight in shared memory
constexpr int kWeightRow = 4;                   // channels, padded: one 16-byte access
constexpr size_t kDgradShared = sizeof(float) * kTapChunk * kSmallChunk * kWeightRow;

// One dimension of a phase.
struct Phase {
  int first_tap, taps;   // taps first_tap, first_tap + stride, ...
  int first_small;       // the small side's row of position 0 under the first tap
  int positions;         // output rows of the phase

  __device__ __forceinline__ Phase(int phase, int stride, int padding, int kernel, int big) {
    first_tap = (phase + padding) % stride;
    taps = first_tap < kernel ? (kernel - first_tap + stride - 1) / stride : 0;
    first_small = (phase + padding - first_tap) / stride;
    positions = phase < big ? (big - phase + stride - 1) / stride : 0;
  }
};

template <class T, int V, int kChannels>
__global__ void __launch_bounds__(kDgradThreads, 4) image_dgrad_kernel(ImageConvolution conv) {
  float* weights = reinterpret_cast<float*>(block_memory);  // [kTapChunk][kSmallChunk][kWeightRow]
  const int phases = conv.stride_height * conv.stride_width;
  const int phase = static_cast<int>(blockIdx.x % phases);
  const int phase_height = phase / conv.stride_width, phase_width = phase % conv.stride_width;
  const Phase rows(phase_height, conv.stride_height, conv.padding_height, conv.kernel_height,
                   conv.big_height);
  const Phase columns(phase_width, conv.stride_width, conv.padding_width, conv.kernel_width,
                      conv.big_width);
  const int64_t positions = conv.batch * rows.positions * columns.positions;
  const int64_t first =
      static_cast<int64_t>(blockIdx.x / phases) * (kDgradThreads * kPositions) + threadIdx.x;
  if (first - threadIdx.x >= positions) return;  // the whole block: another phase has more

  int64_t images[kPositions];
  int heights[kPositions], widths[kPositions];
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    const int64_t position = first + p * kDgradThreads;
    widths[p] = static_cast<int>(position % columns.positions);
    heights[p] = static_cast<int>(position / columns.positions % rows.positions);
    images[p] = position / columns.positions / rows.positions;
  }

  const T* small = static_cast<const T*>(conv.small);
  const T* weight = static_cast<const T*>(conv.weight);
  const int taps = rows.taps * columns.taps;
  float sums[kPositions][kChannels] = {};
  for (int first_s = 0; first_s < conv.small_channels; first_s += kSmallChunk) {
    const int s_count = min(conv.small_channels - first_s, kSmallChunk);
    for (int chunk = 0; chunk < taps; chunk += kTapChunk) {
      const int tap_count = min(taps - chunk, kTapChunk);
      __syncthreads();  // the last chunk has been used
      for (int i = threadIdx.x; i < tap_count * kSmallChunk; i += kDgradThreads) {
        const int tap = chunk + i / kSmallChunk, s = i % kSmallChunk;
        const int kh = rows.first_tap + tap / columns.taps * conv.stride_height;
        const int kw = columns.first_tap + tap % columns.taps * conv.stride_width;
        const int64_t from =
            (static_cast<int64_t>(first_s + s) * conv.kernel_height + kh) * conv.kernel_width + kw;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          const bool inside = s < s_count && c < conv.big_channels;
          weights[i * kWeightRow + c] = inside ? widen(weight[from * conv.big_channels + c]) : 0.0f;
        }
      }
      __syncthreads();
      for (int tap = 0; tap < tap_count; ++tap) {
        const int up = (chunk + tap) / columns.taps, left = (chunk + tap) % columns.taps;
        const T* pixels[kPositions];
        bool inside[kPositions];
#pragma unroll
        for (int p = 0; p < kPositions; ++p) {
          const int h = heights[p] + rows.first_small - up;
          const int w = widths[p] + columns.first_small - left;
          inside[p] = images[p] < conv.batch && h >= 0 && h < conv.small_height && w >= 0 &&
                      w < conv.small_width;
          pixels[p] = small + first_s +
                      ((images[p] * conv.small_height + h) * conv.small_width + w) *
                          conv.small_channels;
        }
        for (int s = 0; s < s_count; s += V) {
          Pack<T, V> values[kPositions];
#pragma unroll
          for (int p = 0; p < kPositions; ++p) {
            values[p] = inside[p] ? load<V>(pixels[p] + s) : Pack<T, V>{};
          }
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const float* row = weights + (tap * kSmallChunk + s + v) * kWeightRow;
#pragma unroll
            for (int p = 0; p < kPositions; ++p) {
              const float value = widen(values[p].values[v]);
#pragma unroll
              for (int c = 0; c < kChannels; ++c) sums[p][c] += value * row[c];
            }
          }
        }
      }
    }
  }

  T* big = static_cast<T*>(conv.result);
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    if (images[p] >= conv.batch) break;
    const int64_t h = heights[p] * conv.stride_height + phase_height;
    const int64_t w = widths[p] * conv.stride_width + phase_width;
    T* target = big + ((images[p] * conv.big_height + h) * conv.big_width + w) * conv.big_channels;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c < conv.big_channels) sums[p][c] += value_or(conv.bias, c, 0.0f);
    }
    activate_all(conv.activation, sums[p], conv.negative_slope);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c < conv.big_channels) target[c] = narrow<T>(sums[p][c]);
    }
  }
}

}  // namespace

cudaError_t image_dgrad(const ImageConvolution& conv, cudaStream_t stream) {
  const int64_t most = conv.batch * ceil_div(conv.big_height, conv.stride_height) *
                       ceil_div(conv.big_width, conv.stride_width);  // phase 0 has most
  const int64_t blocks = ceil_div(most, kDgradThreads * kPositions) * conv.stride_height *
                         conv.stride_width;
  if (blocks == 0) return cudaSuccess;
  const Launch how = {blocks, kDgradThreads, kDgradShared, stream};
  const int width = access_width(conv.type, conv.small_channels, conv.small);
  return with_access(conv.type, width, [&]<class T, int V>() {
    switch (conv.big_channels) {
      case 1:
        return launch<image_dgrad_kernel<T, V, 1>>(how, conv);
      case 4:
        return launch<image_dgrad_kernel<T, V, 4>>(how, conv);
      default:
        return launch<image_dgrad_kernel<T, V, 3>>(how, conv);
    }
  });
}

}  // namespace fastgan::cuda
