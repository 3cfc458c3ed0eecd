// Operands of AMX tiles: 1 KB of dense memory each, so that a tile is loaded from 16 whole lines.
//
// A left operand has 16 rows of 32 reduction elements. A right operand has 16 rows, each of a pair of
// reduction elements of 16 columns.
#pragma once

#include "convolution.h"
#include "tiles.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kTileRows = 16, kTileDepth = 32, kTileElements = 512;
constexpr int64_t kTileBytes = 64;    // of one row
constexpr int64_t kTwoTiles = 2 * kTileElements;
constexpr int64_t kTileColumns = 32;  // of the two right operands of a product

// Fewer reduction channels than this leave a tile mostly empty.
constexpr int64_t kFewTileInputs = 16;

FASTGAN_SHARED int64_t round_up(int64_t value, int64_t multiple) {
  return round_up_quotient(value, multiple) * multiple;
}

// The 16 x 16 words of a tile, transposed where they lie.
FASTGAN_SHARED void transpose_words(BFloat16* tile) {
  __m512i row[16], turned[16];
  FASTGAN_UNROLL for (int r = 0; r < 16; ++r) row[r] = _mm512_load_si512(tile + r * kTileDepth);
  FASTGAN_UNROLL for (int r = 0; r < 16; r += 2) {
    turned[r] = _mm512_unpacklo_epi32(row[r], row[r + 1]);
    turned[r + 1] = _mm512_unpackhi_epi32(row[r], row[r + 1]);
  }
  FASTGAN_UNROLL for (int r = 0; r < 16; r += 4) {  // row[r + i]: column i of each four, of 4 rows
    row[r] = _mm512_unpacklo_epi64(turned[r], turned[r + 2]);
    row[r + 1] = _mm512_unpackhi_epi64(turned[r], turned[r + 2]);
    row[r + 2] = _mm512_unpacklo_epi64(turned[r + 1], turned[r + 3]);
    row[r + 3] = _mm512_unpackhi_epi64(turned[r + 1], turned[r + 3]);
  }
  FASTGAN_UNROLL for (int i = 0; i < 4; ++i) {
    const __m512i even_top = _mm512_shuffle_i32x4(row[i], row[4 + i], 0x88);
    const __m512i odd_top = _mm512_shuffle_i32x4(row[i], row[4 + i], 0xdd);
    const __m512i even_bottom = _mm512_shuffle_i32x4(row[8 + i], row[12 + i], 0x88);
    const __m512i odd_bottom = _mm512_shuffle_i32x4(row[8 + i], row[12 + i], 0xdd);
    turned[i] = _mm512_shuffle_i32x4(even_top, even_bottom, 0x88);
    turned[4 + i] = _mm512_shuffle_i32x4(odd_top, odd_bottom, 0x88);
    turned[8 + i] = _mm512_shuffle_i32x4(even_top, even_bottom, 0xdd);
    turned[12 + i] = _mm512_shuffle_i32x4(odd_top, odd_bottom, 0xdd);
  }
  FASTGAN_UNROLL for (int r = 0; r < 16; ++r) {
    _mm512_store_si512(tile + r * kTileDepth, turned[r]);
  }
}

// Zips 32 rows of 32 elements, `stride` apart, into two right operands that reduce over the rows:
// [columns 0 to 15, 16 to 31][pair of rows][column][2]. Each row is read once: rows of images whose
// size is a power of two share a set of the caches.
FASTGAN_SHARED void zip_rows(const BFloat16* rows, int64_t stride, BFloat16* tiles) {
  alignas(64) static constexpr uint16_t kLow[32] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int pair = 0; pair < 16; ++pair, rows += 2 * stride) {
    const __m512i first = _mm512_loadu_si512(rows), second = _mm512_loadu_si512(rows + stride);
    BFloat16* target = tiles + pair * kTileDepth;
    _mm512_store_si512(target, _mm512_permutex2var_epi16(first, low, second));
    _mm512_store_si512(target + kTileElements, _mm512_permutex2var_epi16(first, high, second));
  }
}

// As zip_rows, but two left operands: [columns 0 to 15, 16 to 31][column][row].
FASTGAN_SHARED void transpose_rows(const BFloat16* rows, int64_t stride, BFloat16* tiles) {
  zip_rows(rows, stride, tiles);
  transpose_words(tiles);
  transpose_words(tiles + kTileElements);
}

// Copies up to 32 rows of up to 32 elements, `stride` apart, to [32][32]; the rest is zero.
FASTGAN_SHARED void copy_rows(const BFloat16* source, int64_t stride, int64_t rows, int64_t width,
                              BFloat16* target) {
  if (rows < 32 || width < 32) memset(target, 0, 32 * 32 * sizeof(BFloat16));
  for (int64_t row = 0; row < rows; ++row) {
    copy_elements(target + row * 32, source + row * stride, width);
  }
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
