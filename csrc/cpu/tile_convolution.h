// fprop and dgrad of bfloat16 on AMX tiles.
//
// A tile's 16 rows are the same place in 16 images, copied by the task that reads it (tile_units.h):
// every tap at every stride is then a dense load, and padding is a tile that is left out. A product
// makes two places by 32 output channels at a time in four accumulator tiles:
//
//     c0 c1   +=   a0   x   b0 b1         a: places (16 images x 32 channels)
//     c2 c3        a1                     b: weights (32 channels x 16 outputs, in pairs)
//
// A task is a unit, which stays in the second-level cache, by a range of output channels: all places
// of the unit for 32 channels, then for the next, so that the weights are read once a unit. Where all
// output channels of a place's output pixels fit into 16 columns (a generator's images), the phases
// are one product whose taps are those of them all.
#pragma once

#include "products.h"
#include "tile_units.h"
#include "tile_weight.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// A tap of one kernel row: where the tiles of neighbouring places lie in a row of pixels (negative:
// outside the input), and its weights.
template <int places>
struct TapOfPlaces {
  int64_t at[places], weights;
};

template <int places>
FASTGAN_SHARED int64_t list_taps(const Product& product, const Phase& phase, int64_t x,
                                 int64_t tap_elements, TapOfPlaces<places>* taps) {
  int64_t count = 0;
  for (int64_t tap = 0; tap < phase.taps_x; ++tap) {
    bool used = false;
    for (int place = 0; place < places; ++place) {
      const int64_t column =
          (x + place) * product.input_stride_x + phase.offset_x + tap * product.tap_shift;
      const bool inside =
          x + place < phase.grid_width && column >= 0 && column < product.input_width;
      taps[count].at[place] = inside ? column * kTileElements : -1;
      used |= inside;
    }
    taps[count].weights = tap * tap_elements;
    count += used;
  }
  return count;
}

// Adds one kernel row's products of two places by 32 columns to the accumulators.
FASTGAN_SHARED void add_taps_of_places(const TapOfPlaces<2>* taps, int64_t count,
                                       const BFloat16* row, const BFloat16* weights) {
  for (const TapOfPlaces<2>* tap = taps; tap < taps + count; ++tap) {
    FASTGAN_TILE_LOAD(6, weights + tap->weights, kTileBytes);
    FASTGAN_TILE_LOAD(7, weights + tap->weights + kTileElements, kTileBytes);
    if (tap->at[0] >= 0) {
      FASTGAN_TILE_LOAD(4, row + tap->at[0], kTileBytes);
      FASTGAN_TILE_MULTIPLY(0, 4, 6);
      FASTGAN_TILE_MULTIPLY(1, 4, 7);
    }
    if (tap->at[1] >= 0) {
      FASTGAN_TILE_LOAD(5, row + tap->at[1], kTileBytes);
      FASTGAN_TILE_MULTIPLY(2, 5, 6);
      FASTGAN_TILE_MULTIPLY(3, 5, 7);
    }
  }
}

// The same of four places by 16 columns.
FASTGAN_SHARED void add_taps_of_places(const TapOfPlaces<4>* taps, int64_t count,
                                       const BFloat16* row, const BFloat16* weights) {
  for (const TapOfPlaces<4>* tap = taps; tap < taps + count; ++tap) {
    FASTGAN_TILE_LOAD(7, weights + tap->weights, kTileBytes);
    if (tap->at[0] >= 0) {
      FASTGAN_TILE_LOAD(4, row + tap->at[0], kTileBytes);
      FASTGAN_TILE_MULTIPLY(0, 4, 7);
    }
    if (tap->at[1] >= 0) {
      FASTGAN_TILE_LOAD(5, row + tap->at[1], kTileBytes);
      FASTGAN_TILE_MULTIPLY(1, 5, 7);
    }
    if (tap->at[2] >= 0) {
      FASTGAN_TILE_LOAD(6, row + tap->at[2], kTileBytes);
      FASTGAN_TILE_MULTIPLY(2, 6, 7);
    }
    if (tap->at[3] >= 0) {
      FASTGAN_TILE_LOAD(4, row + tap->at[3], kTileBytes);
      FASTGAN_TILE_MULTIPLY(3, 4, 7);
    }
  }
}

// Sums of the places from (y, x) on in its row: two of them [place][16 images][32 columns], or four
// [place][16 images][16 columns]. `tiles` are the group's rows of pixels from `first_row` on.
template <int places>
FASTGAN_SHARED void multiply_places(const Product& product, const Phase& phase, int64_t y, int64_t x,
                                    const BFloat16* tiles, int64_t first_row,
                                    const BFloat16* weights, TapOfPlaces<places>* taps,
                                    float* sums) {
  constexpr int64_t kTapElements = places == 2 ? kTwoTiles : kTileElements;
  const int64_t blocks = round_up_quotient(product.inputs, kTileDepth);
  const int64_t count = list_taps(product, phase, x, kTapElements, taps);
  FASTGAN_TILE_ZERO(0);
  FASTGAN_TILE_ZERO(1);
  FASTGAN_TILE_ZERO(2);
  FASTGAN_TILE_ZERO(3);
  for (int64_t tap_y = 0; tap_y < phase.taps_y; ++tap_y) {
    const int64_t at = y * product.input_stride_y + phase.offset_y + tap_y * product.tap_shift;
    if (at < 0 || at >= product.input_height) continue;
    const BFloat16* row = tiles + (at - first_row) * blocks * product.input_width * kTileElements;
    const BFloat16* row_weights = weights + tap_y * blocks * phase.taps_x * kTapElements;
    for (int64_t block = 0; block < blocks; ++block) {
      add_taps_of_places(taps, count, row, row_weights);
      row += product.input_width * kTileElements;
      row_weights += phase.taps_x * kTapElements;
    }
  }
  constexpr int64_t kColumns = places == 2 ? kTileColumns : kTileRows;
  constexpr int64_t kStride = kColumns * sizeof(float);
  constexpr int64_t kBelow = kTileRows * kColumns, kSecond = places == 2 ? kTileRows : kBelow;
  constexpr int64_t kThird = places == 2 ? kBelow : 2 * kBelow;
  FASTGAN_TILE_STORE(0, sums, kStride);
  FASTGAN_TILE_STORE(1, sums + kSecond, kStride);
  FASTGAN_TILE_STORE(2, sums + kThird, kStride);
  FASTGAN_TILE_STORE(3, sums + kThird + kSecond, kStride);
}

// Bias, activation, rounding and store of one place's sums [images][32 columns]; images lie `stride`
// apart. `keep`: the sums become what was stored.
template <Activation activation, bool keep>
FASTGAN_SHARED void store_place(const float* bias, float negative_slope, int64_t images,
                                int64_t channels, float* sums, BFloat16* target, int64_t stride) {
  const auto lanes = static_cast<__mmask32>((uint64_t{1} << channels) - 1);
  const Lanes low_bias = load(bias), high_bias = load(bias + kLanes);
  for (int64_t image = 0; image < images; ++image, sums += kTileColumns, target += stride) {
    const Lanes low = activate<VectorMath, activation>(load(sums) + low_bias, negative_slope);
    const Lanes high =
        activate<VectorMath, activation>(load(sums + kLanes) + high_bias, negative_slope);
    const auto both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    _mm512_mask_storeu_epi16(target, lanes, both);
    if constexpr (keep) {
      const auto words = (BitLanes)_mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
      const auto upper = (BitLanes)_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
      store(sums, (Lanes)(words << 16));
      store(sums + kLanes, (Lanes)(upper << 16));
    }
  }
}

// One row of places of one group, 32 columns from `channel` on.
FASTGAN_SHARED void run_wide_row(const Product& product, const Phase& phase,
                                 const ImageGroup& group, int64_t y, int64_t channel,
                                 const BFloat16* tiles, int64_t first_row, const BFloat16* weights,
                                 float* partial, void* memory) {
  const Convolution& call = *product.call;
  const int64_t left = product.outputs - channel;
  const int64_t channels = left < kTileColumns ? left : kTileColumns;
  alignas(64) float bias[kTileColumns] = {}, sums[2 * kTileRows * kTileColumns];
  if (call.bias) memcpy(bias, call.bias + channel, channels * sizeof(float));
  const int64_t stride = product.output_height * product.output_width * product.outputs;
  BFloat16* row = static_cast<BFloat16*>(call.result) + group.first_image * stride +
                  (y * product.output_stride_y + phase.origin_y) * product.output_width *
                      product.outputs +
                  channel;
  float seen = 0.0f;
  for (int64_t x = 0; x < phase.grid_width; x += 2) {
    multiply_places(product, phase, y, x, tiles, first_row, weights,
                    static_cast<TapOfPlaces<2>*>(memory), sums);
    for (int64_t place = 0; place < 2 && x + place < phase.grid_width; ++place) {
      float* place_sums = sums + place * kTileRows * kTileColumns;
      BFloat16* target = row + ((x + place) * product.output_stride_x + phase.origin_x) *
                                   product.outputs;
      if (partial) {
        store_place<Activation::identity, true>(bias, 0.0f, group.images, channels, place_sums,
                                                target, stride);
        add_to_partial<false>(place_sums, group.images, kTileColumns, channels, kBlock, seen,
                              partial);
        continue;
      }
      with_activation(call.activation, [&](auto activation) {
        store_place<decltype(activation)::value, false>(
            bias, call.negative_slope, group.images, channels, place_sums, target, stride);
      });
    }
  }
}

// One row of places of one group, all phases at once: columns are [pixel of the place][output].
FASTGAN_SHARED void run_merged_row(const Product& product, const Phase& whole,
                                   const ImageGroup& group, int64_t y, const BFloat16* tiles,
                                   int64_t first_row, const BFloat16* weights, void* memory) {
  const Convolution& call = *product.call;
  const int64_t pixels_y = product.output_stride_y, pixels_x = product.output_stride_x;
  const int64_t line = pixels_x * product.outputs;  // columns that lie side by side in the output
  alignas(64) float bias[kTileRows] = {}, sums[4 * kTileElements / 2];
  for (int64_t column = 0; call.bias && column < pixels_y * line; ++column) {
    bias[column] = call.bias[column % product.outputs];
  }
  auto* result = static_cast<BFloat16*>(call.result);
  for (int64_t x = 0; x < whole.grid_width; x += 4) {
    multiply_places(product, whole, y, x, tiles, first_row, weights,
                    static_cast<TapOfPlaces<4>*>(memory), sums);
    with_activation(call.activation, [&](auto activation) {
      for (int64_t row = 0; row < 4 * kTileRows; ++row) {
        const int64_t image = row % kTileRows, place_x = (x + row / kTileRows) * pixels_x;
        if (image >= group.images || place_x >= product.output_width) continue;
        const auto values = (__m256i)_mm512_cvtneps_pbh(
            (__m512)activate<VectorMath, decltype(activation)::value>(
                load(sums + row * kTileRows) + load(bias), call.negative_slope));
        const int64_t room = (product.output_width - place_x) * product.outputs;
        const uint32_t lanes = (1u << (room < line ? room : line)) - 1;
        for (int64_t pixel = 0; pixel < pixels_y; ++pixel) {
          const int64_t output_y = y * pixels_y + pixel;
          if (output_y >= product.output_height) break;
          BFloat16* target =
              result + (((group.first_image + image) * product.output_height + output_y) *
                            product.output_width +
                        place_x) *
                           product.outputs;
          _mm256_mask_storeu_epi16(target - pixel * line,
                                   static_cast<__mmask16>(lanes << pixel * line), values);
        }
      }
    });
  }
}

// Packs units and runs their rows: pack_row(group, y, tiles) packs a row of pixels, and
// run_row(column, phase index, phase, group, y, tiles, first_row, taps_before, memory) makes a row of
// places, whose phase comes after others with `taps_before`. `memory` has room for a TapOfPlaces a
// tap of one kernel row.
template <class PhaseOf, class PackRow, class RunRow>
void run_units(const Product& product, int64_t phases, const PhaseOf& phase_of, int64_t columns,
               const PackRow& pack_row, const RunRow& run_row) {
  const TileUnits units(product, phases, phase_of, columns);
  if (units.count() == 0) return;
  const int64_t ranges_wanted = round_up_quotient(2 * threads(), units.count());
  const int64_t ranges = ranges_wanted < columns ? ranges_wanted : columns;
  const int64_t row_elements =
      product.input_width * round_up_quotient(product.inputs, kTileDepth) * kTileElements;
  const int64_t group_elements = units.input_rows * row_elements;
  int64_t most_taps = 0;
  for (int64_t index = 0; index < phases; ++index) {
    const int64_t taps = phase_of(index).taps_x;
    if (taps > most_taps) most_taps = taps;
  }
  auto within = [](int64_t value, int64_t most) {
    return value < 0 ? 0 : value < most ? value : most;
  };
  parallel_for(units.count() * ranges, [&](int64_t task) {
    const int64_t unit = task / ranges, range = task % ranges;
    const int64_t first_group = unit / units.bands() * units.groups;
    const int64_t last_group = within(first_group + units.groups, units.all_groups);
    const int64_t begin = unit % units.bands() * units.rows;
    const int64_t end = within(begin + units.rows, units.all_rows);
    const int64_t first_row =
        within(begin * product.input_stride_y + units.low, product.input_height);
    const int64_t last_row =
        within((end - 1) * product.input_stride_y + units.high + 1, product.input_height);
    const int64_t bytes = units.groups * group_elements * int64_t{sizeof(BFloat16)};
    auto* memory = static_cast<char*>(
        scratch(Scratch::task, bytes + most_taps * sizeof(TapOfPlaces<4>)));
    auto* tiles = reinterpret_cast<BFloat16*>(memory);
    for (int64_t index = first_group; index < last_group; ++index) {
      for (int64_t y = first_row; y < last_row; ++y) {
        pack_row(ImageGroup(product, index), y,
                 tiles + (index - first_group) * group_elements + (y - first_row) * row_elements);
      }
    }
    FASTGAN_TILE_FENCE();
    const Tiles configured;
    for (int64_t column = range * columns / ranges; column < (range + 1) * columns / ranges;
         ++column) {
      int64_t taps_before = 0;
      for (int64_t index = 0; index < phases; ++index) {
        const Phase phase = phase_of(index);
        for (int64_t group = first_group; group < last_group; ++group) {
          for (int64_t y = begin; y < end && y < phase.grid_height; ++y) {
            run_row(column, index, phase, ImageGroup(product, group), y,
                    tiles + (group - first_group) * group_elements, first_row, taps_before,
                    memory + bytes);
          }
        }
        taps_before += phase.taps_y * phase.taps_x;
      }
    }
  });
}

template <class PhaseOf, class PackRow>
void run_wide(const Product& product, int64_t phases, const PhaseOf& phase_of, int64_t taps,
              const PackRow& pack_row, const BFloat16* weights) {
  const int64_t blocks = round_up_quotient(product.inputs, kTileDepth);
  int64_t rows = 0;
  for (int64_t index = 0; index < phases; ++index) {
    const int64_t height = phase_of(index).grid_height;
    if (height > rows) rows = height;
  }
  // A chunk is one row of places of one phase, for one group of images.
  const int64_t groups = round_up_quotient(product.batch / groups_of(product), kTileRows);
  const Cut cut = cut_product(product, phases, groups * rows);
  run_units(product, phases, phase_of, round_up_quotient(product.outputs, kTileColumns), pack_row,
            [&](int64_t column, int64_t index, const Phase& phase, const ImageGroup& group,
                int64_t y, const BFloat16* tiles, int64_t first_row, int64_t taps_before,
                void* memory) {
              const int64_t channel = column * kTileColumns;
              const int64_t chunk = group.group * rows + y;
              float* partial = cut.partial(channel / kBlock * cut.tasks() +
                                           (index * cut.groups + group.slice) * cut.chunks + chunk);
              run_wide_row(product, phase, group, y, channel, tiles, first_row,
                           weights + (column * taps + taps_before) * blocks * kTwoTiles,
                           partial ? partial + channel % kBlock : nullptr, memory);
            });
  merge_statistics(product, cut, [&](int64_t index, int64_t chunk) {
    const Phase phase = phase_of(index);
    const ImageGroup group(product, chunk / rows);
    return chunk % rows < phase.grid_height ? group.images * phase.grid_width : 0;
  });
}

template <class PhaseOf>
void run_tile_product(const Product& product, int64_t phases, const PhaseOf& phase_of,
                      const void* input, const Prologue& prologue, int64_t output_stride,
                      int64_t input_stride) {
  const Convolution& call = *product.call;
  const auto* source = static_cast<const BFloat16*>(input);
  const auto* weight = static_cast<const BFloat16*>(call.weight);
  const int64_t taps = call.kernel_height * call.kernel_width, tap_stride = call.big_channels;
  const bool few = product.inputs < kFewTileInputs;
  const bool patches = few && !prologue.scale && product.tap_shift == 1;
  // A tile does 16 times a vector's work in the same time: not with 1 of its 16 images.
  const bool alone = product.batch == groups_of(product);
  if (call.type != DataType::bfloat16 || alone || (few && !patches)) {
    return run_product(product, phases, phase_of, input, prologue, output_stride, input_stride);
  }
  if (patches) {  // a 1 x 1 kernel over patches
    const PatchShape shape(call);
    const Phase phase = phase_of(0);
    Product pixels = product;
    pixels.input_height = phase.grid_height, pixels.input_width = phase.grid_width;
    pixels.inputs = shape.elements();
    pixels.input_stride_y = pixels.input_stride_x = pixels.kernel_width = 1;
    auto one = [&](int64_t) {
      return Phase{phase.grid_height, phase.grid_width, 0, 0, 0, 1, 0, 1, 0, 0};
    };
    auto* rows = static_cast<BFloat16*>(scratch(
        Scratch::second_operand, product.outputs * pixels.inputs * int64_t{sizeof(BFloat16)}));
    memset(rows, 0, product.outputs * pixels.inputs * sizeof(BFloat16));
    for (int64_t row = 0; row < product.outputs * call.kernel_height; ++row) {
      memcpy(rows + row * shape.pitch, weight + row * shape.run, shape.run * sizeof(BFloat16));
    }
    const BFloat16* packed = pack_tile_weight(pixels, 1, one, rows, 1, pixels.inputs, 0, 1);
    auto pack_row = [&](const ImageGroup& group, int64_t y, BFloat16* tiles) {
      const int64_t bytes = shape.width() * int64_t{sizeof(BFloat16)};
      pack_patch_row(shape, source, group, y,
                     static_cast<BFloat16*>(scratch(Scratch::offsets, bytes)), tiles);
    };
    return run_wide(pixels, 1, one, 1, pack_row, packed);
  }
  auto pack_row = [&](const ImageGroup& group, int64_t y, BFloat16* tiles) {
    pack_pixel_row(product, prologue, source, group, y, tiles);
  };
  if (!call.mean && product.output_stride_y * product.output_stride_x * product.outputs <= 16) {
    const Phase whole = merge_phases(phases, phase_of, product.tap_shift);
    const BFloat16* packed = pack_merged_weight(product, phases, phase_of, whole, weight,
                                                output_stride, tap_stride, input_stride);
    return run_units(product, 1, [&](int64_t) { return whole; }, 1, pack_row,
                     [&](int64_t, int64_t, const Phase& phase, const ImageGroup& group, int64_t y,
                         const BFloat16* tiles, int64_t first_row, int64_t, void* memory) {
                       run_merged_row(product, phase, group, y, tiles, first_row, packed, memory);
                     });
  }
  const BFloat16* packed = pack_tile_weight(product, phases, phase_of, weight, taps, output_stride,
                                            tap_stride, input_stride);
  run_wide(product, phases, phase_of, taps, pack_row, packed);
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
