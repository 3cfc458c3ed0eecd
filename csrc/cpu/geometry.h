// Where the pixels of a convolution lie: fprop and dgrad as one gathering product in phases.
#pragma once

#include "micro_kernels.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kPixels = 16 * kRows;  // of one task

// What one phase adds up: output (i * output_stride + origin) from input (i * input_stride + tap).
struct Phase {
  int64_t grid_height, grid_width;      // output pixels of the phase in one image
  int64_t origin_y, origin_x;           // of its first output pixel
  int64_t first_tap_y, taps_y;          // kernel rows first_tap_y, first_tap_y + tap_step_y, ...
  int64_t first_tap_x, taps_x;
  int64_t offset_y, offset_x;           // input position of tap 0 for grid position 0
};

// A gathering product: fprop has one phase, dgrad one a residue of the stride.
struct Product {
  int64_t batch, input_height, input_width, inputs;
  int64_t output_height, output_width, outputs;
  int64_t input_stride_y, input_stride_x, output_stride_y, output_stride_x;
  int64_t tap_step_y, tap_step_x;      // kernel positions between neighbouring taps of a phase
  int64_t tap_shift;                   // input positions between them: +1 for fprop, -1 for dgrad
  int64_t kernel_width;
  const Convolution* call;
};

FASTGAN_SHARED int64_t round_up_quotient(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

FASTGAN_SHARED Product fprop_product(const Convolution& c) {
  return {c.batch,        c.big_height,     c.big_width,      c.big_channels, c.small_height,
          c.small_width,  c.small_channels, c.stride_height,  c.stride_width, 1,
          1,              1,                1,                1,              c.kernel_width,
          &c};
}

FASTGAN_SHARED Product dgrad_product(const Convolution& c) {
  return {c.batch,       c.small_height, c.small_width,   c.small_channels, c.big_height,
          c.big_width,   c.big_channels, 1,               1,                c.stride_height,
          c.stride_width, c.stride_height, c.stride_width, -1,              c.kernel_width,
          &c};
}

FASTGAN_SHARED Phase fprop_phase(const Convolution& c) {
  return {c.small_height, c.small_width, 0, 0, 0, c.kernel_height, 0, c.kernel_width,
          -c.padding_height, -c.padding_width};
}

// The phase of output rows and columns o with (o + padding) mod stride == residue.
FASTGAN_SHARED Phase dgrad_phase(const Convolution& c, int64_t residue_y, int64_t residue_x) {
  auto first = [](int64_t residue, int64_t padding, int64_t stride) {
    return ((residue - padding) % stride + stride) % stride;
  };
  auto count = [](int64_t size, int64_t start, int64_t stride) {
    return start < size ? (size - start + stride - 1) / stride : 0;
  };
  const int64_t y = first(residue_y, c.padding_height, c.stride_height);
  const int64_t x = first(residue_x, c.padding_width, c.stride_width);
  return {count(c.big_height, y, c.stride_height), count(c.big_width, x, c.stride_width),
          y, x,
          residue_y, count(c.kernel_height, residue_y, c.stride_height),
          residue_x, count(c.kernel_width, residue_x, c.stride_width),
          (y + c.padding_height - residue_y) / c.stride_height,
          (x + c.padding_width - residue_x) / c.stride_width};
}

// The output pixels of one task. The same place in kRows images comes before the next place: the
// pixels of one register tile then lie at the same distance from the border, and a tap that falls
// outside does so for all of them and is left out. The images are `batch` of them from `origin` on.
struct Pixels {
  int64_t count;
  int64_t image[kPixels], y[kPixels], x[kPixels];  // grid positions

  Pixels() = default;

  FASTGAN_SHARED Pixels(const Phase& phase, int64_t first, int64_t batch, int64_t origin = 0) {
    const int64_t places = phase.grid_height * phase.grid_width, all = batch * places;
    count = first + kPixels <= all ? kPixels : all - first;
    if (count <= 0) return;
    int64_t first_image = first / (kRows * places) * kRows;
    int64_t images = first_image + kRows <= batch ? kRows : batch - first_image;
    int64_t rest = first - first_image * places, place = rest / images, n = rest % images;
    int64_t row = place / phase.grid_width, column = place % phase.grid_width;
    for (int64_t pixel = 0; pixel < count; ++pixel) {
      image[pixel] = origin + first_image + n;
      y[pixel] = row;
      x[pixel] = column;
      if (++n < images) continue;
      n = 0;
      if (++column < phase.grid_width) continue;
      column = 0;
      if (++row < phase.grid_height) continue;
      row = 0;
      first_image += kRows;
      images = first_image + kRows <= batch ? kRows : batch - first_image;
    }
  }
};

}  // namespace fastgan::cpu::FASTGAN_LEVEL
