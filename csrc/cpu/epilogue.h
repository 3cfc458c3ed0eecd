// The end of fprop and dgrad: how output pixels are cut into tasks, and what becomes of a task's sums.
//
// Bias, activation, rounding and store; and, if they are asked for, the statistics of what was
// stored. A task's pixels then belong to one slice of the batch: it leaves the statistics of its
// pixels, which are still in the cache, as a partial, and partials are merged in the order of tasks.
#pragma once

#include "dispatch.h"
#include "geometry.h"
#include "statistics.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// A task makes one chunk of pixels, in one slice of the batch, of one phase by one block of outputs;
// blocks are the outermost order, chunks the innermost.
struct Cut {
  int64_t blocks, phases, groups, chunks;
  float* partials;  // [blocks][tasks][kPartialRows][kBlock], or null without statistics

  FASTGAN_SHARED int64_t tasks() const { return phases * groups * chunks; }  // of one block
  FASTGAN_SHARED int64_t phase(int64_t task) const { return task / chunks / groups % phases; }
  FASTGAN_SHARED int64_t group(int64_t task) const { return task / chunks % groups; }
  FASTGAN_SHARED float* partial(int64_t task) const {
    return partials ? partials + task * kPartialRows * kBlock : nullptr;
  }

  // Where chunks are of kPixels: the pixels of a task, none in a chunk that its phase lacks.
  FASTGAN_SHARED Pixels pixels(const Product& product, const Phase& phase, int64_t task) const {
    const int64_t images = product.batch / groups, first = task % chunks * kPixels;
    return Pixels(phase, first, images, group(task) * images);
  }
};

// The cut of a product into `chunks` a phase and slice; slices are one where nothing depends on them.
FASTGAN_SHARED int64_t groups_of(const Product& product) {
  return product.call->mean ? product.call->groups : 1;
}

FASTGAN_SHARED Cut cut_product(const Product& product, int64_t phases, int64_t chunks) {
  Cut cut{round_up_quotient(product.outputs, kBlock), phases, groups_of(product), chunks, nullptr};
  if (product.call->mean) {
    cut.partials = static_cast<float*>(scratch(
        Scratch::statistics,
        cut.blocks * cut.tasks() * kPartialRows * kBlock * sizeof(float)));
  }
  return cut;
}

// The cut into chunks of kPixels, as many as the largest phase has.
template <class PhaseOf>
FASTGAN_SHARED Cut cut_pixels(const Product& product, int64_t phases, const PhaseOf& phase_of) {
  const int64_t images = product.batch / groups_of(product);
  int64_t chunks = 0;
  for (int64_t index = 0; index < phases; ++index) {
    const Phase phase = phase_of(index);
    const int64_t needed =
        round_up_quotient(images * phase.grid_height * phase.grid_width, kPixels);
    if (needed > chunks) chunks = needed;
  }
  return cut_product(product, phases, chunks);
}

// Bias, activation, rounding and store of a task's sums. `keep`: the sums become what was stored.
template <class T, Activation activation, bool keep>
void store_pixels(const Product& product, const Phase& phase, const Pixels& pixels, int64_t channel,
                  int64_t channels, float* sums) {
  const Convolution& call = *product.call;
  alignas(64) float bias[kBlock] = {};
  if (call.bias) memcpy(bias, call.bias + channel, channels * sizeof(float));
  T* result = static_cast<T*>(call.result) + channel;
  for (int64_t pixel = 0; pixel < pixels.count; ++pixel) {
    const int64_t y = pixels.y[pixel] * product.output_stride_y + phase.origin_y;
    const int64_t x = pixels.x[pixel] * product.output_stride_x + phase.origin_x;
    T* target = result + ((pixels.image[pixel] * product.output_height + y) *
                              product.output_width +
                          x) *
                             product.outputs;
    for (int64_t first = 0; first < channels; first += kLanes) {
      const Lanes z = activate<VectorMath, activation>(
          load(sums + pixel * kBlock + first) + load(bias + first), call.negative_slope);
      const int64_t left = channels - first;
      store_width(target + first, z, left < kLanes ? static_cast<int>(left) : kLanes);
      if constexpr (keep) store(sums + pixel * kBlock + first, rounded<T>(z));
    }
  }
}

// `partial` (of `seen` pixels, or null) takes the statistics of what is stored.
FASTGAN_SHARED void store_result(const Product& product, const Phase& phase, const Pixels& pixels,
                                 int64_t channel, int64_t channels, float* sums,
                                 float* partial = nullptr, float* seen = nullptr) {
  with_type(product.call->type, [&](auto element) {
    using T = typename decltype(element)::type;
    if (partial) {
      store_pixels<T, Activation::identity, true>(product, phase, pixels, channel, channels, sums);
      add_to_partial<false>(sums, pixels.count, kBlock, channels, kBlock, *seen, partial);
      return;
    }
    with_activation(product.call->activation, [&](auto activation) {
      store_pixels<T, decltype(activation)::value, false>(product, phase, pixels, channel,
                                                          channels, sums);
    });
  });
}

// The vectors that `channels` output channels need: 1, 2 or all of a block.
FASTGAN_SHARED int64_t vectors_of(int64_t channels) {
  return channels <= kLanes ? 1 : channels <= 2 * kLanes ? 2 : kVectors;
}

// One task of a cut into pixels: `add` fills the sums.
template <class Add>
FASTGAN_SHARED void run_task(const Product& product, const Cut& cut, const Phase& phase,
                             int64_t task, const Add& add) {
  const Pixels pixels = cut.pixels(product, phase, task);
  if (pixels.count <= 0) return;
  const int64_t channel = task / cut.tasks() * kBlock;
  const int64_t channels = channel + kBlock <= product.outputs ? kBlock : product.outputs - channel;
  alignas(64) float sums[kPixels * kBlock];
  add(pixels, vectors_of(channels), sums);
  float seen = 0.0f;
  store_result(product, phase, pixels, channel, channels, sums, cut.partial(task), &seen);
}

// Merges the partials of a product, in the order of tasks. `pixels_of(phase, chunk)` says how many
// pixels a task of a slice has: none leaves no partial.
template <class PixelsOf>
void merge_statistics(const Product& product, const Cut& cut, const PixelsOf& pixels_of) {
  if (!cut.partials) return;
  parallel_for(cut.blocks * cut.groups, [&](int64_t part) {
    const int64_t block = part / cut.groups, group = part % cut.groups;
    const int64_t channel = block * kBlock, offset = group * product.outputs;
    for (int64_t first = channel; first < channel + kBlock && first < product.outputs;
         first += kLanes) {
      Moments moments;
      for (int64_t phase = 0; phase < cut.phases; ++phase) {
        const int64_t task = block * cut.tasks() + (phase * cut.groups + group) * cut.chunks;
        for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {
          const int64_t pixels = pixels_of(phase, chunk);
          if (pixels > 0) {
            moments.merge(cut.partial(task + chunk) + first - channel, kBlock, pixels);
          }
        }
      }
      for (int64_t lane = 0; lane < kLanes && first + lane < product.outputs; ++lane) {
        product.call->mean[offset + first + lane] = static_cast<float>(moments.mean[lane]);
        product.call->m2[offset + first + lane] = static_cast<float>(moments.m2[lane]);
      }
    }
  });
}

// The pixels of a chunk of a cut into pixels.
template <class PhaseOf>
FASTGAN_SHARED void merge_chunks(const Product& product, const Cut& cut, const PhaseOf& phase_of) {
  const int64_t images = product.batch / cut.groups;
  merge_statistics(product, cut, [&](int64_t index, int64_t chunk) {
    const Phase phase = phase_of(index);
    const int64_t left = images * phase.grid_height * phase.grid_width - chunk * kPixels;
    return left < kPixels ? left : kPixels;
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
