// What the operators of both libraries ask of torch's tensors, by the stable ABI.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "activation.h"
#include "numbers.h"

namespace fastgan {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DataType data_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DataType::float32;
    case ScalarType::BFloat16:
      return DataType::bfloat16;
    case ScalarType::Half:
      return DataType::float16;
    default:
      STD_TORCH_CHECK(false, "expected float32, bfloat16 or float16");
  }
}

// True if the elements lie densely with the channels (dimension 1) innermost.
inline bool is_channels_last(const Tensor& tensor) {
  const int64_t dimensions = tensor.dim();
  int64_t expected = 1;
  auto matches = [&](int64_t dimension) {
    const int64_t size = tensor.size(dimension);
    const bool right = size == 1 || tensor.stride(dimension) == expected;
    expected *= size;
    return right;
  };
  if (dimensions > 1 && !matches(1)) return false;
  for (int64_t dimension = dimensions - 1; dimension > 1; --dimension) {
    if (!matches(dimension)) return false;
  }
  return dimensions == 0 || matches(0);
}

inline Activation activation_of(int64_t index) {
  STD_TORCH_CHECK(index >= 0 && index <= static_cast<int64_t>(Activation::sigmoid),
                  "unknown activation ", index);
  return static_cast<Activation>(index);
}

inline int64_t rows_of_group(const Tensor& x, int64_t groups) {
  STD_TORCH_CHECK(x.dim() >= 2 && groups >= 1 && x.size(0) % groups == 0,
                  "x must have at least 2 dimensions and a batch that ", groups, " groups divide");
  const int64_t channels = x.size(1);
  return channels == 0 ? 0 : x.numel() / channels / groups;
}

}  // namespace fastgan
