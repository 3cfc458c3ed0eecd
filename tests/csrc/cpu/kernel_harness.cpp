// Runs the native kernels without Python and without torch, for the sanitizers and for AMX tiles in
// software: drawn convolutions against float64, batches of images bit by bit, everything else for its
// memory accesses; results are compared bit by bit between 1, 2 and 5 threads. Every buffer is exactly
// as large as it must be.
//
// usage: kernel_harness CASES SEED; the exit status is 0 if all is well.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "harness.h"

namespace fastgan::cpu {

int64_t threads() { return harness::threads; }

// The product's own runs on torch's threads; this one on fresh threads.
void parallel(int64_t count, void (*task)(void*, int64_t), void* context) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t index; (index = next.fetch_add(1)) < count;) task(context, index);
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < harness::threads; ++thread) others.emplace_back(run);
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
using namespace fastgan::cpu::harness;

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

// Images against the division that they stand for, bit by bit.
void try_image_batch(const Kernels& kernels, DataType type) {
  constexpr int64_t kImages = 3;
  const bool wide = draw(0, 19) == 0;  // rows of more than a piece, several tasks
  ImageBatch call{};
  call.type = type;
  call.count = draw(1, 6);
  call.height = draw(1, wide ? 3 : 8);
  call.width = wide ? draw(2000, 9000) : draw(1, 40);
  call.channels = wide ? draw(1, 5) : draw_channels();
  snprintf(drawn, sizeof drawn, "images, type %d, %ld x %ld x %ld x %ld", static_cast<int>(type),
           call.count, call.height, call.width, call.channels);
  const int64_t row = call.width * call.channels, values = call.height * row;
  const std::unique_ptr<uint8_t[]> images(new uint8_t[kImages * values]);
  const std::unique_ptr<int64_t[]> indices(new int64_t[call.count]);
  const std::unique_ptr<uint8_t[]> flips(new uint8_t[call.count]);
  for (int64_t at = 0; at < kImages * values; ++at) {
    images[at] = static_cast<uint8_t>(draw(0, 255));
  }
  for (int64_t n = 0; n < call.count; ++n) {
    indices[n] = draw(0, kImages - 1);
    flips[n] = static_cast<uint8_t>(draw(0, 1));
  }
  Buffer batch(type, call.count * values), expected(type, batch.count);
  call.images = images.get();
  call.indices = indices.get();
  call.flips = draw(0, 3) ? flips.get() : nullptr;
  call.batch = batch.data.get();
  for (int64_t at = 0; at < batch.count; ++at) {
    const int64_t n = at / values, in_row = at % row, x = in_row / call.channels;
    const int64_t mirrored = (call.width - 1 - 2 * x) * call.channels;
    const bool flip = call.flips && call.flips[n];
    const uint8_t byte = images[indices[n] * values + at % values + (flip ? mirrored : 0)];
    expected.set(at, static_cast<float>(byte) / 127.5f - 1.0f);
  }
  with_threads(batch, kernels.name, "a batch of images differs between threads",
               [&] { kernels.image_batch(call); });
  expect(memcmp(batch.data.get(), expected.data.get(), batch.count * bytes_of(type)) == 0,
         kernels.name, "a batch of images is wrong");
}

// What a thread keeps between calls does not grow with the batch: the larger batch has 8 MB on the big
// side and 2 MB on the small one, a weight gradient has partial sums of 2 MB.
void try_scratch(const Kernels& kernels) {
  size_t kept[2];
  std::thread fresh([&] {
    harness::threads = 1;
    const size_t before = scratch_bytes();
    for (int index = 0; index < 2; ++index) {
      Convolution c{};
      c.type = c.result_type = DataType::bfloat16;
      c.batch = index ? 1024 : 512;
      c.big_channels = 64, c.small_channels = 72;
      c.big_height = c.big_width = 8, c.small_height = c.small_width = 4;
      c.kernel_height = c.kernel_width = c.stride_height = c.stride_width = 2;
      Buffer big(c.type, c.batch * 64 * c.big_channels), weight(c.type, 72 * 4 * 64);
      Buffer small(c.type, c.batch * 16 * c.small_channels);
      for (Buffer* buffer : {&big, &small, &weight}) buffer->fill();
      c.big = big.data.get();
      c.small = small.data.get();
      c.weight = weight.data.get();
      c.result = small.data.get();
      kernels.direct.fprop(c);
      c.result = big.data.get();
      kernels.direct.dgrad(c);
      c.result = weight.data.get();
      kernels.direct.wgrad(c);
      kept[index] = scratch_bytes() - before;
    }
  });
  fresh.join();
  snprintf(drawn, sizeof drawn, "%zu bytes, then %zu", kept[0], kept[1]);
  expect(kept[0] == kept[1] && kept[1] < size_t{3} << 20, kernels.name,
         "scratch memory grows with the batch");
}

}  // namespace

int main(int, char** arguments) {
  const int cases = atoi(arguments[1]);
  generator.seed(strtoull(arguments[2], nullptr, 10));
#define FASTGAN_ADDRESS(level) &fastgan::cpu::level::kernels,
  const Kernels* const levels[] = {FASTGAN_HARNESS_LEVELS(FASTGAN_ADDRESS)};
  for (const Kernels* kernels : levels) try_scratch(*kernels);
  for (int index = 0; index < cases; ++index) {
    for (const Kernels* kernels : levels) {
      for (DataType type : {DataType::float32, DataType::bfloat16, DataType::float16}) {
        try_convolution(*kernels, type);
        try_batch_norm(*kernels, type);
        try_loss(*kernels, type);
        try_image_batch(*kernels, type);
      }
      try_convolution(*kernels, DataType::float32, true);
    }
  }
  if (failures) fprintf(stderr, "%d failures\n", failures);
  return failures != 0;
}
