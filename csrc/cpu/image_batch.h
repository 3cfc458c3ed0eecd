// A batch out of stored images: gathered by index, mirrored where asked, mapped from 0..255 to -1..1.
//
// One pass. A task is a run of rows of the batch, worked on in pieces of one image; while one piece
// is converted the next is fetched, as no processor foresees where the next image lies. Mirrored rows
// are reversed, pixel by pixel, into a small buffer that stays in the first-level cache. Stores go
// through the caches: past them, they were measured slower, or at best as fast.
#pragma once

#include "dispatch.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kImageTaskBytes = 131072;  // read and written
constexpr int64_t kPieceBytes = 8192;        // read, and read ahead
constexpr int64_t kMirroredBytes = 6144;     // whole pixels of 1 to 4 channels, whole vectors

// Asks for a line that is needed a piece later: the first-level cache has not the room.
FASTGAN_SHARED void fetch_ahead(const void* address) { __builtin_prefetch(address, 0, 2); }

FASTGAN_SHARED Lanes load(const uint8_t* source) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)source)));
#elif defined(__AVX2__)
  return (Lanes)_mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)source)));
#else
  Lanes value;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = source[lane];
  return value;
#endif
}

// x / 127.5 - 1, rounded as a division and then a subtraction, for every byte x. A division costs
// more than the memory takes; two products do not, and give its bits: 1 / 127.5 = kHigh + kLow, and
// x * kHigh is exact, with fused multiply-adds as without.
FASTGAN_SHARED Lanes normalised(Lanes x) {
  constexpr float kHigh = 0x1.01p-7f;
  constexpr float kLow = static_cast<float>(1.0 / 127.5 - 0x1.01p-7);
  return (x * kHigh + x * kLow) - 1.0f;
}

// `ahead` is what will be read next: a line of it is asked for with each line of the source.
template <class T>
FASTGAN_SHARED void normalise(const uint8_t* source, T* target, int64_t count,
                              const uint8_t* ahead) {
  int64_t index = 0;
  for (; index + 64 <= count; index += 64) {
    fetch_ahead(ahead + index);
    FASTGAN_UNROLL for (int v = 0; v < 64 / kLanes; ++v) {
      const int64_t at = index + v * kLanes;
      store(target + at, normalised(load(source + at)));
    }
  }
  for (; index + kLanes <= count; index += kLanes) {
    store(target + index, normalised(load(source + index)));
  }
  if (index < count) {
    uint8_t last[kLanes] = {};
    memcpy(last, source + index, count - index);
    store_first(target + index, normalised(load(last)), static_cast<int>(count - index));
  }
}

#if defined(__AVX2__)
// Reverses the pixels that begin at byte `first` of 16; 3 channels leave a byte of them over.
template <int kChannels, int first>
FASTGAN_SHARED void mirror_vector(const uint8_t* source, uint8_t* target) {
  alignas(16) static constexpr auto order = [] {
    struct {
      uint8_t byte[16];
    } from = {};
    constexpr int kPixels = 16 / kChannels;
    for (int at = 0; at < kPixels * kChannels; ++at) {
      from.byte[at] = static_cast<uint8_t>(first + (kPixels - 1 - at / kChannels) * kChannels +
                                           at % kChannels);
    }
    return from;
  }();
  const __m128i pixels = _mm_loadu_si128((const __m128i*)source);
  const __m128i reversed = _mm_shuffle_epi8(pixels, _mm_load_si128((const __m128i*)order.byte));
  _mm_storeu_si128((__m128i*)target, reversed);
}
#endif

// Copies `pixels` pixels, the last one first, and may write a byte more. `channels` is the
// constant kChannels, or any number where that is 0.
template <int kChannels>
FASTGAN_SHARED void mirror(const uint8_t* source, uint8_t* target, int64_t pixels,
                           int64_t channels) {
#if defined(__AVX2__)
  if constexpr (kChannels > 0) {
    constexpr int64_t kStep = 16 / kChannels * kChannels, kOver = 16 - kStep;
    const int64_t bytes = pixels * kChannels;
    if (bytes >= 16) {
      int64_t done = 0;
      for (; done + 16 <= bytes; done += kStep) {
        mirror_vector<kChannels, kOver>(source + bytes - done - 16, target + done);
      }
      // What is left lies in the first vector; some of it is written again.
      mirror_vector<kChannels, 0>(source, target + bytes - kStep);
      return;
    }
  }
#endif
  const int64_t width = kChannels > 0 ? kChannels : channels;
  for (const uint8_t* pixel = source + pixels * width; pixel > source; target += width) {
    pixel -= width;
    memcpy(target, pixel, width);
  }
}

// `rows` rows of `width` pixels, each mirrored.
template <int kChannels, class T>
void normalise_mirrored(const uint8_t* source, T* target, int64_t rows, int64_t width,
                        int64_t channels, const uint8_t* ahead) {
  if (channels >= kLanes) {  // a pixel is a run of its own
    for (int64_t row = 0; row < rows; ++row, source += width * channels) {
      for (int64_t x = width; x-- > 0; target += channels) {
        normalise(source + x * channels, target, channels, ahead);
      }
    }
    return;
  }
  alignas(64) uint8_t buffer[kMirroredBytes + 1];
  const int64_t room = kMirroredBytes / channels;
  int64_t filled = 0;  // pixels
  for (int64_t row = 0; row < rows; ++row, source += width * channels) {
    for (int64_t left = width; left > 0;) {
      const int64_t pixels = left < room - filled ? left : room - filled;
      left -= pixels;
      mirror<kChannels>(source + left * channels, buffer + filled * channels, pixels, channels);
      filled += pixels;
      if (filled == room) {
        normalise(buffer, target, filled * channels, ahead);
        target += filled * channels;
        ahead += filled * channels;
        filled = 0;
      }
    }
  }
  normalise(buffer, target, filled * channels, ahead);
}

template <class T>
FASTGAN_SHARED void image_rows(const ImageBatch& call, int64_t first, int64_t last) {
  const int64_t row_values = call.width * call.channels;
  const int64_t piece = kPieceBytes > row_values ? kPieceBytes / row_values : 1;
  auto source_of = [&](int64_t row) {
    const int64_t image = call.indices[row / call.height];
    return call.images + (image * call.height + row % call.height) * row_values;
  };
  for (int64_t at = 0; at < kPieceBytes; at += 64) fetch_ahead(source_of(first) + at);
  for (int64_t rows; first < last; first += rows) {
    const int64_t n = first / call.height;
    int64_t end = (n + 1) * call.height;
    if (last < end) end = last;
    if (first + piece < end) end = first + piece;
    rows = end - first;
    const uint8_t* source = source_of(first);
    const uint8_t* ahead = source_of(end < last ? end : first);
    T* target = static_cast<T*>(call.batch) + first * row_values;
    if (!call.flips || !call.flips[n]) {
      normalise(source, target, rows * row_values, ahead);
      continue;
    }
    switch (call.channels) {
      case 1:
        normalise_mirrored<1>(source, target, rows, call.width, 1, ahead);
        break;
      case 2:
        normalise_mirrored<2>(source, target, rows, call.width, 2, ahead);
        break;
      case 3:
        normalise_mirrored<3>(source, target, rows, call.width, 3, ahead);
        break;
      case 4:
        normalise_mirrored<4>(source, target, rows, call.width, 4, ahead);
        break;
      default:
        normalise_mirrored<0>(source, target, rows, call.width, call.channels, ahead);
    }
  }
}

void image_batch(const ImageBatch& call) {
  const int64_t rows = call.count * call.height, row_values = call.width * call.channels;
  if (rows * row_values == 0) return;
  with_type(call.type, [&](auto element) {
    using T = typename decltype(element)::type;
    const int64_t bytes = rows * row_values * static_cast<int64_t>(1 + sizeof(T));
    const int64_t wanted = bytes / kImageTaskBytes + 1;
    const int64_t tasks = wanted < rows ? wanted : rows;
    parallel_for(tasks, [&](int64_t task) {
      image_rows<T>(call, task * rows / tasks, (task + 1) * rows / tasks);
    });
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
