// wgrad: the sum over images and small-side pixels of small (x) big, for every tap.
//
// The reduction runs over pixels, so that both operands are read where they lie: at each step one
// side is broadcast, the other is a vector. bfloat16 pairs come from two neighbouring images: one
// interleaved copy of each operand serves all taps and any stride. Only pixels whose tap lies inside
// the big side are visited.
//
//     dw[s, tap, b..b+kBlock] += small[n, y, x, s] * big[n, y', x', b..b+kBlock]
//
// With few big-side channels (images) the sides change places: small channels are the vector, and
// taps x channels of a copied patch are broadcast.
#pragma once

#include "products.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kReductionPixels = 128;  // of one turn: their operands stay in the caches

// An operand as steps [images][pixels][channels]: images are pairs of images for bfloat16.
template <class Step>
struct StepImages {
  const Step* data;
  int64_t images, channels;  // channels: the vector side's are padded to whole vectors
};

// Rows of pixels of two images, zipped into pairs `width` apart; the last of an odd number of images
// is zipped with zeros. `source` is the first image's first row.
FASTGAN_SHARED void fill_pairs(const Prologue& prologue, const BFloat16* source, int64_t pair,
                               int64_t images, int64_t pixels, int64_t channels, int64_t rows,
                               int64_t width, Pair* target) {
  const BFloat16* first = source + 2 * pair * pixels * channels;
  const BFloat16* second = 2 * pair + 1 < images ? first + pixels * channels : nullptr;
  if (prologue.scale) {  // into a buffer first, which the caches hold: zipping takes whole rows
    auto* buffer = static_cast<BFloat16*>(
        scratch(Scratch::task, 2 * rows * channels * sizeof(BFloat16)));
    for (int64_t half = 0; half < (second ? 2 : 1); ++half) {
      apply_prologue(prologue, group_of(prologue, 2 * pair + half), 0, channels,
                     half ? second : first, channels, rows, buffer + half * rows * channels,
                     channels);
    }
    first = buffer;
    second = second ? buffer + rows * channels : nullptr;
  }
  for (int64_t row = 0; row < rows; ++row, target += width) {
    pack_row(reinterpret_cast<BFloat16*>(target), first, second, channels);
    first += channels;
    if (second) second += channels;
  }
}

// The operand for the reduction over pixels, as the prologue leaves it, its channels padded with
// zeros to `width`.
template <class Step>
StepImages<Step> step_images(const Prologue& prologue, const void* source, DataType type,
                             int64_t images, int64_t pixels, int64_t channels, int64_t width,
                             Scratch slot) {
  if constexpr (kElements<Step> == 1) {
    if (type == DataType::float32 && width == channels && !prologue.scale) {
      return {static_cast<const Step*>(source), images, width};
    }
  }
  const int64_t step_images = (images + kElements<Step> - 1) / kElements<Step>;
  auto* target =
      static_cast<Step*>(scratch(slot, (step_images * pixels + 1) * width * sizeof(Step)));
  constexpr int64_t kPiece = 64;  // pixels a task
  const int64_t pieces = round_up_quotient(pixels, kPiece);
  parallel_for(step_images * pieces, [&](int64_t task) {
    const int64_t image = task / pieces, begin = task % pieces * kPiece;
    const int64_t rows = begin + kPiece < pixels ? kPiece : pixels - begin;
    Step* row = target + (image * pixels + begin) * width;
    if constexpr (kElements<Step> == 2) {
      fill_pairs(prologue, static_cast<const BFloat16*>(source) + begin * channels, image, images,
                 pixels, channels, rows, width, row);
    } else {
      with_type(type, [&](auto element) {
        using T = typename decltype(element)::type;
        const T* from = static_cast<const T*>(source) + (image * pixels + begin) * channels;
        if (prologue.scale) {
          apply_prologue(prologue, group_of(prologue, image), 0, channels, from, channels, rows,
                         row, width);
          return;
        }
        for (int64_t pixel = 0; pixel < rows; ++pixel, from += channels) {
          Step* to = row + pixel * width;
          int64_t channel = 0;
          for (; channel + kLanes <= channels; channel += kLanes) {
            store(to + channel, load(from + channel));
          }
          if (channel < channels) {
            const int left = static_cast<int>(channels - channel);
            store_first(to + channel, load_first(from + channel, left), left);
          }
        }
      });
    }
    if (width > channels) {
      for (int64_t pixel = 0; pixel < rows; ++pixel) {
        memset(static_cast<void*>(row + pixel * width + channels), 0,
               (width - channels) * sizeof(Step));
      }
    }
  });
  return {target, step_images, width};
}

// Channels that the vector side's tiles touch.
FASTGAN_SHARED int64_t vector_width(int64_t channels) {
  const int64_t whole = channels / kBlock * kBlock, rest = channels - whole;
  return rest ? whole + vectors_of(rest) * kLanes : whole;
}

// One turn's pixels: where the broadcast and the vector operand of each step lie.
template <class Step>
struct Turn {
  const Step* broadcast[kReductionPixels];
  const Step* vectors[kReductionPixels];
  int64_t count = 0;
};

template <int R, class Step>
FASTGAN_SHARED void add_rows(const Turn<Step>& turn, int64_t row, int64_t vector, int64_t vectors,
                             float* sums) {
  if (vectors == 1) {
    add_outer_products<R, 1>(turn.broadcast, row, turn.vectors, vector, turn.count, sums);
  } else if (kVectors == 2 || vectors == 2) {
    add_outer_products<R, 2>(turn.broadcast, row, turn.vectors, vector, turn.count, sums);
  } else {
    add_outer_products<R, kVectors>(turn.broadcast, row, turn.vectors, vector, turn.count, sums);
  }
}

// sums[rows][kBlock] += the turn's outer products.
template <class Step>
FASTGAN_SHARED void add_turn(const Turn<Step>& turn, int64_t rows, int64_t vector, int64_t vectors,
                             float* sums) {
  if (turn.count == 0) return;
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    add_rows<kRows>(turn, row, vector, vectors, sums + row * kBlock);
  }
  for (; row + 2 <= rows; row += 2) add_rows<2>(turn, row, vector, vectors, sums + row * kBlock);
  for (; row < rows; ++row) add_rows<1>(turn, row, vector, vectors, sums + row * kBlock);
}

// How the weight gradient is cut into tasks: by the shape alone. Splits of the images have partial
// results of their own, which are added in order.
struct Split {
  int64_t count, images;  // images: (pairs of) images of each but the last

  Split(int64_t all_images, int64_t tasks, int64_t weights) {
    if (all_images == 0) {
      count = 1, images = 0;
      return;
    }
    const int64_t wanted = weights <= (int64_t{1} << 18) ? 32 : 16;
    count = tasks >= wanted ? 1 : round_up_quotient(wanted, tasks);
    if (count > all_images) count = all_images;
    images = round_up_quotient(all_images, count);
    count = round_up_quotient(all_images, images);
  }
};

// Adds the splits' partial results in order and stores them as T.
template <class T>
void store_weight(const float* partials, int64_t splits, int64_t count, T* result) {
  constexpr int64_t kPiece = 4096;
  parallel_for(round_up_quotient(count, kPiece), [&](int64_t task) {
    const int64_t end = (task + 1) * kPiece < count ? (task + 1) * kPiece : count;
    for (int64_t index = task * kPiece; index < end; index += kLanes) {
      const int width = index + kLanes <= end ? kLanes : static_cast<int>(end - index);
      Lanes sum = load_width(partials + index, width);
      for (int64_t split = 1; split < splits; ++split) {
        sum += load_width(partials + split * count + index, width);
      }
      store_width(result + index, sum, width);
    }
  });
}

// Many big-side channels: a task is (split, kernel row, block of big channels).
template <class Step>
void add_channels(const Convolution& c, const StepImages<Step>& big, const StepImages<Step>& small,
                  const Split& split, float* partials) {
  const int64_t blocks = round_up_quotient(c.big_channels, kBlock);
  const int64_t weights = c.small_channels * c.kernel_height * c.kernel_width * c.big_channels;
  const int64_t rows = c.small_channels;
  parallel_for(split.count * c.kernel_height * blocks, [&](int64_t task) {
    const int64_t block = task % blocks, kernel_y = task / blocks % c.kernel_height;
    const int64_t index = task / blocks / c.kernel_height, channel = block * kBlock;
    const int64_t channels = channel + kBlock <= c.big_channels ? kBlock : c.big_channels - channel;
    auto* sums = static_cast<float*>(
        scratch(Scratch::task, rows * c.kernel_width * kBlock * sizeof(float)));
    memset(sums, 0, rows * c.kernel_width * kBlock * sizeof(float));
    const int64_t first = index * split.images;
    const int64_t last = first + split.images < small.images ? first + split.images : small.images;
    const int64_t all = (last - first) * c.small_height * c.small_width;
    for (int64_t begin = 0; begin < all; begin += kReductionPixels) {
      const int64_t end = begin + kReductionPixels < all ? begin + kReductionPixels : all;
      for (int64_t kernel_x = 0; kernel_x < c.kernel_width; ++kernel_x) {
        Turn<Step> turn;
        for (int64_t pixel = begin; pixel < end; ++pixel) {
          const int64_t x = pixel % c.small_width, y = pixel / c.small_width % c.small_height;
          const int64_t image = first + pixel / c.small_width / c.small_height;
          const int64_t big_y = y * c.stride_height - c.padding_height + kernel_y;
          const int64_t big_x = x * c.stride_width - c.padding_width + kernel_x;
          if (big_y < 0 || big_y >= c.big_height || big_x < 0 || big_x >= c.big_width) continue;
          turn.broadcast[turn.count] =
              small.data + ((image * c.small_height + y) * c.small_width + x) * small.channels;
          turn.vectors[turn.count++] =
              big.data + ((image * c.big_height + big_y) * c.big_width + big_x) * big.channels;
        }
        add_turn(turn, rows, channel, vectors_of(channels), sums + kernel_x * rows * kBlock);
      }
    }
    float* target = partials + index * weights + kernel_y * c.kernel_width * c.big_channels;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t kernel_x = 0; kernel_x < c.kernel_width; ++kernel_x) {
        memcpy(target + (row * c.kernel_height * c.kernel_width + kernel_x) * c.big_channels +
                   channel,
               sums + (kernel_x * rows + row) * kBlock, channels * sizeof(float));
      }
    }
  });
}

// Few big-side channels: a task is (split, block of small channels).
template <class Step>
void add_patch_rows(const Convolution& c, const StepImages<Step>& big,
                    const StepImages<Step>& small, const Split& split, float* partials) {
  Product product = fprop_product(c);
  product.inputs = big.channels;
  const Phase phase = fprop_phase(c);
  const int64_t blocks = round_up_quotient(c.small_channels, kBlock);
  const int64_t taps = c.kernel_height * c.kernel_width;
  const int64_t weights = c.small_channels * taps * c.big_channels;
  const int64_t rows = taps * big.channels;
  const int64_t big_image = c.big_height * c.big_width * big.channels;
  parallel_for(split.count * blocks, [&](int64_t task) {
    const int64_t channel = task % blocks * kBlock, index = task / blocks;
    const int64_t channels =
        channel + kBlock <= c.small_channels ? kBlock : c.small_channels - channel;
    auto* sums = static_cast<float*>(scratch(
        Scratch::task, rows * kBlock * sizeof(float) + kReductionPixels * rows * sizeof(Step)));
    auto* patches = reinterpret_cast<Step*>(sums + rows * kBlock);
    memset(sums, 0, rows * kBlock * sizeof(float));
    const int64_t first = index * split.images;
    const int64_t last = first + split.images < small.images ? first + split.images : small.images;
    const int64_t all = (last - first) * c.small_height * c.small_width;
    for (int64_t begin = 0; begin < all; begin += kReductionPixels) {
      const int64_t end = begin + kReductionPixels < all ? begin + kReductionPixels : all;
      Turn<Step> turn;
      for (int64_t pixel = begin; pixel < end; ++pixel) {
        const int64_t x = pixel % c.small_width, y = pixel / c.small_width % c.small_height;
        const int64_t image = first + pixel / c.small_width / c.small_height;
        Step* patch = patches + turn.count * rows;
        copy_patch(product, phase, big.data + image * big_image,
                   y * c.stride_height - c.padding_height, x * c.stride_width - c.padding_width,
                   patch);
        turn.broadcast[turn.count] = patch;
        turn.vectors[turn.count++] =
            small.data + ((image * c.small_height + y) * c.small_width + x) * small.channels;
      }
      add_turn(turn, rows, channel, vectors_of(channels), sums);
    }
    float* target = partials + index * weights;
    for (int64_t lane = 0; lane < channels; ++lane) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t b = 0; b < c.big_channels; ++b) {
          target[((channel + lane) * taps + tap) * c.big_channels + b] =
              sums[(tap * big.channels + b) * kBlock + lane];
        }
      }
    }
  });
}

void wgrad(const Convolution& call) {
  const int64_t taps = call.kernel_height * call.kernel_width;
  const int64_t weights = call.small_channels * taps * call.big_channels;
  with_step(call.type, [&](auto chosen) {
    using Step = typename decltype(chosen)::type;
    const bool few = call.big_channels < kFewInputs;
    const auto big =
        step_images<Step>(call.big_prologue, call.big, call.type, call.batch, call.big_height * call.big_width,
                          call.big_channels,
                          few ? call.big_channels : vector_width(call.big_channels),
                          Scratch::first_operand);
    const auto small =
        step_images<Step>(call.small_prologue, call.small, call.type, call.batch, call.small_height * call.small_width,
                          call.small_channels,
                          few ? vector_width(call.small_channels) : call.small_channels,
                          Scratch::second_operand);
    const int64_t tasks = few ? round_up_quotient(call.small_channels, kBlock)
                              : call.kernel_height * round_up_quotient(call.big_channels, kBlock);
    const Split split(small.images, tasks, weights);
    auto* partials = static_cast<float*>(
        scratch(Scratch::partials, split.count * weights * sizeof(float)));
    if (few) {
      add_patch_rows(call, big, small, split, partials);
    } else {
      add_channels(call, big, small, split, partials);
    }
    with_type(call.result_type, [&](auto element) {
      using T = typename decltype(element)::type;
      store_weight<T>(partials, split.count, weights, static_cast<T*>(call.result));
    });
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
