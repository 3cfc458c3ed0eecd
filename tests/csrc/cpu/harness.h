// What the kernel harness draws, runs and compares: buffers of exactly the size that they must have,
// results bit by bit between numbers of threads, products against float64.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../../../csrc/common/numbers.h"
#include "../../../csrc/cpu/kernels.h"

namespace fastgan::cpu::harness {

inline int threads = 1;  // that `parallel` uses
inline std::mt19937_64 generator;

inline int64_t draw(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(generator);
}

inline int64_t draw_channels() {
  constexpr int64_t kChannels[] = {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65, 80, 130};
  return kChannels[draw(0, std::size(kChannels) - 1)];
}

inline size_t bytes_of(DataType type) { return type == DataType::float32 ? 4 : 2; }

// A heap buffer of exactly `count` elements, all NaN.
struct Buffer {
  DataType type;
  int64_t count;
  std::unique_ptr<unsigned char[]> data;

  Buffer(DataType element, int64_t elements)
      : type(element), count(elements), data(new unsigned char[elements * bytes_of(element)]) {
    memset(data.get(), 0xff, count * bytes_of(type));
  }

  void set(int64_t index, float value) {
    if (type == DataType::float32) {
      reinterpret_cast<float*>(data.get())[index] = value;
    } else if (type == DataType::bfloat16) {
      reinterpret_cast<BFloat16*>(data.get())[index] = from_float<BFloat16>(value);
    } else {
      reinterpret_cast<Float16*>(data.get())[index] = from_float<Float16>(value);
    }
  }

  double get(int64_t index) const {
    if (type == DataType::float32) return reinterpret_cast<const float*>(data.get())[index];
    if (type == DataType::bfloat16) {
      return to_float(reinterpret_cast<const BFloat16*>(data.get())[index]);
    }
    return to_float(reinterpret_cast<const Float16*>(data.get())[index]);
  }

  Buffer& fill() {
    std::normal_distribution<float> normal;
    for (int64_t index = 0; index < count; ++index) set(index, normal(generator));
    return *this;
  }

  Buffer& fill_whole() {
    for (int64_t index = 0; index < count; ++index) set(index, static_cast<float>(draw(-3, 3)));
    return *this;
  }

  float* floats() { return reinterpret_cast<float*>(data.get()); }
};

inline int failures = 0;
inline char drawn[256] = "";  // the case at hand

inline void expect(bool right, const char* level, const char* what) {
  if (!right && ++failures <= 10) fprintf(stderr, "%s: %s (%s)\n", level, what, drawn);
}

inline void expect_finite(const Buffer& buffer, const char* level, const char* what) {
  bool finite = true;
  for (int64_t index = 0; index < buffer.count; ++index) finite &= std::isfinite(buffer.get(index));
  expect(finite, level, what);
}

// Runs `call` with 1, 2 and 5 threads into `result`; the bits must not differ.
template <class Call>
void with_threads(Buffer& result, const char* level, const char* what, const Call& call) {
  std::vector<unsigned char> first;
  const size_t bytes = result.count * bytes_of(result.type);
  for (int count : {1, 2, 5}) {
    threads = count;
    memset(result.data.get(), 0xff, bytes);
    call();
    if (first.empty()) first.assign(result.data.get(), result.data.get() + bytes);
    expect(memcmp(first.data(), result.data.get(), bytes) == 0, level, what);
  }
}

struct Sums {
  std::vector<double> value, size;

  explicit Sums(int64_t count) : value(count), size(count) {}
};

inline void expect_close(const Buffer& result, const Sums& exact, int64_t terms,
                         const char* level, const char* what) {
  const double float_epsilon = 0x1p-23;
  const double epsilon = result.type == DataType::float32    ? 0x1p-23
                         : result.type == DataType::bfloat16 ? 0x1p-7
                                                             : 0x1p-10;
  // Half the spacing of float16's subnormal numbers, and of nothing else that matters.
  const double smallest = result.type == DataType::float16 ? 0x1p-25 : 1e-30;
  bool close = true;
  for (int64_t index = 0; index < result.count; ++index) {
    const double bound = (terms + 2) * float_epsilon * exact.size[index] +
                         epsilon * std::fabs(exact.value[index]) + smallest;
    close &= std::fabs(result.get(index) - exact.value[index]) <= bound;
  }
  expect(close, level, what);
}

// Of one drawn case: fprop, dgrad and wgrad against float64. With `winograd` the case is drawn from
// those that its tiles serve and its operands are small whole numbers: no sum is rounded, so that
// nothing but the exact result is right.
void try_convolution(const Kernels& kernels, DataType type, bool winograd = false);

}  // namespace fastgan::cpu::harness
