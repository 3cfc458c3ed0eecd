// fprop and dgrad as one direct product over NHWC pixels, without im2col.
//
// Both gather: an output pixel is the sum over taps of (input pixel at the tap) x (weight of the
// tap). fprop strides over its input; dgrad is cut into stride_height x stride_width phases, each a
// dense convolution of unit stride over the taps that reach its pixels. A task makes kPixels output
// pixels of one phase by kBlock output channels:
//
//     for turn of taps (or of a tap's channels):   the turn's weights stay in the L1 cache
//       for kRows pixels at a time: sums += input rows x weights       (multiply_rows)
//     bias, activation, rounding, store            (epilogue.h)
//
// A pixel outside the input reads a row of zeros, unless its whole register tile lies outside. Where
// a step of the reduction does not divide an input pixel (odd channels, bfloat16) or input channels
// are few (images), a task first copies its patches into a small buffer and reduces over taps x
// channels at once.
#pragma once

#include "epilogue.h"
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

// For each tap, where the input rows of a task's pixels lie; null outside the input. The kRows
// pixels of a register tile are mostly one place in as many images: found together.
template <class Step>
FASTGAN_SHARED void find_rows(const Product& product, const Phase& phase, const Pixels& pixels,
                              const Step* input, int64_t steps, const Step** rows) {
  const int64_t image_steps = product.input_height * product.input_width * steps;
  for (int64_t pixel = pixels.count; pixel < kPixels; ++pixel) {
    for (int64_t tap = 0; tap < phase.taps_y * phase.taps_x; ++tap) {
      rows[tap * kPixels + pixel] = nullptr;
    }
  }
  int64_t pixel = 0;
  while (pixel < pixels.count) {
    int64_t last = pixel + 1;
    while (last < pixels.count && pixels.x[last] == pixels.x[pixel] &&
           pixels.y[last] == pixels.y[pixel] && pixels.image[last] == pixels.image[last - 1] + 1) {
      ++last;
    }
    const int64_t first_y = pixels.y[pixel] * product.input_stride_y + phase.offset_y;
    const int64_t first_x = pixels.x[pixel] * product.input_stride_x + phase.offset_x;
    const Step* image = input + pixels.image[pixel] * image_steps;
    const Step** target = rows;
    for (int64_t tap_y = 0; tap_y < phase.taps_y; ++tap_y) {
      const int64_t y = first_y + tap_y * product.tap_shift;
      for (int64_t tap_x = 0; tap_x < phase.taps_x; ++tap_x, target += kPixels) {
        const int64_t x = first_x + tap_x * product.tap_shift;
        const bool inside =
            y >= 0 && y < product.input_height && x >= 0 && x < product.input_width;
        const Step* row = inside ? image + (y * product.input_width + x) * steps : nullptr;
        const int64_t stride = inside ? image_steps : 0;
        for (int64_t index = pixel; index < last; ++index, row += stride) target[index] = row;
      }
    }
    pixel = last;
  }
}

// The kernel position of a phase's tap.
FASTGAN_SHARED int64_t tap_of(const Product& product, const Phase& phase, int64_t tap) {
  const int64_t y = phase.first_tap_y + tap / phase.taps_x * product.tap_step_y;
  const int64_t x = phase.first_tap_x + tap % phase.taps_x * product.tap_step_x;
  return y * product.kernel_width + x;
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
          stretch.weights = weights + (tap_of(product, phase, tap) * steps + first) * kBlock;
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

// True if the taps of one kernel row are one run of whole steps in the input.
template <class Step>
FASTGAN_SHARED bool rows_are_runs(const Product& product, const Phase& phase) {
  return product.tap_shift == 1 && phase.taps_x * product.inputs % kElements<Step> == 0;
}

// Where a kernel row of one pixel's patch lies: in the input, or in zeros, or (at the left and right
// border) copied into `copy`.
template <class Step, class T>
FASTGAN_SHARED const Step* run_of_row(const Product& product, const Phase& phase, const T* image,
                                      int64_t y, int64_t x, const T* zeros, T* copy) {
  const int64_t inputs = product.inputs;
  if (y < 0 || y >= product.input_height) return reinterpret_cast<const Step*>(zeros);
  const T* row = image + y * product.input_width * inputs;
  if (x >= 0 && x + phase.taps_x <= product.input_width) {
    return reinterpret_cast<const Step*>(row + x * inputs);
  }
  for (int64_t tap = 0; tap < phase.taps_x; ++tap) {
    const bool inside = x + tap >= 0 && x + tap < product.input_width;
    for (int64_t channel = 0; channel < inputs; ++channel) {
      copy[tap * inputs + channel] = inside ? row[(x + tap) * inputs + channel] : T{};
    }
  }
  return reinterpret_cast<const Step*>(copy);
}

// Sums of a task from patches; `weights` are packed flat for this phase alone. `buffer` has room for
// the patches of kRows + 1 pixels and `stretches` for one a kernel row.
template <class Step, class T>
void add_patches(const Product& product, const Phase& phase, const Pixels& pixels, const T* input,
                 const Step* weights, int64_t vectors, T* buffer, Stretch<Step>* stretches,
                 float* sums) {
  const int64_t elements = phase.taps_y * phase.taps_x * product.inputs;
  const int64_t steps = steps_of<Step>(elements), stride = steps * kElements<Step>;
  const int64_t image_size = product.input_height * product.input_width * product.inputs;
  if (steps == 0) {  // a phase that no tap reaches
    memset(sums, 0, pixels.count * kBlock * sizeof(float));
    return;
  }
  const bool runs = rows_are_runs<Step>(product, phase);
  const int64_t count = runs ? phase.taps_y : 1, run = phase.taps_x * product.inputs;
  T* patches = buffer + stride;
  memset(static_cast<void*>(buffer), 0, stride * sizeof(T));
  for (int64_t group = 0; group * kRows < pixels.count; ++group) {
    for (int r = 0; r < kRows; ++r) {
      const int64_t wanted = group * kRows + r;
      const int64_t pixel = wanted < pixels.count ? wanted : pixels.count - 1;
      const T* image = input + pixels.image[pixel] * image_size;
      const int64_t y = pixels.y[pixel] * product.input_stride_y + phase.offset_y;
      const int64_t x = pixels.x[pixel] * product.input_stride_x + phase.offset_x;
      T* patch = patches + r * stride;
      if (!runs) {
        copy_patch(product, phase, image, y, x, patch);
        for (int64_t element = elements; element < stride; ++element) patch[element] = T{};
        stretches->rows[r] = reinterpret_cast<const Step*>(patch);
        continue;
      }
      for (int64_t tap_y = 0; tap_y < phase.taps_y; ++tap_y) {
        stretches[tap_y].rows[r] =
            run_of_row<Step>(product, phase, image, y + tap_y, x, static_cast<const T*>(buffer),
                             patch + tap_y * run);
      }
    }
    for (int64_t tap_y = 0; tap_y < count; ++tap_y) {
      stretches[tap_y].weights = weights + tap_y * (run / kElements<Step>) * kBlock;
    }
    multiply_group(vectors, true, stretches, count, steps / count,
                   sums + group * kRows * kBlock);
  }
}

// What a pixel outside the input reads.
template <class Step>
FASTGAN_SHARED const Step* zero_steps(int64_t steps) {
  auto* zeros = static_cast<Step*>(scratch(Scratch::partials, steps * sizeof(Step)));
  memset(static_cast<void*>(zeros), 0, steps * sizeof(Step));
  return zeros;
}

// All phases from input rows where they lie. Blocks of weights are the outermost order of tasks.
template <class Step, class PhaseOf>
void run_taps(const Product& product, const Cut& cut, const PhaseOf& phase_of, const Step* input,
              const Step* packed, int64_t taps) {
  const int64_t steps = steps_of<Step>(product.inputs);
  const Step* zeros = zero_steps<Step>(steps);
  parallel_for(cut.blocks * cut.tasks(), [&](int64_t task) {
    const int64_t block = task / cut.tasks();
    const Phase phase = phase_of(cut.phase(task));
    run_task(product, cut, phase, task,
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
void run_patches(const Product& product, const Cut& cut, int64_t index, const Phase& phase,
                 const typename ElementOf<Step>::type* input, const Step* packed) {
  using T = typename ElementOf<Step>::type;
  const int64_t steps = steps_of<Step>(phase.taps_y * phase.taps_x * product.inputs);
  const int64_t tasks = cut.groups * cut.chunks;  // of one block and phase
  parallel_for(cut.blocks * tasks, [&](int64_t part) {
    const int64_t block = part / tasks;
    run_task(product, cut, phase, block * cut.tasks() + index * tasks + part % tasks,
             [&](const Pixels& pixels, int64_t vectors, float* sums) {
               auto* stretches = static_cast<Stretch<Step>*>(
                   scratch(Scratch::task, (phase.taps_y + 1) * sizeof(Stretch<Step>) +
                                              (kRows + 2) * steps * sizeof(Step)));
               add_patches(product, phase, pixels, input, packed + block * steps * kBlock, vectors,
                           reinterpret_cast<T*>(stretches + phase.taps_y + 1), stretches, sums);
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

}  // namespace fastgan::cpu::FASTGAN_LEVEL
