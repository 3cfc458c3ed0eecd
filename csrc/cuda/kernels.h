// What the CUDA kernels are asked for: one record a call, and the launchers.
//
// Pointers are to dense NHWC device memory. A launcher's grid is a pure function of the record and
// of the `Device`; it allocates nothing: `*_workspace` says how many float32 values it wants.
// Nothing here knows of torch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../common/activation.h"
#include "../common/numbers.h"

namespace fastgan::cuda {

struct Device {
  int multiprocessors;
  int shared_bytes;  // that one block may have
};

// How batch norm moves the tensor: `resident` reads it once and keeps it in shared memory;
// `streaming` reads it twice; `automatic` is resident where the tensor fits.
enum class Variant : int { automatic, streaming, resident };

struct BatchNormForward {
  DataType type;
  int64_t groups, rows, channels;  // x is [groups, rows, channels]
  const void* x;
  void* y;
  const float *weight, *bias;         // [channels] or null
  float *mean, *inverse_deviation;    // [groups, channels], written if `training`
  float *running_mean, *running_var;  // [channels] or null; read if not `training`, else advanced
  float momentum, epsilon;
  Activation activation;
  float negative_slope;
  bool training;
  Variant variant;
  float* workspace;
};

struct BatchNormBackward {
  DataType type;
  int64_t groups, rows, channels;
  const void *grad_y, *x;
  void* grad_x;
  const float *weight, *bias;
  const float *mean, *inverse_deviation;  // [groups, channels]
  float *grad_weight, *grad_bias;         // [channels]
  Activation activation;
  float negative_slope;
  bool training;  // false: mean and inverse deviation are constants of the derivative
  Variant variant;
  float* workspace;
};

struct BiasAct {
  DataType type;
  int64_t rows, channels;  // x is [rows, channels]
  const void* x;
  const float* bias;   // [channels] or null
  const void* grad_y;  // backward alone
  void* result;        // y, or the gradient of x
  float* grad_bias;    // backward alone: [channels] or null
  Activation activation;
  float negative_slope;
  float* workspace;  // backward alone
};

struct AdversarialLoss {
  DataType type;
  int objective;  // enum class Objective
  int64_t real_count, fake_count;  // real_count < 0: the generator's loss
  const void *real, *fake;
  void *grad_real, *grad_fake;
  float* results;  // loss, mean D(x), mean D(G(z)); the generator's: loss, mean D(G(z))
  float real_label, fake_label;
};

// A convolution between an image [batch, big_height, big_width, big_channels] with 1 to 4 channels
// and [batch, small_height, small_width, small_channels].
// The weight is [small_channels, kernel_height, kernel_width, big_channels].
struct ImageConvolution {
  DataType type;
  int64_t batch;
  int big_height, big_width, big_channels;
  int small_height, small_width, small_channels;
  int kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
  const void *big, *small, *weight;  // two of them: the operands
  const float* bias;                 // of the result's channels, or null; not of wgrad
  void* result;                      // the third
  DataType result_type;              // of wgrad's result; elsewhere `type`
  Activation activation;             // not of wgrad
  float negative_slope;
  float* workspace;  // wgrad alone
};

// One weight [S, B, kh, kw], float32 with any strides, to be written as [S, kh, kw, B].
struct WeightToPack {
  const float* source;
  void* target;
  int small_channels, big_channels, kernel_height, kernel_width;
  int64_t strides[4];  // of the source, in elements, for S, B, kh, kw
};

// Up to so many weights are packed by one launch, more by several.
constexpr int kWeightsOfOneLaunch = 48;

size_t batch_norm_forward_workspace(const BatchNormForward&, const Device&);
cudaError_t batch_norm_forward(const BatchNormForward&, const Device&, cudaStream_t);
size_t batch_norm_backward_workspace(const BatchNormBackward&, const Device&);
cudaError_t batch_norm_backward(const BatchNormBackward&, const Device&, cudaStream_t);
cudaError_t bias_act_forward(const BiasAct&, const Device&, cudaStream_t);
size_t bias_act_backward_workspace(const BiasAct&, const Device&);
cudaError_t bias_act_backward(const BiasAct&, const Device&, cudaStream_t);
cudaError_t adversarial_loss(const AdversarialLoss&, cudaStream_t);
cudaError_t image_fprop(const ImageConvolution&, cudaStream_t);
cudaError_t image_dgrad(const ImageConvolution&, cudaStream_t);
size_t image_wgrad_workspace(const ImageConvolution&, const Device&);
cudaError_t image_wgrad(const ImageConvolution&, const Device&, cudaStream_t);
cudaError_t pack_weights(DataType, const WeightToPack*, int count, cudaStream_t);

}  // namespace fastgan::cuda
