// The kernels as operators of torch's dispatcher, namespace fastgan_cpu, by the stable ABI.
//
// Every operator writes into tensors that the caller allocated (fastgan/native_kernels.py) and
// returns nothing. What is checked here is what keeps a kernel inside its memory: device, dtype,
// number of elements and dense NHWC order. What a user may pass is checked in fastgan.ops.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../common/objectives.h"
#include "levels.h"

namespace {

using fastgan::Activation;
using fastgan::cpu::DataType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DataType data_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DataType::float32;
    case ScalarType::BFloat16:
      return DataType::bfloat16;
    case ScalarType::Half:
      return DataType::float16;
    default:
      STD_TORCH_CHECK(false, "expected float32, bfloat16 or float16");
  }
}

// True if the elements lie densely with the channels (dimension 1) innermost.
bool is_channels_last(const Tensor& tensor) {
  const int64_t dimensions = tensor.dim();
  int64_t expected = 1;
  auto matches = [&](int64_t dimension) {
    const int64_t size = tensor.size(dimension);
    const bool right = size == 1 || tensor.stride(dimension) == expected;
    expected *= size;
    return right;
  };
  if (dimensions > 1 && !matches(1)) return false;
  for (int64_t dimension = dimensions - 1; dimension > 1; --dimension) {
    if (!matches(dimension)) return false;
  }
  return dimensions == 0 || matches(0);
}

void check_data(const Tensor& tensor, const char* name, DataType type, int64_t count) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " is not on the CPU");
  STD_TORCH_CHECK(data_type(tensor) == type, name, " has another dtype than the first tensor");
  STD_TORCH_CHECK(tensor.numel() == count, name, " has ", tensor.numel(), " elements, not ", count);
  STD_TORCH_CHECK(count == 0 || is_channels_last(tensor), name, " is not dense channels_last");
}

void check_vector(const Tensor& tensor, const char* name, DataType type, int64_t count) {
  STD_TORCH_CHECK(tensor.is_cpu() && data_type(tensor) == type && tensor.numel() == count &&
                      tensor.is_contiguous(),
                  name, " must be ", count, " contiguous values on the CPU, of fake_logits' dtype");
}

// The values of a float32 vector of `count` elements, or null if there is none.
float* vector_of(const std::optional<Tensor>& tensor, const char* name, int64_t count) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(tensor->is_cpu() && tensor->scalar_type() == ScalarType::Float &&
                      tensor->is_contiguous() && tensor->numel() == count,
                  name, " must be ", count, " contiguous float32 values on the CPU");
  return static_cast<float*>(tensor->mutable_data_ptr());
}

Activation activation_of(int64_t index) {
  STD_TORCH_CHECK(index >= 0 && index <= static_cast<int64_t>(Activation::sigmoid),
                  "unknown activation ", index);
  return static_cast<Activation>(index);
}

int64_t rows_of_group(const Tensor& x, int64_t groups) {
  STD_TORCH_CHECK(x.dim() >= 2 && groups >= 1 && x.size(0) % groups == 0,
                  "x must have at least 2 dimensions and a batch that ", groups, " groups divide");
  const int64_t channels = x.size(1);
  return channels == 0 ? 0 : x.numel() / channels / groups;
}

void batch_norm_forward(Tensor x, Tensor y, std::optional<Tensor> weight,
                        std::optional<Tensor> bias, Tensor mean, Tensor inverse_deviation,
                        std::optional<Tensor> running_mean, std::optional<Tensor> running_var,
                        double momentum, double epsilon, int64_t activation, double negative_slope,
                        int64_t groups, bool training, std::optional<Tensor> m2) {
  fastgan::cpu::BatchNormForward call{};
  call.type = data_type(x);
  call.groups = groups;
  call.rows = rows_of_group(x, groups);
  call.channels = x.size(1);
  check_data(x, "x", call.type, x.numel());
  check_data(y, "y", call.type, x.numel());
  call.x = x.const_data_ptr();
  call.y = y.mutable_data_ptr();
  call.weight = vector_of(weight, "weight", call.channels);
  call.bias = vector_of(bias, "bias", call.channels);
  call.mean = vector_of(mean, "mean", groups * call.channels);
  call.inverse_deviation = vector_of(inverse_deviation, "invstd", groups * call.channels);
  call.running_mean = vector_of(running_mean, "running_mean", call.channels);
  call.running_var = vector_of(running_var, "running_var", call.channels);
  call.momentum = momentum;
  call.epsilon = epsilon;
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  call.training = training;
  STD_TORCH_CHECK(training || !m2, "m2 is a statistic of training: inference takes none");
  call.m2 = vector_of(m2, "m2", groups * call.channels);
  fastgan::cpu::kernels().batch_norm_forward(call);
}

void batch_norm_coefficients(Tensor mean, Tensor m2, std::optional<Tensor> weight,
                             std::optional<Tensor> bias, Tensor inverse_deviation, Tensor scale,
                             Tensor shift, std::optional<Tensor> running_mean,
                             std::optional<Tensor> running_var, double momentum, double epsilon,
                             int64_t rows) {
  STD_TORCH_CHECK(mean.dim() == 2, "mean must be [groups, channels]");
  STD_TORCH_CHECK(rows >= 1, "rows must be at least 1, not ", rows);
  fastgan::cpu::BatchNormForward call{};
  call.groups = mean.size(0);
  call.channels = mean.size(1);
  call.rows = rows;
  const int64_t count = call.groups * call.channels;
  call.weight = vector_of(weight, "weight", call.channels);
  call.bias = vector_of(bias, "bias", call.channels);
  call.mean = vector_of(mean, "mean", count);
  call.m2 = vector_of(m2, "m2", count);
  call.inverse_deviation = vector_of(inverse_deviation, "invstd", count);
  call.scale = vector_of(scale, "scale", count);
  call.shift = vector_of(shift, "shift", count);
  call.running_mean = vector_of(running_mean, "running_mean", call.channels);
  call.running_var = vector_of(running_var, "running_var", call.channels);
  call.momentum = momentum;
  call.epsilon = epsilon;
  call.training = true;
  fastgan::cpu::kernels().batch_norm_forward(call);
}

void batch_norm_backward(Tensor grad_y, Tensor x, Tensor grad_x, std::optional<Tensor> weight,
                         std::optional<Tensor> bias, Tensor mean, Tensor inverse_deviation,
                         Tensor grad_weight, Tensor grad_bias, int64_t activation,
                         double negative_slope, int64_t groups, bool training) {
  fastgan::cpu::BatchNormBackward call{};
  call.type = data_type(x);
  call.groups = groups;
  call.rows = rows_of_group(x, groups);
  call.channels = x.size(1);
  check_data(x, "x", call.type, x.numel());
  check_data(grad_y, "grad_y", call.type, x.numel());
  check_data(grad_x, "grad_x", call.type, x.numel());
  call.grad_y = grad_y.const_data_ptr();
  call.x = x.const_data_ptr();
  call.grad_x = grad_x.mutable_data_ptr();
  call.weight = vector_of(weight, "weight", call.channels);
  call.bias = vector_of(bias, "bias", call.channels);
  call.mean = vector_of(mean, "mean", groups * call.channels);
  call.inverse_deviation = vector_of(inverse_deviation, "invstd", groups * call.channels);
  call.grad_weight = vector_of(grad_weight, "grad_weight", call.channels);
  call.grad_bias = vector_of(grad_bias, "grad_bias", call.channels);
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  call.training = training;
  fastgan::cpu::kernels().batch_norm_backward(call);
}

void bias_act_forward(Tensor x, std::optional<Tensor> bias, Tensor y, int64_t activation,
                      double negative_slope) {
  fastgan::cpu::BiasAct call{};
  call.type = data_type(x);
  call.channels = x.size(1);
  call.rows = rows_of_group(x, 1);
  check_data(x, "x", call.type, x.numel());
  check_data(y, "y", call.type, x.numel());
  call.x = x.const_data_ptr();
  call.bias = vector_of(bias, "bias", call.channels);
  call.result = y.mutable_data_ptr();
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  fastgan::cpu::kernels().bias_act_forward(call);
}

void bias_act_backward(Tensor grad_y, Tensor x, std::optional<Tensor> bias, Tensor grad_x,
                       std::optional<Tensor> grad_bias, int64_t activation,
                       double negative_slope) {
  fastgan::cpu::BiasAct call{};
  call.type = data_type(x);
  call.channels = x.size(1);
  call.rows = rows_of_group(x, 1);
  check_data(x, "x", call.type, x.numel());
  check_data(grad_y, "grad_y", call.type, x.numel());
  check_data(grad_x, "grad_x", call.type, x.numel());
  call.x = x.const_data_ptr();
  call.bias = vector_of(bias, "bias", call.channels);
  call.grad_y = grad_y.const_data_ptr();
  call.result = grad_x.mutable_data_ptr();
  call.grad_bias = vector_of(grad_bias, "grad_bias", call.channels);
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  fastgan::cpu::kernels().bias_act_backward(call);
}

// The geometry that the three convolutions share; what they read and write is added by the caller.
fastgan::cpu::Convolution convolution_of(const Tensor& big, const Tensor& small,
                                         const Tensor& weight, int64_t stride_height,
                                         int64_t stride_width, int64_t padding_height,
                                         int64_t padding_width) {
  STD_TORCH_CHECK(big.dim() == 4 && small.dim() == 4 && weight.dim() == 4,
                  "big, small and weight must have 4 dimensions");
  STD_TORCH_CHECK(stride_height > 0 && stride_width > 0 && padding_height >= 0 &&
                      padding_width >= 0,
                  "strides must be positive, padding not negative");
  fastgan::cpu::Convolution call{};
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
fastgan::cpu::Prologue prologue_of(const std::optional<Tensor>& scale,
                                   const std::optional<Tensor>& shift, const Tensor& operand,
                                   int64_t activation, double negative_slope) {
  fastgan::cpu::Prologue prologue{};
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
                        const Tensor& result, fastgan::cpu::Convolution& call) {
  STD_TORCH_CHECK(mean.has_value() == m2.has_value(), "mean and m2 of the result come together");
  if (!mean) return;
  STD_TORCH_CHECK(call.activation == Activation::identity,
                  "statistics are of the result before any activation: activation must be identity");
  const int64_t batch = result.size(0), channels = result.size(1);
  call.groups = mean->dim() == 2 ? mean->size(0) : 0;
  STD_TORCH_CHECK(call.groups >= 1 && batch % call.groups == 0 && mean->size(1) == channels,
                  "mean must be [groups, ", channels, "] with groups that divide the batch of ",
                  batch);
  call.mean = vector_of(mean, "mean", call.groups * channels);
  call.m2 = vector_of(m2, "m2", call.groups * channels);
}

// The kernels of an algorithm, if it can serve the call.
const fastgan::cpu::Convolutions& convolutions(const fastgan::cpu::Convolution& call,
                                               int64_t algorithm) {
  using fastgan::cpu::Algorithm;
  STD_TORCH_CHECK(algorithm >= 0 && algorithm < static_cast<int64_t>(Algorithm::count),
                  "unknown algorithm ", algorithm);
  const fastgan::cpu::Kernels& kernels = fastgan::cpu::kernels();
  if (static_cast<Algorithm>(algorithm) == Algorithm::direct) return kernels.direct;
  STD_TORCH_CHECK(fastgan::cpu::winograd_serves(call),
                  "Winograd's tiles serve float32 with 4x4 kernels of stride 2 alone, without "
                  "prologue or statistics");
  return kernels.winograd;
}

void fprop(Tensor big, Tensor weight, std::optional<Tensor> bias, Tensor small,
           int64_t stride_height, int64_t stride_width, int64_t padding_height,
           int64_t padding_width, int64_t activation, double negative_slope,
           std::optional<Tensor> scale, std::optional<Tensor> shift, int64_t prologue_activation,
           double prologue_slope, std::optional<Tensor> mean, std::optional<Tensor> m2, int64_t algorithm) {
  fastgan::cpu::Convolution call = convolution_of(big, small, weight, stride_height, stride_width,
                                                  padding_height, padding_width);
  check_data(weight, "weight", call.type, weight.numel());
  call.big = big.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.result = small.mutable_data_ptr();
  call.bias = vector_of(bias, "bias", call.small_channels);
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  call.big_prologue = prologue_of(scale, shift, big, prologue_activation, prologue_slope);
  ask_for_statistics(mean, m2, small, call);
  convolutions(call, algorithm).fprop(call);
}

void dgrad(Tensor small, Tensor weight, std::optional<Tensor> bias, Tensor big,
           int64_t stride_height, int64_t stride_width, int64_t padding_height,
           int64_t padding_width, int64_t activation, double negative_slope,
           std::optional<Tensor> scale, std::optional<Tensor> shift, int64_t prologue_activation,
           double prologue_slope, std::optional<Tensor> mean, std::optional<Tensor> m2, int64_t algorithm) {
  fastgan::cpu::Convolution call = convolution_of(big, small, weight, stride_height, stride_width,
                                                  padding_height, padding_width);
  check_data(weight, "weight", call.type, weight.numel());
  call.small = small.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.result = big.mutable_data_ptr();
  call.bias = vector_of(bias, "bias", call.big_channels);
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  call.small_prologue = prologue_of(scale, shift, small, prologue_activation, prologue_slope);
  ask_for_statistics(mean, m2, big, call);
  convolutions(call, algorithm).dgrad(call);
}

void wgrad(Tensor big, Tensor small, Tensor weight, int64_t stride_height, int64_t stride_width,
           int64_t padding_height, int64_t padding_width, std::optional<Tensor> big_scale,
           std::optional<Tensor> big_shift, std::optional<Tensor> small_scale,
           std::optional<Tensor> small_shift, int64_t prologue_activation, double prologue_slope,
           int64_t algorithm) {
  fastgan::cpu::Convolution call = convolution_of(big, small, weight, stride_height, stride_width,
                                                  padding_height, padding_width);
  call.result_type = data_type(weight);
  check_data(weight, "weight", call.result_type, weight.numel());
  call.big = big.const_data_ptr();
  call.small = small.const_data_ptr();
  call.result = weight.mutable_data_ptr();
  call.big_prologue =
      prologue_of(big_scale, big_shift, big, prologue_activation, prologue_slope);
  call.small_prologue =
      prologue_of(small_scale, small_shift, small, prologue_activation, prologue_slope);
  convolutions(call, algorithm).wgrad(call);
}

fastgan::cpu::AdversarialLoss loss_of(const Tensor& fake, const Tensor& grad_fake,
                                      int64_t objective) {
  STD_TORCH_CHECK(objective >= 0 && objective < static_cast<int64_t>(fastgan::Objective::count),
                  "unknown objective ", objective);
  fastgan::cpu::AdversarialLoss call{};
  call.type = data_type(fake);
  call.objective = static_cast<int>(objective);
  call.fake_count = fake.numel();
  check_vector(fake, "fake_logits", call.type, call.fake_count);
  check_vector(grad_fake, "grad_fake", call.type, call.fake_count);
  call.fake = fake.const_data_ptr();
  call.grad_fake = grad_fake.mutable_data_ptr();
  return call;
}

void discriminator_loss(Tensor real, Tensor fake, Tensor grad_real, Tensor grad_fake,
                        Tensor results, int64_t objective, double real_label, double fake_label) {
  fastgan::cpu::AdversarialLoss call = loss_of(fake, grad_fake, objective);
  call.real_count = real.numel();
  check_vector(real, "real_logits", call.type, call.real_count);
  check_vector(grad_real, "grad_real", call.type, call.real_count);
  call.real = real.const_data_ptr();
  call.grad_real = grad_real.mutable_data_ptr();
  call.results = vector_of(results, "results", 3);
  call.real_label = real_label;
  call.fake_label = fake_label;
  fastgan::cpu::kernels().adversarial_loss(call);
}

void generator_loss(Tensor fake, Tensor grad_fake, Tensor results, int64_t objective) {
  fastgan::cpu::AdversarialLoss call = loss_of(fake, grad_fake, objective);
  call.results = vector_of(results, "results", 2);
  fastgan::cpu::kernels().adversarial_loss(call);
}

}  // namespace

STABLE_TORCH_LIBRARY(fastgan_cpu, library) {
  library.def(
      "batch_norm_forward(Tensor x, Tensor(a!) y, Tensor? weight, Tensor? bias, Tensor(b!) mean, "
      "Tensor(c!) invstd, Tensor(d!)? running_mean, Tensor(e!)? running_var, float momentum, "
      "float eps, int activation, float negative_slope, int groups, bool training, "
      "Tensor? m2=None) -> ()");
  library.def(
      "batch_norm_coefficients(Tensor mean, Tensor m2, Tensor? weight, Tensor? bias, "
      "Tensor(a!) invstd, Tensor(b!) scale, Tensor(c!) shift, Tensor(d!)? running_mean, "
      "Tensor(e!)? running_var, float momentum, float eps, int rows) -> ()");
  library.def(
      "batch_norm_backward(Tensor grad_y, Tensor x, Tensor(a!) grad_x, Tensor? weight, "
      "Tensor? bias, Tensor mean, Tensor invstd, Tensor(b!) grad_weight, Tensor(c!) grad_bias, "
      "int activation, float negative_slope, int groups, bool training) -> ()");
  library.def(
      "bias_act_forward(Tensor x, Tensor? bias, Tensor(a!) y, int activation, "
      "float negative_slope) -> ()");
  library.def(
      "bias_act_backward(Tensor grad_y, Tensor x, Tensor? bias, Tensor(a!) grad_x, "
      "Tensor(b!)? grad_bias, int activation, float negative_slope) -> ()");
  library.def(
      "discriminator_loss(Tensor real, Tensor fake, Tensor(a!) grad_real, Tensor(b!) grad_fake, "
      "Tensor(c!) results, int objective, float real_label, float fake_label) -> ()");
  library.def(
      "fprop(Tensor big, Tensor weight, Tensor? bias, Tensor(a!) small, int stride_height, "
      "int stride_width, int padding_height, int padding_width, int activation, "
      "float negative_slope, Tensor? scale=None, Tensor? shift=None, int prologue_activation=0, "
      "float prologue_slope=0.0, Tensor(b!)? mean=None, Tensor(c!)? m2=None, int algorithm=0) -> ()");
  library.def(
      "dgrad(Tensor small, Tensor weight, Tensor? bias, Tensor(a!) big, int stride_height, "
      "int stride_width, int padding_height, int padding_width, int activation, "
      "float negative_slope, Tensor? scale=None, Tensor? shift=None, int prologue_activation=0, "
      "float prologue_slope=0.0, Tensor(b!)? mean=None, Tensor(c!)? m2=None, int algorithm=0) -> ()");
  library.def(
      "wgrad(Tensor big, Tensor small, Tensor(a!) weight, int stride_height, int stride_width, "
      "int padding_height, int padding_width, Tensor? big_scale=None, Tensor? big_shift=None, "
      "Tensor? small_scale=None, Tensor? small_shift=None, int prologue_activation=0, "
      "float prologue_slope=0.0, int algorithm=0) -> ()");
  library.def(
      "generator_loss(Tensor fake, Tensor(a!) grad_fake, Tensor(b!) results, int objective) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgan_cpu, CPU, library) {
  library.impl("batch_norm_forward", TORCH_BOX(&batch_norm_forward));
  library.impl("batch_norm_coefficients", TORCH_BOX(&batch_norm_coefficients));
  library.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
  library.impl("bias_act_forward", TORCH_BOX(&bias_act_forward));
  library.impl("bias_act_backward", TORCH_BOX(&bias_act_backward));
  library.impl("fprop", TORCH_BOX(&fprop));
  library.impl("dgrad", TORCH_BOX(&dgrad));
  library.impl("wgrad", TORCH_BOX(&wgrad));
  library.impl("discriminator_loss", TORCH_BOX(&discriminator_loss));
  library.impl("generator_loss", TORCH_BOX(&generator_loss));
}
