// Winograd's F(2x2, 2x2): 4x4 kernels of stride 2 in float32 with 9 products where 16 are summed.
//
// Such a convolution is four convolutions of unit stride with 2x2 taps, one for each parity of the
// big side's rows and columns. Along one axis two neighbouring sums of one of them,
//
//     y0 = d0 g0 + d1 g1  =  m0 + m1        m0 = (d1 - d0) (-g0)
//     y1 = d1 g0 + d2 g1  =  m1 + m2        m1 = d1 (g0 + g1)
//                                           m2 = (d2 - d1) g1
//
// take three products instead of four (Winograd 1980; Lavin and Gray, "Fast algorithms for
// convolutional neural networks", 2016), a tile of 2 x 2 sums nine instead of sixteen. Nothing is
// multiplied but by 0 and +-1 on the way, so float32 stays about as exact as it is. y0 reads d0 and
// d1 alone: a NaN outside of a pixel's receptive field does not reach it. (An infinity inside it
// may become a NaN.)
//
// With D[i] = d[i] - d[i - 1] the factors of the data are D[i], d[i], D[i + 1] around the tile's
// centre i, the position of d1. Tiles that begin at odd and at even positions share them.
#pragma once

#include "products.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kFactors = 9;  // of a tile: 3 along y times 3 along x

// One image as a convolution of unit stride sees it: position i is pixel i * stride + offset.
struct View {
  const float* data;
  const float* zeros;  // what is read outside: as many as there are channels
  int64_t height, width, channels;
  int64_t stride, offset_y, offset_x;
  int64_t end_y, end_x;  // positions that exist; what lies beyond is read by no sum

  FASTGAN_SHARED const float* pixel(int64_t image, int64_t y, int64_t x) const {
    const int64_t row = y * stride + offset_y, column = x * stride + offset_x;
    const bool inside = row >= 0 && row < height && column >= 0 && column < width && y < end_y &&
                        x < end_x;
    return inside ? data + ((image * height + row) * width + column) * channels : zeros;
  }
};

// The big side as fprop and wgrad see it from one parity: the sum at s reads positions s and s + 1.
FASTGAN_SHARED View parity_view(const Convolution& c, int64_t parity, const float* zeros) {
  return {static_cast<const float*>(c.big), zeros, c.big_height, c.big_width, c.big_channels, 2,
          parity / 2 - c.padding_height, parity % 2 - c.padding_width,
          c.small_height + 1, c.small_width + 1};
}

// A row of zeros in a slot of its own.
FASTGAN_SHARED const float* zero_row(int64_t channels, Scratch slot) {
  auto* zeros = static_cast<float*>(scratch(slot, channels * sizeof(float)));
  memset(zeros, 0, channels * sizeof(float));
  return zeros;
}

// The four sums of a tile from its nine products: (m0 + m1, m1 + m2) along either axis.
FASTGAN_SHARED void tile_sums(const Lanes (&products)[kFactors], Lanes (&sums)[2][2]) {
  Lanes rows[2][3];
  FASTGAN_UNROLL for (int x = 0; x < 3; ++x) {
    rows[0][x] = products[x] + products[3 + x];
    rows[1][x] = products[3 + x] + products[6 + x];
  }
  FASTGAN_UNROLL for (int y = 0; y < 2; ++y) {
    sums[y][0] = rows[y][0] + rows[y][1];
    sums[y][1] = rows[y][1] + rows[y][2];
  }
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
