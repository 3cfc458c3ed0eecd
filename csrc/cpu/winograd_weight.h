// The weight as Winograd's tiles meet it: the nine factors of each parity's 2x2 taps, packed a call.
#pragma once

#include "winograd.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

// The nine factors of 2x2 taps: (-g0, g0 + g1, g1) along either axis.
FASTGAN_SHARED void tap_factors(const Lanes (&taps)[2][2], Lanes (&factors)[kFactors]) {
  Lanes rows[3][2];
  FASTGAN_UNROLL for (int x = 0; x < 2; ++x) {
    rows[0][x] = -taps[0][x];
    rows[1][x] = taps[0][x] + taps[1][x];
    rows[2][x] = taps[1][x];
  }
  FASTGAN_UNROLL for (int y = 0; y < 3; ++y) {
    factors[3 * y] = -rows[y][0];
    factors[3 * y + 1] = rows[y][0] + rows[y][1];
    factors[3 * y + 2] = rows[y][1];
  }
}

// The taps of one parity, as vectors of big-side channels.
FASTGAN_SHARED void load_taps(const Convolution& c, int64_t parity, bool reversed, int64_t small,
                              int64_t big, int lanes, Lanes (&taps)[2][2]) {
  for (int64_t y = 0; y < 2; ++y) {
    for (int64_t x = 0; x < 2; ++x) {
      const int64_t tap = (parity / 2 + 2 * y) * 4 + parity % 2 + 2 * x;
      const auto* weight = static_cast<const float*>(c.weight);
      taps[reversed ? 1 - y : y][reversed ? 1 - x : x] =
          load_width(weight + (small * 16 + tap) * c.big_channels + big, lanes);
    }
  }
}

// fprop's factors of the weight: [block of small channels][factor][parity][big channel][kBlock].
FASTGAN_SHARED const float* pack_fprop_factors(const Convolution& c) {
  const int64_t blocks = round_up_quotient(c.small_channels, kBlock), steps = c.big_channels;
  const int64_t pieces = round_up_quotient(steps, kLanes);
  auto* packed = static_cast<float*>(
      scratch(Scratch::weights, blocks * kFactors * 4 * steps * kBlock * sizeof(float)));
  parallel_for(blocks * 4 * pieces, [&](int64_t task) {
    const int64_t big = task % pieces * kLanes, parity = task / pieces % 4;
    const int64_t block = task / pieces / 4, first = block * kBlock;
    const int lanes = big + kLanes <= steps ? kLanes : static_cast<int>(steps - big);
    alignas(64) float rows[kFactors][kBlock][kLanes] = {};
    for (int64_t lane = 0; lane < kBlock && first + lane < c.small_channels; ++lane) {
      Lanes taps[2][2], factors[kFactors];
      load_taps(c, parity, false, first + lane, big, lanes, taps);
      tap_factors(taps, factors);
      for (int64_t factor = 0; factor < kFactors; ++factor) {
        store(rows[factor][lane], factors[factor]);
      }
    }
    for (int64_t factor = 0; factor < kFactors; ++factor) {
      float* target = packed + (((block * kFactors + factor) * 4 + parity) * steps + big) * kBlock;
      for (int64_t step = 0; step < lanes; ++step, target += kBlock) {
        for (int64_t lane = 0; lane < kBlock; ++lane) target[lane] = rows[factor][lane][step];
      }
    }
  });
  return packed;
}

// dgrad's: [phase][block of big channels][factor][small channel][kBlock]. Its taps run backwards.
FASTGAN_SHARED const float* pack_dgrad_factors(const Convolution& c) {
  const int64_t blocks = round_up_quotient(c.big_channels, kBlock), steps = c.small_channels;
  auto* packed = static_cast<float*>(
      scratch(Scratch::weights, 4 * blocks * kFactors * steps * kBlock * sizeof(float)));
  constexpr int64_t kPiece = 16;
  const int64_t pieces = round_up_quotient(steps, kPiece);
  parallel_for(4 * blocks * pieces, [&](int64_t task) {
    const int64_t begin = task % pieces * kPiece, share = task / pieces;
    const int64_t channel = share % blocks * kBlock;
    const int64_t end = begin + kPiece < steps ? begin + kPiece : steps;
    for (int64_t small = begin; small < end; ++small) {
      float* target = packed + (share * kFactors * steps + small) * kBlock;
      for (int64_t lane = 0; lane < kBlock; lane += kLanes) {
        const int64_t left = c.big_channels - channel - lane;
        Lanes taps[2][2] = {}, factors[kFactors];
        if (left > 0) {
          load_taps(c, share / blocks, true, small, channel + lane,
                    left < kLanes ? static_cast<int>(left) : kLanes, taps);
        }
        tap_factors(taps, factors);
        for (int64_t factor = 0; factor < kFactors; ++factor) {
          store(target + factor * steps * kBlock + lane, factors[factor]);
        }
      }
    }
  });
  return packed;
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
