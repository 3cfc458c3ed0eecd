// Mean and M2 = sum((x - mean)^2) of channels: of blocks of rows, merged in a fixed order with Chan's
// formula (Chan, Golub & LeVeque, 1979).
//
// A task leaves a partial [3][width]: a row of its data (the origin), its mean relative to it, and
// its M2. A large mean would take the digits of a small spread, so only spreads are in float32;
// origin and mean are added in float64, where partials are merged.
#pragma once

#include "vector.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kPartialRows = 3;  // origin, mean - origin, M2

// Mean and M2 of one block of rows, merged into those of the `seen` rows before it. Means are
// relative to `origin`. `ahead`: as many rows follow in memory, and are fetched meanwhile.
template <bool ahead, int vectors, class T>
FASTGAN_SHARED void merge_block(const T* x, const float* origin, int64_t rows, int64_t stride,
                                int width, float seen, float* mean, float* m2) {
  Lanes start[vectors], sum[vectors] = {}, square[vectors] = {};
  FASTGAN_UNROLL for (int v = 0; v < vectors; ++v) start[v] = load_width(origin + v * kLanes, width);
  for (int64_t row = 0; row < rows; ++row) {
    FASTGAN_UNROLL for (int v = 0; v < vectors; ++v) {
      if constexpr (ahead) fetch(x + (row + rows) * stride + v * kLanes);
      sum[v] += load_width(x + row * stride + v * kLanes, width) - start[v];
    }
  }
  const float count = static_cast<float>(rows);
  FASTGAN_UNROLL for (int v = 0; v < vectors; ++v) sum[v] = sum[v] / count;
  for (int64_t row = 0; row < rows; ++row) {
    FASTGAN_UNROLL for (int v = 0; v < vectors; ++v) {
      const Lanes value = load_width(x + row * stride + v * kLanes, width);
      const Lanes centred = (value - start[v]) - sum[v];
      square[v] += centred * centred;
    }
  }
  FASTGAN_UNROLL for (int v = 0; v < vectors; ++v) {
    const Lanes before = load(mean + v * kLanes);
    const Lanes delta = sum[v] - before;
    store(mean + v * kLanes, before + delta * (count / (seen + count)));
    store(m2 + v * kLanes, load(m2 + v * kLanes) + square[v] +
                               delta * delta * (seen * (count / (seen + count))));
  }
}

// Merges a block of rows [rows][stride] into a task's partial of `seen` rows, which its first block
// makes. `width` is that of the partial: channels rounded up to whole vectors, or more.
template <bool ahead, class T>
FASTGAN_SHARED void add_to_partial(const T* x, int64_t rows, int64_t stride, int64_t channels,
                                   int64_t width, float& seen, float* partial) {
  if (seen == 0.0f) {
    for (int64_t row = 0; row < kPartialRows; ++row) {
      memset(partial + row * width, 0, padded(channels) * sizeof(float));
    }
    for_channel_blocks(channels, [&](auto vectors, int64_t channel, int lanes) {
      FASTGAN_UNROLL for (int v = 0; v < decltype(vectors)::value; ++v) {
        store(partial + channel + v * kLanes, load_width(x + channel + v * kLanes, lanes));
      }
    });
  }
  for_channel_blocks(channels, [&](auto vectors, int64_t channel, int lanes) {
    merge_block<ahead, decltype(vectors)::value>(x + channel, partial + channel, rows, stride,
                                                 lanes, seen, partial + width + channel,
                                                 partial + 2 * width + channel);
  });
  seen += static_cast<float>(rows);
}

typedef double DoubleLanes __attribute__((vector_size(8 * kLanes)));

// Merged statistics of a vector of channels.
struct Moments {
  DoubleLanes mean = {}, m2 = {};
  double rows = 0.0;

  // Merges a partial of `count` rows; `partial` points to the vector's first channel.
  FASTGAN_SHARED void merge(const float* partial, int64_t width, int64_t count) {
    const double share = static_cast<double>(count) / (rows + static_cast<double>(count));
    const DoubleLanes start = __builtin_convertvector(load(partial), DoubleLanes);
    const DoubleLanes delta =
        start + __builtin_convertvector(load(partial + width), DoubleLanes) - mean;
    m2 += __builtin_convertvector(load(partial + 2 * width), DoubleLanes) +
          delta * delta * (rows * share);
    mean += delta * share;
    rows += static_cast<double>(count);
  }
};

}  // namespace fastgan::cpu::FASTGAN_LEVEL
