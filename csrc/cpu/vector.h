// One vector type for every instruction-set level, and what the kernels do with it.
//
// GCC's and Clang's vector extensions lower to whatever the level's flags allow, so a kernel is
// written once. Only conversions that the compilers do badly use intrinsics. Everything here lives
// in the level's own namespace: a function that one level compiles for AVX-512 must never be the
// copy that the linker keeps for the portable level.
#pragma once

#include "../common/activation.h"
#include "../common/numbers.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

// Keeps the accumulators of a loop over a block's vectors in registers.
#define FASTGAN_UNROLL _Pragma("GCC unroll 16")

namespace fastgan::cpu::FASTGAN_LEVEL {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes)));
typedef uint32_t BitLanes __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfLanes __attribute__((vector_size(2 * kLanes)));

FASTGAN_SHARED Lanes splat(float value) { return Lanes{} + value; }

FASTGAN_SHARED Lanes load(const float* source) {
  Lanes value;
  memcpy(&value, source, sizeof value);
  return value;
}

FASTGAN_SHARED Lanes load(const BFloat16* source) {
  HalfLanes half;
  memcpy(&half, source, sizeof half);
  return (Lanes)(__builtin_convertvector(half, BitLanes) << 16);
}

FASTGAN_SHARED Lanes load(const Float16* source) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)source));
#elif defined(__AVX2__)
  return (Lanes)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)source));
#else
  Lanes value;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = to_float(source[lane]);
  return value;
#endif
}

FASTGAN_SHARED void store(float* target, Lanes value) { memcpy(target, &value, sizeof value); }

FASTGAN_SHARED void store(BFloat16* target, Lanes value) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256((__m256i*)target, (__m256i)_mm512_cvtneps_pbh((__m512)value));
#else
  const BitLanes bits = (BitLanes)value;
  const BitLanes rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const BitLanes quiet = (bits >> 16) | 0x40u;
  const IntLanes is_nan = value != value;
  const HalfLanes half = __builtin_convertvector(is_nan ? quiet : rounded, HalfLanes);
  memcpy(target, &half, sizeof half);
#endif
}

FASTGAN_SHARED void store(Float16* target, Lanes value) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)target, _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i*)target, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int lane = 0; lane < kLanes; ++lane) target[lane] = from_float<Float16>(value[lane]);
#endif
}

// The value as T holds it.
template <class T>
FASTGAN_SHARED Lanes rounded(Lanes value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return value;
  } else {
    T buffer[kLanes];
    store(buffer, value);
    return load(buffer);
  }
}

// The first `count` lanes; the others are zero, and their memory is not touched.
template <class T>
FASTGAN_SHARED Lanes load_first(const T* source, int count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const auto lanes = static_cast<uint16_t>((1u << count) - 1u);
  if constexpr (sizeof(T) == 4) {
    return (Lanes)_mm512_maskz_loadu_ps(lanes, source);
  } else {
    alignas(32) T buffer[kLanes];
    _mm256_store_si256((__m256i*)buffer, _mm256_maskz_loadu_epi16(lanes, source));
    return load(buffer);
  }
#else
  T buffer[kLanes] = {};
  memcpy(buffer, source, count * sizeof(T));
  return load(buffer);
#endif
}

template <class T>
FASTGAN_SHARED void store_first(T* target, Lanes value, int count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const auto lanes = static_cast<uint16_t>((1u << count) - 1u);
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(target, lanes, (__m512)value);
  } else {
    alignas(32) T buffer[kLanes];
    store(buffer, value);
    _mm256_mask_storeu_epi16(target, lanes, _mm256_load_si256((const __m256i*)buffer));
  }
#else
  T buffer[kLanes];
  store(buffer, value);
  memcpy(target, buffer, count * sizeof(T));
#endif
}

// Asks for the cache line of an address that may lie past the end of the data.
FASTGAN_SHARED void fetch(const void* address) { __builtin_prefetch(address); }

// Calls visit(first channel, width) for blocks of channels: four vectors wide while they last, then
// one vector, then what is left of a vector (`width` < kLanes). The number of vectors is a constant
// in each call, so that a block's accumulators stay in registers.
template <int count>
struct Vectors {
  static constexpr int value = count;
};

template <class Visit>
FASTGAN_SHARED void for_channel_blocks(int64_t channels, const Visit& visit) {
  int64_t channel = 0;
  for (; channel + 4 * kLanes <= channels; channel += 4 * kLanes) {
    visit(Vectors<4>{}, channel, kLanes);
  }
  for (; channel + kLanes <= channels; channel += kLanes) visit(Vectors<1>{}, channel, kLanes);
  if (channel < channels) visit(Vectors<1>{}, channel, static_cast<int>(channels - channel));
}

// Calls visit(first channel, width) for every vector of channels.
template <class Visit>
FASTGAN_SHARED void for_lanes(int64_t channels, const Visit& visit) {
  int64_t channel = 0;
  for (; channel + kLanes <= channels; channel += kLanes) visit(channel, kLanes);
  if (channel < channels) visit(channel, static_cast<int>(channels - channel));
}

// A vector of a block: whole, or the first `width` lanes of it.
template <class T>
FASTGAN_SHARED Lanes load_width(const T* source, int width) {
  return width == kLanes ? load(source) : load_first(source, width);
}

template <class T>
FASTGAN_SHARED void store_width(T* target, Lanes value, int width) {
  if (width == kLanes) {
    store(target, value);
  } else {
    store_first(target, value, width);
  }
}

// Channels rounded up to whole vectors.
FASTGAN_SHARED int64_t padded(int64_t channels) {
  return (channels + kLanes - 1) / kLanes * kLanes;
}

struct VectorMath {
  using Value = Lanes;

  // Cephes expf: 2^n times a polynomial of degree 6, relative error below 2e-7. Below -86.6 the
  // result is 0, above 88.72 infinite. 2^n is made as 2 * 2^(n-1), as 2^128 is no float.
  static FASTGAN_SHARED Lanes exp(Lanes x) {
    const Lanes clamped = x < -87.3f ? splat(-87.3f) : (x > 88.72f ? splat(88.72f) : x);
    const Lanes value = exp_over_two(clamped) * 2.0f;
    return x != x ? x : (x > 88.72f ? splat(__builtin_inff()) : value);
  }

  // exp(x) / 2 for x in [-87.3, 88.72] alone.
  static FASTGAN_SHARED Lanes exp_over_two(Lanes x) {
    const Lanes shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23 rounds to int
    const Lanes whole = shifted - 12582912.0f;
    const Lanes r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
    Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const IntLanes exponent = (((IntLanes)shifted) - 0x4b400000 + 126) << 23;
    return p * (Lanes)exponent;
  }

  // Cephes logf: the exponent, and a polynomial of degree 8 in the mantissa. log(0) is -infinity.
  static FASTGAN_SHARED Lanes log(Lanes x) {
    const Lanes normal = x < 0x1p-126f ? x * 0x1p23f : x;  // subnormal numbers have no exponent
    const IntLanes bits = (IntLanes)normal;
    const Lanes mantissa = (Lanes)((bits & 0x007fffff) | 0x3f000000);  // in [0.5, 1)
    const IntLanes low = mantissa < 0.707106781186547524f;
    Lanes exponent = __builtin_convertvector(((bits >> 23) & 0xff) - 126, Lanes);
    exponent = (low ? exponent - 1.0f : exponent) - (x < 0x1p-126f ? splat(23.0f) : Lanes{});
    const Lanes m = (low ? mantissa + mantissa : mantissa) - 1.0f;
    const Lanes z = m * m;
    Lanes p = m * 7.0376836292e-2f + -1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m + -1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m + -1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m + -2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const Lanes y = p * m * z + exponent * -2.12194440e-4f - 0.5f * z;
    const Lanes value = m + y + exponent * 0.693359375f;
    const Lanes special = x == 0.0f ? splat(-__builtin_inff()) : splat(__builtin_nanf(""));
    return x > 0.0f ? (x > 3.4028234e38f ? x : value) : special;
  }

  // log(u) * x / (u - 1) with u = 1 + x as rounded: Kahan's correction.
  static FASTGAN_SHARED Lanes log1p(Lanes x) {
    const Lanes u = x + 1.0f;
    return u == 1.0f ? x : (u == 0.0f ? log(u) : log(u) * (x / (u - 1.0f)));
  }

  // 2 t / (1 - t) with t = tanh(x / 2) where exp(x) - 1 would cancel.
  static FASTGAN_SHARED Lanes expm1(Lanes x) {
    const Lanes t = tanh(x * 0.5f);
    const IntLanes near = (x < 1.0f) & (x > -1.0f);
    return near ? 2.0f * t / (1.0f - t) : exp(x) - 1.0f;
  }

  // Cephes tanhf: an odd polynomial below 0.625, 1 - 2 / (exp(2|x|) + 1) above, both halved.
  static FASTGAN_SHARED Lanes tanh(Lanes x) {
    const Lanes size = x < 0.0f ? -x : x;
    const Lanes z = x * x;
    Lanes p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z + -5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z + -3.33332819422e-1f;
    const Lanes small = p * z * x + x;
    const Lanes bounded = size > 9.0f ? splat(9.0f) : size;
    const Lanes large = 1.0f - 1.0f / (exp_over_two(bounded + bounded) + 0.5f);
    const Lanes value = size < 0.625f ? small : (x < 0.0f ? -large : large);
    return x != x ? x : value;
  }
};

}  // namespace fastgan::cpu::FASTGAN_LEVEL
