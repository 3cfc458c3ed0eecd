// fprop and dgrad as one direct product over NHWC pixels, without im2col.
//
// Both gather: an output pixel is the sum over taps of (input pixel at the tap) x (weight of the
// tap). fprop strides over its input; dgrad is cut into stride_height x stride_width phases, each a
// dense convolution of unit stride over the taps that reach its pixels. A task makes kPixels output
// pixels of one phase by kBlock output channels:
//
//     for turn of taps (or of a tap's channels):   the turn's weights stay in the L1 cache
//       for kRows pixels at a time: sums += input rows x weights       (multiply_rows)
//     bias, activation, rounding, store            (the epilogue)
//
// A pixel outside the input reads a row of zeros, unless its whole register tile lies outside. Where a step of the reduction does not divide an
// input pixel (odd channels, bfloat16) or input channels are few (images), a task first copies its
// patches into a small buffer and reduces over taps x channels at once.
#pragma once

#include "geometry.h"
#include "operands.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// The register tile of `vectors` vectors: widths 1, 2 and kVectors are compiled.
template <class Step>
FASTGAN_SHARED void multiply_group(int64_t vectors, bool fresh, const Stretch<Step>* stretches,
                                   int64_t count, int64_t steps, float* sums) {
  auto run = [&](auto width) {
    constexpr int V = decltype(width)::value;
    if (fresh) return multiply_rows<V, true>(stretches, count, steps, sums);
    multiply_rows<V, false>(stretches, count, steps, sums);
  };
  if (vectors == 1) return run(Vectors<1>{});
  if (kVectors == 2 || vectors == 2) return run(Vectors<2>{});
  run(Vectors<kVectors>{});
}

// Weights of one turn of a task, kept in the first-level cache: steps of kBlock outputs.
template <class Step>
constexpr int64_t kStepsOfTurn = 24576 / (kBlock * sizeof(Step));

// For each tap, where the input rows of a task's pixels lie; null outside the input.
template <class Step>
FASTGAN_SHARED void find_rows(const Product& product, const Phase& phase, const Pixels& pixels,
                              const Step* input, int64_t steps, const Step** rows) {
  for (int64_t tap_y = 0; tap_y < phase.taps_y; ++tap_y) {
    for (int64_t tap_x = 0; tap_x < phase.taps_x; ++tap_x, rows += kPixels) {
      for (int64_t pixel = 0; pixel < kPixels; ++pixel) rows[pixel] = nullptr;
      for (int64_t pixel = 0; pixel < pixels.count; ++pixel) {
        const int64_t y = pixels.y[pixel] * product.input_stride_y + phase.offset_y +
                          tap_y * product.tap_shift;
        const int64_t x = pixels.x[pixel] * product.input_stride_x + phase.offset_x +
                          tap_x * product.tap_shift;
        if (y < 0 || y >= product.input_height || x < 0 || x >= product.input_width) continue;
        rows[pixel] =
            input +
            ((pixels.image[pixel] * product.input_height + y) * product.input_width + x) * steps;
      }
    }
  }
}

// Sums of a task; input rows are read where they lie. `rows` has room for kPixels a tap and
// `stretches` for one a tap.
template <class Step>
void add_taps(const Product& product, const Phase& phase, const Pixels& pixels,
              const Step* input, const Step* zeros, const Step* weights, int64_t vectors,
              const Step** rows, Stretch<Step>* stretches, float* sums) {
  const int64_t steps = steps_of<Step>(product.inputs), taps = phase.taps_y * phase.taps_x;
  find_rows(product, phase, pixels, input, steps, rows);
  const int64_t turn_steps = steps < kStepsOfTurn<Step> ? steps : kStepsOfTurn<Step>;
  const int64_t turn_taps = kStepsOfTurn<Step> / turn_steps;
  uint32_t started = 0;  // a bit for each kRows pixels: their sums hold something
  for (int64_t first_tap = 0; first_tap < taps; first_tap += turn_taps) {
    const int64_t last_tap = first_tap + turn_taps < taps ? first_tap + turn_taps : taps;
    for (int64_t first = 0; first < steps; first += turn_steps) {
      const int64_t count = first + turn_steps <= steps ? turn_steps : steps - first;
      for (int64_t group = 0; group * kRows < pixels.count; ++group) {
        int64_t used = 0;
        for (int64_t tap = first_tap; tap < last_tap; ++tap) {
          const Step* const* tap_rows = rows + tap * kPixels + group * kRows;
          Stretch<Step>& stretch = stretches[used];
          bool inside = false;
          for (int r = 0; r < kRows; ++r) {
            inside |= tap_rows[r] != nullptr;
            stretch.rows[r] = (tap_rows[r] ? tap_rows[r] : zeros) + first;
          }
          const int64_t y = phase.first_tap_y + tap / phase.taps_x * product.tap_step_y;
          const int64_t x = phase.first_tap_x + tap % phase.taps_x * product.tap_step_x;
          stretch.weights = weights + ((y * product.kernel_width + x) * steps + first) * kBlock;
          used += inside;
        }
        if (used == 0) continue;
        multiply_group(vectors, !(started >> group & 1u), stretches, used, count,
                       sums + group * kRows * kBlock);
        started |= 1u << group;
      }
    }
  }
  for (int64_t group = 0; group * kRows < pixels.count; ++group) {
    if (!(started >> group & 1u)) {
      memset(sums + group * kRows * kBlock, 0, kRows * kBlock * sizeof(float));
    }
  }
}

template <class T>
FASTGAN_SHARED void copy_elements(T* target, const T* source, int64_t count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  constexpr int64_t kWhole = 64 / sizeof(T);
  for (; count > 0; target += kWhole, source += kWhole, count -= kWhole) {
    const int64_t part = count < kWhole ? count : kWhole;
    const __mmask32 lanes = static_cast<__mmask32>((uint64_t{1} << part) - 1);
    if constexpr (sizeof(T) == 4) {
      const auto words = static_cast<__mmask16>(lanes);
      _mm512_mask_storeu_epi32(target, words, _mm512_maskz_loadu_epi32(words, source));
    } else {
      _mm512_mask_storeu_epi16(target, lanes, _mm512_maskz_loadu_epi16(lanes, source));
    }
  }
#else
  memcpy(target, source, count * sizeof(T));
#endif
}

// Copies the patch of one pixel: [taps_y][taps_x][inputs], zeros outside the input. Taps that lie
// side by side in the kernel and in the input are copied as one run.
template <class T>
FASTGAN_SHARED void copy_patch(const Product& product, const Phase& phase, const T* image,
                               int64_t y, int64_t x, T* patch) {
  const int64_t run = product.inputs;
  for (int64_t tap_y = 0; tap_y < phase.taps_y; ++tap_y) {
    const int64_t row = y + tap_y * product.tap_shift;
    T* target = patch + tap_y * phase.taps_x * run;
    if (row < 0 || row >= product.input_height) {
      memset(target, 0, phase.taps_x * run * sizeof(T));
      continue;
    }
    const T* source = image + row * product.input_width * run;
    if (product.tap_shift == 1 && x >= 0 && x + phase.taps_x <= product.input_width) {
      copy_elements(target, source + x * run, phase.taps_x * run);
      continue;
    }
    for (int64_t tap_x = 0; tap_x < phase.taps_x; ++tap_x, target += run) {
      const int64_t column = x + tap_x * product.tap_shift;
      if (column < 0 || column >= product.input_width) {
        memset(target, 0, run * sizeof(T));
      } else {
        copy_elements(target, source + column * run, run);
      }
    }
  }
}

// Sums of a task from copied patches; `weights` are packed flat for this phase alone.
template <class Step, class T>
void add_patches(const Product& product, const Phase& phase, const Pixels& pixels, const T* input,
                 const Step* weights, int64_t vectors, T* patches, float* sums) {
  const int64_t elements = phase.taps_y * phase.taps_x * product.inputs;
  const int64_t steps = steps_of<Step>(elements), stride = steps * kElements<Step>;
  const int64_t image_size = product.input_height * product.input_width * product.inputs;
  for (int64_t pixel = 0; pixel < pixels.count; ++pixel) {
    T* patch = patches + pixel * stride;
    copy_patch(product, phase, input + pixels.image[pixel] * image_size,
               pixels.y[pixel] * product.input_stride_y + phase.offset_y,
               pixels.x[pixel] * product.input_stride_x + phase.offset_x, patch);
    memset(patch + elements, 0, (stride - elements) * sizeof(T));
  }
  if (steps == 0) {  // a phase that no tap reaches
    memset(sums, 0, pixels.count * kBlock * sizeof(float));
    return;
  }
  for (int64_t group = 0; group * kRows < pixels.count; ++group) {
    Stretch<Step> stretch;
    for (int r = 0; r < kRows; ++r) {
      const int64_t pixel = group * kRows + r;
      stretch.rows[r] = reinterpret_cast<const Step*>(
          patches + (pixel < pixels.count ? pixel : pixels.count - 1) * stride);
    }
    stretch.weights = weights;
    multiply_group(vectors, true, &stretch, 1, steps, sums + group * kRows * kBlock);
  }
}

// Bias, activation, rounding and store of a task's sums.
template <class T, Activation activation>
void store_pixels(const Product& product, const Phase& phase, const Pixels& pixels, int64_t channel,
                  int64_t channels, const float* sums) {
  const Convolution& call = *product.call;
  alignas(64) float bias[kBlock] = {};
  if (call.bias) memcpy(bias, call.bias + channel, channels * sizeof(float));
  T* result = static_cast<T*>(call.result) + channel;
  for (int64_t pixel = 0; pixel < pixels.count; ++pixel) {
    const int64_t y = pixels.y[pixel] * product.output_stride_y + phase.origin_y;
    const int64_t x = pixels.x[pixel] * product.output_stride_x + phase.origin_x;
    T* target = result + ((pixels.image[pixel] * product.output_height + y) *
                              product.output_width +
                          x) *
                             product.outputs;
    for (int64_t first = 0; first < channels; first += kLanes) {
      const Lanes z = load(sums + pixel * kBlock + first) + load(bias + first);
      const int64_t left = channels - first;
      store_width(target + first, activate<VectorMath, activation>(z, call.negative_slope),
                  left < kLanes ? static_cast<int>(left) : kLanes);
    }
  }
}

FASTGAN_SHARED void store_result(const Product& product, const Phase& phase, const Pixels& pixels,
                                 int64_t channel, int64_t channels, const float* sums) {
  with_type(product.call->type, [&](auto element) {
    with_activation(product.call->activation, [&](auto activation) {
      store_pixels<typename decltype(element)::type, decltype(activation)::value>(
          product, phase, pixels, channel, channels, sums);
    });
  });
}

// The vectors that `channels` output channels need: 1, 2 or all of a block.
FASTGAN_SHARED int64_t vectors_of(int64_t channels) {
  return channels <= kLanes ? 1 : channels <= 2 * kLanes ? 2 : kVectors;
}

// One output block of one chunk of pixels: `add` fills the sums.
template <class Add>
FASTGAN_SHARED void run_task(const Product& product, const Phase& phase, int64_t block,
                             int64_t chunk, const Add& add) {
  const int64_t all = product.batch * phase.grid_height * phase.grid_width;
  if (chunk * kPixels >= all) return;
  const int64_t channel = block * kBlock;
  const int64_t channels = channel + kBlock <= product.outputs ? kBlock : product.outputs - channel;
  const Pixels pixels(phase, chunk * kPixels, product.batch);
  alignas(64) float sums[kPixels * kBlock];
  add(pixels, vectors_of(channels), sums);
  store_result(product, phase, pixels, channel, channels, sums);
}

// All phases from input rows where they lie. Blocks of weights are the outermost order of tasks.
template <class Step, class PhaseOf>
void run_taps(const Product& product, int64_t phases, const PhaseOf& phase_of, const Step* input,
              const Step* packed, int64_t taps) {
  const int64_t steps = steps_of<Step>(product.inputs);
  auto* zeros = static_cast<Step*>(scratch(Scratch::partials, steps * sizeof(Step)));
  memset(static_cast<void*>(zeros), 0, steps * sizeof(Step));
  const int64_t blocks = round_up_quotient(product.outputs, kBlock);
  int64_t chunks = 0;
  for (int64_t index = 0; index < phases; ++index) {
    const Phase phase = phase_of(index);
    const int64_t needed =
        round_up_quotient(product.batch * phase.grid_height * phase.grid_width, kPixels);
    if (needed > chunks) chunks = needed;
  }
  parallel_for(blocks * phases * chunks, [&](int64_t task) {
    const Phase phase = phase_of(task / chunks % phases);
    const int64_t block = task / chunks / phases;
    run_task(product, phase, block, task % chunks,
             [&](const Pixels& pixels, int64_t vectors, float* sums) {
               auto* stretches = static_cast<Stretch<Step>*>(scratch(
                   Scratch::task, taps * (sizeof(Stretch<Step>) + kPixels * sizeof(Step*))));
               auto** rows = reinterpret_cast<const Step**>(stretches + taps);
               add_taps(product, phase, pixels, input, zeros,
                        packed + block * taps * steps * kBlock, vectors, rows, stretches, sums);
             });
  });
}

// One phase from copied patches.
template <class Step>
void run_patches(const Product& product, const Phase& phase,
                 const typename ElementOf<Step>::type* input, const Step* packed) {
  using T = typename ElementOf<Step>::type;
  const int64_t steps = steps_of<Step>(phase.taps_y * phase.taps_x * product.inputs);
  const int64_t chunks =
      round_up_quotient(product.batch * phase.grid_height * phase.grid_width, kPixels);
  parallel_for(round_up_quotient(product.outputs, kBlock) * chunks, [&](int64_t task) {
    const int64_t block = task / chunks;
    run_task(product, phase, block, task % chunks,
             [&](const Pixels& pixels, int64_t vectors, float* sums) {
               auto* patches =
                   static_cast<T*>(scratch(Scratch::task, (kPixels + 1) * steps * sizeof(Step)));
               add_patches(product, phase, pixels, input, packed + block * steps * kBlock, vectors,
                           patches, sums);
             });
  });
}

// The offsets of the reduction's elements in the weight: the input channels of one tap, or (a copied
// patch) those of every tap of a phase.
FASTGAN_SHARED const int64_t* weight_offsets(const Product& product, const Phase* phase,
                                             int64_t tap_stride, int64_t input_stride) {
  const int64_t taps_y = phase ? phase->taps_y : 1, taps_x = phase ? phase->taps_x : 1;
  auto* offsets = static_cast<int64_t*>(
      scratch(Scratch::offsets, (taps_y * taps_x * product.inputs + 1) * sizeof(int64_t)));
  int64_t* next = offsets;
  for (int64_t y = 0; y < taps_y; ++y) {
    for (int64_t x = 0; x < taps_x; ++x) {
      const int64_t tap = phase ? (phase->first_tap_y + y * product.tap_step_y) *
                                          product.kernel_width +
                                      phase->first_tap_x + x * product.tap_step_x
                                : 0;
      for (int64_t channel = 0; channel < product.inputs; ++channel) {
        *next++ = tap * tap_stride + channel * input_stride;
      }
    }
  }
  return offsets;
}

// Below this many input channels a tap is too short a reduction to be a loop of its own.
constexpr int64_t kFewInputs = 8;

template <class PhaseOf>
void run_product(const Product& product, int64_t phases, const PhaseOf& phase_of,
                 const void* input, int64_t output_stride, int64_t input_stride) {
  const Convolution& call = *product.call;
  const int64_t taps = call.kernel_height * call.kernel_width, tap_stride = call.big_channels;
  const int64_t input_count =
      product.batch * product.input_height * product.input_width * product.inputs;
  const int64_t weight_count = taps * call.small_channels * call.big_channels;
  with_step(call.type, [&](auto chosen) {
    using Step = typename decltype(chosen)::type;
    using T = typename ElementOf<Step>::type;
    const auto* steps = as_steps<Step>(input, call.type, input_count, Scratch::first_operand);
    const auto* weight = reinterpret_cast<const T*>(
        as_steps<Step>(call.weight, call.type, weight_count, Scratch::second_operand));
    WeightOrder order{product.outputs, output_stride, taps, tap_stride, product.inputs, nullptr,
                      0};
    if (product.inputs >= kFewInputs && product.inputs % kElements<Step> == 0) {
      order.offsets = weight_offsets(product, nullptr, tap_stride, input_stride);
      run_taps<Step>(product, phases, phase_of, steps, pack_weight<Step>(weight, order), taps);
      return;
    }
    order.taps = 1;
    for (int64_t index = 0; index < phases; ++index) {
      const Phase phase = phase_of(index);
      order.elements = phase.taps_y * phase.taps_x * product.inputs;
      order.offsets = weight_offsets(product, &phase, tap_stride, input_stride);
      run_patches<Step>(product, phase, reinterpret_cast<const T*>(steps),
                        pack_weight<Step>(weight, order));
    }
  });
}

void fprop(const Convolution& call) {
  const int64_t taps = call.kernel_height * call.kernel_width;
  run_product(
      fprop_product(call), 1, [&](int64_t) { return fprop_phase(call); }, call.big,
      taps * call.big_channels, 1);
}

void dgrad(const Convolution& call) {
  const int64_t taps = call.kernel_height * call.kernel_width;
  run_product(
      dgrad_product(call), call.stride_height * call.stride_width,
      [&](int64_t index) {
        return dgrad_phase(call, index / call.stride_width, index % call.stride_width);
      },
      call.small, 1, taps * call.big_channels);
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
