// fprop and dgrad: which kernel makes a product.
#pragma once

#include "few_pixels.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// Below this many input channels a tap is too short a reduction to be a loop of its own.
constexpr int64_t kFewInputs = 8;

// Up to so many pixels fprop's weight is read where it lies.
constexpr int64_t kFewPixels = 512;

template <class PhaseOf>
void run_product(const Product& product, int64_t phases, const PhaseOf& phase_of,
                 const void* input, const Prologue& prologue, int64_t output_stride,
                 int64_t input_stride) {
  const Convolution& call = *product.call;
  const int64_t taps = call.kernel_height * call.kernel_width, tap_stride = call.big_channels;
  const int64_t weight_count = taps * call.small_channels * call.big_channels;
  const Cut cut = cut_pixels(product, phases, phase_of);
  with_step(call.type, true, [&](auto chosen) {
    using Step = typename decltype(chosen)::type;
    using T = typename ElementOf<Step>::type;
    const auto* steps = read_operand<Step>(product, prologue, input);
    const auto* weight = reinterpret_cast<const T*>(
        as_steps<Step>(call.weight, call.type, weight_count, Scratch::second_operand));
    WeightOrder order{product.outputs, output_stride, taps, tap_stride, product.inputs,
                      nullptr, 0};
    if (product.inputs >= kFewInputs && product.inputs % kElements<Step> == 0) {
      const int64_t pixels = product.batch * product.output_height * product.output_width;
      order.offsets = weight_offsets(product, nullptr, tap_stride, input_stride);
      const bool by_lanes = fills_vectors<Step>(product.inputs);
      if (by_lanes && product.outputs <= kMostNarrowOutputs) {
        const Step* packed = pack_narrow<Step>(weight, order);
        run_narrow<Step>(product, cut, phase_of, steps, packed, taps);
      } else if (by_lanes && input_stride == 1 && pixels <= kFewPixels) {
        run_in_place<Step>(product, cut, phase_of, steps, reinterpret_cast<const Step*>(weight),
                           taps);
      } else {
        run_taps<Step>(product, cut, phase_of, steps, pack_weight<Step>(weight, order), taps);
      }
      return merge_chunks(product, cut, phase_of);
    }
    order.taps = 1;
    for (int64_t index = 0; index < phases; ++index) {
      const Phase phase = phase_of(index);
      order.elements = phase.taps_y * phase.taps_x * product.inputs;
      order.offsets = weight_offsets(product, &phase, tap_stride, input_stride);
      run_patches<Step>(product, cut, index, phase, reinterpret_cast<const T*>(steps),
                        pack_weight<Step>(weight, order));
    }
    merge_chunks(product, cut, phase_of);
  });
}

void fprop(const Convolution& call) {
  const int64_t taps = call.kernel_height * call.kernel_width;
  run_product(
      fprop_product(call), 1, [&](int64_t) { return fprop_phase(call); }, call.big,
      call.big_prologue, taps * call.big_channels, 1);
}

void dgrad(const Convolution& call) {
  const int64_t taps = call.kernel_height * call.kernel_width;
  run_product(
      dgrad_product(call), call.stride_height * call.stride_width,
      [&](int64_t index) {
        return dgrad_phase(call, index / call.stride_width, index % call.stride_width);
      },
      call.small, call.small_prologue, 1, taps * call.big_channels);
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
