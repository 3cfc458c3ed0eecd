// How weight gradients are cut into tasks, and what becomes of the tasks' sums.
//
// The gradient is cut into groups (blocks of channels, kernel rows) and, where these are few, the
// reduction into splits. A group without splits is stored from its task's sums. Splits have partial
// sums of their own, which are added in order; groups are then made in rounds, so that only as many
// partial sums exist at a time as the threads need.
#pragma once

#include "operands.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// Splits of the images, by the shape alone.
struct Split {
  int64_t count, images;  // images: (pairs of) images of each but the last, or whatever is summed

  Split(int64_t all_images, int64_t tasks, int64_t weights)
      : Split(all_images, splits_of(tasks, weights <= (int64_t{1} << 18) ? 32 : 16)) {}

  // At most `most` splits.
  Split(int64_t all, int64_t most) {
    if (all == 0) {
      count = 1, images = 0;
      return;
    }
    count = most < all ? most : all;
    images = round_up_quotient(all, count);
    count = round_up_quotient(all, images);
  }

  // As many splits of each of `groups` as make the wanted number of tasks.
  static int64_t splits_of(int64_t groups, int64_t wanted) {
    return groups >= wanted ? 1 : round_up_quotient(wanted, groups);
  }
};

// Makes every group's sums [rows][kBlock]. A task calls add(group, split, sums, memory), where sums
// has room for `sum_floats`, of which the first rows * kBlock are its result, and memory for
// `memory_bytes`; store(group, first, last, sums) then takes rows first to last of the whole sums.
template <class Add, class Store>
void add_splits(const Split& split, int64_t groups, int64_t rows, int64_t sum_floats,
                int64_t memory_bytes, const Add& add, const Store& store) {
  const int64_t partial_bytes = rows * kBlock * sizeof(float);
  const int64_t sum_bytes = sum_floats * sizeof(float);
  const int64_t apart_bytes = sum_bytes > partial_bytes ? sum_bytes : 0;
  if (split.count == 1) {
    parallel_for(groups, [&](int64_t group) {
      auto* sums = static_cast<float*>(scratch(Scratch::task, sum_bytes + memory_bytes));
      add(group, 0, sums, reinterpret_cast<char*>(sums) + sum_bytes);
      store(group, 0, rows, sums);
    });
    return;
  }
  // Two tasks a thread in each round: which groups share one changes no bit.
  const int64_t wanted = round_up_quotient(2 * threads(), split.count);
  const int64_t rounds = round_up_quotient(groups, wanted);
  const int64_t round_groups = round_up_quotient(groups, rounds);
  auto* partials = static_cast<char*>(
      scratch(Scratch::partials, round_groups * split.count * partial_bytes));
  auto partial = [&](int64_t index) {
    return reinterpret_cast<float*>(partials + index * partial_bytes);
  };
  constexpr int64_t kPiece = 32;  // rows
  const int64_t pieces = round_up_quotient(rows, kPiece);
  for (int64_t first = 0; first < groups; first += round_groups) {
    const int64_t count = first + round_groups < groups ? round_groups : groups - first;
    parallel_for(count * split.count, [&](int64_t task) {
      float* target = partial(task);
      auto* memory = static_cast<char*>(scratch(Scratch::task, apart_bytes + memory_bytes));
      float* sums = apart_bytes ? reinterpret_cast<float*>(memory) : target;
      add(first + task / split.count, task % split.count, sums, memory + apart_bytes);
      if (apart_bytes) memcpy(target, sums, partial_bytes);
    });
    parallel_for(count * pieces, [&](int64_t task) {
      const int64_t begin = task % pieces * kPiece, group = task / pieces;
      const int64_t end = begin + kPiece < rows ? begin + kPiece : rows;
      float* sums = partial(group * split.count);
      for (int64_t at = begin * kBlock; at < end * kBlock; at += kLanes) {
        Lanes sum = load(sums + at);
        for (int64_t index = 1; index < split.count; ++index) {
          sum += load(partial(group * split.count + index) + at);
        }
        fastgan::cpu::FASTGAN_LEVEL::store(sums + at, sum);
      }
      store(first + group, begin, end, sums);
    });
  }
}

// `channels` of the vector side's sums to T.
template <class T>
FASTGAN_SHARED void store_row(T* target, const float* sums, int64_t channels) {
  for_lanes(channels, [&](int64_t channel, int lanes) {
    store_width(target + channel, load(sums + channel), lanes);
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
