// fprop from an image with 1 to 4 channels: small = act(patches(big) x weight + bias).
//
// One block: kTile pixels of the small side x kTile of its channels; depth kh * kw * channels.
// Grid: one axis, channel tiles fastest. Masks: pixels, channels and depths past the last are 0.
#include "image_product.cuh"

namespace fastgan::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kProductThreads) image_fprop_kernel(ImageConvolution conv) {
  const unsigned channel_tiles = static_cast<unsigned>(ceil_div(conv.small_channels, kTile));
  const int first_channel = static_cast<int>(blockIdx.x % channel_tiles) * kTile;
  const int64_t first_pixel = static_cast<int64_t>(blockIdx.x / channel_tiles) * kTile;
  const int64_t image_pixels = static_cast<int64_t>(conv.small_height) * conv.small_width;
  const int64_t pixels = conv.batch * image_pixels;
  const int64_t first_image = first_pixel / image_pixels;
  const unsigned first_rest = static_cast<unsigned>(first_pixel % image_pixels);
  const int depth = conv.kernel_height * conv.kernel_width * conv.big_channels;
  constexpr int kStep = kProductThreads / kDepth;
  const int k = threadIdx.x % kDepth, lane = threadIdx.x / kDepth;

  float accumulator[kOwn][kOwn] = {};
  multiply(
      depth,
      [&](float* rows, int64_t first) {
        const int at = static_cast<int>(first) + k;
        const PatchColumn position(conv, at);
        for (int pixel = lane; pixel < kTile; pixel += kStep) {
          const PatchOrigin origin(conv, first_image, first_rest + pixel);
          const bool inside = at < depth && first_pixel + pixel < pixels;
          rows[k * kTileRow + pixel] = inside ? origin.value<T>(conv, position) : 0.0f;
        }
      },
      [&](float* columns, int64_t first) {
        const int64_t at = first + k;
        const T* weight = static_cast<const T*>(conv.weight) + at;
        for (int channel = lane; channel < kTile; channel += kStep) {
          const int64_t s = first_channel + channel;
          const bool inside = at < depth && s < conv.small_channels;
          columns[k * kTileRow + channel] = inside ? widen(weight[s * depth]) : 0.0f;
        }
      },
      accumulator);

  T* small = static_cast<T*>(conv.result);
  const int channel = first_channel + kOwn * (threadIdx.x % (kTile / kOwn));
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int64_t pixel = first_pixel + kOwn * (threadIdx.x / (kTile / kOwn)) + i;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      if (channel + j < conv.small_channels) {
        accumulator[i][j] += value_or(conv.bias, channel + j, 0.0f);
      }
    }
    activate_all(conv.activation, accumulator[i], conv.negative_slope);
    if (pixel >= pixels) break;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      if (channel + j < conv.small_channels) {
        small[pixel * conv.small_channels + channel + j] = narrow<T>(accumulator[i][j]);
      }
    }
  }
}

}  // namespace

cudaError_t image_fprop(const ImageConvolution& conv, cudaStream_t stream) {
  const int64_t pixels = conv.batch * conv.small_height * conv.small_width;
  const int64_t blocks = ceil_div(pixels, kTile) * ceil_div(conv.small_channels, kTile);
  if (blocks == 0) return cudaSuccess;
  return with_type(conv.type, [&]<class T>() {
    return launch<image_fprop_kernel<T>>({blocks, kProductThreads, kProductShared, stream}, conv);
  });
}

}  // namespace fastgan::cuda
