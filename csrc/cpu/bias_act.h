// Bias and activation over [rows, channels], forward and backward: one pass each way.
//
// Few channels (an image's three) would leave most lanes idle, so rows are folded: `fold` rows of
// `channels` are one row of fold * channels, with the bias repeated. Less than a vector of them is
// folded to the widest block of channels, whose vectors are independent: an activation like tanh is
// one long chain.
#pragma once

#include "batch_norm_act.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

struct FoldedRows {
  int64_t fold, rows, channels;  // rows and channels after folding

  FoldedRows(int64_t all_rows, int64_t row_channels, bool has_bias) : fold(1) {
    if (!has_bias) {  // any width will do: the widest block of channels, one after the other
      for (channels = 4 * kLanes; all_rows * row_channels % channels; channels /= 2) {
      }
      rows = all_rows * row_channels / channels;
      return;
    }
    while (fold < kLanes && all_rows % (2 * fold) == 0 && row_channels * fold % kLanes != 0) {
      fold *= 2;
    }
    while (row_channels < kLanes && fold < 4 * kLanes && all_rows % (2 * fold) == 0) fold *= 2;
    rows = all_rows / fold;
    channels = row_channels * fold;
  }
};

// Tasks whose partials are few floats: small enough for all threads to have one where a tensor is
// worth two, smaller where every element takes long.
FASTGAN_SHARED int64_t task_bytes(Activation activation) {
  const bool is_long = activation == Activation::tanh || activation == Activation::sigmoid;
  return is_long ? 32768 : 131072;
}

// The bias of the folded row, or zeros, in scratch memory padded to whole vectors.
FASTGAN_SHARED const float* repeated_bias(const BiasAct& call, const FoldedRows& folded) {
  auto* bias = static_cast<float*>(
      scratch(Scratch::weights, padded(folded.channels) * sizeof(float)));
  for (int64_t channel = 0; channel < padded(folded.channels); ++channel) {
    bias[channel] = call.bias && channel < folded.channels ? call.bias[channel % call.channels] : 0;
  }
  return bias;
}

void bias_act_forward(const BiasAct& call) {
  if (call.rows * call.channels == 0) return;
  const FoldedRows folded(call.rows, call.channels, call.bias != nullptr);
  const float* bias = repeated_bias(call, folded);
  with_type(call.type, [&](auto element) {
    using T = typename decltype(element)::type;
    const RowTasks tasks(folded.rows, folded.channels * sizeof(T), task_bytes(call.activation));
    with_activation(call.activation, [&](auto activation) {
      parallel_for(tasks.count, [&](int64_t task) {
        tasks.for_blocks(task, [&](int64_t first, int64_t rows) {
          for_channel_blocks(folded.channels, [&](auto vectors, int64_t channel, int width) {
            constexpr int kVectors = decltype(vectors)::value;
            const int64_t offset = first * folded.channels + channel;
            const T* x = static_cast<const T*>(call.x) + offset;
            T* y = static_cast<T*>(call.result) + offset;
            for (int64_t row = 0; row < rows; ++row) {
              FASTGAN_UNROLL for (int v = 0; v < kVectors; ++v) {
                const int64_t at_element = row * folded.channels + v * kLanes;
                const Lanes z =
                    load_width(x + at_element, width) + load(bias + channel + v * kLanes);
                store_width(y + at_element,
                            activate<VectorMath, decltype(activation)::value>(
                                z, call.negative_slope),
                            width);
              }
            }
          });
        });
      });
    });
  });
}

void bias_act_backward(const BiasAct& call) {
  if (call.grad_bias) memset(call.grad_bias, 0, call.channels * sizeof(float));
  if (call.rows * call.channels == 0) return;
  const FoldedRows folded(call.rows, call.channels, call.bias || call.grad_bias);
  const float* bias = repeated_bias(call, folded);
  const int64_t stride = padded(folded.channels);
  with_type(call.type, [&](auto element) {
    using T = typename decltype(element)::type;
    const RowTasks tasks(folded.rows, folded.channels * 2 * sizeof(T),
                         task_bytes(call.activation));
    auto* partials =
        static_cast<float*>(scratch(Scratch::partials, tasks.count * stride * sizeof(float)));
    with_activation(call.activation, [&](auto activation) {
      parallel_for(tasks.count, [&](int64_t task) {
        float* sums = partials + task * stride;
        memset(sums, 0, stride * sizeof(float));
        tasks.for_blocks(task, [&](int64_t first, int64_t rows) {
          for_channel_blocks(folded.channels, [&](auto vectors, int64_t channel, int width) {
            constexpr int kVectors = decltype(vectors)::value;
            const int64_t offset = first * folded.channels + channel;
            const T* x = static_cast<const T*>(call.x) + offset;
            const T* grad_y = static_cast<const T*>(call.grad_y) + offset;
            T* grad_x = static_cast<T*>(call.result) + offset;
            Lanes sum[kVectors] = {};
            for (int64_t row = 0; row < rows; ++row) {
              FASTGAN_UNROLL for (int v = 0; v < kVectors; ++v) {
                const int64_t at_element = row * folded.channels + v * kLanes;
                const Lanes z =
                    load_width(x + at_element, width) + load(bias + channel + v * kLanes);
                const Lanes g = activation_backward<VectorMath, decltype(activation)::value>(
                    load_width(grad_y + at_element, width), z, call.negative_slope);
                sum[v] += g;
                store_width(grad_x + at_element, g, width);
              }
            }
            FASTGAN_UNROLL for (int v = 0; v < kVectors; ++v) {
              float* target = sums + channel + v * kLanes;
              store(target, load(target) + sum[v]);
            }
          });
        });
      });
    });
    if (!call.grad_bias) return;
    for (int64_t channel = 0; channel < call.channels; ++channel) {
      double sum = 0.0;
      for (int64_t task = 0; task < tasks.count; ++task) {
        for (int64_t copy = 0; copy < folded.fold; ++copy) {
          sum += partials[task * stride + copy * call.channels + channel];
        }
      }
      call.grad_bias[channel] = static_cast<float>(sum);
    }
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
