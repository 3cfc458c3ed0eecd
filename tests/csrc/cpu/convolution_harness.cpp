// Drawn convolutions with prologues and statistics, against float64.
#include <cmath>
#include <cstdio>

#include "harness.h"

namespace fastgan::cpu::harness {

namespace {

// A prologue for one operand, or (half of the time) none. Scales are powers of two, so that it is
// rounded the same with and without fused multiply-adds.
struct DrawnPrologue {
  int64_t channels, images;
  Buffer scale, shift;
  Activation activation;
  bool used;

  DrawnPrologue(int64_t groups, int64_t operand_channels, int64_t group_images, bool served)
      : channels(operand_channels),
        images(group_images),
        scale(DataType::float32, groups * channels),
        shift(DataType::float32, groups * channels),
        activation(static_cast<Activation>(draw(0, 2))),
        used(served && draw(0, 1)) {
    shift.fill();
    for (int64_t index = 0; index < scale.count; ++index) {
      scale.set(index, std::ldexp(draw(0, 1) ? 1.0f : -1.0f, static_cast<int>(draw(-2, 1))));
    }
  }

  // The operand as it is read; `prologue` is what the kernels are told.
  Buffer apply(const Buffer& operand, Prologue& prologue) {
    if (used) prologue = {scale.floats(), shift.floats(), channels, images, activation, 0.25f};
    Buffer read(operand.type, operand.count);
    const int64_t group_size = operand.count / (scale.count / channels);
    for (int64_t index = 0; index < operand.count; ++index) {
      float value = static_cast<float>(operand.get(index));
      if (used) {
        const int64_t parameter = index / group_size * channels + index % channels;
        value = value * scale.floats()[parameter] + shift.floats()[parameter];
        if (activation == Activation::relu && value < 0.0f) value = 0.0f;
        if (activation == Activation::leaky_relu && value < 0.0f) value *= 0.25f;
      }
      read.set(index, value);
    }
    return read;
  }
};

// fprop or dgrad, with the statistics of the result half of the time where they are served.
void try_product(const Kernels& kernels, Convolution c, void (*product)(const Convolution&),
                 int64_t channels, Buffer& result, bool served, const char* what) {
  Buffer mean(DataType::float32, c.groups * channels), m2(DataType::float32, c.groups * channels);
  c.result = result.data.get();
  if (!served || draw(0, 1)) {
    with_threads(result, kernels.name, what, [&] { product(c); });
    return;
  }
  c.mean = mean.floats();
  c.m2 = m2.floats();
  with_threads(mean, kernels.name, what, [&] { product(c); });
  with_threads(m2, kernels.name, what, [&] { product(c); });
  with_threads(result, kernels.name, what, [&] { product(c); });
  const int64_t rows = result.count / channels / c.groups;
  for (int64_t index = 0; index < mean.count; ++index) {
    const int64_t first = index / channels * rows * channels + index % channels;
    double exact_mean = 0.0, exact_m2 = 0.0, reach = 0.0, spread = 0.0;
    for (int64_t row = 0; row < rows; ++row) exact_mean += result.get(first + row * channels);
    exact_mean /= static_cast<double>(rows);
    for (int64_t row = 0; row < rows; ++row) {
      const double centred = result.get(first + row * channels) - exact_mean;
      exact_m2 += centred * centred;
      spread += std::fabs(centred);
      reach = std::fmax(reach, std::fabs(centred));
    }
    // Relative to a row of the data values are at most 2 reach; a task sums up to 96 of them one
    // after the other, and merges a few such sums.
    const double error = 128 * 0x1p-23 * 2 * reach;
    const double bound = 128 * 0x1p-23 * exact_m2 + 2 * error * spread + rows * error * error;
    expect(std::fabs(mean.get(index) - exact_mean) <= error + 0x1p-23 * std::fabs(exact_mean),
           kernels.name, "the mean of the result is wrong");
    expect(std::fabs(m2.get(index) - exact_m2) <= bound + 1e-30, kernels.name,
           "the second moment of the result is wrong");
  }
}

}  // namespace

void try_convolution(const Kernels& kernels, DataType type, bool winograd) {
  const Convolutions& convolutions = winograd ? kernels.winograd : kernels.direct;
  Convolution c{};
  c.type = c.result_type = type;
  const bool wide = !winograd && draw(0, 7) == 0;  // rows of several turns
  c.groups = draw(1, 3);
  c.batch = c.groups * draw(1, wide ? 2 : 35 / c.groups);
  c.big_channels = draw_channels();
  c.small_channels = draw_channels();
  c.kernel_height = winograd ? 4 : draw(1, 4);
  c.kernel_width = winograd ? 4 : draw(1, 4);
  c.stride_height = winograd ? 2 : draw(1, 3);
  c.stride_width = winograd ? 2 : draw(1, 3);
  c.padding_height = draw(0, 2);
  c.padding_width = draw(0, 2);
  c.big_height = draw(1, winograd || wide ? 14 : 6);
  c.big_width = draw(1, wide ? 150 : winograd ? 14 : 6);
  const int64_t span_y = c.big_height + 2 * c.padding_height - c.kernel_height;
  const int64_t span_x = c.big_width + 2 * c.padding_width - c.kernel_width;
  if (span_y < 0 || span_x < 0) return;
  c.small_height = span_y / c.stride_height + 1;
  c.small_width = span_x / c.stride_width + 1;
  const int64_t taps = c.kernel_height * c.kernel_width;
  const int64_t places = c.batch * c.small_height * c.small_width;
  snprintf(drawn, sizeof drawn,
           "%s, type %d, big %ld x %ld x %ld x %ld, small channels %ld, kernel %ld x %ld, stride "
           "%ld x %ld, padding %ld x %ld",
           winograd ? "winograd" : "direct", static_cast<int>(type), c.batch, c.big_height,
           c.big_width, c.big_channels, c.small_channels, c.kernel_height, c.kernel_width,
           c.stride_height, c.stride_width, c.padding_height, c.padding_width);
  if (places * taps * c.big_channels * c.small_channels > 2000000) return;

  Buffer big(type, c.batch * c.big_height * c.big_width * c.big_channels);
  Buffer small(type, places * c.small_channels);
  Buffer weight(type, c.small_channels * taps * c.big_channels);
  for (Buffer* buffer : {&big, &small, &weight}) winograd ? buffer->fill_whole() : buffer->fill();
  c.big = big.data.get();
  c.small = small.data.get();
  c.weight = weight.data.get();
  // What the kernels read through a prologue is what the reference sees.
  DrawnPrologue big_prologue(c.groups, c.big_channels, c.batch / c.groups, !winograd);
  DrawnPrologue small_prologue(c.groups, c.small_channels, c.batch / c.groups, !winograd);
  const Buffer read_big = big_prologue.apply(big, c.big_prologue);
  const Buffer read_small = small_prologue.apply(small, c.small_prologue);
  Sums exact_small(small.count), exact_big(big.count), exact_weight(weight.count);
  for (int64_t place = 0; place < places; ++place) {
    const int64_t n = place / c.small_width / c.small_height;
    const int64_t y = place / c.small_width % c.small_height, x = place % c.small_width;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t big_y = y * c.stride_height - c.padding_height + tap / c.kernel_width;
      const int64_t big_x = x * c.stride_width - c.padding_width + tap % c.kernel_width;
      if (big_y < 0 || big_y >= c.big_height || big_x < 0 || big_x >= c.big_width) continue;
      const int64_t pixel = (n * c.big_height + big_y) * c.big_width + big_x;
      for (int64_t s = 0; s < c.small_channels; ++s) {
        for (int64_t b = 0; b < c.big_channels; ++b) {
          const int64_t at_small = place * c.small_channels + s;
          const int64_t at_big = pixel * c.big_channels + b;
          const int64_t at_weight = (s * taps + tap) * c.big_channels + b;
          const double u = read_small.get(at_small), v = read_big.get(at_big);
          const double w = weight.get(at_weight);
          auto add = [](Sums& sums, int64_t index, double product) {
            sums.value[index] += product;
            sums.size[index] += std::fabs(product);
          };
          add(exact_small, at_small, v * w);
          add(exact_big, at_big, u * w);
          add(exact_weight, at_weight, u * v);
        }
      }
    }
  }
  Buffer small_result(type, small.count), big_result(type, big.count);
  Buffer weight_result(DataType::float32, weight.count);
  try_product(kernels, c, convolutions.fprop, c.small_channels, small_result, !winograd, "fprop");
  auto expect_right = [&](const Buffer& result, const Sums& exact, int64_t terms,
                          const char* what) {
    if (!winograd) return expect_close(result, exact, terms, kernels.name, what);
    bool same = true;
    for (int64_t index = 0; index < result.count; ++index) {
      same &= result.get(index) == exact.value[index];
    }
    expect(same, kernels.name, what);
  };
  expect_right(small_result, exact_small, taps * c.big_channels, "fprop is wrong");
  try_product(kernels, c, convolutions.dgrad, c.big_channels, big_result, !winograd, "dgrad");
  expect_right(big_result, exact_big, taps * c.small_channels, "dgrad is wrong");
  c.result = weight_result.data.get();
  c.result_type = DataType::float32;
  with_threads(weight_result, kernels.name, "wgrad differs between threads",
               [&] { convolutions.wgrad(c); });
  expect_right(weight_result, exact_weight, places, "wgrad is wrong");
}

}  // namespace fastgan::cpu::harness
