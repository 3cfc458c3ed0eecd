// Patches of few channels (images) as rows of AMX tiles: what a convolution reads for one place is the
// reduction of fprop, and the big side of wgrad, of a 1 x 1 kernel.
#pragma once

#include "tile_packing.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// A patch is kernel rows of `run` elements, `pitch` apart. Where a tile has the room, a row has 16 or
// 32 elements to itself: then it is copied at once.
struct PatchShape {
  const Convolution& call;
  int64_t run, pitch;
  bool at_once;

  FASTGAN_SHARED explicit PatchShape(const Convolution& c)
      : call(c), run(c.kernel_width * c.big_channels) {
    const int64_t room = run <= 16 ? 16 : 32;
    at_once = run <= room && round_up(c.kernel_height * room, kTileDepth) ==
                                 round_up(c.kernel_height * run, kTileDepth);
    pitch = at_once ? room : run;
  }

  FASTGAN_SHARED int64_t elements() const { return call.kernel_height * pitch; }
  FASTGAN_SHARED int64_t width() const { return round_up(elements(), kTileDepth); }

  // Copies the patches of `count` places from (y, x) on in one image, padded with zeros to width().
  // target(place, element) is where elements of a place's patch go; 32 of them from a multiple of 32
  // on lie side by side. `buffer` has room for a patch.
  template <class Target>
  FASTGAN_SHARED void copy(const BFloat16* image, int64_t y, int64_t x, int64_t count,
                           BFloat16* buffer, const Target& target) const {
    const int64_t top = y * call.stride_height - call.padding_height;
    if (!at_once) {
      const Product product = fprop_product(call);
      memset(buffer + elements(), 0, (width() - elements()) * sizeof(BFloat16));
      for (int64_t place = 0; place < count; ++place) {
        copy_patch(product, fprop_phase(call), image, top,
                   (x + place) * call.stride_width - call.padding_width, buffer);
        for (int64_t element = 0; element < width(); element += kTileDepth) {
          memcpy(target(place, element), buffer + element, kTileBytes);
        }
      }
      return;
    }
    const int64_t channels = call.big_channels;
    auto lanes = [](int64_t first) {  // all from the first on
      return first < 32 ? static_cast<uint32_t>(~uint64_t{0} << first) : 0u;
    };
    const uint32_t inside = ~lanes(run), stored = ~lanes(pitch);
    for (int64_t row = 0; row < call.kernel_height; ++row) {
      const bool there = top + row >= 0 && top + row < call.big_height;
      const BFloat16* source = image + (top + row) * call.big_width * channels;
      for (int64_t place = 0; place < count; ++place) {
        const int64_t left = (x + place) * call.stride_width - call.padding_width;
        const int64_t right = call.big_width - left;
        uint32_t read = there ? inside : 0u;
        if (left < 0) read &= lanes(-left * channels);
        if (right < call.kernel_width) read &= right > 0 ? ~lanes(right * channels) : 0u;
        _mm512_mask_storeu_epi16(target(place, row * pitch), stored,
                                 _mm512_maskz_loadu_epi16(read, source + left * channels));
      }
    }
    if (elements() == width()) return;
    for (int64_t place = 0; place < count; ++place) {
      memset(target(place, elements()), 0, (width() - elements()) * sizeof(BFloat16));
    }
  }
};

}  // namespace fastgan::cpu::FASTGAN_LEVEL
