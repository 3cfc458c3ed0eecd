// The table of kernels that every instruction-set level fills, and what a kernel is told.
//
// Pointers are to dense NHWC memory. Every kernel splits its work into tasks by the shape alone,
// hands them to `parallel`, and combines their results in task order, so that the number of
// threads never changes a bit of the result.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/activation.h"
#include "../common/numbers.h"

namespace fastgan::cpu {

// Runs task(context, index) for every index below `count`, on torch's threads.
void parallel(int64_t count, void (*task)(void* context, int64_t index), void* context);
int64_t threads();  // that `parallel` uses

// Memory of the calling thread that is kept and reused: at least `bytes`, 64-byte aligned. Each
// slot is a buffer of its own; what an earlier call left in it is lost.
enum class Scratch : int {
  partials,
  weights,
  offsets,
  first_operand,
  second_operand,
  statistics,
  task,
  count
};
void* scratch(Scratch slot, size_t bytes);
size_t scratch_bytes();  // that all threads keep now

// While one lives, large buffers of its thread are borrowed, if there is a lender, and go back at its
// end: packed weights and copies of operands need not lie beside the peak of a step.
struct ScratchCall {
  ScratchCall();
  ~ScratchCall();
  ScratchCall(const ScratchCall&) = delete;
  ScratchCall& operator=(const ScratchCall&) = delete;
};

// From now on large buffers are borrowed: at least so many bytes, 64-byte aligned; null if there are
// none.
void borrow_scratch(void* (*allocate)(size_t bytes), void (*release)(void* block));

struct BatchNormForward {
  DataType type;
  int64_t groups, rows, channels;  // x is [groups, rows, channels]
  const void* x;
  void* y;  // or null: only what follows from the statistics is made, and x is not read
  const float *weight, *bias;          // [channels] or null
  float *mean, *inverse_deviation;     // [groups, channels]: written if `training`, else read
  float *running_mean, *running_var;   // [channels] or null; only written if `training`
  double momentum, epsilon;
  Activation activation;
  float negative_slope;
  bool training;
  const float* m2;       // [groups, channels] or null; with it, mean is read in training too
  float *scale, *shift;  // [groups, channels] or null: z = scale * x + shift; written if `training`
};

struct BatchNormBackward {
  DataType type;
  int64_t groups, rows, channels;
  const void *grad_y, *x;
  void* grad_x;
  const float *weight, *bias;
  const float *mean, *inverse_deviation;  // [groups, channels], or [channels] if not `training`
  float *grad_weight, *grad_bias;         // [channels]
  Activation activation;
  float negative_slope;
  bool training;
};

struct BiasAct {
  DataType type;
  int64_t rows, channels;  // x is [rows, channels]
  const void* x;
  const float* bias;    // [channels] or null
  const void* grad_y;   // backward alone
  void* result;         // y, or the gradient of x
  float* grad_bias;     // backward alone: [channels] or null
  Activation activation;
  float negative_slope;
};

struct AdversarialLoss {
  DataType type;
  int objective;
  int64_t real_count, fake_count;
  const void *real, *fake;
  void *grad_real, *grad_fake;  // real and grad_real are null: the generator's loss
  float* results;  // loss, mean D(x), mean D(G(z)); the generator's: loss, mean D(G(z))
  double real_label, fake_label;
};

// batch[n] = images[indices[n]] / 127.5 - 1, mirrored left and right where flips[n].
struct ImageBatch {
  DataType type;                           // of the batch
  int64_t count, height, width, channels;  // the batch is [count, height, width, channels]
  const uint8_t* images;                   // [any, height, width, channels]
  const int64_t* indices;                  // [count], each of an image that is there
  const uint8_t* flips;                    // [count], 0 or not; or null
  void* batch;
};

// What an operand of a convolution is read as: act(scale * x + shift), rounded to x's type.
struct Prologue {
  const float *scale, *shift;  // [groups, channels]; null: the operand as it is
  int64_t channels, images;    // of the operand; the images of one group
  Activation activation;
  float negative_slope;
};

// A convolution between the big side [batch, big_height, big_width, big_channels] and the small side.
// The weight is [small_channels, kernel_height, kernel_width, big_channels].
struct Convolution {
  DataType type;
  int64_t batch;
  int64_t big_height, big_width, big_channels;
  int64_t small_height, small_width, small_channels;
  int64_t kernel_height, kernel_width, stride_height, stride_width;
  int64_t padding_height, padding_width;
  const void *big, *small, *weight;  // the two operands of the product that is asked for
  void* result;
  DataType result_type;  // wgrad's may differ from `type`
  const float* bias;     // fprop and dgrad: [channels of the result] or null
  Activation activation;
  float negative_slope;
  Prologue big_prologue, small_prologue;  // of the operands
  // fprop and dgrad: mean and sum((x - mean)^2) of the result as stored, of each slice of the batch:
  // [groups, channels of the result], or null. The activation is then the identity.
  float *mean, *m2;
  int64_t groups;  // slices of the batch; read if there are statistics
};

// How the sums of a convolution are made: product by product, or in Winograd's tiles (winograd.h).
enum class Algorithm : int { direct, winograd, count };

// What Winograd's tiles are made for; the direct kernels serve everything.
inline bool winograd_serves(const Convolution& c) {
  const bool plain = !c.big_prologue.scale && !c.small_prologue.scale && !c.mean;
  return plain && c.type == DataType::float32 && c.kernel_height == 4 && c.kernel_width == 4 &&
         c.stride_height == 2 && c.stride_width == 2;
}

struct Convolutions {
  void (*fprop)(const Convolution&);
  void (*dgrad)(const Convolution&);
  void (*wgrad)(const Convolution&);
};

struct Kernels {
  const char* name;
  void (*batch_norm_forward)(const BatchNormForward&);
  void (*batch_norm_backward)(const BatchNormBackward&);
  void (*bias_act_forward)(const BiasAct&);
  void (*bias_act_backward)(const BiasAct&);
  void (*adversarial_loss)(const AdversarialLoss&);
  void (*image_batch)(const ImageBatch&);
  Convolutions direct, winograd;
};

}  // namespace fastgan::cpu
