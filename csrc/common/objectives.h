// The adversarial objectives of fastgan/objectives.py, for every target: what one output t of the
// discriminator costs, and the derivative. Sources and conventions are given there.
//
// Templates over a `Math` as in activation.h, which here also names log, log1p and expm1.
#pragma once

#include "activation.h"

namespace fastgan {

// The order is the one of `OBJECTIVES` in fastgan/objectives.py.
enum class Objective : int {
  bce,
  minimax,
  non_saturating,
  least_squares,
  wasserstein,
  hinge,
  kl,
  reverse_kl,
  pearson_chi2,
  squared_hellinger,
  jensen_shannon,
  gan,
  count
};

enum class Role { real, fake, generator };

template <class Value>
struct CostAndSlope {
  Value cost, slope;
};

template <class Math>
FASTGAN_SHARED typename Math::Value softplus(typename Math::Value t) {
  return (t > 0.0f ? t : t * 0.0f) + Math::log1p(Math::exp(t > 0.0f ? -t : t));
}

template <class Math>
FASTGAN_SHARED typename Math::Value sigmoid(typename Math::Value t) {
  return activate<Math, Activation::sigmoid>(t, 0.0f);
}

// -label log(sigmoid(t)) - (1 - label) log(1 - sigmoid(t))
template <class Math>
FASTGAN_SHARED CostAndSlope<typename Math::Value> cross_entropy(typename Math::Value t,
                                                                float label) {
  return {softplus<Math>(-t) + (1.0f - label) * t, sigmoid<Math>(t) - label};
}

// torch's binary cross-entropy of a probability: logarithms clamped at -100, the derivative's
// denominator at 1e-12.
template <class Math>
FASTGAN_SHARED CostAndSlope<typename Math::Value> probability_cross_entropy(typename Math::Value p,
                                                                            float label) {
  using Value = typename Math::Value;
  const Value floor = p * 0.0f - 100.0f, smallest = p * 0.0f + 1e-12f;
  Value positive = Math::log(p), negative = Math::log1p(-p), spread = p * (1.0f - p);
  positive = positive < -100.0f ? floor : positive;
  negative = negative < -100.0f ? floor : negative;
  spread = spread < 1e-12f ? smallest : spread;
  return {-label * positive - (1.0f - label) * negative, (p - label) / spread};
}

// f*(g_f(t)) and its derivative: what a generated image costs under an f-divergence.
template <class Math, Objective objective>
FASTGAN_SHARED CostAndSlope<typename Math::Value> conjugate(typename Math::Value t) {
  using Value = typename Math::Value;
  const Value one = t * 0.0f + 1.0f;
  if constexpr (objective == Objective::kl) {
    const Value value = Math::exp(t - 1.0f);
    return {value, value};
  } else if constexpr (objective == Objective::reverse_kl) {
    return {t - 1.0f, one};
  } else if constexpr (objective == Objective::pearson_chi2) {
    return {0.25f * t * t + t, 0.5f * t + 1.0f};
  } else if constexpr (objective == Objective::squared_hellinger) {
    return {Math::expm1(t), Math::exp(t)};
  } else if constexpr (objective == Objective::jensen_shannon) {
    return {softplus<Math>(t) - 0.693147180559945309f, sigmoid<Math>(t)};
  } else {  // gan
    return {softplus<Math>(t), sigmoid<Math>(t)};
  }
}

// -g_f(t) and its derivative: what a real image costs under an f-divergence.
template <class Math, Objective objective>
FASTGAN_SHARED CostAndSlope<typename Math::Value> negated_activation(typename Math::Value t) {
  using Value = typename Math::Value;
  const Value one = t * 0.0f + 1.0f;
  if constexpr (objective == Objective::kl || objective == Objective::pearson_chi2) {
    return {-t, -one};
  } else if constexpr (objective == Objective::reverse_kl) {
    const Value value = Math::exp(-t);
    return {value, -value};
  } else if constexpr (objective == Objective::squared_hellinger) {
    return {Math::expm1(-t), -Math::exp(-t)};
  } else if constexpr (objective == Objective::jensen_shannon) {
    return {softplus<Math>(-t) - 0.693147180559945309f, -sigmoid<Math>(-t)};
  } else {  // gan
    return {softplus<Math>(-t), -sigmoid<Math>(-t)};
  }
}

// What an output costs in its role, and the derivative.
template <class Math, Objective objective, Role role>
FASTGAN_SHARED CostAndSlope<typename Math::Value> adversarial_cost(typename Math::Value t,
                                                                   float label) {
  using Value = typename Math::Value;
  const Value one = t * 0.0f + 1.0f, zero = t * 0.0f;
  if constexpr (objective == Objective::bce) {
    return probability_cross_entropy<Math>(t, role == Role::generator ? 1.0f : label);
  } else if constexpr (objective == Objective::minimax && role == Role::generator) {
    return {-softplus<Math>(t), -sigmoid<Math>(t)};
  } else if constexpr (objective == Objective::minimax || objective == Objective::non_saturating) {
    return cross_entropy<Math>(t, role == Role::generator ? 1.0f : label);
  } else if constexpr (objective == Objective::least_squares) {
    const Value error = t - (role == Role::generator ? 1.0f : label);
    return {0.5f * error * error, error};
  } else if constexpr (objective == Objective::wasserstein ||
                       (objective == Objective::hinge && role == Role::generator)) {
    if constexpr (role == Role::fake) return {t, one};
    return {-t, -one};
  } else if constexpr (objective == Objective::hinge) {
    const Value margin = role == Role::real ? 1.0f - t : 1.0f + t;
    const Value slope = role == Role::real ? -one : one;
    return {margin <= 0.0f ? zero : margin, margin > 0.0f ? slope : zero};
  } else if constexpr (role == Role::real) {
    return negated_activation<Math, objective>(t);
  } else {
    const CostAndSlope<Value> fake = conjugate<Math, objective>(t);
    if constexpr (role == Role::fake) return fake;
    return {-fake.cost, -fake.slope};
  }
}

// How an output becomes the logged score D(x).
FASTGAN_SHARED constexpr bool scores_by_sigmoid(Objective objective) {
  return objective == Objective::minimax || objective == Objective::non_saturating ||
         objective == Objective::jensen_shannon || objective == Objective::gan;
}

}  // namespace fastgan
