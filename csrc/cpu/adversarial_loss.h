// The adversarial losses: the loss, both gradients and the mean scores from one read of the logits.
//
// A task is one run of kChunk outputs of the real or of the fake batch. It is converted to float32
// in a buffer, so that an objective is compiled once and not once a dtype; its sums go to a slot of
// its own and are added in order.
#pragma once

#include "../common/objectives.h"
#include <utility>

#include "dispatch.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kChunk = 1024;

// Cost and score sums of `count` outputs (padded to whole vectors); they become their slopes.
template <Objective objective, Role role>
void cost_of_chunk(float* outputs, int64_t count, float label, float scale, double* sums) {
  Lanes costs = {}, scores = {};
  IntLanes lane;
  for (int index = 0; index < kLanes; ++index) lane[index] = index;
  for (int64_t first = 0; first < count; first += kLanes) {
    const Lanes t = load(outputs + first);
    const auto value = adversarial_cost<VectorMath, objective, role>(t, label);
    Lanes score = t;
    if constexpr (scores_by_sigmoid(objective)) score = sigmoid<VectorMath>(t);
    const IntLanes inside = lane < static_cast<int32_t>(count - first);
    costs += inside ? value.cost : Lanes{};
    scores += inside ? score : Lanes{};
    store(outputs + first, value.slope * scale);
  }
  sums[0] = sums[1] = 0.0;
  for (int index = 0; index < kLanes; ++index) {
    sums[0] += costs[index];
    sums[1] += scores[index];
  }
}

using ChunkCost = void (*)(float*, int64_t, float, float, double*);

template <int... objectives>
FASTGAN_SHARED ChunkCost chunk_cost(int objective, Role role,
                                    std::integer_sequence<int, objectives...>) {
  static constexpr ChunkCost table[][3] = {
      {cost_of_chunk<static_cast<Objective>(objectives), Role::real>,
       cost_of_chunk<static_cast<Objective>(objectives), Role::fake>,
       cost_of_chunk<static_cast<Objective>(objectives), Role::generator>}...};
  return table[objective][static_cast<int>(role)];
}

void adversarial_loss(const AdversarialLoss& call) {
  const bool generator = call.grad_real == nullptr;
  const int64_t real_chunks = generator ? 0 : (call.real_count + kChunk - 1) / kChunk;
  const int64_t fake_chunks = (call.fake_count + kChunk - 1) / kChunk;
  auto* sums = static_cast<double*>(
      scratch(Scratch::partials, 2 * (real_chunks + fake_chunks) * sizeof(double)));
  constexpr auto kObjectives = std::make_integer_sequence<int, static_cast<int>(Objective::count)>{};
  with_type(call.type, [&](auto element) {
    using T = typename decltype(element)::type;
    parallel_for(real_chunks + fake_chunks, [&](int64_t task) {
      const bool real = task < real_chunks;
      const int64_t first = (real ? task : task - real_chunks) * kChunk;
      const int64_t all = real ? call.real_count : call.fake_count;
      const int64_t count = first + kChunk <= all ? kChunk : all - first;
      const T* source = static_cast<const T*>(real ? call.real : call.fake) + first;
      T* target = static_cast<T*>(real ? call.grad_real : call.grad_fake) + first;
      alignas(64) float outputs[kChunk];
      int64_t index = 0;
      for (; index + kLanes <= count; index += kLanes) store(outputs + index, load(source + index));
      if (index < count) {
        store(outputs + index, load_first(source + index, static_cast<int>(count - index)));
      }
      const Role role = generator ? Role::generator : real ? Role::real : Role::fake;
      const float label = static_cast<float>(real ? call.real_label : call.fake_label);
      chunk_cost(call.objective, role, kObjectives)(
          outputs, count, label, 1.0f / static_cast<float>(all), sums + 2 * task);
      for (index = 0; index + kLanes <= count; index += kLanes) {
        store(target + index, load(outputs + index));
      }
      if (index < count) {
        store_first(target + index, load(outputs + index), static_cast<int>(count - index));
      }
    });
  });
  double totals[2][2] = {};
  for (int64_t task = 0; task < real_chunks + fake_chunks; ++task) {
    double* total = totals[task < real_chunks ? 0 : 1];
    total[0] += sums[2 * task];
    total[1] += sums[2 * task + 1];
  }
  const double real_count = static_cast<double>(call.real_count);
  const double fake_count = static_cast<double>(call.fake_count);
  float* result = call.results;
  *result++ = static_cast<float>((generator ? 0.0 : totals[0][0] / real_count) +
                                 totals[1][0] / fake_count);
  if (!generator) *result++ = static_cast<float>(totals[0][1] / real_count);
  *result = static_cast<float>(totals[1][1] / fake_count);
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
