// Batch norm + activation, backward: with xhat = (x - mean) * invstd, z = xhat * weight + bias and
// dz = dy * act'(z),
//
//   grad_bias = sum(dz),  grad_weight = sum(dz * xhat),
//   dx = invstd * weight * (dz - (sum(dz) + xhat * sum(dz * xhat)) / rows)
//
// where the sums of a group count only if its statistics came from x. The kernels add up
// dz * (x - mean), so that a thread keeps fewer constants; the rest follows at the end. Tiles, grid
// and masks: columns.cuh. The activation is recomputed from x.
//
//   streaming   x, dy -> [sums of a split] -> partials; then, in a second launch,
//               partials -> sums;  x, dy -> dx
//   resident    x, dy -> shared memory -> [sums of a split] -> partials -> (the grid waits)
//               partials -> sums;  shared memory -> dx
#include <cooperative_groups.h>

#include "batch_norm_resident.cuh"

namespace fastgan::cuda {
namespace {

// What the kernels need beside the tensors.
struct Normalised {
  const float *weight, *bias, *mean, *inverse_deviation;
  float *grad_weight, *grad_bias;
  Activation activation;
  float negative_slope;
  bool training;
};

// Two loads a row: as many are under way together as for kRowsInFlight rows of one tensor.
constexpr int kPairsInFlight = kRowsInFlight / 2;

// x and dy of one row.
template <class T, int V>
struct Pair {
  Pack<T, V> x, grad_y;
};

// The channels' constants of a thread: z = (x - mean) * gain + bias.
template <int V>
struct Channels {
  float mean[V], gain[V], bias[V];

  static __device__ __forceinline__ Channels of(const ColumnTiles& tiles, const ColumnPlace& place,
                                                const Normalised& norm) {
    Channels channels;
    const int64_t column = place.inside ? place.column : 0;
    const int64_t row = place.group * tiles.channels;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      channels.mean[v] = norm.mean[row + column + v];
      channels.gain[v] =
          norm.inverse_deviation[row + column + v] * value_or(norm.weight, column + v, 1.0f);
      channels.bias[v] = value_or(norm.bias, column + v, 0.0f);
    }
    return channels;
  }

  // x - mean and dz of one row.
  template <class T>
  __device__ __forceinline__ void differentiate(const Pair<T, V>& row, const Normalised& norm,
                                                float (&centred)[V], float (&grad_z)[V]) const {
    float z[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      centred[v] = widen(row.x.values[v]) - mean[v];
      z[v] = centred[v] * gain[v] + bias[v];
      grad_z[v] = widen(row.grad_y.values[v]);
    }
    differentiate_all(norm.activation, grad_z, z, norm.negative_slope);
  }
};

// Sums of dz and of dz * (x - mean).
template <int V>
struct Sums {
  float grad_z[V], product[V];

  template <class T>
  __device__ __forceinline__ void absorb(const Pair<T, V> (&rows)[kPairsInFlight], int valid,
                                         const Channels<V>& channels, const Normalised& norm) {
#pragma unroll
    for (int u = 0; u < kPairsInFlight; ++u) {
      if (u >= valid) break;
      float centred[V], gradient[V];
      channels.differentiate(rows[u], norm, centred, gradient);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        grad_z[v] += gradient[v];
        product[v] += gradient[v] * centred[v];
      }
    }
  }
};

// Adds up the row threads' sums of a split; partials are [dz, dz * (x - mean)][groups, splits,
// channels].
template <int V>
__device__ void write_partials(const ColumnTiles& tiles, const ColumnPlace& place, Sums<V>& own,
                               float* scratch, float* partials) {
  sum_rows(own.grad_z, scratch, tiles.column_threads);
  sum_rows(own.product, scratch, tiles.column_threads);
  if (!place.inside || place.row_thread != 0) return;
  const int64_t parts = static_cast<int64_t>(tiles.groups) * tiles.splits;
  const int64_t part = static_cast<int64_t>(place.group) * tiles.splits + place.split;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    partials[part * tiles.channels + place.column + v] = own.grad_z[v];
    partials[(parts + part) * tiles.channels + place.column + v] = own.product[v];
  }
}

// The sums of a group: of dz and of dz * xhat.
template <int V>
__device__ Sums<V> merge_splits(const ColumnTiles& tiles, const ColumnPlace& place, int group,
                                const float* partials, const Normalised& norm, float* scratch) {
  const int64_t group_floats = static_cast<int64_t>(tiles.splits) * tiles.channels;
  Sums<V> sums;
  sum_splits(tiles, place, partials + group * group_floats, scratch, sums.grad_z);
  sum_splits(tiles, place, partials + (tiles.groups + group) * group_floats, scratch,
             sums.product);
  const int64_t column = group * tiles.channels + (place.inside ? place.column : 0);
#pragma unroll
  for (int v = 0; v < V; ++v) sums.product[v] *= norm.inverse_deviation[column + v];
  return sums;
}

// The first block of a column adds the groups' sums up, in order: the gradients of weight and bias.
template <int V>
__device__ void write_parameter_gradients(const ColumnTiles& tiles, const ColumnPlace& place,
                                          const float* partials, const Normalised& norm,
                                          float* scratch) {
  if (place.split != 0 || place.group != 0) return;
  Sums<V> all = {};
  for (int group = 0; group < tiles.groups; ++group) {
    const Sums<V> next = merge_splits<V>(tiles, place, group, partials, norm, scratch);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      all.grad_z[v] += next.grad_z[v];
      all.product[v] += next.product[v];
    }
  }
  if (!place.inside || place.row_thread != 0) return;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    norm.grad_bias[place.column + v] = all.grad_z[v];
    norm.grad_weight[place.column + v] = all.product[v];
  }
}

// dx of the thread's rows from the partials; `fetch(row)` gives x and dy.
template <class T, int V, class Fetch>
__device__ __forceinline__ void write_gradient(const ColumnTiles& tiles, const ColumnPlace& place,
                                               const Normalised& norm, const float* partials,
                                               float* scratch, T* grad_x, Fetch fetch) {
  const float share = norm.training ? 1.0f / static_cast<float>(tiles.rows) : 0.0f;
  Sums<V> sums = merge_splits<V>(tiles, place, place.group, partials, norm, scratch);
  const Channels<V> channels = Channels<V>::of(tiles, place, norm);
  const int64_t column = place.group * tiles.channels + (place.inside ? place.column : 0);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sums.grad_z[v] *= share;
    sums.product[v] *= share * norm.inverse_deviation[column + v];
  }
  walk_rows<Pair<T, V>, kPairsInFlight>(
      tiles, place, fetch, [&](const Pair<T, V>(&rows)[kPairsInFlight], int64_t row, int valid) {
#pragma unroll
        for (int u = 0; u < kPairsInFlight; ++u) {
          if (u >= valid) break;
          float centred[V], gradient[V];
          channels.differentiate(rows[u], norm, centred, gradient);
          Pack<T, V> result;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const float follows = sums.grad_z[v] + centred[v] * sums.product[v];
            result.values[v] = narrow<T>(channels.gain[v] * (gradient[v] - follows));
          }
          store(grad_x + (row + u * tiles.row_threads()) * tiles.channels + place.column, result);
        }
      });
}

template <class T, int V>
__device__ __forceinline__ Pair<T, V> load_pair(const ColumnTiles& tiles, const ColumnPlace& place,
                                                const T* x, const T* grad_y, int64_t row) {
  const int64_t at = row * tiles.channels + place.column;
  return {load<V>(x + at), load<V>(grad_y + at)};
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    partial_sums_kernel(ColumnTiles tiles, const T* grad_y, const T* x, float* partials,
                        Normalised norm) {
  float* scratch = reinterpret_cast<float*>(block_memory);
  const ColumnPlace place = ColumnPlace::of<V>(tiles);
  const Channels<V> channels = Channels<V>::of(tiles, place, norm);
  Sums<V> own = {};
  walk_rows<Pair<T, V>, kPairsInFlight>(
      tiles, place, [&](int64_t row) { return load_pair<T, V>(tiles, place, x, grad_y, row); },
      [&](const Pair<T, V>(&rows)[kPairsInFlight], int64_t, int valid) {
        own.absorb(rows, valid, channels, norm);
      });
  write_partials(tiles, place, own, scratch, partials);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    input_gradient_kernel(ColumnTiles tiles, const T* grad_y, const T* x, T* grad_x,
                          const float* partials, Normalised norm) {
  float* scratch = reinterpret_cast<float*>(block_memory);
  const ColumnPlace place = ColumnPlace::of<V>(tiles);
  write_parameter_gradients<V>(tiles, place, partials, norm, scratch);
  write_gradient<T, V>(tiles, place, norm, partials, scratch, grad_x, [&](int64_t row) {
    return load_pair<T, V>(tiles, place, x, grad_y, row);
  });
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    backward_resident_kernel(ColumnTiles tiles, const T* grad_y, const T* x, T* grad_x,
                             float* partials, Normalised norm) {
  float* scratch = reinterpret_cast<float*>(block_memory);
  const ColumnPlace place = ColumnPlace::of<V>(tiles);
  const Channels<V> channels = Channels<V>::of(tiles, place, norm);
  // The thread reads back what it wrote itself: no barrier. First all of x, then all of dy.
  T* kept = reinterpret_cast<T*>(scratch + kThreads * V) + place.column_thread * V;
  const int64_t plane = tiles.rows_per_split * tiles.column_threads * V;
  auto slot = [&](int64_t row) { return (row - place.first_row) * tiles.column_threads * V; };
  Sums<V> own = {};
  walk_rows<Pair<T, V>, kPairsInFlight>(
      tiles, place, [&](int64_t row) { return load_pair<T, V>(tiles, place, x, grad_y, row); },
      [&](const Pair<T, V>(&rows)[kPairsInFlight], int64_t row, int valid) {
#pragma unroll
        for (int u = 0; u < kPairsInFlight; ++u) {
          if (u >= valid) break;
          const int64_t at = slot(row + u * tiles.row_threads());
          store_shared(kept + at, rows[u].x);
          store_shared(kept + plane + at, rows[u].grad_y);
        }
        own.absorb(rows, valid, channels, norm);
      });
  write_partials(tiles, place, own, scratch, partials);
  cooperative_groups::this_grid().sync();
  write_parameter_gradients<V>(tiles, place, partials, norm, scratch);
  write_gradient<T, V>(tiles, place, norm, partials, scratch, grad_x, [&](int64_t row) {
    return Pair<T, V>{load<V>(kept + slot(row)), load<V>(kept + plane + slot(row))};
  });
}

constexpr int64_t kStreamingBlocks = 8;  // for each multiprocessor

int access_of(const BatchNormBackward& call) {
  return access_width(call.type, call.channels, call.x, call.grad_y, call.grad_x);
}

ResidentPlan resident_plan(const BatchNormBackward& call, const Device& device) {
  return plan_resident(call.type, call.groups, call.rows, call.channels, access_of(call), 2,
                       device);
}

bool is_resident(const BatchNormBackward& call, const ResidentPlan& plan) {
  return call.variant != Variant::streaming && plan.fits;
}

ColumnTiles streaming_tiles(const BatchNormBackward& call, const Device& device) {
  return cut_columns(call.groups, call.rows, call.channels, access_of(call),
                     kStreamingBlocks * device.multiprocessors);
}

}  // namespace

size_t batch_norm_backward_workspace(const BatchNormBackward& call, const Device& device) {
  if (call.groups == 0 || call.rows == 0 || call.channels == 0) return 0;
  const ResidentPlan plan = resident_plan(call, device);
  const ColumnTiles tiles = is_resident(call, plan) ? plan.tiles : streaming_tiles(call, device);
  return 2 * static_cast<size_t>(tiles.groups) * tiles.splits * tiles.channels;
}

cudaError_t batch_norm_backward(const BatchNormBackward& call, const Device& device,
                                cudaStream_t stream) {
  if (call.groups == 0 || call.rows == 0 || call.channels == 0) return cudaSuccess;
  const ResidentPlan plan = resident_plan(call, device);
  const bool resident = is_resident(call, plan);
  if (call.variant == Variant::resident && !resident) return cudaErrorInvalidConfiguration;
  const Normalised norm = {call.weight,      call.bias,      call.mean,
                           call.inverse_deviation, call.grad_weight, call.grad_bias,
                           call.activation,  call.negative_slope,    call.training};
  return with_access(call.type, access_of(call), [&]<class T, int V>() {
    const T* grad_y = static_cast<const T*>(call.grad_y);
    const T* x = static_cast<const T*>(call.x);
    T* grad_x = static_cast<T*>(call.grad_x);
    if (resident) {
      return launch<backward_resident_kernel<T, V>>(
          {plan.tiles.blocks(), kThreads, plan.shared_bytes, stream, true}, plan.tiles, grad_y, x,
          grad_x, call.workspace, norm);
    }
    const ColumnTiles tiles = streaming_tiles(call, device);
    const Launch how = {tiles.blocks(), kThreads, sizeof(float) * kThreads * V, stream};
    const cudaError_t failed =
        launch<partial_sums_kernel<T, V>>(how, tiles, grad_y, x, call.workspace, norm);
    if (failed != cudaSuccess) return failed;
    return launch<input_gradient_kernel<T, V>>(how, tiles, grad_y, x, grad_x, call.workspace,
                                               norm);
  });
}

}  // namespace fastgan::cuda
