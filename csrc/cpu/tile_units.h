// The input of fprop and dgrad on AMX tiles, a unit at a time.
//
// A unit is a few groups of 16 images, or a few rows of places of one: as much as half of the
// second-level cache holds. Its task copies it into memory of its own, [group][row][block of 32
// channels][column][16 images][32 channels], so that a tile is 1 KB of dense memory and neighbouring
// taps are neighbouring tiles. No input is ever copied as a whole.
#pragma once

#include "epilogue.h"
#include "tile_patches.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kUnitBytes = int64_t{1} << 20;  // if one row of places needs no more

// The images' channels at one pixel, as the prologue leaves them: [16 images][32 channels], zeros
// where there is no image or channel. Images lie `stride` apart.
FASTGAN_SHARED void fill_tile(const Prologue& prologue, const BFloat16* source, int64_t stride,
                              int64_t first_image, int64_t images, int64_t channel, int64_t width,
                              BFloat16* tile) {
  if (images == kTileRows && width == kTileDepth && !prologue.scale) {
    FASTGAN_UNROLL for (int64_t row = 0; row < kTileRows; ++row) {
      memcpy(tile + row * kTileDepth, source + row * stride, kTileBytes);
    }
    return;
  }
  for (int64_t row = 0; row < kTileRows; ++row) {
    const int64_t filled = row < images ? width : 0;
    BFloat16* target = tile + row * kTileDepth;
    if (filled < kTileDepth) memset(target + filled, 0, (kTileDepth - filled) * sizeof(BFloat16));
    if (filled && !prologue.scale) copy_elements(target, source + row * stride, filled);
  }
  if (!prologue.scale) return;
  for (int64_t row = 0, end; row < images; row = end) {  // the images of one statistics group
    const int64_t group = group_of(prologue, first_image + row);
    end = (group + 1) * prologue.images - first_image;
    if (end > images) end = images;
    apply_prologue(prologue, group, channel, width, source + row * stride, stride, end - row,
                   tile + row * kTileDepth, kTileDepth);
  }
}

// Up to 16 images of one slice of the batch.
struct ImageGroup {
  int64_t slice, group, first_image, images;

  FASTGAN_SHARED ImageGroup(const Product& product, int64_t index) {
    const int64_t all = product.batch / groups_of(product);
    const int64_t groups = round_up_quotient(all, kTileRows);
    slice = index / groups, group = index % groups;
    first_image = slice * all + group * kTileRows;
    const int64_t left = all - group * kTileRows;
    images = left < kTileRows ? left : kTileRows;
  }
};

// Packs one row of pixels of a group: [block of 32 channels][column][16 images][32 channels].
FASTGAN_SHARED void pack_pixel_row(const Product& product, const Prologue& prologue,
                                   const BFloat16* input, const ImageGroup& group, int64_t y,
                                   BFloat16* target) {
  const int64_t width = product.input_width, channels = product.inputs;
  const int64_t stride = product.input_height * width * channels;
  const BFloat16* source = input + group.first_image * stride + y * width * channels;
  for (int64_t x = 0; x < width; ++x, source += channels) {
    for (int64_t first = 0; first < channels; first += kTileDepth) {
      const int64_t left = channels - first;
      fill_tile(prologue, source + first, stride, group.first_image, group.images, first,
                left < kTileDepth ? left : kTileDepth,
                target + (first / kTileDepth * width + x) * kTileElements);
    }
  }
}

// As pack_pixel_row, of the patches of a row of places.
FASTGAN_SHARED void pack_patch_row(const PatchShape& shape, const BFloat16* input,
                                   const ImageGroup& group, int64_t y, BFloat16* buffer,
                                   BFloat16* target) {
  const Convolution& call = shape.call;
  const int64_t size = call.big_height * call.big_width * call.big_channels;
  const int64_t width = call.small_width;
  if (group.images < kTileRows) {
    memset(target, 0, shape.width() / kTileDepth * width * kTileElements * sizeof(BFloat16));
  }
  for (int64_t image = 0; image < group.images; ++image) {
    shape.copy(input + (group.first_image + image) * size, y, 0, width, buffer,
               [&](int64_t place, int64_t element) {
                 return target + (element / kTileDepth * width + place) * kTileElements +
                        image * kTileDepth + element % kTileDepth;
               });
  }
}

// How a product is cut into units: `groups` groups of images by `rows` rows of places of each phase.
struct TileUnits {
  int64_t all_groups, all_rows, groups, rows, input_rows;
  int64_t low, high;  // of the input rows that row 0 reads

  template <class PhaseOf>
  TileUnits(const Product& product, int64_t phases, const PhaseOf& phase_of, int64_t columns) {
    all_groups = groups_of(product) *
                 round_up_quotient(product.batch / groups_of(product), kTileRows);
    all_rows = 0, low = product.input_height, high = -product.input_height;
    for (int64_t index = 0; index < phases; ++index) {
      const Phase phase = phase_of(index);
      if (phase.grid_height > all_rows) all_rows = phase.grid_height;
      if (phase.taps_y == 0) continue;
      const int64_t other = phase.offset_y + (phase.taps_y - 1) * product.tap_shift;
      const int64_t least = other < phase.offset_y ? other : phase.offset_y;
      const int64_t most = other < phase.offset_y ? phase.offset_y : other;
      if (least < low) low = least;
      if (most > high) high = most;
    }
    if (all_groups == 0 || all_rows == 0) {
      groups = rows = input_rows = 0;
      return;
    }
    const int64_t blocks = round_up_quotient(product.inputs, kTileDepth);
    const int64_t row_bytes =
        product.input_width * blocks * kTileElements * int64_t{sizeof(BFloat16)};
    auto rows_for = [&](int64_t count) {
      const int64_t span = (count - 1) * product.input_stride_y + high - low + 1;
      return span < product.input_height ? span : product.input_height;
    };
    rows = all_rows;
    while (rows > 1 && rows_for(rows) * row_bytes > kUnitBytes) --rows;
    groups = rows < all_rows ? 1 : kUnitBytes / (rows_for(rows) * row_bytes);
    if (groups < 1) groups = 1;
    // Enough tasks for the threads; which of them share a unit changes no bit.
    const int64_t wanted = 2 * threads();
    while (groups > 1 && round_up_quotient(all_groups, groups) * columns < wanted) --groups;
    while (rows > 1 && all_groups * round_up_quotient(all_rows, rows) * columns < wanted) --rows;
    groups = round_up_quotient(all_groups, round_up_quotient(all_groups, groups));
    rows = round_up_quotient(all_rows, round_up_quotient(all_rows, rows));
    input_rows = rows_for(rows);
  }

  FASTGAN_SHARED int64_t bands() const { return round_up_quotient(all_rows, rows); }
  FASTGAN_SHARED int64_t count() const {
    return rows == 0 ? 0 : round_up_quotient(all_groups, groups) * bands();
  }
};

}  // namespace fastgan::cpu::FASTGAN_LEVEL
