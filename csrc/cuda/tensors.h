// What the operators ask of a tensor before a kernel sees its memory: device, dtype, number of
// elements and dense NHWC order.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <optional>

#include "../common/tensors.h"
#include "kernels.h"

namespace fastgan::cuda {

// Where a call runs: everything about the first tensor's device.
struct Place {
  int32_t device_type, device_index;
  Device device;
  cudaStream_t stream;

  explicit Place(const Tensor& tensor) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device_type));
    device_index = tensor.get_device_index();
    check(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount,
                                 device_index));
    check(cudaDeviceGetAttribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                 device_index));
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &current));
    stream = static_cast<cudaStream_t>(current);
  }

  bool holds(const Tensor& tensor) const {
    int32_t type = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    return type == device_type && tensor.get_device_index() == device_index;
  }

  static void check(cudaError_t error) {
    if (error != cudaSuccess) cudaGetLastError();  // or torch's next launch would report it
    STD_TORCH_CHECK(error == cudaSuccess, "fastgan_cuda: ", cudaGetErrorString(error));
  }
};

inline void check_data(const Place& place, const Tensor& tensor, const char* name, DataType type,
                int64_t count) {
  STD_TORCH_CHECK(place.holds(tensor), name, " is on another device than the first tensor");
  STD_TORCH_CHECK(data_type(tensor) == type, name, " has another dtype than the first tensor");
  STD_TORCH_CHECK(tensor.numel() == count, name, " has ", tensor.numel(), " elements, not ", count);
  STD_TORCH_CHECK(count == 0 || is_channels_last(tensor), name, " is not dense channels_last");
}

// The values of a float32 vector of `count` elements, or null if there is none.
inline float* vector_of(const Place& place, const std::optional<Tensor>& tensor, const char* name,
                 int64_t count) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(place.holds(*tensor) && tensor->scalar_type() == ScalarType::Float &&
                      tensor->is_contiguous() && tensor->numel() == count,
                  name, " must be ", count, " contiguous float32 values on the same device");
  return static_cast<float*>(tensor->mutable_data_ptr());
}

inline Variant variant_of(int64_t index) {
  STD_TORCH_CHECK(index >= 0 && index <= static_cast<int64_t>(Variant::resident),
                  "unknown variant ", index);
  return static_cast<Variant>(index);
}

inline Tensor workspace_of(const Tensor& like, size_t floats) {
  const int64_t size = static_cast<int64_t>(floats);
  return torch::stable::new_empty(like, {size}, ScalarType::Float);
}

// A size as the kernels count it.
inline int size_of(int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value <= std::numeric_limits<int>::max(), "a size of ", value);
  return static_cast<int>(value);
}

}  // namespace fastgan::cuda
