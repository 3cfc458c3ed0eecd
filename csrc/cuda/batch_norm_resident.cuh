// Which tensors batch norm can keep in shared memory between its two passes, and how they are cut.
//
// All blocks are alive together, two on a multiprocessor so that one's loads hide the other's
// barriers, and each keeps its part of `tensors` tensors.
#pragma once

#include "columns.cuh"

namespace fastgan::cuda {

constexpr int kResidentBlocks = 2;
constexpr size_t kReservedShared = 1024;  // the driver takes this much of every block

struct ResidentPlan {
  ColumnTiles tiles;
  size_t shared_bytes;  // the scratch of `sum_rows`, then the parts
  bool fits;
};

inline ResidentPlan plan_resident(DataType type, int64_t groups, int64_t rows, int64_t channels,
                                  int width, int tensors, const Device& device) {
  const int64_t most_blocks = kResidentBlocks * device.multiprocessors;
  ResidentPlan plan;
  plan.tiles = cut_columns(groups, rows, channels, width, most_blocks);
  const size_t pack = width * element_bytes(type);
  plan.shared_bytes = sizeof(float) * kThreads * width +
                      tensors * pack * plan.tiles.column_threads * plan.tiles.rows_per_split;
  const size_t limit = (device.shared_bytes + kReservedShared) / kResidentBlocks - kReservedShared;
  plan.fits = plan.shared_bytes <= limit && plan.tiles.blocks() <= most_blocks;
  return plan;
}

}  // namespace fastgan::cuda
