// The prologue of a convolution: an operand is read as act(scale * x + shift), the batch norm and the
// activation of the layer before, so that its normalised activations are never stored.
//
// It is applied where the operand is copied anyway: into AMX tiles, into pairs of images, into
// float32. Where the kernels read rows in place (float32, and bfloat16 with pairs), one pass over the
// operand writes it to scratch memory first. A task reads each pixel through several taps, and as
// many tasks as there are blocks of output channels (and phases) read it again: a task that applied
// the prologue to what it reads would do so 4 times and more for each pixel of a 4 x 4 kernel of
// stride 2, and patches of images would do so on vectors that are mostly empty. A pass over 16 images
// at a time, before their product, was measured to be no faster. Padding is zero after the
// activation: it is made by the kernels, from what is outside the operand.
#pragma once

#include "dispatch.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// The statistics group of an image.
FASTGAN_SHARED int64_t group_of(const Prologue& prologue, int64_t image) {
  return image / prologue.images;
}

// Applies the prologue to `width` channels from `channel` on, in rows of one group: [rows][channels]
// of T, `source_stride` apart, to rows of U `target_stride` apart, rounded to T. `ahead`: as many
// rows follow in memory, and are fetched meanwhile.
template <bool ahead = false, class T, class U>
FASTGAN_SHARED void apply_prologue(const Prologue& prologue, int64_t group, int64_t channel,
                                   int64_t width, const T* source, int64_t source_stride,
                                   int64_t rows, U* target, int64_t target_stride) {
  const int64_t first = group * prologue.channels + channel;
  with_activation(prologue.activation, [&](auto activation) {
    for_channel_blocks(width, [&](auto vectors, int64_t offset, int lanes) {
      constexpr int kVectors = decltype(vectors)::value;
      Lanes scale[kVectors], shift[kVectors];
      FASTGAN_UNROLL for (int v = 0; v < kVectors; ++v) {
        scale[v] = load_width(prologue.scale + first + offset + v * kLanes, lanes);
        shift[v] = load_width(prologue.shift + first + offset + v * kLanes, lanes);
      }
      for (int64_t row = 0; row < rows; ++row) {
        FASTGAN_UNROLL for (int v = 0; v < kVectors; ++v) {
          const int64_t at = offset + v * kLanes;
          if constexpr (ahead) fetch(source + (row + rows) * source_stride + at);
          const Lanes x = load_width(source + row * source_stride + at, lanes);
          const Lanes z = x * scale[v] + shift[v];
          store_width(target + row * target_stride + at,
                      rounded<T>(activate<VectorMath, decltype(activation)::value>(
                          z, prologue.negative_slope)),
                      lanes);
        }
      }
    });
  });
}

// The operand [images][pixels][channels] of T as the prologue leaves it, dense, in U.
template <class T, class U>
void apply_to_operand(const Prologue& prologue, const T* source, int64_t images, int64_t pixels,
                      U* target) {
  constexpr int64_t kPieceBytes = 16384;  // of a task: its scale and shift are loaded once
  const int64_t channels = prologue.channels;
  if (channels == 0) return;
  const int64_t wanted = kPieceBytes / static_cast<int64_t>(channels * sizeof(T));
  const int64_t piece = wanted < 8 ? 8 : wanted;
  const int64_t pieces = (pixels + piece - 1) / piece;
  parallel_for(images * pieces, [&](int64_t task) {
    const int64_t image = task / pieces, first = task % pieces * piece;
    const int64_t rows = first + piece <= pixels ? piece : pixels - first;
    const int64_t offset = (image * pixels + first) * channels;
    apply_prologue<true>(prologue, group_of(prologue, image), 0, channels, source + offset,
                         channels, rows, target + offset, channels);
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
