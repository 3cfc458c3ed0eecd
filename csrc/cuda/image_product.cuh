// Matrix products over the patches of an image with 1 to 4 channels, on the ordinary cores: so few
// channels leave most of a tensor core's tile empty, and float32 stays float32.
//
//                 kTile columns
//               +--------------+
//   kTile rows  |  4x4 a thread|   256 threads; operands go through shared memory kDepth at a time:
//               +--------------+   rows [kDepth][kTile], columns [kDepth][kTile].
#pragma once

#include "elements.cuh"
#include "launch.cuh"

namespace fastgan::cuda {

constexpr int kTile = 64, kDepth = 16;
constexpr int kProductThreads = 256;
constexpr int kOwn = 4;                 // rows and columns of a thread
constexpr int kTileRow = kTile + kOwn;  // a row of shared memory, padded against bank conflicts
constexpr size_t kProductShared = 2 * sizeof(float) * kDepth * kTileRow;

// The part of the patches that a thread reads: position `k` of a patch is (kh, kw, channel).
struct PatchColumn {
  int height, width, channel;

  __device__ __forceinline__ PatchColumn(const ImageConvolution& conv, int k) {
    channel = k % conv.big_channels;
    width = k / conv.big_channels % conv.kernel_width;
    height = k / conv.big_channels / conv.kernel_width;
  }
};

// Where the patch of one pixel of the small side begins in the image.
struct PatchOrigin {
  int64_t image;
  int height, width;

  // `pixel` is counted from the first one of `image`; it may lie in a later image.
  __device__ __forceinline__ PatchOrigin(const ImageConvolution& conv, int64_t image,
                                         unsigned pixel) {
    const unsigned pixels = conv.small_height * conv.small_width;
    this->image = image + pixel / pixels;
    const unsigned rest = pixel % pixels;
    height = static_cast<int>(rest / conv.small_width) * conv.stride_height - conv.padding_height;
    width = static_cast<int>(rest % conv.small_width) * conv.stride_width - conv.padding_width;
  }

  // The image's value under the patch's position; 0 in the padding.
  template <class T>
  __device__ __forceinline__ float value(const ImageConvolution& conv,
                                         const PatchColumn& at) const {
    const int h = height + at.height, w = width + at.width;
    if (h < 0 || h >= conv.big_height || w < 0 || w >= conv.big_width) return 0.0f;
    const int64_t row = (image * conv.big_height + h) * conv.big_width + w;
    return widen(static_cast<const T*>(conv.big)[row * conv.big_channels + at.channel]);
  }
};

// accumulator[i][j] += sum over depth of rows(depth, row + i) * columns(depth, column + j), where
// row and column are kOwn * (threadIdx.x / 16) and kOwn * (threadIdx.x % 16).
// fill_rows(target, first), fill_columns(target, first): the block writes [kDepth][kTileRow] values
// of the depths from `first` on, 0 beyond the last.
template <class FillRows, class FillColumns>
__device__ __forceinline__ void multiply(int64_t depth, FillRows fill_rows,
                                         FillColumns fill_columns,
                                         float (&accumulator)[kOwn][kOwn]) {
  float* rows = reinterpret_cast<float*>(block_memory);
  float* columns = rows + kDepth * kTileRow;
  const int row = kOwn * (threadIdx.x / (kTile / kOwn));
  const int column = kOwn * (threadIdx.x % (kTile / kOwn));
  for (int64_t first = 0; first < depth; first += kDepth) {
    __syncthreads();  // the last depths have been used
    fill_rows(rows, first);
    fill_columns(columns, first);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const auto left = load<kOwn>(rows + k * kTileRow + row);
      const auto right = load<kOwn>(columns + k * kTileRow + column);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) accumulator[i][j] += left.values[i] * right.values[j];
      }
    }
  }
}

}  // namespace fastgan::cuda
