// Batch norm and activation over [rows, channels]: two passes over memory forward, two backward.
//
// A task is a run of row blocks; a block is small enough to stay in the first-level cache, so that
// its mean and its M2 are two sweeps but one read of memory (statistics.h). A convolution's
// epilogue may have made them already: the first pass is then left out.
// While a block is worked on, the next one is fetched: rows are visited a few vectors at a time, a
// pattern that processors do not foresee.
// The activation's mask is recomputed in backward; nothing but mean and deviation is kept.
#pragma once

#include "dispatch.h"
#include "kernels.h"
#include "statistics.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// How the rows of one group are cut: by the shape alone.
struct RowTasks {
  int64_t rows, block_rows, blocks, count;

  // A task of batch norm costs a partial for every channel, which one thread merges: few for small
  // tensors.
  RowTasks(int64_t all_rows, int64_t row_bytes, int64_t task_bytes = 262144) : rows(all_rows) {
    constexpr int64_t kBlockBytes = 16384, kMostTasks = 32;
    block_rows = kBlockBytes / row_bytes;
    if (block_rows < 8) block_rows = 8;
    if (block_rows > 2048) block_rows = 2048;
    blocks = (rows + block_rows - 1) / block_rows;
    count = rows * row_bytes / task_bytes;
    if (count < 1) count = 1;
    if (count > kMostTasks) count = kMostTasks;
    if (count > blocks) count = blocks;
  }

  FASTGAN_SHARED int64_t first_row(int64_t task) const {
    return task * blocks / count * block_rows;
  }

  FASTGAN_SHARED int64_t rows_of(int64_t task) const {
    const int64_t end = (task + 1) * blocks / count * block_rows;
    return (end < rows ? end : rows) - first_row(task);
  }

  // Calls visit(first row, number of rows) for each block of a task.
  template <class Visit>
  FASTGAN_SHARED void for_blocks(int64_t task, const Visit& visit) const {
    for (int64_t block = task * blocks / count; block < (task + 1) * blocks / count; ++block) {
      const int64_t first = block * block_rows;
      visit(first, first + block_rows <= rows ? block_rows : rows - first);
    }
  }
};

// What follows from a channel's statistics in one group. The running statistics take the unbiased
// variance, and advance a group after the other.
FASTGAN_SHARED void finish_channel(const BatchNormForward& call, int64_t group, int64_t channel,
                                   double mean, double m2) {
  const double rows = static_cast<double>(call.rows);
  const int64_t index = group * call.channels + channel;
  const double deviation = 1.0 / __builtin_sqrt(m2 / rows + call.epsilon);
  call.inverse_deviation[index] = static_cast<float>(deviation);
  if (call.scale) {
    const double scale = call.weight ? call.weight[channel] * deviation : deviation;
    const double bias = call.bias ? call.bias[channel] : 0.0;
    call.scale[index] = static_cast<float>(scale);
    call.shift[index] = static_cast<float>(bias - mean * scale);
  }
  if (call.running_mean) {
    float& running = call.running_mean[channel];
    running = static_cast<float>((1.0 - call.momentum) * running + call.momentum * mean);
  }
  if (call.running_var) {
    float& running = call.running_var[channel];
    running = static_cast<float>((1.0 - call.momentum) * running +
                                 call.momentum * (m2 / (rows - 1.0)));
  }
}

// Statistics that a convolution's epilogue made: x is not read for them.
FASTGAN_SHARED void take_statistics(const BatchNormForward& call) {
  for (int64_t group = 0; group < call.groups; ++group) {
    for (int64_t channel = 0; channel < call.channels; ++channel) {
      const int64_t index = group * call.channels + channel;
      finish_channel(call, group, channel, call.mean[index], call.m2[index]);
    }
  }
}

// Fills mean and inverse_deviation, and advances the running statistics.
template <class T>
void statistics(const BatchNormForward& call, const RowTasks& tasks) {
  const int64_t width = padded(call.channels), stride = kPartialRows * width;
  auto* partials = static_cast<float*>(
      scratch(Scratch::partials, call.groups * tasks.count * stride * sizeof(float)));
  parallel_for(call.groups * tasks.count, [&](int64_t index) {
    const T* x = static_cast<const T*>(call.x) + index / tasks.count * call.rows * call.channels;
    float seen = 0.0f;
    tasks.for_blocks(index % tasks.count, [&](int64_t first, int64_t rows) {
      add_to_partial<true>(x + first * call.channels, rows, call.channels, call.channels, width,
                           seen, partials + index * stride);
    });
  });
  for (int64_t group = 0; group < call.groups; ++group) {
    const float* partial = partials + group * tasks.count * stride;
    for (int64_t first = 0; first < call.channels; first += kLanes) {
      Moments moments;
      for (int64_t task = 0; task < tasks.count; ++task) {
        moments.merge(partial + task * stride + first, width, tasks.rows_of(task));
      }
      for (int64_t lane = 0; lane < kLanes && first + lane < call.channels; ++lane) {
        call.mean[group * call.channels + first + lane] = static_cast<float>(moments.mean[lane]);
        finish_channel(call, group, first + lane, moments.mean[lane], moments.m2[lane]);
      }
    }
  }
}

// What a block of channels needs of the parameters: z = (x - mean) * scale + bias.
template <int vectors>
struct ChannelParameters {
  Lanes mean[vectors], scale[vectors], bias[vectors];

  FASTGAN_SHARED ChannelParameters(const float* mean_at, const float* deviation_at,
                                   const float* weight_at, const float* bias_at, int width) {
    FASTGAN_UNROLL for (int v = 0; v < vectors; ++v) {
      mean[v] = load_width(mean_at + v * kLanes, width);
      scale[v] = load_width(deviation_at + v * kLanes, width);
      if (weight_at) scale[v] *= load_width(weight_at + v * kLanes, width);
      bias[v] = bias_at ? load_width(bias_at + v * kLanes, width) : Lanes{};
    }
  }
};

FASTGAN_SHARED const float* at(const float* values, int64_t index) {
  return values ? values + index : nullptr;
}

template <class T, Activation activation>
void apply_forward(const BatchNormForward& call, const RowTasks& tasks) {
  parallel_for(call.groups * tasks.count, [&](int64_t index) {
    const int64_t group = index / tasks.count, origin = group * call.rows * call.channels;
    const float* mean = call.mean + group * call.channels;
    const float* deviation = call.inverse_deviation + group * call.channels;
    tasks.for_blocks(index % tasks.count, [&](int64_t first, int64_t rows) {
      for_channel_blocks(call.channels, [&](auto vectors, int64_t channel, int width) {
        constexpr int kVectors = decltype(vectors)::value;
        const ChannelParameters<kVectors> p(mean + channel, deviation + channel,
                                            at(call.weight, channel), at(call.bias, channel),
                                            width);
        const int64_t offset = origin + first * call.channels + channel;
        const int64_t ahead = tasks.block_rows * call.channels;  // the same place in the next block
        const T* x = static_cast<const T*>(call.x) + offset;
        T* y = static_cast<T*>(call.y) + offset;
        for (int64_t row = 0; row < rows; ++row, x += call.channels, y += call.channels) {
          FASTGAN_UNROLL for (int v = 0; v < kVectors; ++v) {
            fetch(x + v * kLanes + ahead);
            const Lanes z = (load_width(x + v * kLanes, width) - p.mean[v]) * p.scale[v];
            store_width(y + v * kLanes,
                        activate<VectorMath, activation>(z + p.bias[v], call.negative_slope),
                        width);
          }
        }
      });
    });
  });
}

void batch_norm_forward(const BatchNormForward& call) {
  if (call.rows == 0 || call.channels == 0) return;
  if (call.m2) take_statistics(call);
  if (!call.y) return;
  with_type(call.type, [&](auto element) {
    using T = typename decltype(element)::type;
    const RowTasks tasks(call.rows, call.channels * sizeof(T));
    if (call.training && !call.m2) statistics<T>(call, tasks);
    with_activation(call.activation, [&](auto activation) {
      apply_forward<T, decltype(activation)::value>(call, tasks);
    });
  });
}

// sum(g) and sum(g * (x - mean)) of a run of rows, where g is the gradient before the activation.
template <class T, Activation activation>
void gradient_sums(const BatchNormBackward& call, const RowTasks& tasks, float* partials) {
  const int64_t padded_channels = padded(call.channels), stride = 2 * padded_channels;
  parallel_for(call.groups * tasks.count, [&](int64_t index) {
    const int64_t group = index / tasks.count, origin = group * call.rows * call.channels;
    float* sums = partials + index * stride;
    memset(sums, 0, stride * sizeof(float));
    tasks.for_blocks(index % tasks.count, [&](int64_t first, int64_t rows) {
      for_channel_blocks(call.channels, [&](auto vectors, int64_t channel, int width) {
        constexpr int kVectors = decltype(vectors)::value;
        const ChannelParameters<kVectors> p(call.mean + group * call.channels + channel,
                                            call.inverse_deviation + group * call.channels + channel,
                                            at(call.weight, channel), at(call.bias, channel),
                                            width);
        const int64_t offset = origin + first * call.channels + channel;
        const int64_t ahead = tasks.block_rows * call.channels;  // the same place in the next block
        const T* x = static_cast<const T*>(call.x) + offset;
        const T* grad_y = static_cast<const T*>(call.grad_y) + offset;
        Lanes sum[kVectors] = {}, product[kVectors] = {};
        for (int64_t row = 0; row < rows; ++row, x += call.channels, grad_y += call.channels) {
          FASTGAN_UNROLL for (int v = 0; v < kVectors; ++v) {
            fetch(x + v * kLanes + ahead);
            fetch(grad_y + v * kLanes + ahead);
            const Lanes centred = load_width(x + v * kLanes, width) - p.mean[v];
            const Lanes g = activation_backward<VectorMath, activation>(
                load_width(grad_y + v * kLanes, width), centred * p.scale[v] + p.bias[v],
                call.negative_slope);
            sum[v] += g;
            product[v] += g * centred;
          }
        }
        FASTGAN_UNROLL for (int v = 0; v < kVectors; ++v) {
          float* target = sums + channel + v * kLanes;
          store(target, load(target) + sum[v]);
          store(target + padded_channels, load(target + padded_channels) + product[v]);
        }
      });
    });
  });
}

// Adds the tasks' sums in order: the gradients of weight and bias, and what the gradient of x needs
// of each group, the mean of g and the factor of x - mean.
FASTGAN_SHARED void merge_sums(const BatchNormBackward& call, const RowTasks& tasks,
                               const float* partials, float* means) {
  const int64_t padded_channels = padded(call.channels), stride = 2 * padded_channels;
  const double rows = static_cast<double>(call.rows);
  auto widen = [](Lanes value) { return __builtin_convertvector(value, DoubleLanes); };
  for (int64_t channel = 0; channel < call.channels; channel += kLanes) {
    const int64_t left = call.channels - channel;
    const int width = left < kLanes ? static_cast<int>(left) : kLanes;
    DoubleLanes grad_weight = {}, grad_bias = {};
    for (int64_t group = 0; group < call.groups; ++group) {
      DoubleLanes sum = {}, product = {};
      for (int64_t task = 0; task < tasks.count; ++task) {
        const float* partial = partials + (group * tasks.count + task) * stride + channel;
        sum += widen(load(partial));
        product += widen(load(partial + padded_channels));
      }
      const DoubleLanes deviation = widen(
          load_width(call.inverse_deviation + group * call.channels + channel, width));
      grad_weight += product * deviation;
      grad_bias += sum;
      if (call.training) {
        float* target = means + group * stride + channel;
        store(target, __builtin_convertvector(sum / rows, Lanes));
        store(target + padded_channels,
              __builtin_convertvector(product * deviation * deviation / rows, Lanes));
      }
    }
    store_width(call.grad_weight + channel, __builtin_convertvector(grad_weight, Lanes), width);
    store_width(call.grad_bias + channel, __builtin_convertvector(grad_bias, Lanes), width);
  }
}

// The gradient of x: scale * (g - mean of g - (x - mean) * factor), the last two only in training.
template <class T, Activation activation>
void apply_backward(const BatchNormBackward& call, const RowTasks& tasks, const float* means) {
  const int64_t padded_channels = padded(call.channels);
  parallel_for(call.groups * tasks.count, [&](int64_t index) {
    const int64_t group = index / tasks.count, origin = group * call.rows * call.channels;
    const float* group_means = means + group * 2 * padded_channels;
    tasks.for_blocks(index % tasks.count, [&](int64_t first, int64_t rows) {
      for_channel_blocks(call.channels, [&](auto vectors, int64_t channel, int width) {
        constexpr int kVectors = decltype(vectors)::value;
        const ChannelParameters<kVectors> p(call.mean + group * call.channels + channel,
                                            call.inverse_deviation + group * call.channels + channel,
                                            at(call.weight, channel), at(call.bias, channel),
                                            width);
        Lanes mean_g[kVectors], factor[kVectors];
        FASTGAN_UNROLL for (int v = 0; v < kVectors; ++v) {
          mean_g[v] = load(group_means + channel + v * kLanes);
          factor[v] = load(group_means + padded_channels + channel + v * kLanes);
        }
        const int64_t offset = origin + first * call.channels + channel;
        const int64_t ahead = tasks.block_rows * call.channels;  // the same place in the next block
        const T* x = static_cast<const T*>(call.x) + offset;
        const T* grad_y = static_cast<const T*>(call.grad_y) + offset;
        T* grad_x = static_cast<T*>(call.grad_x) + offset;
        for (int64_t row = 0; row < rows; ++row) {
          FASTGAN_UNROLL for (int v = 0; v < kVectors; ++v) {
            const int64_t at_element = row * call.channels + v * kLanes;
            fetch(x + at_element + ahead);
            fetch(grad_y + at_element + ahead);
            const Lanes centred = load_width(x + at_element, width) - p.mean[v];
            const Lanes g = activation_backward<VectorMath, activation>(
                load_width(grad_y + at_element, width), centred * p.scale[v] + p.bias[v],
                call.negative_slope);
            store_width(grad_x + at_element, (g - mean_g[v] - centred * factor[v]) * p.scale[v],
                        width);
          }
        }
      });
    });
  });
}

void batch_norm_backward(const BatchNormBackward& call) {
  memset(call.grad_weight, 0, call.channels * sizeof(float));
  memset(call.grad_bias, 0, call.channels * sizeof(float));
  if (call.rows == 0 || call.channels == 0) return;
  const int64_t width = padded(call.channels), stride = 2 * width;
  with_type(call.type, [&](auto element) {
    using T = typename decltype(element)::type;
    const RowTasks tasks(call.rows, call.channels * 2 * sizeof(T));
    auto* partials = static_cast<float*>(scratch(
        Scratch::partials, call.groups * (tasks.count + 1) * stride * sizeof(float)));
    float* means = partials + call.groups * tasks.count * stride;
    memset(means, 0, call.groups * stride * sizeof(float));
    with_activation(call.activation, [&](auto activation) {
      gradient_sums<T, decltype(activation)::value>(call, tasks, partials);
      merge_sums(call, tasks, partials, means);
      apply_backward<T, decltype(activation)::value>(call, tasks, means);
    });
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
