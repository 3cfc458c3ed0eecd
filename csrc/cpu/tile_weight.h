// The weights of fprop and dgrad as right operands of AMX tiles, in the order of their reading.
#pragma once

#include "tile_packing.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// Packs a weight as [block of 32 outputs][phase][tap_y][block of 32 inputs][tap_x][2 tiles]: in the
// order in which a product reads it. Outputs or inputs lie side by side; where it is inputs, the
// words of a tile are transposed.
template <class PhaseOf>
const BFloat16* pack_tile_weight(const Product& product, int64_t phases, const PhaseOf& phase_of,
                                 const BFloat16* weight, int64_t taps, int64_t output_stride,
                                 int64_t tap_stride, int64_t input_stride) {
  const int64_t columns = round_up_quotient(product.outputs, kTileColumns);
  const int64_t blocks = round_up_quotient(product.inputs, kTileDepth);
  auto* packed = static_cast<BFloat16*>(
      scratch(Scratch::weights, columns * taps * blocks * kTwoTiles * sizeof(BFloat16)));
  auto width_of = [](int64_t all, int64_t first) { return all - first < 32 ? all - first : 32; };
  parallel_for(columns * phases, [&](int64_t task) {
    const int64_t output = task / phases * kTileColumns;
    BFloat16* target = packed + task / phases * taps * blocks * kTwoTiles;
    for (int64_t before = 0; before < task % phases; ++before) {
      const Phase phase = phase_of(before);
      target += phase.taps_y * phase.taps_x * blocks * kTwoTiles;
    }
    const Phase phase = phase_of(task % phases);
    for (int64_t tap_y = 0; tap_y < phase.taps_y; ++tap_y) {
      for (int64_t input = 0; input < product.inputs; input += kTileDepth) {
        for (int64_t tap_x = 0; tap_x < phase.taps_x; ++tap_x, target += kTwoTiles) {
          const int64_t tap = tap_of(product, phase, tap_y * phase.taps_x + tap_x);
          const BFloat16* source =
              weight + output * output_stride + tap * tap_stride + input * input_stride;
          const int64_t outputs = width_of(product.outputs, output);
          const int64_t inputs = width_of(product.inputs, input);
          if (input_stride == 1) {
            copy_rows(source, output_stride, outputs, inputs, target);
            transpose_words(target);
            transpose_words(target + kTileElements);
          } else if (inputs == 32 && outputs == 32) {
            zip_rows(source, input_stride, target);
          } else {
            alignas(64) BFloat16 rows[32 * 32];
            copy_rows(source, input_stride, inputs, outputs, rows);
            zip_rows(rows, 32, target);
          }
        }
      }
    }
  });
  return packed;
}

// All phases of a product as one, with a column for each (output pixel of a place, output): `whole`
// has the taps of them all, and the grid of the largest.
template <class PhaseOf>
Phase merge_phases(int64_t phases, const PhaseOf& phase_of, int64_t shift) {
  Phase whole{};
  for (int64_t pass = 0; pass < 2; ++pass) {  // where the taps begin, and how many there are
    for (int64_t index = 0; index < phases; ++index) {
      const Phase phase = phase_of(index);
      auto merge = [&](int64_t taps, int64_t offset, int64_t& all_taps, int64_t& all_offset) {
        if (taps == 0) return;
        if (pass == 0) {
          const bool first = all_taps == 0 || (offset - all_offset) * shift < 0;
          if (first) all_offset = offset;
          all_taps = 1;
        } else if (taps + (offset - all_offset) * shift > all_taps) {
          all_taps = taps + (offset - all_offset) * shift;
        }
      };
      merge(phase.taps_y, phase.offset_y, whole.taps_y, whole.offset_y);
      merge(phase.taps_x, phase.offset_x, whole.taps_x, whole.offset_x);
      if (phase.grid_height > whole.grid_height) whole.grid_height = phase.grid_height;
      if (phase.grid_width > whole.grid_width) whole.grid_width = phase.grid_width;
    }
  }
  return whole;
}

// The weight of merged phases: [tap_y][block of 32 inputs][tap_x][tile], zeros where a tap does not
// reach a pixel. Column (pixel of the place) * outputs + output.
template <class PhaseOf>
const BFloat16* pack_merged_weight(const Product& product, int64_t phases, const PhaseOf& phase_of,
                                   const Phase& whole, const BFloat16* weight,
                                   int64_t output_stride, int64_t tap_stride,
                                   int64_t input_stride) {
  const int64_t blocks = round_up_quotient(product.inputs, kTileDepth);
  const int64_t bytes =
      whole.taps_y * whole.taps_x * blocks * kTileElements * int64_t{sizeof(BFloat16)};
  auto* packed = static_cast<BFloat16*>(scratch(Scratch::weights, bytes));
  memset(packed, 0, bytes);
  for (int64_t index = 0; index < phases; ++index) {
    const Phase phase = phase_of(index);
    const int64_t column =
        (phase.origin_y * product.output_stride_x + phase.origin_x) * product.outputs;
    for (int64_t tap = 0; tap < phase.taps_y * phase.taps_x; ++tap) {
      const int64_t y = tap / phase.taps_x + (phase.offset_y - whole.offset_y) * product.tap_shift;
      const int64_t x = tap % phase.taps_x + (phase.offset_x - whole.offset_x) * product.tap_shift;
      const BFloat16* source = weight + tap_of(product, phase, tap) * tap_stride;
      for (int64_t input = 0; input < product.inputs; ++input) {
        BFloat16* tile = packed + ((y * blocks + input / kTileDepth) * whole.taps_x + x) *
                                      kTileElements;
        BFloat16* row = tile + input % kTileDepth / 2 * kTileDepth + input % 2;
        for (int64_t output = 0; output < product.outputs; ++output) {
          row[(column + output) * 2] = source[output * output_stride + input * input_stride];
        }
      }
    }
  }
  return packed;
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
