// The kernels as operators of torch's dispatcher, namespace fastgan_cpu, by the stable ABI: batch
// norm, bias and losses here, the convolutions in convolution_operators.cpp.
//
// Every operator writes into tensors that the caller allocated (fastgan/native_kernels.py,
// fastgan/native_convolution.py) and returns nothing. What is checked is what keeps a kernel inside
// its memory (tensors.h); what a user may pass is checked in fastgan.ops.
#include <torch/csrc/stable/library.h>

#include "../common/objectives.h"
#include "levels.h"
#include "tensors.h"

namespace {

using namespace fastgan;
using namespace fastgan::cpu;

void batch_norm_forward(Tensor x, Tensor y, std::optional<Tensor> weight,
                        std::optional<Tensor> bias, Tensor mean, Tensor inverse_deviation,
                        std::optional<Tensor> running_mean, std::optional<Tensor> running_var,
                        double momentum, double epsilon, int64_t activation, double negative_slope,
                        int64_t groups, bool training, std::optional<Tensor> m2) {
  BatchNormForward call{};
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
  kernels().batch_norm_forward(call);
}

void batch_norm_coefficients(Tensor mean, Tensor m2, std::optional<Tensor> weight,
                             std::optional<Tensor> bias, Tensor inverse_deviation, Tensor scale,
                             Tensor shift, std::optional<Tensor> running_mean,
                             std::optional<Tensor> running_var, double momentum, double epsilon,
                             int64_t rows) {
  STD_TORCH_CHECK(mean.dim() == 2, "mean must be [groups, channels]");
  STD_TORCH_CHECK(rows >= 1, "rows must be at least 1, not ", rows);
  BatchNormForward call{};
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
  kernels().batch_norm_forward(call);
}

void batch_norm_backward(Tensor grad_y, Tensor x, Tensor grad_x, std::optional<Tensor> weight,
                         std::optional<Tensor> bias, Tensor mean, Tensor inverse_deviation,
                         Tensor grad_weight, Tensor grad_bias, int64_t activation,
                         double negative_slope, int64_t groups, bool training) {
  BatchNormBackward call{};
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
  kernels().batch_norm_backward(call);
}

void bias_act_forward(Tensor x, std::optional<Tensor> bias, Tensor y, int64_t activation,
                      double negative_slope) {
  BiasAct call{};
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
  kernels().bias_act_forward(call);
}

void bias_act_backward(Tensor grad_y, Tensor x, std::optional<Tensor> bias, Tensor grad_x,
                       std::optional<Tensor> grad_bias, int64_t activation,
                       double negative_slope) {
  BiasAct call{};
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
  kernels().bias_act_backward(call);
}

void check_vector(const Tensor& tensor, const char* name, DataType type, int64_t count) {
  STD_TORCH_CHECK(tensor.is_cpu() && data_type(tensor) == type && tensor.numel() == count &&
                      tensor.is_contiguous(),
                  name, " must be ", count, " contiguous values on the CPU, of fake_logits' dtype");
}

AdversarialLoss loss_of(const Tensor& fake, const Tensor& grad_fake, int64_t objective) {
  STD_TORCH_CHECK(objective >= 0 && objective < static_cast<int64_t>(Objective::count),
                  "unknown objective ", objective);
  AdversarialLoss call{};
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
  AdversarialLoss call = loss_of(fake, grad_fake, objective);
  call.real_count = real.numel();
  check_vector(real, "real_logits", call.type, call.real_count);
  check_vector(grad_real, "grad_real", call.type, call.real_count);
  call.real = real.const_data_ptr();
  call.grad_real = grad_real.mutable_data_ptr();
  call.results = vector_of(results, "results", 3);
  call.real_label = real_label;
  call.fake_label = fake_label;
  kernels().adversarial_loss(call);
}

void generator_loss(Tensor fake, Tensor grad_fake, Tensor results, int64_t objective) {
  AdversarialLoss call = loss_of(fake, grad_fake, objective);
  call.results = vector_of(results, "results", 2);
  kernels().adversarial_loss(call);
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
      "generator_loss(Tensor fake, Tensor(a!) grad_fake, Tensor(b!) results, int objective) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgan_cpu, CPU, library) {
  library.impl("batch_norm_forward", TORCH_BOX(&batch_norm_forward));
  library.impl("batch_norm_coefficients", TORCH_BOX(&batch_norm_coefficients));
  library.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
  library.impl("bias_act_forward", TORCH_BOX(&bias_act_forward));
  library.impl("bias_act_backward", TORCH_BOX(&bias_act_backward));
  library.impl("discriminator_loss", TORCH_BOX(&discriminator_loss));
  library.impl("generator_loss", TORCH_BOX(&generator_loss));
}
