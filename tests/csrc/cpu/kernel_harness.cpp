// Runs the native kernels without Python and without torch, for the sanitizers and for AMX tiles in
// software: drawn convolutions against float64, everything else for its memory accesses, results
// compared bit by bit between 1, 2 and 5 threads. Every buffer is exactly as large as it must be.
//
// usage: kernel_harness CASES SEED; the exit status is 0 if all is well.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../../../csrc/common/numbers.h"
#include "../../../csrc/cpu/kernels.h"

namespace fastgan::cpu {

int threads = 1;

// The product's own runs on torch's threads; this one on fresh threads.
void parallel(int64_t count, void (*task)(void*, int64_t), void* context) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t index; (index = next.fetch_add(1)) < count;) task(context, index);
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run);
  run();
  for (std::thread& other : others) other.join();
}

#define FASTGAN_DECLARE(level) \
  namespace level {            \
  extern const Kernels kernels; \
  }
FASTGAN_HARNESS_LEVELS(FASTGAN_DECLARE)

}  // namespace fastgan::cpu

namespace {

using namespace fastgan;
using namespace fastgan::cpu;

std::mt19937_64 generator;

int64_t draw(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(generator);
}

int64_t draw_channels() {
  constexpr int64_t kChannels[] = {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65, 80, 130};
  return kChannels[draw(0, std::size(kChannels) - 1)];
}

size_t bytes_of(DataType type) { return type == DataType::float32 ? 4 : 2; }

// A heap buffer of exactly `count` elements, all NaN.
struct Buffer {
  DataType type;
  int64_t count;
  std::unique_ptr<unsigned char[]> data;

  Buffer(DataType element, int64_t elements)
      : type(element), count(elements), data(new unsigned char[elements * bytes_of(element)]) {
    memset(data.get(), 0xff, count * bytes_of(type));
  }

  void set(int64_t index, float value) {
    if (type == DataType::float32) {
      reinterpret_cast<float*>(data.get())[index] = value;
    } else if (type == DataType::bfloat16) {
      reinterpret_cast<BFloat16*>(data.get())[index] = from_float<BFloat16>(value);
    } else {
      reinterpret_cast<Float16*>(data.get())[index] = from_float<Float16>(value);
    }
  }

  double get(int64_t index) const {
    if (type == DataType::float32) return reinterpret_cast<const float*>(data.get())[index];
    if (type == DataType::bfloat16) {
      return to_float(reinterpret_cast<const BFloat16*>(data.get())[index]);
    }
    return to_float(reinterpret_cast<const Float16*>(data.get())[index]);
  }

  Buffer& fill() {
    std::normal_distribution<float> normal;
    for (int64_t index = 0; index < count; ++index) set(index, normal(generator));
    return *this;
  }

  Buffer& fill_whole() {
    for (int64_t index = 0; index < count; ++index) set(index, static_cast<float>(draw(-3, 3)));
    return *this;
  }

  float* floats() { return reinterpret_cast<float*>(data.get()); }
};

int failures = 0;
char drawn[256] = "";  // the case at hand

void expect(bool right, const char* level, const char* what) {
  if (!right && ++failures <= 10) fprintf(stderr, "%s: %s (%s)\n", level, what, drawn);
}

void expect_finite(const Buffer& buffer, const char* level, const char* what) {
  bool finite = true;
  for (int64_t index = 0; index < buffer.count; ++index) finite &= std::isfinite(buffer.get(index));
  expect(finite, level, what);
}

// Runs `call` with 1, 2 and 5 threads into `result`; the bits must not differ.
template <class Call>
void with_threads(Buffer& result, const char* level, const char* what, const Call& call) {
  std::vector<unsigned char> first;
  const size_t bytes = result.count * bytes_of(result.type);
  for (int count : {1, 2, 5}) {
    threads = count;
    memset(result.data.get(), 0xff, bytes);
    call();
    if (first.empty()) first.assign(result.data.get(), result.data.get() + bytes);
    expect(memcmp(first.data(), result.data.get(), bytes) == 0, level, what);
  }
}

struct Sums {
  std::vector<double> value, size;

  explicit Sums(int64_t count) : value(count), size(count) {}
};

void expect_close(const Buffer& result, const Sums& exact, int64_t terms, const char* level,
                  const char* what) {
  const double float_epsilon = 0x1p-23;
  const double epsilon = result.type == DataType::float32    ? 0x1p-23
                         : result.type == DataType::bfloat16 ? 0x1p-7
                                                             : 0x1p-10;
  // Half the spacing of float16's subnormal numbers, and of nothing else that matters.
  const double smallest = result.type == DataType::float16 ? 0x1p-25 : 1e-30;
  bool close = true;
  for (int64_t index = 0; index < result.count; ++index) {
    const double bound = (terms + 2) * float_epsilon * exact.size[index] +
                         epsilon * std::fabs(exact.value[index]) + smallest;
    close &= std::fabs(result.get(index) - exact.value[index]) <= bound;
  }
  expect(close, level, what);
}

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

// With `winograd` the case is drawn from those that its tiles serve and its operands are small whole
// numbers: no sum is rounded, so that nothing but the exact result is right.
void try_convolution(const Kernels& kernels, DataType type, bool winograd = false) {
  const Convolutions& convolutions = winograd ? kernels.winograd : kernels.direct;
  Convolution c{};
  c.type = c.result_type = type;
  c.groups = draw(1, 3);
  c.batch = c.groups * draw(1, 35 / c.groups);
  c.big_channels = draw_channels();
  c.small_channels = draw_channels();
  c.kernel_height = winograd ? 4 : draw(1, 4);
  c.kernel_width = winograd ? 4 : draw(1, 4);
  c.stride_height = winograd ? 2 : draw(1, 3);
  c.stride_width = winograd ? 2 : draw(1, 3);
  c.padding_height = draw(0, 2);
  c.padding_width = draw(0, 2);
  c.big_height = draw(1, winograd ? 14 : 6);
  c.big_width = draw(1, winograd ? 14 : 6);
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

void try_batch_norm(const Kernels& kernels, DataType type) {
  snprintf(drawn, sizeof drawn, "type %d", static_cast<int>(type));
  const int64_t groups = draw(1, 3), channels = draw_channels();
  const int64_t rows = draw(0, 49) ? draw(2, 60) : draw(1000, 2500);  // the latter in several tasks
  const int64_t count = groups * rows * channels;
  Buffer x(type, count), grad_y(type, count), y(type, count), grad_x(type, count);
  x.fill();
  grad_y.fill();
  Buffer weight(DataType::float32, channels), bias(DataType::float32, channels);
  Buffer running_mean(DataType::float32, channels), running_var(DataType::float32, channels);
  for (Buffer* vector : {&weight, &bias, &running_mean, &running_var}) vector->fill();
  Buffer mean(DataType::float32, groups * channels), deviation(DataType::float32, groups * channels);
  Buffer grad_weight(DataType::float32, channels), grad_bias(DataType::float32, channels);
  const auto activation = static_cast<Activation>(draw(0, 4));
  BatchNormForward forward{type, groups, rows, channels, x.data.get(), y.data.get(),
                           weight.floats(), bias.floats(), mean.floats(), deviation.floats(),
                           running_mean.floats(), running_var.floats(), 0.1, 1e-5, activation,
                           0.2f, true, nullptr, nullptr, nullptr};
  with_threads(y, kernels.name, "batch norm differs between threads",
               [&] { kernels.batch_norm_forward(forward); });
  BatchNormBackward backward{type, groups, rows, channels, grad_y.data.get(), x.data.get(),
                             grad_x.data.get(), weight.floats(), bias.floats(), mean.floats(),
                             deviation.floats(), grad_weight.floats(), grad_bias.floats(),
                             activation, 0.2f, true};
  with_threads(grad_x, kernels.name, "batch norm backward differs between threads",
               [&] { kernels.batch_norm_backward(backward); });
  Buffer m2(DataType::float32, groups * channels);
  for (int64_t index = 0; index < m2.count; ++index) {
    const double variance = 1.0 / std::pow(deviation.get(index), 2) - 1e-5;
    m2.set(index, static_cast<float>(std::fmax(variance, 0.0) * rows));
  }
  Buffer scale(DataType::float32, m2.count), shift(DataType::float32, m2.count);
  forward.m2 = m2.floats();
  forward.scale = scale.floats();
  forward.shift = shift.floats();
  with_threads(y, kernels.name, "batch norm of given statistics differs between threads",
               [&] { kernels.batch_norm_forward(forward); });
  expect_finite(scale, kernels.name, "batch norm left a scale out");
  expect_finite(shift, kernels.name, "batch norm left a shift out");
  expect_finite(y, kernels.name, "batch norm left something out");
  expect_finite(grad_x, kernels.name, "batch norm backward left something out");
  expect_finite(grad_weight, kernels.name, "grad_weight is not finite");

  BiasAct act{type, groups * rows, channels, x.data.get(), bias.floats(), grad_y.data.get(),
              grad_x.data.get(), grad_bias.floats(), activation, 0.2f};
  with_threads(grad_x, kernels.name, "bias_act backward differs between threads",
               [&] { kernels.bias_act_backward(act); });
  act.bias = draw(0, 1) ? act.bias : nullptr;
  act.result = y.data.get();
  with_threads(y, kernels.name, "bias_act differs between threads",
               [&] { kernels.bias_act_forward(act); });
  expect_finite(y, kernels.name, "bias_act left something out");
}

void try_loss(const Kernels& kernels, DataType type) {
  AdversarialLoss call{};
  call.type = type;
  call.objective = static_cast<int>(draw(1, 11));
  call.real_count = draw(1, 2100);
  call.fake_count = draw(1, 70);
  Buffer real(type, call.real_count), fake(type, call.fake_count);
  Buffer grad_real(type, call.real_count), grad_fake(type, call.fake_count);
  Buffer results(DataType::float32, 3);
  call.real = real.fill().data.get();
  call.fake = fake.fill().data.get();
  call.grad_real = grad_real.data.get();
  call.grad_fake = grad_fake.data.get();
  call.results = results.floats();
  call.real_label = 1.0;
  with_threads(grad_real, kernels.name, "the loss differs between threads",
               [&] { kernels.adversarial_loss(call); });
  expect_finite(grad_real, kernels.name, "the loss left something out");
  expect_finite(grad_fake, kernels.name, "the loss left something out");
  expect_finite(results, kernels.name, "the loss is not finite");
}

}  // namespace

int main(int, char** arguments) {
  const int cases = atoi(arguments[1]);
  generator.seed(strtoull(arguments[2], nullptr, 10));
#define FASTGAN_ADDRESS(level) &fastgan::cpu::level::kernels,
  const Kernels* const levels[] = {FASTGAN_HARNESS_LEVELS(FASTGAN_ADDRESS)};
  for (int index = 0; index < cases; ++index) {
    for (const Kernels* kernels : levels) {
      for (DataType type : {DataType::float32, DataType::bfloat16, DataType::float16}) {
        try_convolution(*kernels, type);
        try_batch_norm(*kernels, type);
        try_loss(*kernels, type);
      }
      try_convolution(*kernels, DataType::float32, true);
    }
  }
  if (failures) fprintf(stderr, "%d failures\n", failures);
  return failures != 0;
}
