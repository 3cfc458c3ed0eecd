// wgrad of a convolution from an image with 1 to 4 channels: weight = small^T x patches(big).
//
// One block: kTile of the small side's channels x kTile positions of the patch (kh, kw, channel),
// over the pixels of one split; a second launch adds the splits up in order.
// Grid: one axis, tiles fastest, then splits. Masks: channels, positions and pixels past the last
// are 0.
#include "image_product.cuh"

namespace fastgan::cuda {
namespace {

struct Splits {
  int64_t pixels, pixels_per_split;
  int count;
};

template <class T>
__global__ void __launch_bounds__(kProductThreads)
    image_wgrad_kernel(ImageConvolution conv, Splits splits) {
  const int positions = conv.kernel_height * conv.kernel_width * conv.big_channels;
  const unsigned position_tiles = static_cast<unsigned>(ceil_div(positions, kTile));
  const unsigned tiles =
      static_cast<unsigned>(ceil_div(conv.small_channels, kTile)) * position_tiles;
  const int64_t split = blockIdx.x / tiles;
  const int first_channel = static_cast<int>(blockIdx.x % tiles / position_tiles) * kTile;
  const int first_position = static_cast<int>(blockIdx.x % position_tiles) * kTile;
  const int64_t first_pixel = split * splits.pixels_per_split;
  const int64_t rest = splits.pixels - first_pixel;
  const int64_t depth = rest < splits.pixels_per_split ? rest : splits.pixels_per_split;
  const int64_t image_pixels = static_cast<int64_t>(conv.small_height) * conv.small_width;
  const int64_t first_image = first_pixel / image_pixels;
  const unsigned first_rest = static_cast<unsigned>(first_pixel % image_pixels);
  constexpr int kStep = kProductThreads / kTile;
  const int at = threadIdx.x % kTile, lane = threadIdx.x / kTile;
  const bool channel_inside = first_channel + at < conv.small_channels;
  const bool position_inside = first_position + at < positions;
  const PatchColumn position(conv, first_position + at);

  float accumulator[kOwn][kOwn] = {};
  multiply(
      depth,
      [&](float* rows, int64_t first) {
        for (int pixel = lane; pixel < kDepth; pixel += kStep) {
          const int64_t from = (first_pixel + first + pixel) * conv.small_channels;
          const T* small = static_cast<const T*>(conv.small) + from + first_channel;
          const bool inside = channel_inside && first + pixel < depth;
          rows[pixel * kTileRow + at] = inside ? widen(small[at]) : 0.0f;
        }
      },
      [&](float* columns, int64_t first) {
        for (int pixel = lane; pixel < kDepth; pixel += kStep) {
          const unsigned ahead = static_cast<unsigned>(first) + pixel;
          const PatchOrigin origin(conv, first_image, first_rest + ahead);
          const bool inside = position_inside && ahead < depth;
          columns[pixel * kTileRow + at] = inside ? origin.value<T>(conv, position) : 0.0f;
        }
      },
      accumulator);

  float* partial = conv.workspace + split * conv.small_channels * positions;
  const int column = first_position + kOwn * (threadIdx.x % (kTile / kOwn));
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int64_t channel = first_channel + kOwn * (threadIdx.x / (kTile / kOwn)) + i;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      if (channel < conv.small_channels && column + j < positions) {
        partial[channel * positions + column + j] = accumulator[i][j];
      }
    }
  }
}

// weight[i] = the sum of partials [splits, count] over the splits. Grid: blocks of elements.
template <class T>
__global__ void __launch_bounds__(kProductThreads)
    sum_partials_kernel(const float* partials, int64_t count, int splits, T* weight) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kProductThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) sum += partials[split * count + i];
  weight[i] = narrow<T>(sum);
}

constexpr int64_t kBlocks = 4;              // for each multiprocessor
constexpr int64_t kLeastPixels = 8 * kDepth;  // of a split

int64_t weight_elements(const ImageConvolution& conv) {
  return static_cast<int64_t>(conv.small_channels) * conv.kernel_height * conv.kernel_width *
         conv.big_channels;
}

int64_t tiles_of(const ImageConvolution& conv) {
  const int64_t positions = conv.kernel_height * conv.kernel_width * conv.big_channels;
  return ceil_div(conv.small_channels, kTile) * ceil_div(positions, kTile);
}

Splits split_pixels(const ImageConvolution& conv, const Device& device) {
  const int64_t pixels = conv.batch * conv.small_height * conv.small_width;
  const int64_t wanted = kBlocks * device.multiprocessors / tiles_of(conv);
  const int64_t most = ceil_div(pixels, kLeastPixels);
  int64_t splits = wanted < most ? wanted : most;
  splits = splits < 1 ? 1 : splits;
  const int64_t each = ceil_div(pixels, splits);
  return {pixels, each, each ? static_cast<int>(ceil_div(pixels, each)) : 0};
}

}  // namespace

size_t image_wgrad_workspace(const ImageConvolution& conv, const Device& device) {
  if (weight_elements(conv) == 0) return 0;
  return static_cast<size_t>(split_pixels(conv, device).count) * weight_elements(conv);
}

cudaError_t image_wgrad(const ImageConvolution& conv, const Device& device, cudaStream_t stream) {
  const int64_t elements = weight_elements(conv);
  if (elements == 0) return cudaSuccess;
  const Splits splits = split_pixels(conv, device);
  if (splits.count > 0) {
    const cudaError_t failed = with_type(conv.type, [&]<class T>() {
      return launch<image_wgrad_kernel<T>>(
          {tiles_of(conv) * splits.count, kProductThreads, kProductShared, stream}, conv, splits);
    });
    if (failed != cudaSuccess) return failed;
  }
  return with_type(conv.result_type, [&]<class T>() {
    return launch<sum_partials_kernel<T>>(
        {ceil_div(elements, kProductThreads), kProductThreads, 0, stream},
        static_cast<const float*>(conv.workspace), elements, splits.count,
        static_cast<T*>(conv.result));
  });
}

}  // namespace fastgan::cuda
