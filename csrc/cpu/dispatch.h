// From run-time arguments to template arguments, and from a lambda to tasks on torch's threads.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

template <class T>
struct Element {
  using type = T;
};

template <class Visit>
FASTGAN_SHARED void with_type(DataType type, const Visit& visit) {
  switch (type) {
    case DataType::bfloat16:
      return visit(Element<BFloat16>{});
    case DataType::float16:
      return visit(Element<Float16>{});
    default:
      return visit(Element<float>{});
  }
}

template <Activation activation>
struct Chosen {
  static constexpr Activation value = activation;
};

template <class Visit>
FASTGAN_SHARED void with_activation(Activation activation, const Visit& visit) {
  switch (activation) {
    case Activation::relu:
      return visit(Chosen<Activation::relu>{});
    case Activation::leaky_relu:
      return visit(Chosen<Activation::leaky_relu>{});
    case Activation::tanh:
      return visit(Chosen<Activation::tanh>{});
    case Activation::sigmoid:
      return visit(Chosen<Activation::sigmoid>{});
    default:
      return visit(Chosen<Activation::identity>{});
  }
}

template <class Body>
FASTGAN_SHARED void parallel_for(int64_t count, const Body& body) {
  parallel(
      count,
      [](void* context, int64_t index) { (*static_cast<const Body*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
