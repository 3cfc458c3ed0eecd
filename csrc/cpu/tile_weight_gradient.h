// wgrad of bfloat16 on AMX tiles: 32 images at one place are the reduction of one tile product.
//
//     dw[16 s, tap, 16 b]  +=  small [16 s x 32 images]  x  big [32 images, in pairs, x 16 b]
//
// Both sides are copied once a call into dense tiles; the big side's copy serves all taps at any
// stride. Places whose tap lies outside the big side are left out.
#pragma once

#include "tile_convolution.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kTileImages = 32;  // of one reduction
constexpr int64_t kTurnPlaces = 64;  // whose tiles stay in the second-level cache

// Blocks of 16 channels come in twos, so that every tile of a 2 x 2 product exists.
FASTGAN_SHARED int64_t even_blocks(int64_t channels) {
  return round_up_quotient(channels, 2 * kTileRows) * 2;
}

// Transposed: [group of 32 images][pixel][block of 16 channels][16 channels][32 images].
// In pairs:   [group of 32 images][pixel][block of 16 channels][16 pairs of images][16 channels][2].
FASTGAN_SHARED const BFloat16* reduction_tiles(const Prologue& prologue, const BFloat16* source,
                                               int64_t images, int64_t pixels, int64_t channels,
                                               bool pairs, Scratch slot) {
  const int64_t groups = round_up_quotient(images, kTileImages);
  const int64_t blocks = even_blocks(channels);
  auto* target = static_cast<BFloat16*>(
      scratch(slot, groups * pixels * blocks * kTileElements * sizeof(BFloat16)));
  parallel_for(groups * pixels, [&](int64_t task) {
    const int64_t group = task / pixels, pixel = task % pixels;
    BFloat16* tile = target + task * blocks * kTileElements;
    for (int64_t block = 0; block < blocks; ++block, tile += kTileElements) {
      const int64_t first = block * kTileRows;
      const int64_t left = channels - first;  // the last block may not exist at all
      const int64_t width = left < 0 ? 0 : left < kTileRows ? left : kTileRows;
      memset(tile, 0, kTileElements * sizeof(BFloat16));
      for (int64_t lane = 0; lane < kTileImages; ++lane) {
        const int64_t image = group * kTileImages + lane;
        if (image >= images) break;
        const BFloat16* row = source + (image * pixels + pixel) * channels + first;
        BFloat16 normalised[kTileRows];
        if (prologue.scale && width > 0) {
          apply_prologue(prologue, group_of(prologue, image), first, width, row, 0, 1, normalised,
                         0);
          row = normalised;
        }
        BFloat16* column = tile + (pairs ? lane / 2 * 32 + lane % 2 : lane);
        const int64_t step = pairs ? 2 : kTileImages;
        for (int64_t channel = 0; channel < width; ++channel) column[channel * step] = row[channel];
      }
    }
  });
  return target;
}

// The tiles of a turn: where the small and the big side of each place lie.
struct TileTurn {
  const BFloat16 *small[kTurnPlaces], *big[kTurnPlaces];
  int64_t count = 0;
};

// sums[32 small channels][kBlock] (32 columns of it) += the turn's products.
FASTGAN_SHARED void add_tile_products(const TileTurn& turn, int64_t small_block, int64_t big_block,
                              float* sums) {
  constexpr int64_t kStride = kBlock * sizeof(float);
  float* below = sums + kTileRows * kBlock;
  FASTGAN_TILE_LOAD(0, sums, kStride);
  FASTGAN_TILE_LOAD(1, sums + kTileRows, kStride);
  FASTGAN_TILE_LOAD(2, below, kStride);
  FASTGAN_TILE_LOAD(3, below + kTileRows, kStride);
  for (int64_t place = 0; place < turn.count; ++place) {
    const BFloat16* small = turn.small[place] + small_block * kTileElements;
    const BFloat16* big = turn.big[place] + big_block * kTileElements;
    FASTGAN_TILE_LOAD(4, small, kTileBytes);
    FASTGAN_TILE_LOAD(5, small + kTileElements, kTileBytes);
    FASTGAN_TILE_LOAD(6, big, kTileBytes);
    FASTGAN_TILE_LOAD(7, big + kTileElements, kTileBytes);
    FASTGAN_TILE_MULTIPLY(0, 4, 6);
    FASTGAN_TILE_MULTIPLY(1, 4, 7);
    FASTGAN_TILE_MULTIPLY(2, 5, 6);
    FASTGAN_TILE_MULTIPLY(3, 5, 7);
  }
  FASTGAN_TILE_STORE(0, sums, kStride);
  FASTGAN_TILE_STORE(1, sums + kTileRows, kStride);
  FASTGAN_TILE_STORE(2, below, kStride);
  FASTGAN_TILE_STORE(3, below + kTileRows, kStride);
}

void tile_wgrad(const Convolution& c) {
  if (c.type != DataType::bfloat16 || c.big_channels < kFewTileInputs) return wgrad(c);
  const int64_t small_blocks = even_blocks(c.small_channels);
  const int64_t big_blocks = even_blocks(c.big_channels);
  const int64_t small_channels = small_blocks * kTileRows, big_channels = big_blocks * kTileRows;
  const int64_t small_places = c.small_height * c.small_width;
  const BFloat16* big =
      reduction_tiles(c.big_prologue, static_cast<const BFloat16*>(c.big), c.batch,
                      c.big_height * c.big_width, c.big_channels, true, Scratch::first_operand);
  const BFloat16* small =
      reduction_tiles(c.small_prologue, static_cast<const BFloat16*>(c.small), c.batch,
                      small_places, c.small_channels, false, Scratch::second_operand);
  const int64_t groups = round_up_quotient(c.batch, kTileImages);
  const int64_t blocks = round_up_quotient(c.big_channels, kBlock);
  const int64_t weights = c.small_channels * c.kernel_height * c.kernel_width * c.big_channels;
  const Split split(groups * small_places, c.kernel_height * blocks, weights);
  const int64_t all = groups * small_places, size = small_channels * kBlock;
  auto add = [&](int64_t group_of_sums, int64_t part, float* sums, char*) {
    const Tiles configured;
    const int64_t channel = group_of_sums % blocks * kBlock, kernel_y = group_of_sums / blocks;
    const int64_t columns = channel + kBlock <= big_channels ? kBlock : big_channels - channel;
    memset(sums, 0, c.kernel_width * size * sizeof(float));
    const int64_t first = part * split.images;
    const int64_t last = first + split.images < all ? first + split.images : all;
    for (int64_t begin = first; begin < last; begin += kTurnPlaces) {
      const int64_t end = begin + kTurnPlaces < last ? begin + kTurnPlaces : last;
      for (int64_t kernel_x = 0; kernel_x < c.kernel_width; ++kernel_x) {
        TileTurn turn;
        for (int64_t place = begin; place < end; ++place) {
          const int64_t group = place / small_places, y = place % small_places / c.small_width;
          const int64_t x = place % c.small_width;
          const int64_t big_y = y * c.stride_height - c.padding_height + kernel_y;
          const int64_t big_x = x * c.stride_width - c.padding_width + kernel_x;
          if (big_y < 0 || big_y >= c.big_height || big_x < 0 || big_x >= c.big_width) continue;
          turn.small[turn.count] = small + place * small_blocks * kTileElements;
          turn.big[turn.count++] =
              big + ((group * c.big_height + big_y) * c.big_width + big_x) * big_blocks *
                        kTileElements;
        }
        for (int64_t row = 0; row < small_channels; row += 2 * kTileRows) {
          for (int64_t column = 0; column < columns; column += 2 * kTileRows) {
            add_tile_products(turn, row / kTileRows, (channel + column) / kTileRows,
                              sums + kernel_x * size + row * kBlock + column);
          }
        }
      }
    }
  };
  with_type(c.result_type, [&](auto element) {
    using T = typename decltype(element)::type;
    auto store_rows = [&](int64_t group, int64_t begin, int64_t end, const float* sums) {
      const int64_t channel = group % blocks * kBlock, kernel_y = group / blocks;
      const int64_t width =
          channel + kBlock <= c.big_channels ? kBlock : c.big_channels - channel;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t kernel_x = row / small_channels, s = row % small_channels;
        if (s >= c.small_channels) continue;
        const int64_t tap = (s * c.kernel_height + kernel_y) * c.kernel_width + kernel_x;
        store_row(static_cast<T*>(c.result) + tap * c.big_channels + channel, sums + row * kBlock,
                  width);
      }
    };
    const int64_t rows = c.kernel_width * small_channels;
    add_splits(split, c.kernel_height * blocks, rows, rows * kBlock, 0, add, store_rows);
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
