// What the operators ask of a tensor before a kernel sees its memory: device, dtype, number of
// elements and dense NHWC order.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "../common/tensors.h"

namespace fastgan::cpu {

inline void check_data(const Tensor& tensor, const char* name, DataType type, int64_t count) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " is not on the CPU");
  STD_TORCH_CHECK(data_type(tensor) == type, name, " has another dtype than the first tensor");
  STD_TORCH_CHECK(tensor.numel() == count, name, " has ", tensor.numel(), " elements, not ", count);
  STD_TORCH_CHECK(count == 0 || is_channels_last(tensor), name, " is not dense channels_last");
}

// The values of a float32 vector of `count` elements, or null if there is none.
inline float* vector_of(const std::optional<Tensor>& tensor, const char* name, int64_t count) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(tensor->is_cpu() && tensor->scalar_type() == ScalarType::Float &&
                      tensor->is_contiguous() && tensor->numel() == count,
                  name, " must be ", count, " contiguous float32 values on the CPU");
  return static_cast<float*>(tensor->mutable_data_ptr());
}

}  // namespace fastgan::cpu
