// The CUDA kernels as operators of torch's dispatcher, namespace fastgan_cuda, by the stable ABI.
//
// Every operator writes into tensors that the caller allocated (fastgan/native_cuda_kernels.py),
// takes its workspace from torch and runs on torch's current stream. What is checked here is what
// keeps a kernel inside its memory (tensors.h); what a user may pass is checked in fastgan.ops.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "../common/objectives.h"
#include "tensors.h"

// Tests register the same operators for CPU tensors, which their shim computes on.
#if !defined(FASTGAN_DISPATCH_KEY)
#define FASTGAN_DISPATCH_KEY CUDA
#endif

namespace {

using namespace fastgan;
using namespace fastgan::cuda;

void run_batch_norm_forward(Tensor x, Tensor y, std::optional<Tensor> weight,
                            std::optional<Tensor> bias, std::optional<Tensor> mean,
                            std::optional<Tensor> inverse_deviation,
                            std::optional<Tensor> running_mean, std::optional<Tensor> running_var,
                            double momentum, double epsilon, int64_t activation,
                            double negative_slope, int64_t groups, bool training,
                            int64_t variant) {
  const Place place(x);
  BatchNormForward call{};
  call.type = data_type(x);
  call.groups = groups;
  call.rows = rows_of_group(x, groups);
  call.channels = x.size(1);
  check_data(place, x, "x", call.type, x.numel());
  check_data(place, y, "y", call.type, x.numel());
  STD_TORCH_CHECK(training ? mean && inverse_deviation : running_mean && running_var,
                  "mean and invstd are needed in training, the running statistics elsewhere");
  STD_TORCH_CHECK(running_mean.has_value() == running_var.has_value(),
                  "running_mean and running_var come together");
  call.x = x.const_data_ptr();
  call.y = y.mutable_data_ptr();
  call.weight = vector_of(place, weight, "weight", call.channels);
  call.bias = vector_of(place, bias, "bias", call.channels);
  call.mean = vector_of(place, mean, "mean", groups * call.channels);
  call.inverse_deviation = vector_of(place, inverse_deviation, "invstd", groups * call.channels);
  call.running_mean = vector_of(place, running_mean, "running_mean", call.channels);
  call.running_var = vector_of(place, running_var, "running_var", call.channels);
  call.momentum = static_cast<float>(momentum);
  call.epsilon = static_cast<float>(epsilon);
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  call.training = training;
  call.variant = variant_of(variant);
  Tensor workspace = workspace_of(x, batch_norm_forward_workspace(call, place.device));
  call.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  Place::check(batch_norm_forward(call, place.device, place.stream));
}

void run_batch_norm_backward(Tensor grad_y, Tensor x, Tensor grad_x, std::optional<Tensor> weight,
                             std::optional<Tensor> bias, Tensor mean, Tensor inverse_deviation,
                             Tensor grad_weight, Tensor grad_bias, int64_t activation,
                             double negative_slope, int64_t groups, bool training,
                             int64_t variant) {
  const Place place(x);
  BatchNormBackward call{};
  call.type = data_type(x);
  call.groups = groups;
  call.rows = rows_of_group(x, groups);
  call.channels = x.size(1);
  check_data(place, x, "x", call.type, x.numel());
  check_data(place, grad_y, "grad_y", call.type, x.numel());
  check_data(place, grad_x, "grad_x", call.type, x.numel());
  call.grad_y = grad_y.const_data_ptr();
  call.x = x.const_data_ptr();
  call.grad_x = grad_x.mutable_data_ptr();
  call.weight = vector_of(place, weight, "weight", call.channels);
  call.bias = vector_of(place, bias, "bias", call.channels);
  call.mean = vector_of(place, mean, "mean", groups * call.channels);
  call.inverse_deviation = vector_of(place, inverse_deviation, "invstd", groups * call.channels);
  call.grad_weight = vector_of(place, grad_weight, "grad_weight", call.channels);
  call.grad_bias = vector_of(place, grad_bias, "grad_bias", call.channels);
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  call.training = training;
  call.variant = variant_of(variant);
  Tensor workspace = workspace_of(x, batch_norm_backward_workspace(call, place.device));
  call.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  Place::check(batch_norm_backward(call, place.device, place.stream));
}

BiasAct bias_act_of(const Place& place, const Tensor& x, const std::optional<Tensor>& bias,
                    Tensor& result, int64_t activation, double negative_slope) {
  BiasAct call{};
  call.type = data_type(x);
  call.channels = x.size(1);
  call.rows = rows_of_group(x, 1);
  check_data(place, x, "x", call.type, x.numel());
  check_data(place, result, "the result", call.type, x.numel());
  call.x = x.const_data_ptr();
  call.bias = vector_of(place, bias, "bias", call.channels);
  call.result = result.mutable_data_ptr();
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  return call;
}

void run_bias_act_forward(Tensor x, std::optional<Tensor> bias, Tensor y, int64_t activation,
                          double negative_slope) {
  const Place place(x);
  const BiasAct call = bias_act_of(place, x, bias, y, activation, negative_slope);
  Place::check(bias_act_forward(call, place.device, place.stream));
}

void run_bias_act_backward(Tensor grad_y, Tensor x, std::optional<Tensor> bias, Tensor grad_x,
                           std::optional<Tensor> grad_bias, int64_t activation,
                           double negative_slope) {
  const Place place(x);
  BiasAct call = bias_act_of(place, x, bias, grad_x, activation, negative_slope);
  check_data(place, grad_y, "grad_y", call.type, x.numel());
  call.grad_y = grad_y.const_data_ptr();
  call.grad_bias = vector_of(place, grad_bias, "grad_bias", call.channels);
  Tensor workspace = workspace_of(x, bias_act_backward_workspace(call, place.device));
  call.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  Place::check(bias_act_backward(call, place.device, place.stream));
}

void check_logits(const Place& place, const Tensor& tensor, const char* name, DataType type,
                  int64_t count) {
  STD_TORCH_CHECK(place.holds(tensor) && data_type(tensor) == type && tensor.numel() == count &&
                      tensor.is_contiguous(),
                  name, " must be ", count, " contiguous values of fake_logits' dtype and device");
}

AdversarialLoss loss_of(const Place& place, const Tensor& fake, Tensor& grad_fake,
                        int64_t objective) {
  STD_TORCH_CHECK(objective >= 0 && objective < static_cast<int64_t>(fastgan::Objective::count),
                  "unknown objective ", objective);
  AdversarialLoss call{};
  call.type = data_type(fake);
  call.objective = static_cast<int>(objective);
  call.real_count = -1;
  call.fake_count = fake.numel();
  check_logits(place, fake, "fake_logits", call.type, call.fake_count);
  check_logits(place, grad_fake, "grad_fake", call.type, call.fake_count);
  call.fake = fake.const_data_ptr();
  call.grad_fake = grad_fake.mutable_data_ptr();
  return call;
}

void run_discriminator_loss(Tensor real, Tensor fake, Tensor grad_real, Tensor grad_fake,
                            Tensor results, int64_t objective, double real_label,
                            double fake_label) {
  const Place place(fake);
  AdversarialLoss call = loss_of(place, fake, grad_fake, objective);
  call.real_count = real.numel();
  check_logits(place, real, "real_logits", call.type, call.real_count);
  check_logits(place, grad_real, "grad_real", call.type, call.real_count);
  call.real = real.const_data_ptr();
  call.grad_real = grad_real.mutable_data_ptr();
  call.results = vector_of(place, results, "results", 3);
  call.real_label = static_cast<float>(real_label);
  call.fake_label = static_cast<float>(fake_label);
  Place::check(adversarial_loss(call, place.stream));
}

void run_generator_loss(Tensor fake, Tensor grad_fake, Tensor results, int64_t objective) {
  const Place place(fake);
  AdversarialLoss call = loss_of(place, fake, grad_fake, objective);
  call.results = vector_of(place, results, "results", 2);
  Place::check(adversarial_loss(call, place.stream));
}

// The geometry from big [N, B, H, W], small [N, S, OH, OW] and weight [S, B, kh, kw]: sizes and
// layouts are checked, so that no index leaves them. `weight_type`: wgrad's result may be another.
ImageConvolution convolution_of(const Place& place, const Tensor& big, const Tensor& small,
                                const Tensor& weight, DataType weight_type, int64_t stride_height,
                                int64_t stride_width, int64_t padding_height,
                                int64_t padding_width) {
  STD_TORCH_CHECK(big.dim() == 4 && small.dim() == 4 && weight.dim() == 4,
                  "big, small and weight must have 4 dimensions");
  STD_TORCH_CHECK(stride_height >= 1 && stride_width >= 1 && padding_height >= 0 &&
                      padding_width >= 0,
                  "stride must be positive and padding not negative");
  ImageConvolution call{};
  call.type = data_type(big);
  call.batch = big.size(0);
  call.big_channels = size_of(big.size(1));
  call.big_height = size_of(big.size(2));
  call.big_width = size_of(big.size(3));
  call.small_channels = size_of(small.size(1));
  call.small_height = size_of(small.size(2));
  call.small_width = size_of(small.size(3));
  call.kernel_height = size_of(weight.size(2));
  call.kernel_width = size_of(weight.size(3));
  call.stride_height = size_of(stride_height);
  call.stride_width = size_of(stride_width);
  call.padding_height = size_of(padding_height);
  call.padding_width = size_of(padding_width);
  STD_TORCH_CHECK(call.big_channels >= 1 && call.big_channels <= 4,
                  "these kernels are for images of 1 to 4 channels, not ", call.big_channels);
  STD_TORCH_CHECK(small.size(0) == call.batch && weight.size(0) == call.small_channels &&
                      weight.size(1) == call.big_channels,
                  "batch or channels of big, small and weight do not agree");
  check_data(place, big, "big", call.type, big.numel());
  check_data(place, small, "small", call.type, small.numel());
  check_data(place, weight, "weight", weight_type, weight.numel());
  call.result_type = call.type;
  return call;
}

void run_image_fprop(Tensor big, Tensor weight, std::optional<Tensor> bias, Tensor small,
                     int64_t stride_height, int64_t stride_width, int64_t padding_height,
                     int64_t padding_width, int64_t activation, double negative_slope) {
  const Place place(big);
  ImageConvolution call = convolution_of(place, big, small, weight, data_type(big), stride_height,
                                         stride_width, padding_height, padding_width);
  call.big = big.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.bias = vector_of(place, bias, "bias", call.small_channels);
  call.result = small.mutable_data_ptr();
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  Place::check(image_fprop(call, place.stream));
}

void run_image_dgrad(Tensor small, Tensor weight, std::optional<Tensor> bias, Tensor big,
                     int64_t stride_height, int64_t stride_width, int64_t padding_height,
                     int64_t padding_width, int64_t activation, double negative_slope) {
  const Place place(small);
  ImageConvolution call = convolution_of(place, big, small, weight, data_type(small),
                                         stride_height, stride_width, padding_height,
                                         padding_width);
  call.small = small.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.bias = vector_of(place, bias, "bias", call.big_channels);
  call.result = big.mutable_data_ptr();
  call.activation = activation_of(activation);
  call.negative_slope = static_cast<float>(negative_slope);
  Place::check(image_dgrad(call, place.stream));
}

void run_image_wgrad(Tensor big, Tensor small, Tensor weight, int64_t stride_height,
                     int64_t stride_width, int64_t padding_height, int64_t padding_width) {
  const Place place(big);
  ImageConvolution call = convolution_of(place, big, small, weight, data_type(weight),
                                         stride_height, stride_width, padding_height,
                                         padding_width);
  call.big = big.const_data_ptr();
  call.small = small.const_data_ptr();
  call.result = weight.mutable_data_ptr();
  call.result_type = data_type(weight);
  Tensor workspace = workspace_of(big, image_wgrad_workspace(call, place.device));
  call.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  Place::check(image_wgrad(call, place.device, place.stream));
}

void run_pack_weights(std::vector<Tensor> sources, std::vector<Tensor> targets) {
  STD_TORCH_CHECK(sources.size() == targets.size(), "as many sources as targets");
  if (sources.empty()) return;
  const Place place(sources[0]);
  const DataType type = data_type(targets[0]);
  std::vector<WeightToPack> weights(sources.size());
  for (size_t i = 0; i < sources.size(); ++i) {
    const Tensor& source = sources[i];
    Tensor& target = targets[i];
    STD_TORCH_CHECK(place.holds(source) && source.dim() == 4 && target.dim() == 4 &&
                        source.scalar_type() == ScalarType::Float,
                    "a source must be float32 [S, B, kh, kw] on the first one's device");
    check_data(place, target, "a target", type, source.numel());
    weights[i].source = static_cast<const float*>(source.const_data_ptr());
    weights[i].target = target.mutable_data_ptr();
    for (int dimension = 0; dimension < 4; ++dimension) {
      STD_TORCH_CHECK(source.size(dimension) == target.size(dimension), "a target's shape");
      weights[i].strides[dimension] = source.stride(dimension);
    }
    weights[i].small_channels = size_of(source.size(0));
    weights[i].big_channels = size_of(source.size(1));
    weights[i].kernel_height = size_of(source.size(2));
    weights[i].kernel_width = size_of(source.size(3));
  }
  Place::check(pack_weights(type, weights.data(), static_cast<int>(weights.size()), place.stream));
}

}  // namespace

STABLE_TORCH_LIBRARY(fastgan_cuda, library) {
  library.def(
      "batch_norm_forward(Tensor x, Tensor(a!) y, Tensor? weight, Tensor? bias, Tensor(b!)? mean, "
      "Tensor(c!)? invstd, Tensor(d!)? running_mean, Tensor(e!)? running_var, float momentum, "
      "float eps, int activation, float negative_slope, int groups, bool training, int variant) "
      "-> ()");
  library.def(
      "batch_norm_backward(Tensor grad_y, Tensor x, Tensor(a!) grad_x, Tensor? weight, "
      "Tensor? bias, Tensor mean, Tensor invstd, Tensor(b!) grad_weight, Tensor(c!) grad_bias, "
      "int activation, float negative_slope, int groups, bool training, int variant) -> ()");
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
  library.def(
      "image_fprop(Tensor big, Tensor weight, Tensor? bias, Tensor(a!) small, int stride_height, "
      "int stride_width, int padding_height, int padding_width, int activation, "
      "float negative_slope) -> ()");
  library.def(
      "image_dgrad(Tensor small, Tensor weight, Tensor? bias, Tensor(a!) big, int stride_height, "
      "int stride_width, int padding_height, int padding_width, int activation, "
      "float negative_slope) -> ()");
  library.def(
      "image_wgrad(Tensor big, Tensor small, Tensor(a!) weight, int stride_height, "
      "int stride_width, int padding_height, int padding_width) -> ()");
  library.def("pack_weights(Tensor[] sources, Tensor(a!)[] targets) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgan_cuda, FASTGAN_DISPATCH_KEY, library) {
  library.impl("batch_norm_forward", TORCH_BOX(&run_batch_norm_forward));
  library.impl("batch_norm_backward", TORCH_BOX(&run_batch_norm_backward));
  library.impl("bias_act_forward", TORCH_BOX(&run_bias_act_forward));
  library.impl("bias_act_backward", TORCH_BOX(&run_bias_act_backward));
  library.impl("discriminator_loss", TORCH_BOX(&run_discriminator_loss));
  library.impl("generator_loss", TORCH_BOX(&run_generator_loss));
  library.impl("image_fprop", TORCH_BOX(&run_image_fprop));
  library.impl("image_dgrad", TORCH_BOX(&run_image_dgrad));
  library.impl("image_wgrad", TORCH_BOX(&run_image_wgrad));
  library.impl("pack_weights", TORCH_BOX(&run_pack_weights));
}
