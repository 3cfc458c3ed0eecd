// fprop and dgrad of bfloat16 on AMX tiles.
//
// A tile's 16 rows are the same place in 16 images. The input is copied once a call so that such a
// tile is 1 KB of dense memory, [group of images][y][x][block of 32 channels][16 images][32
// channels]: every tap at every stride is then a dense load, and padding is a tile that is left out.
// A product makes two places by 32 output channels at a time in four accumulator tiles:
//
//     c0 c1   +=   a0   x   b0 b1         a: places (16 images x 32 channels)
//     c2 c3        a1                     b: weights (32 channels x 16 outputs, in pairs)
#pragma once

#include "products.h"
#include "tile_packing.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// The images' channels at one pixel, as the prologue leaves them: [16 images][32 channels], zeros
// where there is no image or channel. Images lie `stride` apart.
FASTGAN_SHARED void fill_tile(const Prologue& prologue, const BFloat16* source, int64_t stride,
                              int64_t first_image, int64_t images, int64_t channel, int64_t width,
                              BFloat16* tile) {
  for (int64_t row = 0; row < kTileRows; ++row) {
    const int64_t filled = row < images ? width : 0;
    BFloat16* target = tile + row * kTileDepth;
    memset(target + filled, 0, (kTileDepth - filled) * sizeof(BFloat16));
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

// Groups of up to 16 images of one slice of the batch.
FASTGAN_SHARED int64_t tile_groups_of_slice(const Product& product) {
  return round_up_quotient(product.batch / groups_of(product), kTileRows);
}

// [slice][group of 16 images][pixel][block of 32 channels][16 images][32 channels]
FASTGAN_SHARED const BFloat16* image_tiles(const Product& product, const Prologue& prologue,
                                           const BFloat16* source, Scratch slot) {
  const int64_t slices = groups_of(product), images = product.batch / slices;
  const int64_t groups = tile_groups_of_slice(product), channels = product.inputs;
  const int64_t pixels = product.input_height * product.input_width;
  const int64_t blocks = round_up_quotient(channels, kTileDepth);
  auto* target = static_cast<BFloat16*>(
      scratch(slot, slices * groups * pixels * blocks * kTileElements * sizeof(BFloat16)));
  parallel_for(slices * groups * pixels, [&](int64_t task) {
    const int64_t group = task / pixels % groups, pixel = task % pixels;
    const int64_t left = images - group * kTileRows;
    const int64_t first_image = task / pixels / groups * images + group * kTileRows;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * kTileDepth;
      const int64_t width = first + kTileDepth <= channels ? kTileDepth : channels - first;
      fill_tile(prologue, source + (first_image * pixels + pixel) * channels + first,
                pixels * channels, first_image, left < kTileRows ? left : kTileRows, first, width,
                target + (task * blocks + block) * kTileElements);
    }
  });
  return target;
}

// One place of the output grid, as a tap sees it.
struct Place {
  int64_t y, x;

  // The tile of the tap's input, or null outside the input.
  FASTGAN_SHARED const BFloat16* tile(const Product& product, const Phase& phase,
                                      const BFloat16* group, int64_t blocks, int64_t tap_y,
                                      int64_t tap_x) const {
    const int64_t input_y =
        y * product.input_stride_y + phase.offset_y + tap_y * product.tap_shift;
    const int64_t input_x =
        x * product.input_stride_x + phase.offset_x + tap_x * product.tap_shift;
    if (input_y < 0 || input_y >= product.input_height || input_x < 0 ||
        input_x >= product.input_width) {
      return nullptr;
    }
    return group + (input_y * product.input_width + input_x) * blocks * kTileElements;
  }
};

// Sums of two places by 32 outputs: sums is [2 places][16 images][kBlock].
FASTGAN_SHARED void multiply_places(const Product& product, const Phase& phase, const Place* places,
                            int64_t count, const BFloat16* group, int64_t blocks,
                            const Pair* weights, float* sums) {
  FASTGAN_TILE_ZERO(0);
  FASTGAN_TILE_ZERO(1);
  FASTGAN_TILE_ZERO(2);
  FASTGAN_TILE_ZERO(3);
  for (int64_t tap_y = 0; tap_y < phase.taps_y; ++tap_y) {
    for (int64_t tap_x = 0; tap_x < phase.taps_x; ++tap_x) {
      const BFloat16* first = places[0].tile(product, phase, group, blocks, tap_y, tap_x);
      const BFloat16* second =
          count > 1 ? places[1].tile(product, phase, group, blocks, tap_y, tap_x) : nullptr;
      if (!first && !second) continue;
      const int64_t tap = (phase.first_tap_y + tap_y * product.tap_step_y) * product.kernel_width +
                          phase.first_tap_x + tap_x * product.tap_step_x;
      const Pair* tap_weights = weights + tap * blocks * kTileRows * kBlock;
      for (int64_t block = 0; block < blocks; ++block) {
        const Pair* columns = tap_weights + block * kTileRows * kBlock;
        FASTGAN_TILE_LOAD(6, columns, kBlock * sizeof(Pair));
        FASTGAN_TILE_LOAD(7, columns + kTileRows, kBlock * sizeof(Pair));
        if (first) {
          FASTGAN_TILE_LOAD(4, first + block * kTileElements, kTileBytes);
          FASTGAN_TILE_MULTIPLY(0, 4, 6);
          FASTGAN_TILE_MULTIPLY(1, 4, 7);
        }
        if (second) {
          FASTGAN_TILE_LOAD(5, second + block * kTileElements, kTileBytes);
          FASTGAN_TILE_MULTIPLY(2, 5, 6);
          FASTGAN_TILE_MULTIPLY(3, 5, 7);
        }
      }
    }
  }
  constexpr int64_t kStride = kBlock * sizeof(float);
  FASTGAN_TILE_STORE(0, sums, kStride);
  FASTGAN_TILE_STORE(1, sums + kTileRows, kStride);
  FASTGAN_TILE_STORE(2, sums + kTileRows * kBlock, kStride);
  FASTGAN_TILE_STORE(3, sums + kTileRows * kBlock + kTileRows, kStride);
}

// The pixels of up to two places in one group of images, in the order of multiply_places's sums.
FASTGAN_SHARED void list_pixels(const Place* places, int64_t count, int64_t first_image,
                                int64_t images, Pixels& pixels) {
  pixels.count = 0;
  for (int64_t place = 0; place < count; ++place) {
    for (int64_t row = 0; row < images; ++row, ++pixels.count) {
      pixels.image[pixels.count] = first_image + row;
      pixels.y[pixels.count] = places[place].y;
      pixels.x[pixels.count] = places[place].x;
    }
  }
}

template <class PhaseOf>
void run_tiles(const Product& product, int64_t phases, const PhaseOf& phase_of,
               const BFloat16* tiles, const Pair* packed, int64_t taps) {
  const int64_t channel_blocks = round_up_quotient(product.inputs, kTileDepth);
  const int64_t groups = tile_groups_of_slice(product);
  const int64_t group_size =
      product.input_height * product.input_width * channel_blocks * kTileElements;
  int64_t rows = 0;
  for (int64_t index = 0; index < phases; ++index) {
    const int64_t height = phase_of(index).grid_height;
    if (height > rows) rows = height;
  }
  // A chunk is one row of places of one phase, for one group of images.
  const Cut cut = cut_product(product, phases, groups * rows);
  const int64_t slice_images = product.batch / cut.groups;
  auto images_of = [&](int64_t group) {
    const int64_t left = slice_images - group * kTileRows;
    return left < kTileRows ? left : kTileRows;
  };
  parallel_for(cut.blocks * cut.tasks(), [&](int64_t task) {
    const int64_t row = task % rows, group = task / rows % groups, slice = cut.group(task);
    const Phase phase = phase_of(cut.phase(task));
    const int64_t channel = task / cut.tasks() * kBlock;
    if (row >= phase.grid_height) return;
    const Tiles configured;
    const int64_t images = images_of(group);
    const int64_t first_image = slice * slice_images + group * kTileRows;
    float* partial = cut.partial(task);
    float seen = 0.0f;
    const Pair* weights = packed + channel / kBlock * taps * channel_blocks * kTileRows * kBlock;
    alignas(64) float sums[2 * kTileRows * kBlock];
    Pixels pixels;
    for (int64_t x = 0; x < phase.grid_width; x += 2) {
      const Place places[2] = {{row, x}, {row, x + 1}};
      const int64_t count = x + 1 < phase.grid_width ? 2 : 1;
      const int64_t channels =
          channel + kBlock <= product.outputs ? kBlock : product.outputs - channel;
      for (int64_t column = 0; column < channels; column += 2 * kTileRows) {
        multiply_places(product, phase, places, count,
                        tiles + (slice * groups + group) * group_size, channel_blocks,
                        weights + column, sums + column);
      }
      if (images < kTileRows && count == 2) {  // close up the rows of images that do not exist
        memmove(sums + images * kBlock, sums + kTileRows * kBlock,
                images * kBlock * sizeof(float));
      }
      list_pixels(places, count, first_image, images, pixels);
      store_result(product, phase, pixels, channel, channels, sums, partial, &seen);
    }
  });
  merge_statistics(product, cut, [&](int64_t index, int64_t chunk) {
    const Phase phase = phase_of(index);
    return chunk % rows < phase.grid_height ? images_of(chunk / rows) * phase.grid_width : 0;
  });
}

template <class PhaseOf>
void run_tile_product(const Product& product, int64_t phases, const PhaseOf& phase_of,
                      const void* input, const Prologue& prologue, int64_t output_stride,
                      int64_t input_stride) {
  const Convolution& call = *product.call;
  if (call.type != DataType::bfloat16 || product.inputs < kFewTileInputs) {
    return run_product(product, phases, phase_of, input, prologue, output_stride, input_stride);
  }
  const int64_t taps = call.kernel_height * call.kernel_width;
  const WeightOrder order{product.outputs, output_stride, taps, call.big_channels, product.inputs,
                    weight_offsets(product, nullptr, call.big_channels, input_stride),
                    round_up_quotient(product.inputs, kTileDepth) * kTileRows};
  const Pair* packed = pack_weight<Pair>(static_cast<const BFloat16*>(call.weight), order);
  const BFloat16* tiles = image_tiles(product, prologue, static_cast<const BFloat16*>(input),
                                      Scratch::first_operand);
  run_tiles(product, phases, phase_of, tiles, packed, taps);
}

void tile_fprop(const Convolution& call) {
  const int64_t taps = call.kernel_height * call.kernel_width;
  run_tile_product(
      fprop_product(call), 1, [&](int64_t) { return fprop_phase(call); }, call.big,
      call.big_prologue, taps * call.big_channels, 1);
}

void tile_dgrad(const Convolution& call) {
  const int64_t taps = call.kernel_height * call.kernel_width;
  run_tile_product(
      dgrad_product(call), call.stride_height * call.stride_width,
      [&](int64_t index) {
        return dgrad_phase(call, index / call.stride_width, index % call.stride_width);
      },
      call.small, call.small_prologue, 1, taps * call.big_channels);
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
