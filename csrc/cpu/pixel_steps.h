// The operands of wgrad as its tasks read them: pixels whose channels are steps (micro_kernels.h).
//
// float32 without a prologue is read where it lies. Everything else is packed by the task that
// multiplies it, a turn of pixels at a time: what is packed is read many times from the second-level
// cache, and no operand is ever copied as a whole. The vector side's channels are packed by their
// block's tasks alone; the broadcast side's by as many tasks as there are blocks and kernel rows,
// each of which does a hundred multiply-adds and more with a vector that it packs.
#pragma once

#include "operands.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kReductionPixels = 128;  // of one turn: their operands stay in the caches
constexpr int64_t kNormalisedPixels = 8;   // that pass through a prologue before they are zipped

// An operand [images][pixels][channels]. For bfloat16 steps, two neighbouring images are one: the
// last of an odd number is zipped with zeros.
template <class Step>
struct PixelSource {
  const Prologue& prologue;
  const void* data;
  DataType type;
  int64_t images, pixels, channels;

  FASTGAN_SHARED int64_t step_images() const { return steps_of<Step>(images); }

  // The pixel's steps where they lie, or null if they must be packed.
  FASTGAN_SHARED const Step* in_place(int64_t image, int64_t pixel) const {
    if (kElements<Step> == 2 || type != DataType::float32 || prologue.scale) return nullptr;
    return static_cast<const Step*>(data) + (image * pixels + pixel) * channels;
  }

  // Steps that `pack` needs beside its target.
  FASTGAN_SHARED int64_t work_steps(int64_t width) const {
    return kElements<Step> == 2 && prologue.scale ? kNormalisedPixels * width : 0;
  }
};

FASTGAN_SHARED void zero_padding(int64_t count, int64_t width, int64_t pitch, void* target) {
  if (width == pitch) return;
  for (int64_t pixel = 0; pixel < count; ++pixel) {
    memset(static_cast<float*>(target) + pixel * pitch + width, 0, (pitch - width) * sizeof(float));
  }
}

// Packs `width` channels of `count` pixels of an image: rows of steps `pitch` apart, zeros between.
FASTGAN_SHARED void pack_pixels(const PixelSource<Pair>& source, int64_t image, int64_t pixel,
                                int64_t count, int64_t channel, int64_t width, int64_t pitch,
                                Pair* work, Pair* target) {
  const int64_t channels = source.channels, next = source.pixels * channels;
  const BFloat16* first = static_cast<const BFloat16*>(source.data) + 2 * image * next +
                          pixel * channels + channel;
  const BFloat16* second = 2 * image + 1 < source.images ? first + next : nullptr;
  auto zip = [&](const BFloat16* a, const BFloat16* b, int64_t stride, int64_t rows, Pair* to) {
    const bool dense = width == stride && width == pitch;
    const int64_t run = dense ? rows * width : width;
    for (int64_t row = 0; row < (dense ? 1 : rows); ++row) {
      pack_row(reinterpret_cast<BFloat16*>(to + row * pitch), a + row * stride,
               b ? b + row * stride : nullptr, run);
    }
  };
  if (!source.prologue.scale) {
    zip(first, second, channels, count, target);
  } else {
    auto* normalised = reinterpret_cast<BFloat16*>(work);
    BFloat16* beside = second ? normalised + kNormalisedPixels * width : nullptr;
    for (int64_t begin = 0; begin < count; begin += kNormalisedPixels) {
      const int64_t rows =
          begin + kNormalisedPixels < count ? kNormalisedPixels : count - begin;
      for (int64_t half = 0; half < (second ? 2 : 1); ++half) {
        apply_prologue(source.prologue, group_of(source.prologue, 2 * image + half), channel,
                       width, (half ? second : first) + begin * channels, channels, rows,
                       half ? beside : normalised, width);
      }
      zip(normalised, beside, width, rows, target + begin * pitch);
    }
  }
  zero_padding(count, width, pitch, target);
}

FASTGAN_SHARED void pack_pixels(const PixelSource<float>& source, int64_t image, int64_t pixel,
                                int64_t count, int64_t channel, int64_t width, int64_t pitch,
                                float*, float* target) {
  const int64_t channels = source.channels;
  with_type(source.type, [&](auto element) {
    using T = typename decltype(element)::type;
    const T* from = static_cast<const T*>(source.data) +
                    (image * source.pixels + pixel) * channels + channel;
    if (source.prologue.scale) {
      apply_prologue(source.prologue, group_of(source.prologue, image), channel, width, from,
                     channels, count, target, pitch);
      return;
    }
    const bool dense = width == channels && width == pitch;
    const int64_t run = dense ? count * width : width;
    for (int64_t row = 0; row < (dense ? 1 : count); ++row) {
      for_lanes(run, [&](int64_t lane, int lanes) {
        store_width(target + row * pitch + lane, load_width(from + row * channels + lane, lanes),
                    lanes);
      });
    }
  });
  zero_padding(count, width, pitch, target);
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
