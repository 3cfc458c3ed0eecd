// wgrad by Winograd's tiles (winograd.h): the same sums with pairs of the small side as taps.
//
//     dw[j] = sum over s of small[s] big[s + j], j = 0, 1; over a tile of s = 0, 1:
//
//     dw[0] += e0 d0 + e1 d1  =  m1 - m0        m0 = (d1 - d0) e0
//     dw[1] += e0 d1 + e1 d2  =  m1 + m2        m1 = d1 (e0 + e1)
//                                               m2 = (d2 - d1) e1
//
// Where the small side has an odd size e1 is a zero beyond its border, and d1 reaches dw[0] only to
// cancel: there, what is not finite spreads to all taps of its parity.
//
// The nine products of each parity are summed over tiles and images, and turned into its four taps
// once at the end. A task is (split of the images, parity, block of big channels); each factor's
// operands are made just before they are multiplied, for a turn of tiles at a time.
#pragma once

#include "weight_gradient.h"
#include "winograd.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// The pixels that a turn's tiles read: side x side positions of each, row by row.
template <int side>
struct TurnPixels {
  const float* pixel[side * side][kReductionPixels];

  FASTGAN_SHARED void find(const View& view, int64_t tile, int64_t image, int64_t y, int64_t x) {
    for (int64_t position = 0; position < side * side; ++position) {
      pixel[position][tile] = view.pixel(image, y + position / side, x + position % side);
    }
  }
};

// `count` pixels (1, 2 or 4) added up: the first two and the last two, then both.
FASTGAN_SHARED void add_pixels(const float* const* pixels, int count, bool subtract,
                               int64_t channels, float* target) {
  auto combine = [&](auto negative, auto pairs) {
    for_lanes(channels, [&](int64_t channel, int lanes) {
      auto pair = [&](int first) {
        const Lanes a = load_width(pixels[first] + channel, lanes);
        const Lanes b = load_width(pixels[first + 1] + channel, lanes);
        return decltype(negative)::value ? a - b : a + b;
      };
      Lanes sum = pair(0);
      if constexpr (decltype(pairs)::value == 2) {
        sum = decltype(negative)::value ? sum - pair(2) : sum + pair(2);
      }
      store(target + channel, sum);
    });
  };
  if (count == 1) {
    for_lanes(channels, [&](int64_t channel, int lanes) {
      store(target + channel, load_width(pixels[0] + channel, lanes));
    });
  } else if (subtract) {
    count == 2 ? combine(Vectors<1>{}, Vectors<1>{}) : combine(Vectors<1>{}, Vectors<2>{});
  } else {
    count == 2 ? combine(Vectors<0>{}, Vectors<1>{}) : combine(Vectors<0>{}, Vectors<2>{});
  }
}

constexpr int64_t kGradientTilesAhead = 4;  // whose pixels are fetched before the first factor

// Positions, relative to a tile's first, whose pixels make one factor along an axis: D[1], d[1],
// D[2] of the big side (the second is subtracted); e0, e0 + e1, e1 of the small side.
constexpr int kBigFirst[3] = {1, 1, 2}, kBigSecond[3] = {0, -1, 1};
constexpr int kSmallFirst[3] = {0, 0, 1}, kSmallSecond[3] = {-1, 1, -1};

// One factor of a turn's tiles: read where it lies if it is a pixel of whole vectors, else made in
// `buffer`, which has room for `pitch` floats a tile.
template <int side>
FASTGAN_SHARED void make_factor(const TurnPixels<side>& turn, int64_t count, int64_t factor,
                                int64_t channel, int64_t channels, int64_t pitch, float* buffer,
                                const float** rows) {
  constexpr bool big = side == 3;
  const int* firsts = big ? kBigFirst : kSmallFirst;
  const int* seconds = big ? kBigSecond : kSmallSecond;
  const int y[2] = {firsts[factor / 3], seconds[factor / 3]};
  const int x[2] = {firsts[factor % 3], seconds[factor % 3]};
  int positions[4], used = 0;
  for (int i = 0; i < 2 && y[i] >= 0; ++i) {
    for (int j = 0; j < 2 && x[j] >= 0; ++j) positions[used++] = y[i] * side + x[j];
  }
  for (int64_t tile = 0; tile < count; ++tile) {
    const float* pixels[4];
    for (int index = 0; index < used; ++index) {
      pixels[index] = turn.pixel[positions[index]][tile] + channel;
    }
    if (factor == 0 && tile + kGradientTilesAhead < count) {
      for (int position = 0; position < side * side; ++position) {
        const float* ahead = turn.pixel[position][tile + kGradientTilesAhead] + channel;
        for (int64_t first = 0; first < channels; first += 16) __builtin_prefetch(ahead + first);
      }
    }
    if (used == 1 && channels == pitch) {
      rows[tile] = pixels[0];
      continue;
    }
    rows[tile] = buffer + tile * pitch;
    add_pixels(pixels, used, big, channels, buffer + tile * pitch);
  }
}

// The sums [factor][small channel][kBlock] of one parity's products become its four taps
// [tap][small channel][kBlock], where they lie.
FASTGAN_SHARED void make_taps(int64_t rows, int64_t channels, float* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t first = 0; first < channels; first += kLanes) {
      Lanes products[kFactors], taps[2][2];
      for (int64_t factor = 0; factor < kFactors; ++factor) {
        const Lanes sum = load(sums + (factor * rows + row) * kBlock + first);
        // Row 0 and column 0 of the products carry the sign of d1 - d0.
        products[factor] = (factor < 3) != (factor % 3 == 0) ? -sum : sum;
      }
      tile_sums(products, taps);
      for (int64_t tap = 0; tap < 4; ++tap) {
        store(sums + (tap * rows + row) * kBlock + first, taps[tap / 2][tap % 2]);
      }
    }
  }
}

// A group is (parity, block of big channels), its sums are [tap of the parity][small channel][kBlock].
struct TileGroup {
  const Convolution& c;
  const float* zeros;
  int64_t blocks, rows;

  FASTGAN_SHARED int64_t size() const { return rows * kBlock; }
  FASTGAN_SHARED int64_t memory_bytes() const {
    return kReductionPixels * (kBlock + padded(rows)) * sizeof(float);
  }
  FASTGAN_SHARED int64_t channels(int64_t group) const {
    const int64_t left = c.big_channels - group % blocks * kBlock;
    return left < kBlock ? left : kBlock;
  }

  FASTGAN_SHARED void add(int64_t group, int64_t first, int64_t last, float* sums,
                          char* memory) const {
    const int64_t channel = group % blocks * kBlock, width = channels(group);
    const int64_t tiles_y = round_up_quotient(c.small_height, 2);
    const int64_t tiles_x = round_up_quotient(c.small_width, 2), pitch = padded(rows);
    const View small{static_cast<const float*>(c.small), zeros, c.small_height, c.small_width,
                     rows, 1, 0, 0, c.small_height, c.small_width};
    const View big = parity_view(c, group / blocks, zeros);
    auto* big_buffer = reinterpret_cast<float*>(memory);
    float* small_buffer = big_buffer + kReductionPixels * kBlock;
    memset(sums, 0, kFactors * size() * sizeof(float));
    const int64_t all = (last - first) * tiles_y * tiles_x;
    for (int64_t begin = 0; begin < all; begin += kReductionPixels) {
      const int64_t count = all - begin < kReductionPixels ? all - begin : kReductionPixels;
      TurnPixels<3> big_pixels;
      TurnPixels<2> small_pixels;
      for (int64_t tile = 0; tile < count; ++tile) {
        const int64_t x = (begin + tile) % tiles_x * 2, y = (begin + tile) / tiles_x % tiles_y * 2;
        const int64_t image = first + (begin + tile) / tiles_x / tiles_y;
        big_pixels.find(big, tile, image, y, x);
        small_pixels.find(small, tile, image, y, x);
      }
      for (int64_t factor = 0; factor < kFactors; ++factor) {
        Turn<float> turn;
        turn.count = count;
        make_factor(big_pixels, count, factor, channel, width, kBlock, big_buffer, turn.vectors);
        make_factor(small_pixels, count, factor, 0, rows, pitch, small_buffer, turn.broadcast);
        add_turn(turn, rows, vectors_of(width), sums + factor * size());
      }
    }
    make_taps(rows, width, sums);
  }

  template <class T>
  FASTGAN_SHARED void store(int64_t group, int64_t begin, int64_t end, const float* sums,
                            T* result) const {
    const int64_t parity = group / blocks;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t y = parity / 2 + index / rows / 2 * 2, x = parity % 2 + index / rows % 2 * 2;
      const int64_t tap = index % rows * 16 + y * 4 + x;
      store_row(result + tap * c.big_channels + group % blocks * kBlock, sums + index * kBlock,
                channels(group));
    }
  }
};

void winograd_wgrad(const Convolution& call) {
  const int64_t rows = call.small_channels;
  const int64_t most = call.big_channels > rows ? call.big_channels : rows;
  const float* zeros = zero_row(padded(most), Scratch::offsets);
  const TileGroup tiles{call, zeros, round_up_quotient(call.big_channels, kBlock), rows};
  const int64_t groups = 4 * tiles.blocks;
  const Split split(call.batch, groups, rows * 16 * call.big_channels);
  with_type(call.result_type, [&](auto element) {
    using T = typename decltype(element)::type;
    add_splits(
        split, groups, 4 * rows, kFactors * tiles.size(), tiles.memory_bytes(),
        [&](int64_t group, int64_t part, float* sums, char* memory) {
          const int64_t first = part * split.images, last = first + split.images;
          tiles.add(group, first, last < call.batch ? last : call.batch, sums, memory);
        },
        [&](int64_t group, int64_t begin, int64_t end, const float* sums) {
          tiles.store(group, begin, end, sums, static_cast<T*>(call.result));
        });
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
