// The activations and their derivatives, once, for every target.
//
// The functions are templates over a `Math`, which names a value type (a float, or a vector of
// lanes on the CPU) and its exp and tanh. A comparison of values is a mask; `mask ? a : b` works on
// floats and on vector types alike. A NaN comes through every activation, as it does in torch.
#pragma once

#include <cmath>

#include "target.h"

namespace fastgan {

// The order is the one of `ACTIVATIONS` in fastgan/native_kernels.py.
enum class Activation : int { identity, relu, leaky_relu, tanh, sigmoid };

struct ScalarMath {
  using Value = float;
  static FASTGAN_SHARED float exp(float x) { return expf(x); }
  static FASTGAN_SHARED float tanh(float x) { return tanhf(x); }
  static FASTGAN_SHARED float log(float x) { return logf(x); }
  static FASTGAN_SHARED float log1p(float x) { return log1pf(x); }
  static FASTGAN_SHARED float expm1(float x) { return expm1f(x); }
};

template <class Math, Activation kind>
FASTGAN_SHARED typename Math::Value activate(typename Math::Value z, float negative_slope) {
  using Value = typename Math::Value;
  if constexpr (kind == Activation::relu) {
    return z < 0.0f ? Value{} : z;
  } else if constexpr (kind == Activation::leaky_relu) {
    return z > 0.0f ? z : z * negative_slope;
  } else if constexpr (kind == Activation::tanh) {
    return Math::tanh(z);
  } else if constexpr (kind == Activation::sigmoid) {
    Value decay = Math::exp(z < 0.0f ? z : -z);  // never overflows
    Value upper = 1.0f / (1.0f + decay);
    return z < 0.0f ? decay * upper : upper;
  } else {
    return z;
  }
}

// The gradient at the activation's input: `gradient` times the derivative at the pre-activation z.
template <class Math, Activation kind>
FASTGAN_SHARED typename Math::Value activation_backward(typename Math::Value gradient,
                                                        typename Math::Value z,
                                                        float negative_slope) {
  using Value = typename Math::Value;
  if constexpr (kind == Activation::relu) {
    return z <= 0.0f ? Value{} : gradient;
  } else if constexpr (kind == Activation::leaky_relu) {
    return z > 0.0f ? gradient : gradient * negative_slope;
  } else if constexpr (kind == Activation::tanh) {
    Value y = Math::tanh(z);
    return gradient * (1.0f - y * y);
  } else if constexpr (kind == Activation::sigmoid) {
    Value y = activate<Math, Activation::sigmoid>(z, negative_slope);
    return gradient * (y * (1.0f - y));
  } else {
    return gradient;
  }
}

}  // namespace fastgan
