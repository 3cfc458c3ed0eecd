// How a matrix [groups, rows, channels] is shared out where columns are reduced or rescaled.
//
//        column_threads x V columns
//         +------------+------+
//  split  | (ty, tx)   |      |   A block has kThreads threads: `column_threads` neighbours read
//         |    |       |      |   neighbouring packs of V channels, the others are row threads that
//         +----v-------+------+   walk down the rows of the block's split, kRowsInFlight loads at a
//  split  |            |      |   time.
//         +------------+------+
//
// Grid: one axis; the column block is the fastest part of the index, then the split, then the
// group.
// Masks: columns past the last (`inside`), rows past the end of the split.
#pragma once

#include "elements.cuh"
#include "launch.cuh"

namespace fastgan::cuda {

constexpr int kThreads = 256;
constexpr int kRowsInFlight = 4;
constexpr int kMostColumnThreads = 32;

struct ColumnTiles {
  int64_t rows, channels;  // of a group
  int64_t rows_per_split;
  int column_threads;  // a power of two
  int column_blocks, splits, groups;

  __host__ __device__ int64_t blocks() const {
    return static_cast<int64_t>(column_blocks) * splits * groups;
  }
  __host__ __device__ int row_threads() const { return kThreads / column_threads; }
};

// Cuts a matrix for at most `most_blocks` blocks (but at least one a column block and group).
inline ColumnTiles cut_columns(int64_t groups, int64_t rows, int64_t channels, int width,
                               int64_t most_blocks) {
  ColumnTiles tiles = {rows, channels, rows, 1, 1, 1, static_cast<int>(groups)};
  const int64_t packs = ceil_div(channels, width);
  while (tiles.column_threads < kMostColumnThreads && tiles.column_threads < packs) {
    tiles.column_threads *= 2;
  }
  tiles.column_blocks = static_cast<int>(ceil_div(packs, tiles.column_threads));
  const int64_t step = tiles.row_threads() * kRowsInFlight;
  int64_t splits = most_blocks / (tiles.column_blocks * groups);
  splits = splits < 1 ? 1 : splits;
  splits = splits < ceil_div(rows, step) ? splits : ceil_div(rows, step);
  tiles.rows_per_split = ceil_div(rows, splits);
  tiles.splits = static_cast<int>(ceil_div(rows, tiles.rows_per_split));
  return tiles;
}

// Where a thread stands.
struct ColumnPlace {
  int group, split, row_thread, column_thread;
  int64_t column;            // the first of the thread's V
  bool inside;               // the columns exist
  int64_t first_row, end_row;  // of the split, counted from the first group's first row

  template <int V>
  static __device__ __forceinline__ ColumnPlace of(const ColumnTiles& tiles) {
    ColumnPlace place;
    unsigned block = blockIdx.x;
    const unsigned column_block = block % tiles.column_blocks;
    block /= tiles.column_blocks;
    place.split = static_cast<int>(block % tiles.splits);
    place.group = static_cast<int>(block / tiles.splits);
    place.column_thread = static_cast<int>(threadIdx.x) & (tiles.column_threads - 1);
    place.row_thread = static_cast<int>(threadIdx.x) / tiles.column_threads;
    place.column =
        (static_cast<int64_t>(column_block) * tiles.column_threads + place.column_thread) * V;
    place.inside = place.column < tiles.channels;
    const int64_t start = place.split * tiles.rows_per_split;
    const int64_t end = start + tiles.rows_per_split;
    place.first_row = place.group * tiles.rows + start;
    place.end_row = place.group * tiles.rows + (end < tiles.rows ? end : tiles.rows);
    return place;
  }
};

// Walks the thread's rows: fetch(row) for `count` rows, so that all their loads are under way
// together, then use(items, row, valid): items[u] belongs to row + u * row_threads, for u < valid.
template <class Item, int count, class Fetch, class Use>
__device__ __forceinline__ void walk_rows(const ColumnTiles& tiles, const ColumnPlace& place,
                                          Fetch fetch, Use use) {
  if (!place.inside) return;
  const int64_t step = tiles.row_threads();
  for (int64_t row = place.first_row + place.row_thread; row < place.end_row;
       row += step * count) {
    Item items[count];
    int valid = 0;
#pragma unroll
    for (int u = 0; u < count; ++u) {
      if (row + u * step < place.end_row) {
        items[u] = fetch(row + u * step);
        valid = u + 1;
      }
    }
    use(items, row, valid);
  }
}

// Adds `values` up over the row threads, in a fixed order; every thread gets its columns' sums.
// `scratch`: kThreads * V floats.
template <int V>
__device__ __forceinline__ void sum_rows(float (&values)[V], float* scratch, int column_threads) {
  float* own = scratch + threadIdx.x;
  __syncthreads();  // the sums of an earlier call have been read
#pragma unroll
  for (int v = 0; v < V; ++v) own[v * kThreads] = values[v];
  for (int half = kThreads / 2; half >= column_threads; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) {
#pragma unroll
      for (int v = 0; v < V; ++v) own[v * kThreads] += own[v * kThreads + half];
    }
  }
  __syncthreads();
#pragma unroll
  for (int v = 0; v < V; ++v) {
    values[v] = scratch[v * kThreads + (threadIdx.x & (column_threads - 1))];
  }
}

// Adds up `partials` [splits, channels] over the splits; every thread gets its columns' sums.
template <int V>
__device__ __forceinline__ void sum_splits(const ColumnTiles& tiles, const ColumnPlace& place,
                                           const float* partials, float* scratch,
                                           float (&sums)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) sums[v] = 0.0f;
  for (int split = place.row_thread; place.inside && split < tiles.splits;
       split += tiles.row_threads()) {
    const float* values = partials + split * tiles.channels + place.column;
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] += values[v];
  }
  sum_rows(sums, scratch, tiles.column_threads);
}

}  // namespace fastgan::cuda
