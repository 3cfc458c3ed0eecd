// Bias + activation, forward and backward: y = act(x + bias), the bias along the channels, NHWC.
//
// Tiles, grid and masks: columns.cuh. Narrow tensors (an image's 3 channels) are folded: `fold`
// rows count as one of fold * channels columns, so that 16-byte accesses serve them too.
//
//   forward    x -> [add, activate] -> y
//   backward   x, dy -> dx, [sums of dx of a split] -> partials; then, in a second launch,
//              partials -> grad_bias
#include <numeric>

#include "columns.cuh"
#include "warp.cuh"

namespace fastgan::cuda {
namespace {

constexpr int64_t kBlocks = 8;  // for each multiprocessor

template <int V>
struct BiasOfColumns {
  float values[V];

  static __device__ __forceinline__ BiasOfColumns of(const ColumnPlace& place, const float* bias,
                                                     int64_t channels) {
    BiasOfColumns result;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      result.values[v] = value_or(bias, (place.column + v) % channels, 0.0f);
    }
    return result;
  }
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    bias_act_kernel(ColumnTiles tiles, int64_t channels, const T* x, const float* bias, T* y,
                    Activation activation, float negative_slope) {
  const ColumnPlace place = ColumnPlace::of<V>(tiles);
  const auto shift = BiasOfColumns<V>::of(place, bias, channels);
  walk_rows<Pack<T, V>, kRowsInFlight>(
      tiles, place, [&](int64_t row) { return load<V>(x + row * tiles.channels + place.column); },
      [&](const Pack<T, V>(&packs)[kRowsInFlight], int64_t row, int valid) {
#pragma unroll
        for (int u = 0; u < kRowsInFlight; ++u) {
          if (u >= valid) break;
          float z[V];
#pragma unroll
          for (int v = 0; v < V; ++v) z[v] = widen(packs[u].values[v]) + shift.values[v];
          activate_all(activation, z, negative_slope);
          Pack<T, V> result;
#pragma unroll
          for (int v = 0; v < V; ++v) result.values[v] = narrow<T>(z[v]);
          store(y + (row + u * tiles.row_threads()) * tiles.channels + place.column, result);
        }
      });
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    bias_act_backward_kernel(ColumnTiles tiles, int64_t channels, const T* grad_y, const T* x,
                             const float* bias, T* grad_x, float* partials, Activation activation,
                             float negative_slope) {
  struct Pair {
    Pack<T, V> x, grad_y;
  };
  constexpr int kPairs = kRowsInFlight / 2;
  const ColumnPlace place = ColumnPlace::of<V>(tiles);
  const auto shift = BiasOfColumns<V>::of(place, bias, channels);
  float sums[V] = {};
  walk_rows<Pair, kPairs>(
      tiles, place,
      [&](int64_t row) {
        const int64_t at = row * tiles.channels + place.column;
        return Pair{load<V>(x + at), load<V>(grad_y + at)};
      },
      [&](const Pair(&rows)[kPairs], int64_t row, int valid) {
#pragma unroll
        for (int u = 0; u < kPairs; ++u) {
          if (u >= valid) break;
          float z[V], gradient[V];
#pragma unroll
          for (int v = 0; v < V; ++v) {
            z[v] = widen(rows[u].x.values[v]) + shift.values[v];
            gradient[v] = widen(rows[u].grad_y.values[v]);
          }
          differentiate_all(activation, gradient, z, negative_slope);
          Pack<T, V> result;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            sums[v] += gradient[v];
            result.values[v] = narrow<T>(gradient[v]);
          }
          store(grad_x + (row + u * tiles.row_threads()) * tiles.channels + place.column, result);
        }
      });
  if (!partials) return;
  sum_rows(sums, reinterpret_cast<float*>(block_memory), tiles.column_threads);
  if (!place.inside || place.row_thread != 0) return;
#pragma unroll
  for (int v = 0; v < V; ++v) partials[place.split * tiles.channels + place.column + v] = sums[v];
}

// grad_bias[channel] = the sum of partials[i] over i % channels == channel. A warp adds up one
// channel; grid: channels, kThreads / kLanes to a block.
__global__ void __launch_bounds__(kThreads)
    channel_sums_kernel(const float* partials, int64_t count, int64_t channels, float* grad_bias) {
  constexpr int kWarps = kThreads / kLanes;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (channel >= channels) return;  // the whole warp
  float sum = 0.0f;
  for (int64_t i = channel + threadIdx.x % kLanes * channels; i < count; i += kLanes * channels) {
    sum += partials[i];
  }
  sum = sum_lanes(sum);
  if (threadIdx.x % kLanes == 0) grad_bias[channel] = sum;
}

struct Plan {
  int width;
  ColumnTiles tiles;  // of the folded matrix
};

Plan plan_of(const BiasAct& call, const Device& device) {
  const int64_t full = 16 / static_cast<int64_t>(element_bytes(call.type));
  int64_t fold = full / std::gcd(call.channels, full);
  if (call.rows % fold != 0) fold = 1;
  const int width = access_width(call.type, call.channels * fold, call.x, call.grad_y, call.result);
  if (width == 1) fold = 1;
  return {width, cut_columns(1, call.rows / fold, call.channels * fold, width,
                             kBlocks * device.multiprocessors)};
}

}  // namespace

cudaError_t bias_act_forward(const BiasAct& call, const Device& device, cudaStream_t stream) {
  if (call.rows == 0 || call.channels == 0) return cudaSuccess;
  const Plan plan = plan_of(call, device);
  return with_access(call.type, plan.width, [&]<class T, int V>() {
    return launch<bias_act_kernel<T, V>>(
        {plan.tiles.blocks(), kThreads, 0, stream}, plan.tiles, call.channels,
        static_cast<const T*>(call.x), call.bias, static_cast<T*>(call.result), call.activation,
        call.negative_slope);
  });
}

size_t bias_act_backward_workspace(const BiasAct& call, const Device& device) {
  if (call.rows == 0 || call.channels == 0 || !call.grad_bias) return 0;
  const ColumnTiles tiles = plan_of(call, device).tiles;
  return static_cast<size_t>(tiles.splits) * tiles.channels;
}

cudaError_t bias_act_backward(const BiasAct& call, const Device& device, cudaStream_t stream) {
  if (call.rows == 0 || call.channels == 0) return cudaSuccess;
  const Plan plan = plan_of(call, device);
  const ColumnTiles& tiles = plan.tiles;
  float* partials = call.grad_bias ? call.workspace : nullptr;
  const cudaError_t failed = with_access(call.type, plan.width, [&]<class T, int V>() {
    return launch<bias_act_backward_kernel<T, V>>(
        {tiles.blocks(), kThreads, sizeof(float) * kThreads * V, stream}, tiles, call.channels,
        static_cast<const T*>(call.grad_y), static_cast<const T*>(call.x), call.bias,
        static_cast<T*>(call.result), partials, call.activation, call.negative_slope);
  });
  if (failed != cudaSuccess || !partials) return failed;
  return launch<channel_sums_kernel>(
      {ceil_div(call.channels, kThreads / kLanes), kThreads, 0, stream},
      static_cast<const float*>(partials), static_cast<int64_t>(tiles.splits) * tiles.channels,
      call.channels, call.grad_bias);
}

}  // namespace fastgan::cuda
