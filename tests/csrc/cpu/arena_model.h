// A plain model of what an arena is to do, for arena_harness.cpp: page by page, O(pages) for
// everything.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../../../csrc/cpu/arena.h"

namespace {

using fastgan::cpu::Arena;

constexpr size_t kArena = size_t{64} << 20;

struct Model {
  enum Page : unsigned char { hollow, free, used };
  static constexpr size_t kPages = kArena / Arena::kPage;

  std::vector<Page> pages = std::vector<Page>(kPages, hollow);
  size_t in_use = 0, most_in_use = 0, backed = 0, moved = 0;  // in pages
  bool moves = true;

  size_t end_of_stretch(size_t begin, bool apart) const {
    size_t end = begin;
    while (end < kPages && (apart ? pages[end] == pages[begin] : pages[end] != used)) ++end;
    return end;
  }

  // The first page of the smallest stretch of free ones; or of the window among pages not in use
  // that lacks the least memory, then in the smallest stretch, then the lowest. kPages if none.
  size_t place(size_t size) const {
    size_t best = kPages, smallest = SIZE_MAX;
    for (size_t page = 0, end; page < kPages; page = end) {
      end = end_of_stretch(page, true);
      if (pages[page] == free && end - page >= size && end - page < smallest) {
        best = page, smallest = end - page;
      }
    }
    if (best < kPages) return best;
    size_t least = SIZE_MAX;
    for (size_t page = 0, end; page < kPages; page = end) {
      if (pages[page] == used) {
        end = page + 1;
        continue;
      }
      end = end_of_stretch(page, false);
      size_t lacking = 0;
      for (size_t stop = page; stop < end; ++stop) {
        lacking += pages[stop] == hollow;
        if (stop >= page + size) lacking -= pages[stop - size] == hollow;
        if (stop + 1 < page + size) continue;
        if (lacking < least || (lacking == least && end - page < smallest)) {
          least = lacking, smallest = end - page, best = stop + 1 - size;
        }
      }
    }
    return best;
  }

  void take(size_t first, size_t size) {
    std::vector<size_t> stretches;  // of the lacking pages: memory is sought for one at a time
    for (size_t page = first; page < first + size; ++page) {
      if (pages[page] == hollow) {
        if (page == first || pages[page - 1] != hollow) stretches.push_back(0);
        ++stretches.back();
      }
    }
    std::fill_n(pages.begin() + first, size, used);
    in_use += size;
    most_in_use = std::max(most_in_use, in_use);
    for (size_t lacking : stretches) {
      size_t page = kPages;
      while (lacking > 0 && moves) {
        const size_t spare = std::min(moved * Arena::kPage / 32, most_in_use * Arena::kPage / 16);
        if ((backed + lacking) * Arena::kPage <= most_in_use * Arena::kPage + spare) break;
        while (page > 0 && pages[page - 1] != free) --page;
        if (page == 0) break;
        // The whole of a stretch, or its end, at a time.
        for (; page > 0 && pages[page - 1] == free && lacking > 0; --page, --lacking) {
          pages[page - 1] = hollow;
          ++moved;
        }
      }
      backed += lacking;
    }
  }

  void release(size_t first, size_t size) {
    std::fill_n(pages.begin() + first, size, free);
    in_use -= size;
  }

  size_t stretches() const {
    size_t count = 0;
    for (size_t page = 0, end; page < kPages; page = end) {
      end = pages[page] == used ? page + 1 : end_of_stretch(page, true);
      count += pages[page] != used;
    }
    return count;
  }
};

}  // namespace
