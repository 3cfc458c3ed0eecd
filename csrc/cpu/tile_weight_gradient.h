// wgrad of bfloat16 on AMX tiles: 32 images at one place are the reduction of one tile product.
//
//     dw[16 s, tap, 16 b]  +=  small [16 s x 32 images]  x  big [32 images, in pairs, x 16 b]
//
// A group is a block of small by a block of big channels with all taps, so that a task packs what it
// multiplies once for all of them, at any stride: the big side is zipped, only the small side is
// transposed. It does so a turn at a time (a few rows of the small side, or a few groups of 32 images
// where these are small), in memory of its own that stays in the second-level cache; rows of the big
// side that the next turn reads too are kept. Places whose tap lies outside the big side are left out.
//
// With few big-side channels (images), taps x channels of a copied patch are the big side of a 1 x 1
// kernel.
#pragma once

#include "tile_patches.h"
#include "weight_gradient.h"

namespace fastgan::cpu::FASTGAN_LEVEL {

constexpr int64_t kTileImages = 32;      // of one reduction
constexpr int64_t kSmallBlock = 128;     // channels; of the big side, kBlock
constexpr int64_t kTurnPlaces = 32;      // of one turn, at most
constexpr int64_t kTurnBytes = 3 << 18;  // of a turn's big side, if one place needs no more
constexpr int64_t kGradientTasks = 16;   // wanted
constexpr int64_t kSplitRows = 4;        // at least: rows at a split's ends are packed twice
constexpr int64_t kSplitBytes = 4 << 20;  // of one group's partial sums
constexpr int64_t kPatchPlaces = 8;      // whose patches are copied image by image

// Where the tiles of a place lie in a turn's operands.
struct TileStep {
  int64_t small, big;
};
// sums[32 small channels][kBlock] (32 columns of it) += the products of a turn's places.
FASTGAN_SHARED void add_tile_products(const TileStep* steps, int64_t count, const BFloat16* small,
                                      const BFloat16* big, float* sums) {
  constexpr int64_t kStride = kBlock * sizeof(float);
  float* below = sums + kTileRows * kBlock;
  FASTGAN_TILE_LOAD(0, sums, kStride);
  FASTGAN_TILE_LOAD(1, sums + kTileRows, kStride);
  FASTGAN_TILE_LOAD(2, below, kStride);
  FASTGAN_TILE_LOAD(3, below + kTileRows, kStride);
  for (int64_t index = 0; index < count; ++index) {
    const BFloat16* left = small + steps[index].small;
    const BFloat16* right = big + steps[index].big;
    FASTGAN_TILE_LOAD(4, left, kTileBytes);
    FASTGAN_TILE_LOAD(6, right, kTileBytes);
    FASTGAN_TILE_MULTIPLY(0, 4, 6);
    FASTGAN_TILE_LOAD(7, right + kTileElements, kTileBytes);
    FASTGAN_TILE_MULTIPLY(1, 4, 7);
    FASTGAN_TILE_LOAD(5, left + kTileElements, kTileBytes);
    FASTGAN_TILE_MULTIPLY(2, 5, 6);
    FASTGAN_TILE_MULTIPLY(3, 5, 7);
  }
  FASTGAN_TILE_STORE(0, sums, kStride);
  FASTGAN_TILE_STORE(1, sums + kTileRows, kStride);
  FASTGAN_TILE_STORE(2, below, kStride);
  FASTGAN_TILE_STORE(3, below + kTileRows, kStride);
}

// One side of the gradient: [images][pixels][channels], read through a prologue.
struct TileSide {
  const Prologue& prologue;
  const BFloat16* data;
  int64_t images, pixels, channels;

  // Packs 32 channels of 32 images at one pixel into two right operands, or (transposed) into two
  // left ones; what is not there is zero. `rows` has room for 32 x 32 elements.
  template <bool transposed>
  FASTGAN_SHARED void pack(int64_t image, int64_t pixel, int64_t channel, BFloat16* rows,
                           BFloat16* tiles) const {
    const int64_t count = image + kTileImages <= images ? kTileImages : images - image;
    const int64_t left = channels - channel;
    const int64_t width = left < 0 ? 0 : left < kTileDepth ? left : kTileDepth;
    const int64_t stride = pixels * channels;
    const BFloat16* source = data + image * stride + pixel * channels + channel;
    const bool whole = count == kTileImages && width == kTileDepth;
    auto finish = [&](const BFloat16* from, int64_t pitch) {
      transposed ? transpose_rows(from, pitch, tiles) : zip_rows(from, pitch, tiles);
    };
    if (whole && !prologue.scale) return finish(source, stride);
    if (!whole) memset(rows, 0, kTileImages * kTileDepth * sizeof(BFloat16));
    for (int64_t row = 0, end; width > 0 && row < count; row = end) {  // of one statistics group
      if (!prologue.scale) {
        end = row + 1;
        copy_elements(rows + row * kTileDepth, source + row * stride, width);
        continue;
      }
      const int64_t group = group_of(prologue, image + row);
      end = (group + 1) * prologue.images - image;
      if (end > count) end = count;
      apply_prologue(prologue, group, channel, width, source + row * stride, stride, end - row,
                     rows + row * kTileDepth, kTileDepth);
    }
    finish(rows, kTileDepth);
  }
};

// A turn: places (y, x) of `groups` groups of 32 images.
struct TileTurn {
  int64_t group, groups, y, rows, x, columns;
};

struct TileGradient {
  const Convolution& call;
  Convolution shape;  // that is multiplied: the call's, or a 1 x 1 kernel over patches
  const bool patches;
  const PatchShape patch;
  const TileSide small, big;
  int64_t taps, image_groups, small_blocks, big_blocks, block_rows;
  int64_t turn_groups, turn_rows, turn_columns, strips;  // strips: of turn_columns columns
  int64_t big_rows, big_columns;                         // room for one group's big side

  FASTGAN_SHARED explicit TileGradient(const Convolution& c)
      : call(c),
        shape(shape_of(c)),
        patches(c.big_channels < kFewTileInputs),
        patch(c),
        small{c.small_prologue, static_cast<const BFloat16*>(c.small), c.batch,
              c.small_height * c.small_width, c.small_channels},
        big{c.big_prologue, static_cast<const BFloat16*>(c.big), c.batch,
            c.big_height * c.big_width, c.big_channels} {
    taps = shape.kernel_height * shape.kernel_width;
    image_groups = round_up_quotient(c.batch, kTileImages);
    small_blocks = round_up_quotient(c.small_channels, kSmallBlock);
    big_blocks = round_up_quotient(shape.big_channels, kBlock);
    block_rows = c.small_channels < kSmallBlock ? round_up(c.small_channels, kTileDepth) : kSmallBlock;
    turn_columns = c.small_width < kTurnPlaces ? c.small_width : kTurnPlaces;
    turn_rows = kTurnPlaces / turn_columns < c.small_height ? kTurnPlaces / turn_columns
                                                            : c.small_height;
    const int64_t places = turn_rows * turn_columns;
    turn_groups = places == c.small_height * c.small_width ? kTurnPlaces / places : 1;
    if (turn_groups > image_groups) turn_groups = image_groups > 0 ? image_groups : 1;
    for (;;) {
      big_rows = window(turn_rows, shape.stride_height, shape.kernel_height, shape.big_height);
      big_columns = window(turn_columns, shape.stride_width, shape.kernel_width, shape.big_width);
      if (big_bytes() <= kTurnBytes) break;
      if (turn_groups > 1) {
        --turn_groups;
      } else if (turn_rows > 1) {
        --turn_rows;
      } else if (turn_columns > 1) {
        turn_columns = round_up_quotient(turn_columns, 2);
      } else {
        break;
      }
    }
    strips = round_up_quotient(c.small_width, turn_columns);
  }

  static FASTGAN_SHARED Convolution shape_of(const Convolution& c) {
    Convolution shape = c;
    if (c.big_channels >= kFewTileInputs) return shape;
    shape.big_channels = PatchShape(c).elements();
    shape.big_height = c.small_height, shape.big_width = c.small_width;
    shape.kernel_height = shape.kernel_width = shape.stride_height = shape.stride_width = 1;
    shape.padding_height = shape.padding_width = 0;
    return shape;
  }
  static FASTGAN_SHARED int64_t window(int64_t count, int64_t stride, int64_t kernel, int64_t size) {
    return (count - 1) * stride + kernel < size ? (count - 1) * stride + kernel : size;
  }

  // Blocks of 32 channels of a block of the big side.
  FASTGAN_SHARED int64_t big_halves() const {
    return shape.big_channels <= kTileDepth ? 1 : kBlock / kTileDepth;
  }
  FASTGAN_SHARED int64_t small_step() const { return turn_groups * turn_rows * turn_columns; }
  FASTGAN_SHARED int64_t big_step() const { return turn_groups * big_rows * big_columns; }
  FASTGAN_SHARED int64_t small_bytes() const {
    return block_rows / kTileDepth * small_step() * kTwoTiles * sizeof(BFloat16);
  }
  FASTGAN_SHARED int64_t big_bytes() const {
    return big_halves() * big_step() * kTwoTiles * sizeof(BFloat16);
  }
  // Rows of 32 images: what a prologue leaves, or patches and a patch more.
  FASTGAN_SHARED int64_t work_bytes() const {
    return sizeof(BFloat16) * (patches ? (kTileImages * kPatchPlaces + 1) * patch.width()
                                       : kTileImages * kTileDepth);
  }
  FASTGAN_SHARED int64_t memory_bytes() const { return small_bytes() + big_bytes() + work_bytes(); }
  FASTGAN_SHARED int64_t groups() const { return small_blocks * big_blocks; }
  FASTGAN_SHARED int64_t rows() const { return taps * block_rows; }
  // What splits are made of: groups of images where a turn takes these whole, else rows of a strip.
  FASTGAN_SHARED bool whole_images() const {
    return strips == 1 && turn_rows == shape.small_height;
  }
  FASTGAN_SHARED int64_t units() const {
    return whole_images() ? image_groups : image_groups * strips * shape.small_height;
  }
  FASTGAN_SHARED Split split() const {
    int64_t most = Split::splits_of(groups(), kGradientTasks);
    const int64_t fit = kSplitBytes / (rows() * kBlock * static_cast<int64_t>(sizeof(float)));
    const int64_t sized = whole_images() ? units() : round_up_quotient(units(), kSplitRows);
    if (most > fit) most = fit;
    if (most > sized) most = sized;
    return {units(), most > 1 ? most : 1};
  }

  FASTGAN_SHARED void add(int64_t index, int64_t first, int64_t last, float* sums,
                          char* memory) const {
    const Tiles configured;
    memset(sums, 0, rows() * kBlock * sizeof(float));
    int64_t strip = -1, packed = 0;  // rows of the strip's big side below `packed` were packed
    // The units of the next turn: as many as the others have, of what is left.
    auto share = [](int64_t left, int64_t most) {
      return round_up_quotient(left, round_up_quotient(left, most));
    };
    for (int64_t unit = first, count; unit < last; unit += count) {
      if (whole_images()) {
        count = share(last - unit, turn_groups);
        packed = 0;
        add_turn(index, {unit, count, 0, turn_rows, 0, turn_columns}, packed, sums, memory);
        continue;
      }
      const int64_t y = unit % shape.small_height, rows_left = shape.small_height - y;
      count = share(last - unit < rows_left ? last - unit : rows_left, turn_rows);
      if (strip != unit / shape.small_height) packed = 0;
      strip = unit / shape.small_height;
      const int64_t x = strip % strips * turn_columns, left = shape.small_width - x;
      add_turn(index,
               {strip / strips, 1, y, count, x, left < turn_columns ? left : turn_columns}, packed,
               sums, memory);
    }
  }

  FASTGAN_SHARED void add_turn(int64_t index, const TileTurn& turn, int64_t& packed, float* sums,
                               char* memory) const {
    auto* small_tiles = reinterpret_cast<BFloat16*>(memory);
    auto* big_tiles = reinterpret_cast<BFloat16*>(memory + small_bytes());
    auto* work = reinterpret_cast<BFloat16*>(memory + small_bytes() + big_bytes());
    const int64_t small_channel = index / big_blocks * kSmallBlock;
    const int64_t big_channel = index % big_blocks * kBlock;
    const int64_t small_left = small.channels - small_channel;
    const int64_t big_left = shape.big_channels - big_channel;
    pack_small(turn, small_channel, work, small_tiles);
    const Window across(turn.x, turn.columns, shape.stride_width, shape.padding_width,
                        shape.kernel_width, shape.big_width);
    const Window down(turn.y, turn.rows, shape.stride_height, shape.padding_height,
                      shape.kernel_height, shape.big_height);
    const int64_t begin = down.first > packed ? down.first : packed;
    for (int64_t y = begin; y < down.first + down.count; ++y) {
      pack_big_row(turn, y, across, big_channel, work, big_tiles);
    }
    packed = down.first + down.count > packed ? down.first + down.count : packed;
    FASTGAN_TILE_FENCE();
    TileStep steps[kTurnPlaces];
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t count = list_steps(turn, tap, across, steps);
      if (count == 0) continue;
      float* tap_sums = sums + tap * block_rows * kBlock;
      for (int64_t row = 0; row < block_rows && row < small_left; row += kTileDepth) {
        for (int64_t column = 0; column < kBlock && column < big_left; column += kTileDepth) {
          add_tile_products(steps, count,
                            small_tiles + row / kTileDepth * small_step() * kTwoTiles,
                            big_tiles + column / kTileDepth * big_step() * kTwoTiles,
                            tap_sums + row * kBlock + column);
        }
      }
    }
  }

  // [half of the block][group][row][column][2 tiles], transposed
  FASTGAN_SHARED void pack_small(const TileTurn& turn, int64_t channel, BFloat16* work,
                                 BFloat16* tiles) const {
    for (int64_t group = 0; group < turn.groups; ++group) {
      for (int64_t place = 0; place < turn.rows * turn.columns; ++place) {
        const int64_t y = place / turn.columns, x = place % turn.columns;
        const int64_t at = (group * turn_rows + y) * turn_columns + x;
        for (int64_t half = 0; half < block_rows / kTileDepth; ++half) {
          small.pack<true>((turn.group + group) * kTileImages,
                           (turn.y + y) * shape.small_width + turn.x + x,
                           channel + half * kTileDepth, work,
                           tiles + (half * small_step() + at) * kTwoTiles);
        }
      }
    }
  }
  // [half of the block][group][row, in a ring][column][2 tiles], zipped
  FASTGAN_SHARED void pack_big_row(const TileTurn& turn, int64_t y, const Window& across,
                                   int64_t channel, BFloat16* work, BFloat16* tiles) const {
    for (int64_t group = 0; group < turn.groups; ++group) {
      const int64_t image = (turn.group + group) * kTileImages;
      BFloat16* row = tiles + (group * big_rows + y % big_rows) * big_columns * kTwoTiles;
      for (int64_t x = 0; x < across.count; ++x) {
        if (patches && x % kPatchPlaces == 0) {
          const int64_t left = across.count - x;
          copy_patches(image, y, across.first + x, left < kPatchPlaces ? left : kPatchPlaces, work);
        }
        for (int64_t half = 0; half < big_halves(); ++half) {
          const int64_t first = channel + half * kTileDepth;
          BFloat16* target = row + (half * big_step() + x) * kTwoTiles;
          if (!patches) {
            big.pack<false>(image, y * shape.big_width + across.first + x, first, work, target);
          } else if (first < patch.width()) {
            zip_rows(work + x % kPatchPlaces * patch.width() + first,
                     kPatchPlaces * patch.width(), target);
          }
        }
      }
    }
  }

  // The patches of `count` places side by side in 32 images: [image][kPatchPlaces][patch.width()].
  // They are copied image by image, as neighbouring patches share their pixels.
  FASTGAN_SHARED void copy_patches(int64_t image, int64_t y, int64_t x, int64_t count,
                                   BFloat16* rows) const {
    const int64_t width = patch.width(), size = big.pixels * big.channels;
    BFloat16* buffer = rows + kTileImages * kPatchPlaces * width;
    for (int64_t lane = 0; lane < kTileImages; ++lane, rows += kPatchPlaces * width) {
      if (image + lane >= big.images) {
        memset(rows, 0, count * width * sizeof(BFloat16));
        continue;
      }
      patch.copy(big.data + (image + lane) * size, y, x, count, buffer,
                 [&](int64_t place, int64_t element) { return rows + place * width + element; });
    }
  }

  // Where the tiles of a turn's places lie whose tap is inside the big side.
  FASTGAN_SHARED int64_t list_steps(const TileTurn& turn, int64_t tap, const Window& across,
                                    TileStep* steps) const {
    const int64_t tap_y = tap / shape.kernel_width - shape.padding_height;
    const int64_t tap_x = tap % shape.kernel_width - shape.padding_width;
    int64_t count = 0;
    for (int64_t group = 0; group < turn.groups; ++group) {
      for (int64_t y = 0; y < turn.rows; ++y) {
        const int64_t big_y = (turn.y + y) * shape.stride_height + tap_y;
        if (big_y < 0 || big_y >= shape.big_height) continue;
        const int64_t small_row = (group * turn_rows + y) * turn_columns;
        const int64_t big_row = (group * big_rows + big_y % big_rows) * big_columns - across.first;
        for (int64_t x = 0; x < turn.columns; ++x) {
          const int64_t big_x = (turn.x + x) * shape.stride_width + tap_x;
          if (big_x < 0 || big_x >= shape.big_width) continue;
          steps[count++] = {(small_row + x) * kTwoTiles, (big_row + big_x) * kTwoTiles};
        }
      }
    }
    return count;
  }

  // The sums of patch elements `first` to first + count, less what pads the kernel rows.
  template <class T>
  FASTGAN_SHARED void store_patches(const float* sums, int64_t channel, int64_t first,
                                    int64_t count, T* result) const {
    T* target = result + channel * call.kernel_height * patch.run;
    for (int64_t element = 0; element < count;) {
      const int64_t row = (first + element) / patch.pitch, at = (first + element) % patch.pitch;
      const int64_t left = count - element, rest = patch.pitch - at;
      const int64_t whole = rest < left ? rest : left, real = patch.run - at;
      for_lanes(real < whole ? real : whole, [&](int64_t first_lane, int lanes) {
        store_width(target + row * patch.run + at + first_lane,
                    load_width(sums + element + first_lane, lanes), lanes);
      });
      element += whole;
    }
  }

  template <class T>
  FASTGAN_SHARED void store(int64_t index, int64_t begin, int64_t end, const float* sums,
                            T* result) const {
    const int64_t big_channel = index % big_blocks * kBlock;
    const int64_t left = shape.big_channels - big_channel;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t channel = index / big_blocks * kSmallBlock + row % block_rows;
      if (channel >= small.channels) continue;
      const int64_t count = left < kBlock ? left : kBlock;
      const float* source = sums + row * kBlock;
      if (patches) {
        store_patches(source, channel, big_channel, count, result);
      } else {
        const int64_t at = (channel * taps + row / block_rows) * shape.big_channels;
        store_row(result + at + big_channel, source, count);
      }
    }
  }
};

void tile_wgrad(const Convolution& c) {
  const bool patches = c.big_channels < kFewTileInputs;
  // A tile does 16 times a vector's work in the same time: not with 2 of its 32 images.
  const bool served = c.type == DataType::bfloat16 && c.batch > 2;
  if (!served || (patches && c.big_prologue.scale)) return wgrad(c);
  const TileGradient gradient(c);
  const Split split = gradient.split();
  with_type(c.result_type, [&](auto element) {
    using T = typename decltype(element)::type;
    add_splits(
        split, gradient.groups(), gradient.rows(), gradient.rows() * kBlock,
        gradient.memory_bytes(),
        [&](int64_t index, int64_t part, float* sums, char* memory) {
          const int64_t first = part * split.images, last = first + split.images;
          gradient.add(index, first, last < gradient.units() ? last : gradient.units(), sums, memory);
        },
        [&](int64_t index, int64_t begin, int64_t end, const float* sums) {
          gradient.store(index, begin, end, sums, static_cast<T*>(c.result));
        });
  });
}

}  // namespace fastgan::cpu::FASTGAN_LEVEL
