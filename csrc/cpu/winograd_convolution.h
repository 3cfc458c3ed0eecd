// fprop and dgrad by Winograd's tiles (winograd.h).
//
// fprop sums four views of its input, one a parity; dgrad makes four phases of its output from one
// view. A task makes all output channels of a chunk of tiles:
//
//     for each view:   differences of the chunk's positions, to be read by every factor
//     for each phase, for each block of kBlock channels:
//       for each of 9 factors:  products = differences x weights       (multiply_rows)
//       sums of the products, bias, activation, store                  (the epilogue)
//
// The chunk is small enough for differences and products to stay in the second-level cache.
#pragma once

#include "winograd_weight.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kMostTiles = 96;            // of a chunk
constexpr int64_t kDifferenceBytes = 786432;  // that a chunk's differences may take
constexpr int64_t kTurnSteps = 128;           // of a reduction whose weights stay in the L1 cache
constexpr int64_t kTilesAhead = 6;            // whose output is fetched before it is written
constexpr int64_t kFewTasks = 16;             // fewer chunks are cut by their output as well

// fprop: 4 views, 1 phase. dgrad: 1 view, 4 phases.
struct TileProduct {
  Product product;
  int64_t views, phases;
  View view[4];
  Phase phase[4];
  int64_t centre_y[4], centre_x[4];  // of a phase's first tile
  int64_t begin_y, begin_x;          // the first position of a difference that is read
  int64_t extra_y, extra_x;          // positions of n tiles side by side: 2 n + extra
  int64_t tiles_y, tiles_x;          // of the largest phase

  FASTGAN_SHARED void measure() {
    begin_y = centre_y[0], begin_x = centre_x[0];
    int64_t last_y = begin_y, last_x = begin_x;
    tiles_y = tiles_x = 0;
    for (int64_t index = 0; index < phases; ++index) {
      begin_y = centre_y[index] < begin_y ? centre_y[index] : begin_y;
      begin_x = centre_x[index] < begin_x ? centre_x[index] : begin_x;
      last_y = centre_y[index] > last_y ? centre_y[index] : last_y;
      last_x = centre_x[index] > last_x ? centre_x[index] : last_x;
      const int64_t rows = round_up_quotient(phase[index].grid_height, 2);
      const int64_t columns = round_up_quotient(phase[index].grid_width, 2);
      tiles_y = rows > tiles_y ? rows : tiles_y;
      tiles_x = columns > tiles_x ? columns : tiles_x;
    }
    extra_y = last_y - begin_y, extra_x = last_x - begin_x;
  }
};

FASTGAN_SHARED TileProduct fprop_tiles(const Convolution& c, const float* zeros) {
  TileProduct result{};
  result.product = fprop_product(c);
  result.views = 4, result.phases = 1;
  for (int64_t parity = 0; parity < 4; ++parity) {
    result.view[parity] = parity_view(c, parity, zeros);
  }
  result.phase[0] = fprop_phase(c);
  result.centre_y[0] = result.centre_x[0] = 1;
  result.measure();
  return result;
}

FASTGAN_SHARED TileProduct dgrad_tiles(const Convolution& c, const float* zeros) {
  TileProduct result{};
  result.product = dgrad_product(c);
  result.views = 1, result.phases = 4;
  result.view[0] = {static_cast<const float*>(c.small), zeros, c.small_height, c.small_width,
                    c.small_channels, 1, 0, 0, c.small_height, c.small_width};
  for (int64_t parity = 0; parity < 4; ++parity) {
    const Phase phase = dgrad_phase(c, parity / 2, parity % 2);
    result.phase[parity] = phase;
    result.centre_y[parity] = phase.offset_y, result.centre_x[parity] = phase.offset_x;
  }
  result.measure();
  return result;
}

// How the tiles are cut into chunks: whole images while they fit, else parts of one; and the tasks
// of a chunk. By the shape alone.
struct Chunks {
  int64_t images, rows, columns;  // tiles of a chunk
  int64_t down, across, count, parts;

  FASTGAN_SHARED Chunks(const TileProduct& tiles, int64_t tasks_of_chunk) {
    // 3 differences at each of a tile's 4 positions, or those alone that its 9 factors read.
    const int64_t vectors = tiles.phases > 1 ? 12 : tiles.views * 8;
    const int64_t bytes = vectors * padded(tiles.product.inputs) * sizeof(float);
    int64_t most = kDifferenceBytes / bytes;
    most = most < 4 * kRows ? 4 * kRows : most > kMostTiles ? kMostTiles : most;
    auto even = [](int64_t all, int64_t wanted) {
      return round_up_quotient(all, round_up_quotient(all, wanted));
    };
    columns = tiles.tiles_x <= most ? tiles.tiles_x : even(tiles.tiles_x, most);
    rows = tiles.tiles_y * columns <= most ? tiles.tiles_y
                                           : even(tiles.tiles_y, most / columns);
    images = 1;
    if (columns == tiles.tiles_x && rows == tiles.tiles_y) {
      auto slots = [&](int64_t n) { return round_up_quotient(n * rows * columns, kRows); };
      for (int64_t n = 2; n * rows * columns <= most && n <= tiles.product.batch; ++n) {
        if (n * slots(images) >= images * slots(n)) images = n;  // fills groups of kRows as well
      }
    }
    down = round_up_quotient(tiles.tiles_y, rows);
    across = round_up_quotient(tiles.tiles_x, columns);
    count = round_up_quotient(tiles.product.batch, images) * down * across;
    parts = count >= kFewTasks ? 1 : round_up_quotient(kFewTasks, count);
    parts = parts < tasks_of_chunk ? parts : tasks_of_chunk;
  }
};

// Buffers of a task, in one piece of scratch memory.
struct ChunkMemory {
  int64_t height, width, pitch, tiles;  // positions of one image; floats of one; tiles, rounded up
  float *differences, *products;
  const float** rows;
  Stretch<float>* stretches;

  FASTGAN_SHARED ChunkMemory(const TileProduct& t, const Chunks& chunks) {
    height = 2 * chunks.rows + t.extra_y, width = 2 * chunks.columns + t.extra_x;
    pitch = padded(t.product.inputs);
    tiles = round_up_quotient(chunks.images * chunks.rows * chunks.columns, kRows) * kRows;
    const int64_t difference_floats = t.views * 3 * chunks.images * height * width * pitch;
    const int64_t product_floats = kFactors * tiles * kBlock;
    const int64_t pointers = t.views * kFactors * tiles;
    auto* memory = static_cast<float*>(
        scratch(Scratch::task, (difference_floats + product_floats) * sizeof(float) +
                                   pointers * sizeof(float*) + t.views * sizeof(*stretches)));
    products = memory;
    differences = products + product_floats;
    rows = reinterpret_cast<const float**>(differences + difference_floats);
    stretches = reinterpret_cast<Stretch<float>*>(rows + pointers);
  }

  // Which: 0 along both axes, 1 along y alone, 2 along x alone.
  FASTGAN_SHARED float* difference(int64_t view, int64_t which, int64_t images, int64_t image,
                                   int64_t y, int64_t x) const {
    return differences +
           ((((view * 3 + which) * images + image) * height + y) * width + x) * pitch;
  }
};

// A chunk's place: its first image and tile, and how many there are.
struct ChunkPlace {
  int64_t first_image, images, first_row, rows, first_column, columns;

  FASTGAN_SHARED ChunkPlace(const TileProduct& tiles, const Chunks& chunks, int64_t index) {
    auto part = [](int64_t at, int64_t size, int64_t all) {
      return at + size <= all ? size : all - at;
    };
    first_column = index % chunks.across * chunks.columns;
    first_row = index / chunks.across % chunks.down * chunks.rows;
    first_image = index / chunks.across / chunks.down * chunks.images;
    columns = part(first_column, chunks.columns, tiles.tiles_x);
    rows = part(first_row, chunks.rows, tiles.tiles_y);
    images = part(first_image, chunks.images, tiles.product.batch);
  }
};

// Differences of one position: of both axes, along y, along x; the last two where they are read.
// `ahead` is the pixel below, which is asked for in time: rows are too short for the processor to.
FASTGAN_SHARED void subtract_neighbours(const float* here, const float* left, const float* above,
                                        const float* corner, const float* ahead, int64_t channels,
                                        float* both, float* along_y, float* along_x) {
  for_lanes(channels, [&](int64_t channel, int lanes) {
    __builtin_prefetch(ahead + channel);
    const Lanes value = load_width(here + channel, lanes);
    const Lanes beside = load_width(left + channel, lanes);
    const Lanes down = value - load_width(above + channel, lanes);
    store(both + channel, down - (beside - load_width(corner + channel, lanes)));
    if (along_y) store(along_y + channel, down);
    if (along_x) store(along_x + channel, value - beside);
  });
}

// The differences at every position that a tile of the chunk reads. A pixel itself is a factor at
// the tiles' centres alone: with several views (fprop) these are every second position.
FASTGAN_SHARED void make_differences(const TileProduct& t, const ChunkPlace& place,
                                     const ChunkMemory& memory) {
  const int64_t height = 2 * place.rows + t.extra_y, width = 2 * place.columns + t.extra_x;
  const int64_t first_y = t.begin_y + 2 * place.first_row;
  const int64_t first_x = t.begin_x + 2 * place.first_column;
  const bool all = t.phases > 1;
  for (int64_t row = 0; row < place.images * height; ++row) {
    const int64_t n = row / height, y = row % height, image = place.first_image + n;
    for (int64_t index = 0; index < t.views; ++index) {
      const View& view = t.view[index];
      const float* left = view.pixel(image, first_y + y, first_x - 1);
      const float* corner = view.pixel(image, first_y + y - 1, first_x - 1);
      float* both = memory.difference(index, 0, place.images, n, y, 0);
      float* along_y = memory.difference(index, 1, place.images, n, y, 0);
      float* along_x = memory.difference(index, 2, place.images, n, y, 0);
      for (int64_t x = 0; x < width; ++x) {
        const float* here = view.pixel(image, first_y + y, first_x + x);
        const float* above = view.pixel(image, first_y + y - 1, first_x + x);
        const float* ahead = view.pixel(image, first_y + y + 1, first_x + x);
        subtract_neighbours(here, left, above, corner, ahead, view.channels,
                            both + x * memory.pitch,
                            all || x % 2 == 0 ? along_y + x * memory.pitch : nullptr,
                            all || y % 2 == 0 ? along_x + x * memory.pitch : nullptr);
        left = here, corner = above;
      }
    }
  }
}

// The tiles of one phase in a chunk.
struct PhaseTiles {
  int64_t rows, columns;  // in each image

  FASTGAN_SHARED PhaseTiles(const Phase& phase, const ChunkPlace& place) {
    auto part = [](int64_t grid, int64_t first, int64_t most) {
      const int64_t left = round_up_quotient(grid, 2) - first;
      return left < 0 ? 0 : left < most ? left : most;
    };
    rows = part(phase.grid_height, place.first_row, place.rows);
    columns = part(phase.grid_width, place.first_column, place.columns);
  }
};

// Where the nine factors of a phase's tiles lie: rows[view][factor][tile].
FASTGAN_SHARED void find_factors(const TileProduct& t, const ChunkPlace& place,
                                 const ChunkMemory& memory, int64_t phase, const PhaseTiles& tiles,
                                 int64_t count, int64_t groups) {
  const int64_t shift_y = t.centre_y[phase] - t.begin_y, shift_x = t.centre_x[phase] - t.begin_x;
  for (int64_t index = 0; index < t.views; ++index) {
    const View& view = t.view[index];
    const float** target = memory.rows + index * kFactors * memory.tiles;
    for (int64_t tile = 0; tile < groups * kRows; ++tile) {
      if (tile >= count) {
        for (int64_t factor = 0; factor < kFactors; ++factor) {
          target[factor * memory.tiles + tile] = view.zeros;
        }
        continue;
      }
      const int64_t column = tile % tiles.columns, row = tile / tiles.columns % tiles.rows;
      const int64_t n = tile / tiles.columns / tiles.rows;
      const int64_t y = shift_y + 2 * row, x = shift_x + 2 * column;
      for (int64_t factor = 0; factor < kFactors; ++factor) {
        const int64_t along_y = factor / 3, along_x = factor % 3;
        const float* source;
        if (along_y == 1 && along_x == 1) {
          source = view.pixel(place.first_image + n, t.begin_y + 2 * place.first_row + y,
                              t.begin_x + 2 * place.first_column + x);
        } else {
          const int64_t which = along_x == 1 ? 1 : along_y == 1 ? 2 : 0;
          source = memory.difference(index, which, place.images, n, y + along_y / 2,
                                     x + along_x / 2);
        }
        target[factor * memory.tiles + tile] = source;
      }
    }
  }
}

// products[factor][tile][kBlock] of all groups of kRows tiles.
FASTGAN_SHARED void multiply_factors(const TileProduct& t, const ChunkMemory& memory,
                                     int64_t groups, const float* weights, int64_t vectors) {
  const int64_t steps = t.product.inputs;
  const int64_t turn_steps = steps < kTurnSteps ? steps : kTurnSteps;
  const int64_t turn_views = kTurnSteps / turn_steps;
  for (int64_t factor = 0; factor < kFactors; ++factor, weights += t.views * steps * kBlock) {
    float* products = memory.products + factor * memory.tiles * kBlock;
    for (int64_t first_view = 0; first_view < t.views; first_view += turn_views) {
      const int64_t last_view =
          first_view + turn_views < t.views ? first_view + turn_views : t.views;
      for (int64_t first = 0; first < steps; first += turn_steps) {
        const int64_t count = first + turn_steps <= steps ? turn_steps : steps - first;
        for (int64_t group = 0; group < groups; ++group) {
          for (int64_t view = first_view; view < last_view; ++view) {
            Stretch<float>& stretch = memory.stretches[view - first_view];
            const float* const* rows =
                memory.rows + (view * kFactors + factor) * memory.tiles + group * kRows;
            for (int r = 0; r < kRows; ++r) stretch.rows[r] = rows[r] + first;
            stretch.weights = weights + (view * steps + first) * kBlock;
          }
          multiply_group(vectors, first_view == 0 && first == 0, memory.stretches,
                         last_view - first_view, count, products + group * kRows * kBlock);
        }
      }
    }
  }
}

// Sums of the products, bias and activation; the tiles' pixels that exist are stored.
template <Activation activation>
void store_tiles(const TileProduct& t, const ChunkPlace& place, const ChunkMemory& memory,
                 const Phase& phase, const PhaseTiles& tiles, int64_t count, int64_t channel,
                 int64_t channels) {
  const Product& product = t.product;
  const Convolution& call = *product.call;
  alignas(64) float bias[kBlock] = {};
  if (call.bias) memcpy(bias, call.bias + channel, channels * sizeof(float));
  auto* result = static_cast<float*>(call.result) + channel;
  const int64_t down = product.output_stride_y * product.output_width * product.outputs;
  const int64_t across = product.output_stride_x * product.outputs;
  struct Target {
    float* pixel;
    int64_t rows, columns;  // that exist
  };
  auto target_of = [&](int64_t tile) -> Target {
    const int64_t column = 2 * (place.first_column + tile % tiles.columns);
    const int64_t row = 2 * (place.first_row + tile / tiles.columns % tiles.rows);
    const int64_t image = place.first_image + tile / tiles.columns / tiles.rows;
    const int64_t y = row * product.output_stride_y + phase.origin_y;
    const int64_t x = column * product.output_stride_x + phase.origin_x;
    return {result + ((image * product.output_height + y) * product.output_width + x) *
                         product.outputs,
            row + 2 <= phase.grid_height ? 2 : 1, column + 2 <= phase.grid_width ? 2 : 1};
  };
  for (int64_t tile = 0; tile < count; ++tile) {
    const auto [target, rows, columns] = target_of(tile);
    if (tile + kTilesAhead < count) {
      const Target ahead = target_of(tile + kTilesAhead);
      for (int64_t pixel = 0; pixel < ahead.rows * ahead.columns; ++pixel) {
        const float* line = ahead.pixel + pixel / ahead.columns * down +
                            pixel % ahead.columns * across;
        for (int64_t first = 0; first < channels; first += 16) __builtin_prefetch(line + first, 1);
      }
    }
    for_lanes(channels, [&](int64_t first, int lanes) {
      Lanes products[kFactors], sums[2][2];
      FASTGAN_UNROLL for (int factor = 0; factor < kFactors; ++factor) {
        products[factor] = load(memory.products + (factor * memory.tiles + tile) * kBlock + first);
      }
      tile_sums(products, sums);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          const Lanes z = sums[i][j] + load(bias + first);
          store_width(target + i * down + j * across + first,
                      activate<VectorMath, activation>(z, call.negative_slope), lanes);
        }
      }
    });
  }
}

// A chunk's share of phases and blocks of output channels: `part` of `parts`.
FASTGAN_SHARED void run_chunk(const TileProduct& t, const Chunks& chunks, int64_t index,
                              int64_t part, const float* packed) {
  const ChunkPlace place(t, chunks, index);
  const ChunkMemory memory(t, chunks);
  const int64_t blocks = round_up_quotient(t.product.outputs, kBlock), all = t.phases * blocks;
  make_differences(t, place, memory);
  int64_t found = -1;  // the phase whose rows were found
  for (int64_t share = part * all / chunks.parts; share < (part + 1) * all / chunks.parts;
       ++share) {
    const int64_t phase = share / blocks, channel = share % blocks * kBlock;
    const PhaseTiles tiles(t.phase[phase], place);
    const int64_t count = place.images * tiles.rows * tiles.columns;
    const int64_t groups = round_up_quotient(count, kRows);
    if (count == 0) continue;
    if (found != phase) find_factors(t, place, memory, phase, tiles, count, groups);
    found = phase;
    const int64_t channels =
        channel + kBlock <= t.product.outputs ? kBlock : t.product.outputs - channel;
    multiply_factors(t, memory, groups,
                     packed + share * kFactors * t.views * t.product.inputs * kBlock,
                     vectors_of(channels));
    with_activation(t.product.call->activation, [&](auto activation) {
      store_tiles<decltype(activation)::value>(t, place, memory, t.phase[phase], tiles, count,
                                               channel, channels);
    });
  }
}

FASTGAN_SHARED void run_tile_chunks(const TileProduct& tiles, const float* packed) {
  const Product& product = tiles.product;
  if (product.batch == 0) return;
  const Chunks chunks(tiles, tiles.phases * round_up_quotient(product.outputs, kBlock));
  parallel_for(chunks.count * chunks.parts, [&](int64_t task) {
    run_chunk(tiles, chunks, task / chunks.parts, task % chunks.parts, packed);
  });
}

void winograd_fprop(const Convolution& call) {
  const float* zeros = zero_row(padded(call.big_channels), Scratch::partials);
  run_tile_chunks(fprop_tiles(call, zeros), pack_fprop_factors(call));
}

void winograd_dgrad(const Convolution& call) {
  const float* zeros = zero_row(padded(call.small_channels), Scratch::partials);
  run_tile_chunks(dgrad_tiles(call, zeros), pack_dgrad_factors(call));
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
