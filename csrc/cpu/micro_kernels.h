// The register tiles of the convolutions: kRows x (V vectors) accumulators, one step of the
// reduction a turn.
//
// A step is 32 bits of either operand: one float32 (multiply-add), or two bfloat16 (vdpbf16ps adds
// both products to a float32 accumulator). Both look the same from outside: one operand is
// broadcast, the other is a vector.
//
//     broadcast side            vector side, V * kLanes wide
//     row 0:  a0  --->  [ acc 0,0 | acc 0,1 | ... ]
//     row 1:  a1  --->  [ acc 1,0 | acc 1,1 | ... ]
//      ...
#pragma once

#include "vector.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// 24 accumulators of 32 registers with AVX-512, 12 of 16 elsewhere.
#if defined(__AVX512F__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
constexpr int kRows = 6;
constexpr int kBlock = kVectors * kLanes;  // channels on the vector side of a tile

// Two bfloat16 that belong to neighbouring steps of a reduction.
struct Pair {
  BFloat16 first, second;
};


FASTGAN_SHARED Lanes broadcast_step(const float* step) { return splat(*step); }
FASTGAN_SHARED Lanes vector_step(const float* steps) { return load(steps); }
FASTGAN_SHARED Lanes accumulate(Lanes sum, Lanes broadcast, Lanes vector, const float*) {
  return sum + broadcast * vector;
}

#if defined(__AVX512BF16__)
FASTGAN_SHARED Lanes broadcast_step(const Pair* step) {
  int32_t bits;
  memcpy(&bits, step, sizeof bits);
  return (Lanes)(IntLanes{} + bits);
}
FASTGAN_SHARED Lanes vector_step(const Pair* steps) {
  Lanes value;
  memcpy(&value, steps, sizeof value);
  return value;
}
FASTGAN_SHARED Lanes accumulate(Lanes sum, Lanes broadcast, Lanes vector, const Pair*) {
  return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512)broadcast,
                                 (__m512bh)(__m512)vector);
}
#endif

// One stretch of a reduction (a tap, or a part of one): a row of steps for each of kRows pixels, and
// the weights they meet, whose rows are kBlock apart.
template <class Step>
struct Stretch {
  const Step* rows[kRows];
  const Step* weights;
};

// sums[kRows][kBlock] = or += rows[r][k] * weights[k][...] over all stretches and k < steps;
// there is at least one of each.
template <int V, bool fresh, class Step>
void multiply_rows(const Stretch<Step>* stretches, int64_t count, int64_t steps, float* sums) {
  Lanes tile[kRows][V];
  FASTGAN_UNROLL for (int r = 0; r < kRows; ++r) {
    FASTGAN_UNROLL for (int v = 0; v < V; ++v) {
      tile[r][v] = fresh ? Lanes{} : load(sums + r * kBlock + v * kLanes);
    }
  }
  do {
    const Step* row[kRows];
    FASTGAN_UNROLL for (int r = 0; r < kRows; ++r) row[r] = stretches->rows[r];
    const Step* weights = stretches->weights;
    int64_t k = 0;
    do {
      Lanes vector[V];
      FASTGAN_UNROLL for (int v = 0; v < V; ++v) vector[v] = vector_step(weights + v * kLanes);
      FASTGAN_UNROLL for (int r = 0; r < kRows; ++r) {
        const Lanes broadcast = broadcast_step(row[r] + k);
        FASTGAN_UNROLL for (int v = 0; v < V; ++v) {
          tile[r][v] = accumulate(tile[r][v], broadcast, vector[v], weights);
        }
      }
      weights += kBlock;
    } while (++k < steps);
    ++stretches;
  } while (--count);
  FASTGAN_UNROLL for (int r = 0; r < kRows; ++r) {
    FASTGAN_UNROLL for (int v = 0; v < V; ++v) store(sums + r * kBlock + v * kLanes, tile[r][v]);
  }
}

// sums[R][kBlock] += broadcast[k][offset + r] * vectors[k][...] over k < steps (at least one):
// the outer products of weight gradients, where every step (a pixel) has an address of its own on
// both sides.
template <int R, int V, class Step>
void add_outer_products(const Step* const* broadcast, int64_t offset, const Step* const* vectors,
                        int64_t steps, float* sums) {
  Lanes tile[R][V];
  FASTGAN_UNROLL for (int r = 0; r < R; ++r) {
    FASTGAN_UNROLL for (int v = 0; v < V; ++v) tile[r][v] = load(sums + r * kBlock + v * kLanes);
  }
  int64_t k = 0;
  do {
    const Step* source = vectors[k];
    const Step* row = broadcast[k] + offset;
    Lanes vector[V];
    FASTGAN_UNROLL for (int v = 0; v < V; ++v) vector[v] = vector_step(source + v * kLanes);
    FASTGAN_UNROLL for (int r = 0; r < R; ++r) {
      const Lanes value = broadcast_step(row + r);
      FASTGAN_UNROLL for (int v = 0; v < V; ++v) {
        tile[r][v] = accumulate(tile[r][v], value, vector[v], source);
      }
    }
  } while (++k < steps);
  FASTGAN_UNROLL for (int r = 0; r < R; ++r) {
    FASTGAN_UNROLL for (int v = 0; v < V; ++v) store(sums + r * kBlock + v * kLanes, tile[r][v]);
  }
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
