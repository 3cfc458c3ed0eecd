// Elements of a tensor, 16 bytes at a time: loads, stores, conversions, activations.
#pragma once

#include "../common/activation.h"
#include "../common/numbers.h"
#include "kernels.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fastgan::cuda {

// V neighbouring elements: one access.
template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
  T values[V];
};

// How many elements an access of 16 bytes has.
template <class T>
constexpr int kFullPack = 16 / sizeof(T);

// One access, to any memory: the compiler would take the members of a struct apart.
template <int V, class T>
__device__ __forceinline__ Pack<T, V> load(const T* address) {
  Pack<T, V> pack;
  if constexpr (sizeof pack == sizeof(uint4)) {
    const uint4 words = *reinterpret_cast<const uint4*>(address);
    memcpy(&pack, &words, sizeof pack);
  } else {
    pack = *reinterpret_cast<const Pack<T, V>*>(address);
  }
  return pack;
}

template <class T, int V>
__device__ __forceinline__ void store_shared(T* address, const Pack<T, V>& pack) {
  if constexpr (sizeof pack == sizeof(uint4)) {
    uint4 words;
    memcpy(&words, &pack, sizeof pack);
    *reinterpret_cast<uint4*>(address) = words;
  } else {
    *reinterpret_cast<Pack<T, V>*>(address) = pack;
  }
}

// To global memory, where a plain store of 16 bytes behind a branch is taken apart all the same.
template <class T, int V>
__device__ __forceinline__ void store(T* address, const Pack<T, V>& pack) {
  if constexpr (sizeof pack == sizeof(uint4)) {
    uint4 words;
    memcpy(&words, &pack, sizeof pack);
    __stwb(reinterpret_cast<uint4*>(address), words);
  } else {
    *reinterpret_cast<Pack<T, V>*>(address) = pack;
  }
}

// Rounding to nearest even: in hardware on the device, by common/numbers.h elsewhere.
template <class T>
__device__ __forceinline__ T narrow(float value) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == sizeof(float)) {
    return value;
  } else {
    T narrowed;
    if constexpr (std::is_same_v<T, BFloat16>) {
      narrowed.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
    } else {
      narrowed.bits = __half_as_ushort(__float2half_rn(value));
    }
    return narrowed;
  }
#else
  return from_float<T>(value);
#endif
}

template <class T>
__device__ __forceinline__ float widen(T value) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, Float16>) {
    return __half2float(__ushort_as_half(value.bits));
  } else {
    return to_float(value);
  }
#else
  return to_float(value);
#endif
}

template <Activation kind, int V>
__device__ __forceinline__ void activate_each(float (&z)[V], float negative_slope) {
#pragma unroll
  for (int v = 0; v < V; ++v) z[v] = activate<ScalarMath, kind>(z[v], negative_slope);
}

// z becomes act(z). The branch is the same for all threads.
template <int V>
__device__ __forceinline__ void activate_all(Activation kind, float (&z)[V], float negative_slope) {
  switch (kind) {
    case Activation::identity:
      return;
    case Activation::relu:
      return activate_each<Activation::relu>(z, negative_slope);
    case Activation::leaky_relu:
      return activate_each<Activation::leaky_relu>(z, negative_slope);
    case Activation::tanh:
      return activate_each<Activation::tanh>(z, negative_slope);
    case Activation::sigmoid:
      return activate_each<Activation::sigmoid>(z, negative_slope);
  }
}

template <Activation kind, int V>
__device__ __forceinline__ void differentiate_each(float (&gradient)[V], const float (&z)[V],
                                                   float negative_slope) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    gradient[v] = activation_backward<ScalarMath, kind>(gradient[v], z[v], negative_slope);
  }
}

// `gradient` is multiplied by act'(z).
template <int V>
__device__ __forceinline__ void differentiate_all(Activation kind, float (&gradient)[V],
                                                  const float (&z)[V], float negative_slope) {
  switch (kind) {
    case Activation::identity:
      return;
    case Activation::relu:
      return differentiate_each<Activation::relu>(gradient, z, negative_slope);
    case Activation::leaky_relu:
      return differentiate_each<Activation::leaky_relu>(gradient, z, negative_slope);
    case Activation::tanh:
      return differentiate_each<Activation::tanh>(gradient, z, negative_slope);
    case Activation::sigmoid:
      return differentiate_each<Activation::sigmoid>(gradient, z, negative_slope);
  }
}

// A value of a vector of parameters, or what stands for it where there is none.
__device__ __forceinline__ float value_or(const float* values, int64_t index, float absent) {
  return values ? values[index] : absent;
}

// Calls work.template operator()<T>() for the element type.
template <class Work>
cudaError_t with_type(DataType type, Work work) {
  switch (type) {
    case DataType::float32:
      return work.template operator()<float>();
    case DataType::bfloat16:
      return work.template operator()<BFloat16>();
    default:
      return work.template operator()<Float16>();
  }
}

inline size_t element_bytes(DataType type) { return type == DataType::float32 ? 4 : 2; }

// Elements of one access to rows of so many elements: a full pack where every row starts at a
// multiple of 16 bytes, else one.
template <class... Pointers>
int access_width(DataType type, int64_t row_elements, Pointers... pointers) {
  const int full = static_cast<int>(16 / element_bytes(type));
  const bool aligned = ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
  return aligned && row_elements % full == 0 ? full : 1;
}

// Calls work.template operator()<T, V>() for the element type and the access width.
template <class Work>
cudaError_t with_access(DataType type, int width, Work work) {
  return with_type(type, [&]<class T>() {
    return width == 1 ? work.template operator()<T, 1>()
                      : work.template operator()<T, kFullPack<T>>();
  });
}

}  // namespace fastgan::cuda
