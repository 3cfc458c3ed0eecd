// AMX tiles: eight registers of 16 rows of 64 bytes, and the product of bfloat16 pairs.
//
// A test on a processor without AMX names a header with FASTGAN_TILES_HEADER that defines the same
// functions in software.
#pragma once

// What was stored before is in memory: GCC's tile loads do not say that they read any, and its
// ldtilecfg says so of 8 bytes alone.
#define FASTGAN_TILE_FENCE() __asm__ volatile("" ::: "memory")

#if defined(FASTGAN_TILES_HEADER)
#include FASTGAN_TILES_HEADER
#else

#include <immintrin.h>

#include <cstdint>

#define FASTGAN_TILE_ZERO(tile) _tile_zero(tile)
#define FASTGAN_TILE_LOAD(tile, address, stride) _tile_loadd(tile, address, stride)
#define FASTGAN_TILE_STORE(tile, address, stride) _tile_stored(tile, address, stride)
// tile c (16 x 16 float32) += tile a (16 rows of 16 pairs) x tile b (16 pairs of 16 columns)
#define FASTGAN_TILE_MULTIPLY(c, a, b) _tile_dpbf16ps(c, a, b)

namespace fastgan::cpu::FASTGAN_LEVEL {

// Holds the configuration of the thread's tiles: all of them 16 rows of 64 bytes.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    __asm__ volatile("" : : "r"(&configuration) : "memory");
    _tile_loadconfig(&configuration);
  }
  ~Tiles() { _tile_release(); }
};

}  // namespace fastgan::cpu::FASTGAN_LEVEL

#endif
