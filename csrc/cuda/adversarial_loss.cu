// The adversarial losses: one launch makes the loss, its gradients and the logged means.
//
//   real [real_count] -> cost, derivative -> grad_real, sums -+
//   fake [fake_count] -> cost, derivative -> grad_fake, sums -+-> loss, mean D(x), mean D(G(z))
//
// Grid: one block; a batch has few logits. Its threads walk the outputs kLossThreads at a time;
// masked: outputs past the last. Sums in a fixed order: thread, warp, block.
#include "../common/objectives.h"
#include "elements.cuh"
#include "warp.cuh"

namespace fastgan::cuda {
namespace {

constexpr int kLossThreads = 512;
constexpr int kLossWarps = kLossThreads / kLanes;

// The sum over the block, for every thread. `scratch`: kLossWarps floats.
__device__ __forceinline__ float sum_block(float value, float* scratch) {
  value = sum_lanes(value);
  __syncthreads();  // the sums of an earlier call have been read
  if (threadIdx.x % kLanes == 0) scratch[threadIdx.x / kLanes] = value;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kLossWarps; ++warp) sum += scratch[warp];
  return sum;
}

struct Means {
  float cost, score;
};

// Writes the gradients of the mean cost; the sums of this thread's costs and scores.
template <class T, Objective objective, Role role>
__device__ __forceinline__ Means walk_outputs(const T* outputs, T* gradients, int64_t count,
                                              float label) {
  const float share = 1.0f / static_cast<float>(count);
  Means sums = {};
  for (int64_t i = threadIdx.x; i < count; i += kLossThreads) {
    const float t = widen(outputs[i]);
    const CostAndSlope<float> result = adversarial_cost<ScalarMath, objective, role>(t, label);
    gradients[i] = narrow<T>(result.slope * share);
    sums.cost += result.cost;
    sums.score += scores_by_sigmoid(objective) ? sigmoid<ScalarMath>(t) : t;
  }
  return sums;
}

template <class T, Role role>
__device__ __forceinline__ Means walk_as(Objective objective, const T* outputs, T* gradients,
                                         int64_t count, float label) {
  switch (objective) {
#define CASE(name)      \
  case Objective::name: \
    return walk_outputs<T, Objective::name, role>(outputs, gradients, count, label);
    CASE(bce)
    CASE(minimax)
    CASE(non_saturating)
    CASE(least_squares)
    CASE(wasserstein)
    CASE(hinge)
    CASE(kl)
    CASE(reverse_kl)
    CASE(pearson_chi2)
    CASE(squared_hellinger)
    CASE(jensen_shannon)
    CASE(gan)
#undef CASE
    default:
      return {};
  }
}

// Means over the block; of no outputs 0/0 = NaN, as torch has it.
template <class T, Role role>
__device__ __forceinline__ Means mean_costs(Objective objective, const T* outputs, T* gradients,
                                            int64_t count, float label) {
  float* scratch = reinterpret_cast<float*>(block_memory);
  Means means = walk_as<T, role>(objective, outputs, gradients, count, label);
  const float divisor = static_cast<float>(count);
  means.cost = sum_block(means.cost, scratch) / divisor;
  means.score = sum_block(means.score, scratch) / divisor;
  return means;
}

template <class T>
__global__ void __launch_bounds__(kLossThreads, 1)
    discriminator_loss_kernel(Objective objective, const T* real, const T* fake, T* grad_real,
                              T* grad_fake, int64_t real_count, int64_t fake_count,
                              float real_label, float fake_label, float* results) {
  const Means real_means =
      mean_costs<T, Role::real>(objective, real, grad_real, real_count, real_label);
  const Means fake_means =
      mean_costs<T, Role::fake>(objective, fake, grad_fake, fake_count, fake_label);
  if (threadIdx.x != 0) return;
  results[0] = real_means.cost + fake_means.cost;
  results[1] = real_means.score;
  results[2] = fake_means.score;
}

template <class T>
__global__ void __launch_bounds__(kLossThreads, 1)
    generator_loss_kernel(Objective objective, const T* fake, T* grad_fake, int64_t fake_count,
                          float* results) {
  // The generator wants its images taken for real: its target is 1.
  const Means means = mean_costs<T, Role::generator>(objective, fake, grad_fake, fake_count, 1.0f);
  if (threadIdx.x != 0) return;
  results[0] = means.cost;
  results[1] = means.score;
}

}  // namespace

cudaError_t adversarial_loss(const AdversarialLoss& call, cudaStream_t stream) {
  const auto objective = static_cast<Objective>(call.objective);
  const Launch how = {1, kLossThreads, sizeof(float) * kLossWarps, stream};
  return with_type(call.type, [&]<class T>() {
    const T* fake = static_cast<const T*>(call.fake);
    T* grad_fake = static_cast<T*>(call.grad_fake);
    if (call.real_count < 0) {
      return launch<generator_loss_kernel<T>>(how, objective, fake, grad_fake, call.fake_count,
                                              call.results);
    }
    return launch<discriminator_loss_kernel<T>>(
        how, objective, static_cast<const T*>(call.real), fake, static_cast<T*>(call.grad_real),
        grad_fake, call.real_count, call.fake_count, call.real_label, call.fake_label,
        call.results);
  });
}

}  // namespace fastgan::cuda
