// fprop of few pixels: the weight is read once, where it lies.
//
// Packing a weight reads and writes all of it, which pays where many pixels meet it: the deep layers
// of one image are all weight. In fprop the input channels of a tap lie side by side in the weight as
// in the image, so the lanes hold input channels, as in narrow_convolution.h, and a register tile is
// kRows pixels x kInPlace outputs. The weights of so many outputs stay in the cache while all pixels
// of the task meet them.
#pragma once

#include "narrow_convolution.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int kInPlace = 4;

// The stretches of a task: of each kRows pixels, those of the taps that reach one of them.
template <class Step>
struct Reached {
  int64_t taps;
  Stretch<Step>* stretches;        // [groups of kRows pixels][taps]
  int64_t used[kPixels / kRows];  // of the taps, by group

  Reached(const Product& product, const Phase& phase, const Pixels& pixels, const Step* input,
          const Step* zeros, const Step* weight)
      : taps(phase.taps_y * phase.taps_x) {
    constexpr int64_t kGroups = kPixels / kRows;
    const int64_t steps = steps_of<Step>(product.inputs);
    stretches = static_cast<Stretch<Step>*>(scratch(
        Scratch::task, taps * (kGroups * sizeof(Stretch<Step>) + kPixels * sizeof(Step*))));
    auto** rows = reinterpret_cast<const Step**>(stretches + taps * kGroups);
    find_rows(product, phase, pixels, input, steps, rows);
    for (int64_t group = 0; group * kRows < pixels.count; ++group) {
      used[group] = 0;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const Step* const* tap_rows = rows + tap * kPixels + group * kRows;
        Stretch<Step>& stretch = stretches[group * taps + used[group]];
        bool inside = false;
        for (int r = 0; r < kRows; ++r) {
          inside |= tap_rows[r] != nullptr;
          stretch.rows[r] = tap_rows[r] ? tap_rows[r] : zeros;
        }
        stretch.weights = weight + tap_of(product, phase, tap) * steps;
        used[group] += inside;
      }
    }
  }

  // Sums of all pixels by outputs `first` to `first` + outputs, whose weights lie `stride` apart.
  template <int outputs>
  void multiply(const Pixels& pixels, int64_t steps, int64_t first, int64_t stride,
                float* sums) const {
    for (int64_t group = 0; group * kRows < pixels.count; ++group) {
      multiply_lanes<outputs>(stretches + group * taps, used[group], steps, first * stride, stride,
                              sums + group * kRows * kBlock + first, kBlock);
    }
  }
};

// fprop with the weight [outputs][taps][steps].
template <class Step, class PhaseOf>
void run_in_place(const Product& product, const Cut& cut, const PhaseOf& phase_of,
                  const Step* input, const Step* weight, int64_t taps) {
  const int64_t steps = steps_of<Step>(product.inputs), stride = taps * steps;
  const Step* zeros = zero_steps<Step>(steps);
  parallel_for(cut.blocks * cut.tasks(), [&](int64_t task) {
    const int64_t channel = task / cut.tasks() * kBlock;
    const int64_t left = product.outputs - channel, outputs = left < kBlock ? left : kBlock;
    const Phase phase = phase_of(cut.phase(task));
    run_task(product, cut, phase, task, [&](const Pixels& pixels, int64_t, float* sums) {
      const Reached<Step> reached(product, phase, pixels, input, zeros,
                                  weight + channel * stride);
      int64_t first = 0;
      for (; first + kInPlace <= outputs; first += kInPlace) {
        reached.template multiply<kInPlace>(pixels, steps, first, stride, sums);
      }
      for (; first < outputs; ++first) {
        reached.template multiply<1>(pixels, steps, first, stride, sums);
      }
    });
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
