// wgrad: the sum over images and small-side pixels of small (x) big, for every tap.
//
// The reduction runs over pixels, so that both operands are read as rows of channels: at each step
// one side is broadcast, the other is a vector. bfloat16 pairs come from two neighbouring images:
// one interleaved copy of a pixel serves all taps and any stride (pixel_steps.h); a batch of one has
// no pairs and is multiplied as float32. Only pixels whose tap lies inside the big side are visited.
//
//     dw[s, tap, b..b+kBlock] += small[n, y, x, s] * big[n, y', x', b..b+kBlock]
//
// With few big-side channels (images) the sides change places: small channels are the vector, and
// taps x channels of a copied patch are broadcast.
#pragma once

#include "gradient_splits.h"
#include "pixel_steps.h"
#include "products.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// One turn's pixels: where the broadcast and the vector operand of each step lie.
template <class Step>
struct Turn {
  const Step* broadcast[kReductionPixels];
  const Step* vectors[kReductionPixels];
  int64_t count = 0;
};

template <int R, class Step>
FASTGAN_SHARED void add_rows(const Turn<Step>& turn, int64_t row, int64_t vectors, float* sums) {
  if (vectors == 1) {
    add_outer_products<R, 1>(turn.broadcast, row, turn.vectors, turn.count, sums);
  } else if (kVectors == 2 || vectors == 2) {
    add_outer_products<R, 2>(turn.broadcast, row, turn.vectors, turn.count, sums);
  } else {
    add_outer_products<R, kVectors>(turn.broadcast, row, turn.vectors, turn.count, sums);
  }
}

// sums[rows][kBlock] += the turn's outer products.
template <class Step>
FASTGAN_SHARED void add_turn(const Turn<Step>& turn, int64_t rows, int64_t vectors, float* sums) {
  if (turn.count == 0) return;
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    add_rows<kRows>(turn, row, vectors, sums + row * kBlock);
  }
  for (; row + 2 <= rows; row += 2) add_rows<2>(turn, row, vectors, sums + row * kBlock);
  for (; row < rows; ++row) add_rows<1>(turn, row, vectors, sums + row * kBlock);
}

// Small-side pixels of a turn that lie side by side in one row of one image.
struct Run {
  int64_t image, y, x, count;
};

// The runs of up to kReductionPixels pixels from pixel `begin` of the images from `image` on.
struct Runs {
  Run run[kReductionPixels];
  int64_t count = 0;

  FASTGAN_SHARED Runs(const Convolution& c, int64_t image, int64_t begin, int64_t all) {
    const int64_t end = begin + kReductionPixels < all ? begin + kReductionPixels : all;
    for (int64_t pixel = begin; pixel < end; pixel += run[count++].count) {
      const int64_t x = pixel % c.small_width, row = pixel / c.small_width;
      const int64_t left = c.small_width - x;
      run[count] = {image + row / c.small_height, row % c.small_height, x,
                    left < end - pixel ? left : end - pixel};
    }
  }
};

// Rows of the small side that a turn's pixels may lie in.
FASTGAN_SHARED int64_t rows_of_turn(const Convolution& c) {
  const int64_t rows = kReductionPixels / c.small_width + 2;
  return rows < kReductionPixels ? rows : kReductionPixels;
}

// Big-side positions along one axis that `count` neighbouring small-side positions read.
struct Window {
  int64_t first, count;

  FASTGAN_SHARED Window(int64_t at, int64_t count, int64_t stride, int64_t padding, int64_t kernel,
                        int64_t size) {
    const int64_t begin = at * stride - padding;
    const int64_t end = begin + (count - 1) * stride + kernel;
    first = begin < 0 ? 0 : begin < size ? begin : size;
    this->count = end < first ? 0 : (end < size ? end : size) - first;
  }
};

// The operands of a call.
template <class Step>
struct GradientSources {
  PixelSource<Step> big, small;

  FASTGAN_SHARED explicit GradientSources(const Convolution& c)
      : big{c.big_prologue, c.big, c.type, c.batch, c.big_height * c.big_width, c.big_channels},
        small{c.small_prologue, c.small, c.type, c.batch, c.small_height * c.small_width,
              c.small_channels} {}
};

// Many big-side channels: a group is (kernel row, block of big channels), its sums are
// [kernel column][small channel][kBlock].
template <class Step>
struct ChannelGroup {
  const Convolution& c;
  const GradientSources<Step> from;
  int64_t blocks, big_steps, small_steps, work_steps;

  FASTGAN_SHARED explicit ChannelGroup(const Convolution& call) : c(call), from(call) {
    blocks = round_up_quotient(c.big_channels, kBlock);
    const int64_t pixels = c.small_width < kReductionPixels ? c.small_width : kReductionPixels;
    const int64_t span = (pixels - 1) * c.stride_width + c.kernel_width;
    big_steps = rows_of_turn(c) * (span < c.big_width ? span : c.big_width) * kBlock;
    small_steps = from.small.in_place(0, 0) ? 0 : kReductionPixels * c.small_channels;
    const int64_t small_work = from.small.work_steps(c.small_channels);
    const int64_t big_work = from.big.work_steps(kBlock);
    work_steps = small_work > big_work ? small_work : big_work;
  }

  FASTGAN_SHARED int64_t groups() const { return c.kernel_height * blocks; }
  FASTGAN_SHARED int64_t rows() const { return c.kernel_width * c.small_channels; }
  FASTGAN_SHARED int64_t memory_bytes() const {
    return (big_steps + small_steps + work_steps) * sizeof(Step);
  }
  FASTGAN_SHARED int64_t channels(int64_t group) const {
    const int64_t left = c.big_channels - group % blocks * kBlock;
    return left < kBlock ? left : kBlock;
  }

  FASTGAN_SHARED void add(int64_t group, int64_t first, int64_t last, float* sums,
                          char* memory) const {
    const int64_t channel = group % blocks * kBlock, kernel_y = group / blocks;
    const int64_t width = channels(group), vectors = vectors_of(width);
    auto* big_buffer = reinterpret_cast<Step*>(memory);
    Step* small_buffer = big_buffer + big_steps;
    Step* work = small_buffer + small_steps;
    const bool whole = width == vectors * kLanes;
    memset(sums, 0, rows() * kBlock * sizeof(float));
    const int64_t all = (last - first) * c.small_height * c.small_width;
    for (int64_t begin = 0; begin < all; begin += kReductionPixels) {
      const Runs runs(c, first, begin, all);
      const Step *big[kReductionPixels], *small[kReductionPixels];  // of each run
      int64_t big_first[kReductionPixels];                          // the column that `big` is
      int64_t big_pitch = 0;
      Step *big_next = big_buffer, *small_next = small_buffer;
      for (int64_t index = 0; index < runs.count; ++index) {
        const Run& run = runs.run[index];
        big[index] = nullptr;
        const int64_t big_y = run.y * c.stride_height - c.padding_height + kernel_y;
        const Window columns(run.x, run.count, c.stride_width, c.padding_width, c.kernel_width,
                             c.big_width);
        if (big_y < 0 || big_y >= c.big_height || columns.count == 0) continue;
        const int64_t big_pixel = big_y * c.big_width + columns.first;
        const int64_t small_pixel = run.y * c.small_width + run.x;
        big_first[index] = columns.first;
        big_pitch = c.big_channels;
        big[index] = from.big.in_place(run.image, big_pixel);
        if (big[index] && whole) {
          big[index] += channel;
        } else {
          big_pitch = vectors * kLanes;
          pack_pixels(from.big, run.image, big_pixel, columns.count, channel, width, big_pitch,
                      work, big_next);
          big[index] = big_next;
          big_next += columns.count * big_pitch;
        }
        small[index] = from.small.in_place(run.image, small_pixel);
        if (!small[index]) {
          pack_pixels(from.small, run.image, small_pixel, run.count, 0, c.small_channels,
                      c.small_channels, work, small_next);
          small[index] = small_next;
          small_next += run.count * c.small_channels;
        }
      }
      for (int64_t kernel_x = 0; kernel_x < c.kernel_width; ++kernel_x) {
        Turn<Step> turn;
        for (int64_t index = 0; index < runs.count; ++index) {
          if (!big[index]) continue;
          const Run& run = runs.run[index];
          for (int64_t pixel = 0; pixel < run.count; ++pixel) {
            const int64_t big_x =
                (run.x + pixel) * c.stride_width - c.padding_width + kernel_x;
            if (big_x < 0 || big_x >= c.big_width) continue;
            turn.broadcast[turn.count] = small[index] + pixel * c.small_channels;
            turn.vectors[turn.count++] = big[index] + (big_x - big_first[index]) * big_pitch;
          }
        }
        add_turn(turn, c.small_channels, vectors, sums + kernel_x * c.small_channels * kBlock);
      }
    }
  }

  template <class T>
  FASTGAN_SHARED void store(int64_t group, int64_t begin, int64_t end, const float* sums,
                            T* result) const {
    const int64_t kernel_y = group / blocks, width = channels(group);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t kernel_x = row / c.small_channels, channel = row % c.small_channels;
      const int64_t tap = (channel * c.kernel_height + kernel_y) * c.kernel_width + kernel_x;
      store_row(result + tap * c.big_channels + group % blocks * kBlock, sums + row * kBlock,
                width);
    }
  }
};

// Few big-side channels: a group is a block of small channels, its sums are
// [tap][big channel][kBlock].
template <class Step>
struct PatchGroup {
  const Convolution& c;
  const GradientSources<Step> from;
  int64_t blocks, taps, band_steps, patch_steps, small_steps, work_steps;

  FASTGAN_SHARED explicit PatchGroup(const Convolution& call) : c(call), from(call) {
    blocks = round_up_quotient(c.small_channels, kBlock);
    taps = c.kernel_height * c.kernel_width;
    const int64_t turn_rows = rows_of_turn(c);
    const int64_t most = turn_rows < c.small_height ? turn_rows : c.small_height;
    const int64_t span = (most - 1) * c.stride_height + c.kernel_height;
    const int64_t lines = span < c.big_height ? span : c.big_height;
    band_steps = from.big.in_place(0, 0) ? 0 : lines * c.big_width * c.big_channels;
    band_steps = round_up_quotient(band_steps, kLanes) * kLanes;  // what follows is aligned
    patch_steps = kReductionPixels * rows();
    small_steps = kReductionPixels * kBlock;
    const int64_t small_work = from.small.work_steps(kBlock);
    const int64_t big_work = from.big.work_steps(c.big_channels);
    work_steps = small_work > big_work ? small_work : big_work;
  }

  FASTGAN_SHARED int64_t groups() const { return blocks; }
  FASTGAN_SHARED int64_t rows() const { return taps * c.big_channels; }
  FASTGAN_SHARED int64_t memory_bytes() const {
    return (band_steps + patch_steps + small_steps + work_steps) * sizeof(Step);
  }
  FASTGAN_SHARED int64_t channels(int64_t group) const {
    const int64_t left = c.small_channels - group * kBlock;
    return left < kBlock ? left : kBlock;
  }

  FASTGAN_SHARED void add(int64_t group, int64_t first, int64_t last, float* sums,
                          char* memory) const {
    Product product = fprop_product(c);
    const Phase phase = fprop_phase(c);
    const int64_t width = channels(group), vectors = vectors_of(width);
    auto* patches = reinterpret_cast<Step*>(memory);
    Step* small_buffer = patches + patch_steps;
    Step* band = small_buffer + small_steps;
    Step* work = band + band_steps;
    const bool whole = width == vectors * kLanes;
    memset(sums, 0, rows() * kBlock * sizeof(float));
    const int64_t all = (last - first) * c.small_height * c.small_width;
    for (int64_t begin = 0; begin < all; begin += kReductionPixels) {
      const Runs runs(c, first, begin, all);
      Turn<Step> turn;
      int64_t banded = -1, band_first = 0;  // the image whose rows the band holds
      const Step* big = nullptr;
      for (int64_t index = 0; index < runs.count; ++index) {
        const Run& run = runs.run[index];
        if (run.image != banded) {
          int64_t last_run = index;
          while (last_run + 1 < runs.count && runs.run[last_run + 1].image == run.image) ++last_run;
          const Window lines(run.y, runs.run[last_run].y - run.y + 1, c.stride_height,
                             c.padding_height, c.kernel_height, c.big_height);
          band_first = lines.first;
          product.input_height = lines.count;
          big = from.big.in_place(run.image, band_first * c.big_width);
          if (!big) {
            pack_pixels(from.big, run.image, band_first * c.big_width,
                        product.input_height * c.big_width, 0, c.big_channels, c.big_channels,
                        work, band);
            big = band;
          }
          banded = run.image;
        }
        const int64_t small_pixel = run.y * c.small_width + run.x;
        const Step* small = from.small.in_place(run.image, small_pixel);
        int64_t small_pitch = c.small_channels;
        if (small && whole) {
          small += group * kBlock;
        } else {
          small_pitch = vectors * kLanes;
          Step* target = small_buffer + turn.count * small_pitch;
          pack_pixels(from.small, run.image, small_pixel, run.count, group * kBlock, width,
                      small_pitch, work, target);
          small = target;
        }
        for (int64_t pixel = 0; pixel < run.count; ++pixel) {
          Step* patch = patches + turn.count * rows();
          copy_patch(product, phase, big,
                     run.y * c.stride_height - c.padding_height - band_first,
                     (run.x + pixel) * c.stride_width - c.padding_width, patch);
          turn.broadcast[turn.count] = patch;
          turn.vectors[turn.count++] = small + pixel * small_pitch;
        }
      }
      add_turn(turn, rows(), vectors, sums);
    }
  }

  template <class T>
  FASTGAN_SHARED void store(int64_t group, int64_t begin, int64_t end, const float* sums,
                            T* result) const {
    for (int64_t lane = 0; lane < channels(group); ++lane) {
      T* target = result + (group * kBlock + lane) * rows();
      for (int64_t row = begin; row < end; ++row) {
        target[row] = from_float<T>(sums[row * kBlock + lane]);
      }
    }
  }
};

template <class Group>
void add_groups(const Convolution& c, const Group& group) {
  const int64_t weights = c.small_channels * c.kernel_height * c.kernel_width * c.big_channels;
  const int64_t images = group.from.small.step_images();
  const Split split(images, group.groups(), weights);
  with_type(c.result_type, [&](auto element) {
    using T = typename decltype(element)::type;
    add_splits(
        split, group.groups(), group.rows(), group.rows() * kBlock, group.memory_bytes(),
        [&](int64_t index, int64_t part, float* sums, char* memory) {
          const int64_t first = part * split.images, last = first + split.images;
          group.add(index, first, last < images ? last : images, sums, memory);
        },
        [&](int64_t index, int64_t begin, int64_t end, const float* sums) {
          group.store(index, begin, end, sums, static_cast<T*>(c.result));
        });
  });
}

void wgrad(const Convolution& call) {
  with_step(call.type, call.batch > 1, [&](auto chosen) {
    using Step = typename decltype(chosen)::type;
    if (call.big_channels < kFewInputs) return add_groups(call, PatchGroup<Step>(call));
    add_groups(call, ChannelGroup<Step>(call));
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
