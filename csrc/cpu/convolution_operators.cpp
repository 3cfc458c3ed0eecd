// The convolutions as operators of torch's dispatcher, namespace fastgan_cpu (see operators.cpp).
#include <torch/csrc/stable/library.h>

#include "levels.h"
#include "tensors.h"

namespace {

using namespace fastgan;
using namespace fastgan::cpu;

// The geometry that the three convolutions share; what they read and write is added by the caller.
Convolution convolution_of(const Tensor& big, const Tensor& small, const Tensor& weight,
                           int64_t stride_height, int64_t stride_width, int64_t padding_height,
                           int64_t padding_width) {
  STD_TORCH_CHECK(big.dim() == 4 && small.dim() == 4 && weight.dim() == 4,
                  "big, small and weight must have 4 dimensions");
  STD_TORCH_CHECK(stride_height > 0 && stride_width > 0 && padding_height >= 0 &&
                      padding_width >= 0,
                  "strides must be positive, padding not negative");
  Convolution call{};
  call.type = data_type(big);
  call.batch = big.size(0);
  call.big_channels = big.size(1);
  call.big_height = big.size(2);
  call.big_width = big.size(3);
  call.small_channels = small.size(1);
  call.small_height = small.size(2);
  call.small_width = small.size(3);
  call.kernel_height = weight.size(2);
  call.kernel_width = weight.size(3);
  call.stride_height = stride_height;
  call.stride_width = stride_width;
  call.padding_height = padding_height;
  call.padding_width = padding_width;
  STD_TORCH_CHECK(small.size(0) == call.batch && weight.size(0) == call.small_channels &&
                      weight.size(1) == call.big_channels,
                  "big, small and weight do not fit together");
  auto fits = [](int64_t big_size, int64_t small_size, int64_t kernel, int64_t stride,
                 int64_t padding) {
    const int64_t span = big_size + 2 * padding - kernel;
    return span >= 0 && span / stride + 1 == small_size;
  };
  STD_TORCH_CHECK(fits(call.big_height, call.small_height, call.kernel_height, stride_height,
                       padding_height) &&
                      fits(call.big_width, call.small_width, call.kernel_width, stride_width,
                           padding_width),
                  "the sizes of big and small do not belong to this kernel, stride and padding");
  check_data(big, "big", call.type, big.numel());
  check_data(small, "small", call.type, small.numel());
  return call;
}

// The prologue of an operand [batch, channels, ...], or none without scale and shift.
Prologue prologue_of(const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                     const Tensor& operand, int64_t activation, double negative_slope) {
  Prologue prologue{};
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(),
                  "scale and shift of a prologue come together");
  if (!scale) return prologue;
  const int64_t batch = operand.size(0);
  prologue.channels = operand.size(1);
  const int64_t groups = scale->dim() == 2 ? scale->size(0) : 0;
  STD_TORCH_CHECK(groups >= 1 && batch % groups == 0 && scale->size(1) == prologue.channels,
                  "scale must be [groups, ", prologue.channels,
                  "] with groups that divide the batch of ", batch);
  prologue.images = batch / groups;
  prologue.scale = vector_of(scale, "scale", groups * prologue.channels);
  prologue.shift = vector_of(shift, "shift", groups * prologue.channels);
  prologue.activation = activation_of(activation);
  prologue.negative_slope = static_cast<float>(negative_slope);
  return prologue;
}

// Where the statistics of a convolution's result go, if they are asked for.
void ask_for_statistics(const std::optional<Tensor>& mean, const std::optional<Tensor>& m2,
                        const Tensor& result, Convolution& call) {
  STD_TORCH_CHECK(mean.has_value() == m2.has_value(), "mean and m2 of the result come together");
  if (!mean) return;
  STD_TORCH_CHECK(call.activation == Activation::identity,
                  "statistics are of the result before any activation: activation must be "
                  "identity");
  const int64_t batch = result.size(0), channels = result.size(1);
  call.groups = mean->dim() == 2 ? mean->size(0) : 0;
  STD_TORCH_CHECK(call.groups >= 1 && batch % call.groups == 0 && mean->size(1) == channels,
                  "mean must be [groups, ", channels, "] with groups that divide the batch of ",
                  batch);
  call.mean = vector_of(mean, "mean", call.groups * channels);
  call.m2 = vector_of(m2, "m2", call.groups * channels);
}

// The kernels of an algorithm, if it can serve the call.
const Convolutions& convolutions(const Convolution& call, int64_t algorithm) {
  STD_TORCH_CHECK(algorithm >= 0 && algorithm < static_cast<int64_t>(Algorithm::count),
                  "unknown algorithm ", algorithm);
  if (static_cast<Algorithm>(algorithm) == Algorithm::direct) return kernels().direct;
  STD_TORCH_CHECK(winograd_serves(call),
                  "Winograd's tiles serve float32 with 4x4 kernels of stride 2 alone, without "
                  "prologue or statistics");
  return kernels().winograd;
}

void fprop(Tensor big, Tensor weight, std::optional<Tensor> bias, Tensor small,
           int64_t stride_height, int64_t stride_width, int64_t padding_height,
           int64_t padding_width, int64_t activation, double negative_slope,
           std::optional<Tensor> scale, std::optional<Tensor> shift, int64_t prologue_activation,
           double prologue_slope, std::optional<Tensor> mean, std::optional<Tensor> m2,
           int64_t algorithm) {
  Convolution call = convolution_of(big, small, weight, stride_height, stride_width, padding_height,
                                    padding_width);
  check_data(weight, "weight", call.type, weight.numel());
  call.big = big.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.result = small.mutable_data_ptr();
  call.bias = vector_of(bias, "bias", call.small_channels);
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  call.big_prologue = prologue_of(scale, shift, big, prologue_activation, prologue_slope);
  ask_for_statistics(mean, m2, small, call);
  const ScratchCall borrowing;
  convolutions(call, algorithm).fprop(call);
}

void dgrad(Tensor small, Tensor weight, std::optional<Tensor> bias, Tensor big,
           int64_t stride_height, int64_t stride_width, int64_t padding_height,
           int64_t padding_width, int64_t activation, double negative_slope,
           std::optional<Tensor> scale, std::optional<Tensor> shift, int64_t prologue_activation,
           double prologue_slope, std::optional<Tensor> mean, std::optional<Tensor> m2,
           int64_t algorithm) {
  Convolution call = convolution_of(big, small, weight, stride_height, stride_width, padding_height,
                                    padding_width);
  check_data(weight, "weight", call.type, weight.numel());
  call.small = small.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.result = big.mutable_data_ptr();
  call.bias = vector_of(bias, "bias", call.big_channels);
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  call.small_prologue = prologue_of(scale, shift, small, prologue_activation, prologue_slope);
  ask_for_statistics(mean, m2, big, call);
  const ScratchCall borrowing;
  convolutions(call, algorithm).dgrad(call);
}

void wgrad(Tensor big, Tensor small, Tensor weight, int64_t stride_height, int64_t stride_width,
           int64_t padding_height, int64_t padding_width, std::optional<Tensor> big_scale,
           std::optional<Tensor> big_shift, std::optional<Tensor> small_scale,
           std::optional<Tensor> small_shift, int64_t prologue_activation, double prologue_slope,
           int64_t algorithm) {
  Convolution call = convolution_of(big, small, weight, stride_height, stride_width, padding_height,
                                    padding_width);
  call.result_type = data_type(weight);
  check_data(weight, "weight", call.result_type, weight.numel());
  call.big = big.const_data_ptr();
  call.small = small.const_data_ptr();
  call.result = weight.mutable_data_ptr();
  call.big_prologue = prologue_of(big_scale, big_shift, big, prologue_activation, prologue_slope);
  call.small_prologue =
      prologue_of(small_scale, small_shift, small, prologue_activation, prologue_slope);
  const ScratchCall borrowing;
  convolutions(call, algorithm).wgrad(call);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastgan_cpu, library) {
  library.def(
      "fprop(Tensor big, Tensor weight, Tensor? bias, Tensor(a!) small, int stride_height, "
      "int stride_width, int padding_height, int padding_width, int activation, "
      "float negative_slope, Tensor? scale=None, Tensor? shift=None, int prologue_activation=0, "
      "float prologue_slope=0.0, Tensor(b!)? mean=None, Tensor(c!)? m2=None, "
      "int algorithm=0) -> ()");
  library.def(
      "dgrad(Tensor small, Tensor weight, Tensor? bias, Tensor(a!) big, int stride_height, "
      "int stride_width, int padding_height, int padding_width, int activation, "
      "float negative_slope, Tensor? scale=None, Tensor? shift=None, int prologue_activation=0, "
      "float prologue_slope=0.0, Tensor(b!)? mean=None, Tensor(c!)? m2=None, "
      "int algorithm=0) -> ()");
  library.def(
      "wgrad(Tensor big, Tensor small, Tensor(a!) weight, int stride_height, int stride_width, "
      "int padding_height, int padding_width, Tensor? big_scale=None, Tensor? big_shift=None, "
      "Tensor? small_scale=None, Tensor? small_shift=None, int prologue_activation=0, "
      "float prologue_slope=0.0, int algorithm=0) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgan_cpu, CPU, library) {
  library.impl("fprop", TORCH_BOX(&fprop));
  library.impl("dgrad", TORCH_BOX(&dgrad));
  library.impl("wgrad", TORCH_BOX(&wgrad));
}
