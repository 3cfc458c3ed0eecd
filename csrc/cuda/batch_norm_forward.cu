// Batch norm + activation, forward: y = act((x - mean) * invstd * weight + bias), channels_last.
//
// Tiles, grid and masks: columns.cuh. Statistics are (count, mean, moment), the moment being
// sum((x - mean)^2), merged in a fixed order: thread, block, splits.
//
//   streaming   x -> [statistics of a split] -> partials; then, in a second launch,
//               partials -> mean, invstd;  x -> [normalise, activate] -> y
//   resident    x -> shared memory -> [statistics of a split] -> partials -> (the grid waits)
//               partials -> mean, invstd;  shared memory -> [normalise, activate] -> y
#include <cooperative_groups.h>

#include "batch_norm_resident.cuh"

namespace fastgan::cuda {
namespace {

template <int V>
struct Statistics {
  float count;
  float mean[V], moment[V];
};

// What the kernels need beside the tensor.
struct Normalisation {
  const float *weight, *bias;
  float *mean, *inverse_deviation;
  float *running_mean, *running_var;
  float momentum, epsilon;
  Activation activation;
  float negative_slope;
};

template <class T, int V>
__device__ __forceinline__ void absorb(Statistics<V>& statistics,
                                       const Pack<T, V> (&packs)[kRowsInFlight], int valid) {
  const float total = statistics.count + valid;
  const float share = 1.0f / valid, weight = valid / total;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    float mean = 0.0f, moment = 0.0f;
#pragma unroll
    for (int u = 0; u < kRowsInFlight; ++u) {
      if (u < valid) mean += widen(packs[u].values[v]);
    }
    mean *= share;
#pragma unroll
    for (int u = 0; u < kRowsInFlight; ++u) {
      const float difference = u < valid ? widen(packs[u].values[v]) - mean : 0.0f;
      moment += difference * difference;
    }
    const float step = mean - statistics.mean[v];
    statistics.mean[v] += step * weight;
    statistics.moment[v] += moment + step * step * statistics.count * weight;
  }
  statistics.count = total;
}

// Merges the row threads' statistics of a split and writes them to partials
// [mean, moment][groups, splits, channels].
template <int V>
__device__ void write_partials(const ColumnTiles& tiles, const ColumnPlace& place,
                               const Statistics<V>& own, float* scratch, float* partials) {
  const float share = 1.0f / static_cast<float>(place.end_row - place.first_row);
  float mean[V], moment[V];
#pragma unroll
  for (int v = 0; v < V; ++v) mean[v] = own.count * own.mean[v];
  sum_rows(mean, scratch, tiles.column_threads);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    mean[v] *= share;
    const float step = own.mean[v] - mean[v];
    moment[v] = own.moment[v] + own.count * step * step;
  }
  sum_rows(moment, scratch, tiles.column_threads);
  if (!place.inside || place.row_thread != 0) return;
  const int64_t parts = static_cast<int64_t>(tiles.groups) * tiles.splits;
  const int64_t part = static_cast<int64_t>(place.group) * tiles.splits + place.split;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    partials[part * tiles.channels + place.column + v] = mean[v];
    partials[(parts + part) * tiles.channels + place.column + v] = moment[v];
  }
}

// The statistics of a group from the partials of its splits.
template <int V>
__device__ Statistics<V> merge_splits(const ColumnTiles& tiles, const ColumnPlace& place, int group,
                                      const float* partials, float* scratch) {
  const int64_t plane = static_cast<int64_t>(tiles.groups) * tiles.splits * tiles.channels;
  const float* means = partials + static_cast<int64_t>(group) * tiles.splits * tiles.channels;
  Statistics<V> merged = {};
  merged.count = static_cast<float>(tiles.rows);
  auto each_split = [&](auto use) {
    for (int split = place.row_thread; place.inside && split < tiles.splits;
         split += tiles.row_threads()) {
      const int64_t start = split * tiles.rows_per_split;
      const int64_t rest = tiles.rows - start;
      const float count =
          static_cast<float>(rest < tiles.rows_per_split ? rest : tiles.rows_per_split);
      use(means + split * tiles.channels + place.column, count);
    }
  };
  each_split([&](const float* mean, float count) {
#pragma unroll
    for (int v = 0; v < V; ++v) merged.mean[v] += count * mean[v];
  });
  sum_rows(merged.mean, scratch, tiles.column_threads);
#pragma unroll
  for (int v = 0; v < V; ++v) merged.mean[v] /= merged.count;
  each_split([&](const float* mean, float count) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float step = mean[v] - merged.mean[v];
      merged.moment[v] += mean[plane + v] + count * step * step;
    }
  });
  sum_rows(merged.moment, scratch, tiles.column_threads);
  return merged;
}

// Mean and inverse deviation of the block's columns: from the partials, or, if there are none, from
// the running statistics. The first block of a column writes them and advances the running ones.
template <int V>
__device__ void find_statistics(const ColumnTiles& tiles, const ColumnPlace& place,
                                const float* partials, const Normalisation& norm, float* scratch,
                                float (&mean)[V], float (&inverse_deviation)[V]) {
  if (!partials) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      mean[v] = place.inside ? norm.running_mean[place.column + v] : 0.0f;
      inverse_deviation[v] =
          place.inside ? 1.0f / sqrtf(norm.running_var[place.column + v] + norm.epsilon) : 0.0f;
    }
    return;
  }
  const Statistics<V> own = merge_splits<V>(tiles, place, place.group, partials, scratch);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    mean[v] = own.mean[v];
    inverse_deviation[v] = 1.0f / sqrtf(own.moment[v] / own.count + norm.epsilon);
  }
  if (place.split != 0) return;
  const bool writes = place.inside && place.row_thread == 0;
  if (writes) {
    const int64_t row = place.group * tiles.channels + place.column;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      norm.mean[row + v] = mean[v];
      norm.inverse_deviation[row + v] = inverse_deviation[v];
    }
  }
  if (place.group != 0 || !norm.running_mean) return;
  for (int group = 0; group < tiles.groups; ++group) {
    const Statistics<V> next = merge_splits<V>(tiles, place, group, partials, scratch);
    if (!writes) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float& running_mean = norm.running_mean[place.column + v];
      float& running_var = norm.running_var[place.column + v];
      running_mean += norm.momentum * (next.mean[v] - running_mean);
      running_var += norm.momentum * (next.moment[v] / (next.count - 1.0f) - running_var);
    }
  }
}

// y of the thread's rows; `fetch(row)` gives x.
template <class T, int V, class Fetch>
__device__ __forceinline__ void write_normalised(const ColumnTiles& tiles, const ColumnPlace& place,
                                                 const Normalisation& norm, const float (&mean)[V],
                                                 const float (&inverse_deviation)[V], T* y,
                                                 Fetch fetch) {
  float scale[V], shift[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t column = place.inside ? place.column + v : 0;
    scale[v] = inverse_deviation[v] * value_or(norm.weight, column, 1.0f);
    shift[v] = value_or(norm.bias, column, 0.0f);
  }
  walk_rows<Pack<T, V>, kRowsInFlight>(
      tiles, place, fetch, [&](const Pack<T, V>(&packs)[kRowsInFlight], int64_t row, int valid) {
#pragma unroll
        for (int u = 0; u < kRowsInFlight; ++u) {
          if (u >= valid) break;
          float z[V];
#pragma unroll
          for (int v = 0; v < V; ++v) {
            z[v] = (widen(packs[u].values[v]) - mean[v]) * scale[v] + shift[v];
          }
          activate_all(norm.activation, z, norm.negative_slope);
          Pack<T, V> result;
#pragma unroll
          for (int v = 0; v < V; ++v) result.values[v] = narrow<T>(z[v]);
          store(y + (row + u * tiles.row_threads()) * tiles.channels + place.column, result);
        }
      });
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    partial_statistics_kernel(ColumnTiles tiles, const T* x, float* partials) {
  float* scratch = reinterpret_cast<float*>(block_memory);
  const ColumnPlace place = ColumnPlace::of<V>(tiles);
  Statistics<V> own = {};
  walk_rows<Pack<T, V>, kRowsInFlight>(
      tiles, place, [&](int64_t row) { return load<V>(x + row * tiles.channels + place.column); },
      [&](const Pack<T, V>(&packs)[kRowsInFlight], int64_t, int valid) {
        absorb(own, packs, valid);
      });
  write_partials(tiles, place, own, scratch, partials);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    normalise_kernel(ColumnTiles tiles, const T* x, T* y, const float* partials,
                     Normalisation norm) {
  float* scratch = reinterpret_cast<float*>(block_memory);
  const ColumnPlace place = ColumnPlace::of<V>(tiles);
  float mean[V], inverse_deviation[V];
  find_statistics(tiles, place, partials, norm, scratch, mean, inverse_deviation);
  write_normalised(
      tiles, place, norm, mean, inverse_deviation, y,
      [&](int64_t row) { return load<V>(x + row * tiles.channels + place.column); });
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    forward_resident_kernel(ColumnTiles tiles, const T* x, T* y, float* partials,
                            Normalisation norm) {
  float* scratch = reinterpret_cast<float*>(block_memory);
  const ColumnPlace place = ColumnPlace::of<V>(tiles);
  // The thread reads back what it wrote itself: no barrier.
  T* kept = reinterpret_cast<T*>(scratch + kThreads * V) + place.column_thread * V;
  auto slot = [&](int64_t row) { return (row - place.first_row) * tiles.column_threads * V; };
  Statistics<V> own = {};
  walk_rows<Pack<T, V>, kRowsInFlight>(
      tiles, place, [&](int64_t row) { return load<V>(x + row * tiles.channels + place.column); },
      [&](const Pack<T, V>(&packs)[kRowsInFlight], int64_t row, int valid) {
#pragma unroll
        for (int u = 0; u < kRowsInFlight; ++u) {
          if (u < valid) store_shared(kept + slot(row + u * tiles.row_threads()), packs[u]);
        }
        absorb(own, packs, valid);
      });
  write_partials(tiles, place, own, scratch, partials);
  cooperative_groups::this_grid().sync();
  float mean[V], inverse_deviation[V];
  find_statistics(tiles, place, partials, norm, scratch, mean, inverse_deviation);
  write_normalised(tiles, place, norm, mean, inverse_deviation, y,
                   [&](int64_t row) { return load<V>(kept + slot(row)); });
}

constexpr int64_t kStreamingBlocks = 8;  // for each multiprocessor

ResidentPlan resident_plan(const BatchNormForward& call, const Device& device) {
  const int width = access_width(call.type, call.channels, call.x, call.y);
  return plan_resident(call.type, call.groups, call.rows, call.channels, width, 1, device);
}

bool is_resident(const BatchNormForward& call, const ResidentPlan& plan) {
  return call.training && call.variant != Variant::streaming && plan.fits;
}

ColumnTiles streaming_tiles(const BatchNormForward& call, const Device& device) {
  const int width = access_width(call.type, call.channels, call.x, call.y);
  return cut_columns(call.training ? call.groups : 1,
                     call.training ? call.rows : call.groups * call.rows, call.channels, width,
                     kStreamingBlocks * device.multiprocessors);
}

}  // namespace

size_t batch_norm_forward_workspace(const BatchNormForward& call, const Device& device) {
  if (!call.training || call.rows == 0 || call.channels == 0) return 0;
  const ResidentPlan plan = resident_plan(call, device);
  const ColumnTiles tiles = is_resident(call, plan) ? plan.tiles : streaming_tiles(call, device);
  return 2 * static_cast<size_t>(tiles.groups) * tiles.splits * tiles.channels;
}

cudaError_t batch_norm_forward(const BatchNormForward& call, const Device& device,
                               cudaStream_t stream) {
  if (call.groups == 0 || call.rows == 0 || call.channels == 0) return cudaSuccess;
  const ResidentPlan plan = resident_plan(call, device);
  const bool resident = is_resident(call, plan);
  if (call.variant == Variant::resident && !resident) return cudaErrorInvalidConfiguration;
  const Normalisation norm = {call.weight,       call.bias,         call.mean,
                              call.inverse_deviation, call.running_mean, call.running_var,
                              call.momentum,     call.epsilon,      call.activation,
                              call.negative_slope};
  const int width = access_width(call.type, call.channels, call.x, call.y);
  return with_access(call.type, width, [&]<class T, int V>() {
    const T* x = static_cast<const T*>(call.x);
    T* y = static_cast<T*>(call.y);
    if (resident) {
      return launch<forward_resident_kernel<T, V>>(
          {plan.tiles.blocks(), kThreads, plan.shared_bytes, stream, true}, plan.tiles, x, y,
          call.workspace, norm);
    }
    const ColumnTiles tiles = streaming_tiles(call, device);
    const Launch how = {tiles.blocks(), kThreads, sizeof(float) * kThreads * V, stream};
    const float* partials = nullptr;
    if (call.training) {
      partials = call.workspace;
      const cudaError_t failed =
          launch<partial_statistics_kernel<T, V>>(how, tiles, x, call.workspace);
      if (failed != cudaSuccess) return failed;
    }
    return launch<normalise_kernel<T, V>>(how, tiles, x, y, partials, norm);
  });
}

}  // namespace fastgan::cuda
