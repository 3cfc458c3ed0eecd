// fprop and dgrad to at most four output channels: the images that a generator makes.
//
// A vector of output channels would be mostly empty, so the lanes hold input channels instead: a
// register tile is kRows pixels x the outputs, both operands are read as vectors where they lie,
// and the lanes are added up once at the end. Nothing is multiplied that is not needed.
#pragma once

#include "convolution.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kMostNarrowOutputs = 4;

// The sums of the lanes of up to four vectors: together, as most of a vector's own sum is shuffles.
template <int count>
FASTGAN_SHARED void store_sums_of_lanes(const Lanes (&values)[count], float* sums) {
  static_assert(count <= 4);
#if defined(__AVX512F__)
  auto value = [&](int index) {
    return index < count ? (__m512)values[index] : _mm512_setzero_ps();
  };
  auto pairs = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const __m512d low = (__m512d)pairs(value(0), value(1));
  const __m512d high = (__m512d)pairs(value(2), value(3));
  const __m512 quarters = _mm512_add_ps((__m512)_mm512_unpacklo_pd(low, high),
                                        (__m512)_mm512_unpackhi_pd(low, high));
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(quarters),
                                      _mm512_extractf32x8_ps(quarters, 1));
  const __m128 whole =
      _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
  memcpy(sums, &whole, count * sizeof(float));
#else
  for (int index = 0; index < count; ++index) {
    sums[index] = 0.0f;
    for (int lane = 0; lane < kLanes; ++lane) sums[index] += values[index][lane];
  }
#endif
}

// Input channels that fill whole vectors of steps.
template <class Step>
FASTGAN_SHARED bool fills_vectors(int64_t inputs) {
  return inputs % (kLanes * kElements<Step>) == 0;
}

// sums[r * sums_stride + o] of all stretches, for kRows rows and `outputs` outputs; the steps of an
// output's weight lie `first` + o * `stride` after the stretch's.
template <int outputs, class Step>
void multiply_lanes(const Stretch<Step>* stretches, int64_t count, int64_t steps, int64_t first,
                    int64_t stride, float* sums, int64_t sums_stride) {
  Lanes tile[kRows][outputs] = {};
  for (; count > 0; --count, ++stretches) {
    const Step* row[kRows];
    FASTGAN_UNROLL for (int r = 0; r < kRows; ++r) row[r] = stretches->rows[r];
    const Step* weights = stretches->weights + first;
    for (int64_t k = 0; k < steps; k += kLanes) {
      Lanes weight[outputs];
      FASTGAN_UNROLL for (int o = 0; o < outputs; ++o) {
        weight[o] = vector_step(weights + o * stride + k);
      }
      FASTGAN_UNROLL for (int r = 0; r < kRows; ++r) {
        const Lanes value = vector_step(row[r] + k);
        FASTGAN_UNROLL for (int o = 0; o < outputs; ++o) {
          tile[r][o] = accumulate(tile[r][o], value, weight[o], weights);
        }
      }
    }
  }
  FASTGAN_UNROLL for (int r = 0; r < kRows; ++r) {
    store_sums_of_lanes(tile[r], sums + r * sums_stride);
  }
}

// The weight as [taps][outputs][steps].
template <class Step>
const Step* pack_narrow(const typename ElementOf<Step>::type* weight, const WeightOrder& order) {
  using T = typename ElementOf<Step>::type;
  const int64_t size = order.taps * order.outputs * order.elements;
  auto* packed = static_cast<T*>(scratch(Scratch::weights, size * sizeof(T)));
  for (int64_t index = 0; index < size; ++index) {
    const int64_t element = index % order.elements, row = index / order.elements;
    packed[index] = weight[row % order.outputs * order.output_stride +
                           row / order.outputs * order.tap_stride + order.offsets[element]];
  }
  return reinterpret_cast<const Step*>(packed);
}

// Bias, activation and rounding of a task's sums [pixels][outputs], all lanes in use; then each
// pixel's few channels go to their place, and into the statistics if there is a partial for them.
template <int outputs, class T, Activation activation>
void store_narrow(const Product& product, const Phase& phase, const Pixels& pixels, float* sums,
                  float* partial) {
  const Convolution& call = *product.call;
  alignas(64) T rounded[kPixels * outputs + kLanes];
  if (call.bias) {
    for (int64_t index = 0; index < pixels.count * outputs; ++index) {
      sums[index] += call.bias[index % outputs];
    }
  }
  for (int64_t index = 0; index < pixels.count * outputs; index += kLanes) {
    store(rounded + index,
          activate<VectorMath, activation>(load(sums + index), call.negative_slope));
  }
  T* result = static_cast<T*>(call.result);
  for (int64_t pixel = 0; pixel < pixels.count; ++pixel) {
    const int64_t y = pixels.y[pixel] * product.output_stride_y + phase.origin_y;
    const int64_t x = pixels.x[pixel] * product.output_stride_x + phase.origin_x;
    const int64_t row = pixels.image[pixel] * product.output_height + y;
    memcpy(result + (row * product.output_width + x) * outputs, rounded + pixel * outputs,
           outputs * sizeof(T));
  }
  float seen = 0.0f;
  if (partial) add_to_partial<false>(rounded, pixels.count, outputs, outputs, kBlock, seen, partial);
}

// Asks for the next register tile's rows: of one tap, each is read once, a few vectors long.
template <class Step>
FASTGAN_SHARED void fetch_rows(const Step* const* first, const Step* const* end, int64_t steps) {
  for (const Step* const* row = first; row < first + kRows && row < end; ++row) {
    if (!*row) continue;
    for (int64_t step = 0; step < steps; step += kLanes) fetch(*row + step);
  }
}

template <int outputs, class Step>
void run_narrow_task(const Product& product, const Cut& cut, int64_t task, const Phase& phase,
                     const Step* input, const Step* zeros, const Step* packed, int64_t all_taps) {
  const Pixels pixels = cut.pixels(product, phase, task);
  if (pixels.count <= 0) return;
  const int64_t steps = steps_of<Step>(product.inputs), taps = phase.taps_y * phase.taps_x;
  auto* stretches = static_cast<Stretch<Step>*>(
      scratch(Scratch::task, all_taps * (sizeof(Stretch<Step>) + kPixels * sizeof(Step*))));
  auto** rows = reinterpret_cast<const Step**>(stretches + all_taps);
  find_rows(product, phase, pixels, input, steps, rows);
  alignas(64) float sums[kPixels * outputs + kLanes] = {};
  for (int64_t group = 0; group * kRows < pixels.count; ++group) {
    int64_t used = 0;
    if (taps == 1) fetch_rows(rows + (group + 1) * kRows, rows + kPixels, steps);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const Step* const* tap_rows = rows + tap * kPixels + group * kRows;
      Stretch<Step>& stretch = stretches[used];
      bool inside = false;
      for (int r = 0; r < kRows; ++r) {
        inside |= tap_rows[r] != nullptr;
        stretch.rows[r] = tap_rows[r] ? tap_rows[r] : zeros;
      }
      stretch.weights = packed + tap_of(product, phase, tap) * outputs * steps;
      used += inside;
    }
    multiply_lanes<outputs>(stretches, used, steps, 0, steps, sums + group * kRows * outputs,
                            outputs);
  }
  with_type(product.call->type, [&](auto element) {
    with_activation(product.call->activation, [&](auto activation) {
      store_narrow<outputs, typename decltype(element)::type, decltype(activation)::value>(
          product, phase, pixels, sums, cut.partial(task));
    });
  });
}

template <class Step, class PhaseOf>
void run_narrow(const Product& product, const Cut& cut, const PhaseOf& phase_of, const Step* input,
                const Step* packed, int64_t taps) {
  const Step* zeros = zero_steps<Step>(steps_of<Step>(product.inputs));
  parallel_for(cut.tasks(), [&](int64_t task) {
    const Phase phase = phase_of(cut.phase(task));
    auto run = [&](auto outputs) {
      run_narrow_task<decltype(outputs)::value>(product, cut, task, phase, input, zeros, packed,
                                                taps);
    };
    switch (product.outputs) {
      case 1:
        return run(Vectors<1>{});
      case 2:
        return run(Vectors<2>{});
      case 3:
        return run(Vectors<3>{});
      default:
        return run(Vectors<4>{});
    }
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
