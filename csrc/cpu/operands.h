// Operands as the register tiles read them: steps of 32 bits (micro_kernels.h).
//
// float32 is read where it lies. bfloat16 is read where it lies if the processor multiplies pairs;
// everything else is converted to float32 once a call. Weights are packed a call: they are small
// beside the activations, and no cache of packed weights can go stale.
#pragma once

#include "dispatch.h"
#include "geometry.h"
#include "prologue.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// Calls visit(Element<Step>) with the step that serves a dtype at this level; with float32's where
// the reduction has no pairs.
template <class Visit>
FASTGAN_SHARED void with_step([[maybe_unused]] DataType type, [[maybe_unused]] bool has_pairs,
                              const Visit& visit) {
#if defined(__AVX512BF16__)
  if (type == DataType::bfloat16 && has_pairs) return visit(Element<Pair>{});
#endif
  visit(Element<float>{});
}

// How many of the reduction's elements a step holds.
template <class Step>
constexpr int kElements = __is_same(Step, Pair) ? 2 : 1;

// The elements as float32: where they lie, or converted into scratch memory.
FASTGAN_SHARED const float* as_float(const void* source, DataType type, int64_t count,
                                     Scratch slot) {
  if (type == DataType::float32) return static_cast<const float*>(source);
  auto* target = static_cast<float*>(scratch(slot, (count + kLanes) * sizeof(float)));
  with_type(type, [&](auto element) {
    using T = typename decltype(element)::type;
    constexpr int64_t kPiece = 16384;
    parallel_for((count + kPiece - 1) / kPiece, [&](int64_t task) {
      const T* from = static_cast<const T*>(source);
      const int64_t end = (task + 1) * kPiece < count ? (task + 1) * kPiece : count;
      int64_t index = task * kPiece;
      for (; index + kLanes <= end; index += kLanes) store(target + index, load(from + index));
      if (index < end) store(target + index, load_first(from + index, int(end - index)));
    });
  });
  return target;
}

// The reduction's elements of one pixel lie `elements` apart: steps are read where they are.
template <class Step>
FASTGAN_SHARED const Step* as_steps(const void* source, DataType type, int64_t count,
                                    Scratch slot) {
  if constexpr (kElements<Step> == 2) {
    return static_cast<const Step*>(source);
  } else {
    return as_float(source, type, count, slot);
  }
}

// The input of fprop or dgrad, as its prologue leaves it.
template <class Step>
FASTGAN_SHARED const Step* read_operand(const Product& product, const Prologue& prologue,
                                        const void* input) {
  const DataType type = product.call->type;
  const int64_t pixels = product.input_height * product.input_width;
  const int64_t count = product.batch * pixels * product.inputs;
  if (!prologue.scale) return as_steps<Step>(input, type, count, Scratch::first_operand);
  auto* steps = static_cast<Step*>(scratch(
      Scratch::first_operand, (count / kElements<Step> + kLanes) * sizeof(Step)));
  with_type(type, [&](auto element) {
    using T = typename decltype(element)::type;
    if constexpr (kElements<Step> == 1) {
      apply_to_operand(prologue, static_cast<const T*>(input), product.batch, pixels, steps);
    } else if constexpr (__is_same(T, BFloat16)) {
      apply_to_operand(prologue, static_cast<const T*>(input), product.batch, pixels,
                       reinterpret_cast<T*>(steps));
    }
  });
  return steps;
}

template <class Step>
FASTGAN_SHARED int64_t steps_of(int64_t elements) {
  return (elements + kElements<Step> - 1) / kElements<Step>;
}

// The element type of a step: what weights and copied patches are made of.
template <class Step>
struct ElementOf {
  using type = float;
};

template <>
struct ElementOf<Pair> {
  using type = BFloat16;
};

// Where the elements of a weight lie: output channel o, tap t, reduction element e is at
// o * output_stride + t * tap_stride + offsets[e].
struct WeightOrder {
  int64_t outputs, output_stride;
  int64_t taps, tap_stride;
  int64_t elements;
  const int64_t* offsets;
  int64_t steps = 0;  // of the packed reduction; 0: what the elements need
};

// The steps of outputs that lie side by side: a row of elements, or two rows zipped.
FASTGAN_SHARED void pack_row(float* target, const float* first, const float*, int64_t width) {
  memcpy(target, first, width * sizeof(float));
}

FASTGAN_SHARED void pack_row(BFloat16* target, const BFloat16* first, const BFloat16* second,
                             int64_t width) {
  int64_t lane = 0;
  for (; second && lane + kLanes <= width; lane += kLanes) {
    HalfLanes low, high;
    memcpy(&low, first + lane, sizeof low);
    memcpy(&high, second + lane, sizeof high);
    const BitLanes zipped =
        __builtin_convertvector(low, BitLanes) | __builtin_convertvector(high, BitLanes) << 16;
    memcpy(target + 2 * lane, &zipped, sizeof zipped);
  }
  for (; lane < width; ++lane) {
    target[2 * lane] = first[lane];
    target[2 * lane + 1] = second ? second[lane] : BFloat16{0};
  }
}

// Packs the weight as [blocks of kBlock outputs][taps][steps][kBlock]; what is missing is zero.
template <class Step>
const Step* pack_weight(const typename ElementOf<Step>::type* weight, const WeightOrder& order) {
  using T = typename ElementOf<Step>::type;
  constexpr int kStep = kElements<Step>;
  const int64_t blocks = (order.outputs + kBlock - 1) / kBlock;
  const int64_t needed = steps_of<Step>(order.elements);
  const int64_t steps = order.steps ? order.steps : needed;
  auto* packed = static_cast<Step*>(
      scratch(Scratch::weights, blocks * order.taps * steps * kBlock * sizeof(Step)));
  parallel_for(blocks * order.taps, [&](int64_t task) {
    const int64_t first = task / order.taps * kBlock, tap = task % order.taps;
    const int64_t width = first + kBlock <= order.outputs ? kBlock : order.outputs - first;
    T* target = reinterpret_cast<T*>(packed + task * steps * kBlock);
    if (width < kBlock || order.elements % kStep || steps > needed) {
      memset(target, 0, steps * kBlock * sizeof(Step));
    }
    const T* source = weight + first * order.output_stride + tap * order.tap_stride;
    if (order.output_stride == 1) {
      for (int64_t element = 0; element < order.elements; element += kStep) {
        const T* second = kStep == 2 && element + 1 < order.elements
                              ? source + order.offsets[element + 1]
                              : nullptr;
        pack_row(target + element * kBlock, source + order.offsets[element], second, width);
      }
      return;
    }
    if (order.elements > 0 && order.elements % kStep == 0 &&
        order.offsets[order.elements - 1] == order.elements - 1) {
      // Reduction elements that lie side by side: whole steps are moved, 16 outputs at a time, so
      // that their rows and the packed rows stay in the first-level cache.
      for (int64_t lanes = 0; lanes < width; lanes += 16) {
        const int64_t end = lanes + 16 < width ? lanes + 16 : width;
        for (int64_t step = 0; step < needed; ++step) {
          Step* row = reinterpret_cast<Step*>(target) + step * kBlock;
          for (int64_t lane = lanes; lane < end; ++lane) {
            memcpy(static_cast<void*>(row + lane),
                   source + lane * order.output_stride + step * kStep, sizeof(Step));
          }
        }
      }
      return;
    }
    for (int64_t lanes = 0; lanes < width; lanes += 16) {
      const int64_t end = lanes + 16 < width ? lanes + 16 : width;
      for (int64_t element = 0; element < order.elements; ++element) {
        const T* from = source + order.offsets[element];
        T* row = target + element / kStep * kBlock * kStep + element % kStep;
        for (int64_t lane = lanes; lane < end; ++lane) {
          row[lane * kStep] = from[lane * order.output_stride];
        }
      }
    }
  });
  return packed;
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
