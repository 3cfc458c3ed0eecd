// The AMX tiles of csrc/cpu/tiles.h in software, for processors that have none.
//
// It is stricter than the hardware in one way: a tile that is used before it is loaded or zeroed
// holds NaN, and so does every tile once its configuration is released.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define FASTGAN_TILE_ZERO(tile) fastgan::software::zero(tile)
#define FASTGAN_TILE_LOAD(tile, address, stride) fastgan::software::load(tile, address, stride)
#define FASTGAN_TILE_STORE(tile, address, stride) fastgan::software::store(tile, address, stride)
#define FASTGAN_TILE_MULTIPLY(c, a, b) fastgan::software::multiply(c, a, b)

namespace fastgan::software {

inline thread_local uint32_t tiles[8][16][16];
inline thread_local bool configured = false;

inline void spoil() {
  const float nan = NAN;
  for (auto& tile : tiles) {
    for (auto& row : tile) {
      for (uint32_t& word : row) memcpy(&word, &nan, sizeof word);
    }
  }
}

inline void check() {
  if (!configured) abort();
}

inline void zero(int tile) {
  check();
  memset(tiles[tile], 0, sizeof tiles[tile]);
}

inline void load(int tile, const void* address, int64_t stride) {
  check();
  for (int row = 0; row < 16; ++row) {
    memcpy(tiles[tile][row], static_cast<const char*>(address) + row * stride, 64);
  }
}

inline void store(int tile, void* address, int64_t stride) {
  check();
  for (int row = 0; row < 16; ++row) {
    memcpy(static_cast<char*>(address) + row * stride, tiles[tile][row], 64);
  }
}

inline float half_of(uint32_t word, bool high) {
  const uint32_t bits = high ? word & 0xffff0000u : word << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline void multiply(int c, int a, int b) {
  check();
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 16; ++column) {
      float sum;
      memcpy(&sum, &tiles[c][row][column], sizeof sum);
      for (int pair = 0; pair < 16; ++pair) {
        const uint32_t left = tiles[a][row][pair], right = tiles[b][pair][column];
        sum += half_of(left, false) * half_of(right, false);
        sum += half_of(left, true) * half_of(right, true);
      }
      memcpy(&tiles[c][row][column], &sum, sizeof sum);
    }
  }
}

}  // namespace fastgan::software

namespace fastgan::cpu::FASTGAN_LEVEL {

struct Tiles {
  Tiles() {
    software::spoil();
    software::configured = true;
  }
  ~Tiles() { software::configured = false; }
};

}  // namespace fastgan::cpu::FASTGAN_LEVEL
