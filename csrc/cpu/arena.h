// An arena for large blocks: one reserved range of addresses, best fit, free neighbours joined, and
// no holes: where no free block is large enough, the memory of several is moved into one.
//
// The C library's heap cannot place a training step's tensors closely: it asks every aligned block
// for more than it needs, gives the remainder to others, and joins what is free only now and then.
// Here a block has no header, begins and ends on a page, and goes into the smallest free block that
// holds it (the lowest of these). Whatever the rule, though, blocks of many sizes leave holes that
// the next one does not fit in: 8% of the peak in the mean of two dozen training steps, up to 20%,
// and the best of some ten thousand other rules left hardly less. So a block that fits nowhere
// takes addresses that have no memory, and the pages of free blocks move there (pages.h).
//
// What is freed stays with the process and is used again without a page fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "pages.h"

namespace fastgan::cpu {

class Arena {
 public:
  static constexpr size_t kPage = Pages::kPage;  // blocks begin on a multiple of it and are multiples

  struct Usage {
    size_t reserved;     // bytes of addresses; 0 if the system refused them
    size_t in_use;       // bytes of the blocks handed out
    size_t most_in_use;  // ever
    size_t backed;       // bytes that have memory: of blocks in use, and of free ones
    size_t highest;      // bytes from the arena's begin to the highest end that a block ever had
    size_t blocks;       // handed out
    size_t free_blocks;  // no two of them adjacent, unless one has memory and the other none
  };

  // Reserves `bytes` of addresses, not memory; see `usage().reserved` for whether it succeeded. Moves
  // leave the system more and more mappings to keep, of which a process has 65,530 by default: at
  // `mappings` of them, once in hundreds of steps at most, the memory of free blocks is given back.
  explicit Arena(size_t bytes, size_t mappings = 4096);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // At least `bytes` (more than 0), aligned to kPage; null if they do not fit in, or if the system
  // has no memory. Nothing is promised of the contents. Takes O(log blocks), as `release` does, but
  // O(blocks) where none of the free ones holds it.
  void* allocate(size_t bytes);

  // Takes back what `allocate` gave; anything else ends the process, as free() would.
  void release(void* block) noexcept;

  // Whether an address lies in the arena. Needs no lock.
  bool owns(const void* address) const {
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(pages_.base()) <
           pages_.bytes();
  }

  Usage usage() const;

  // From now on fork() waits until no thread is inside the arena, so that the child's works, too.
  // For one arena of the process, which lives as long as it does.
  void survive_forks();

 private:
  using BySize = std::set<std::pair<size_t, size_t>>;  // size and offset

  // Hollow: free, and without memory, as all of the arena is at first.
  enum class State { used, free, hollow };

  struct Block {
    size_t size;
    State state;
    BySize::node_type entry;  // in by_size_ while the block is free: to free it allocates nothing
  };
  using ByOffset = std::map<size_t, Block>;
  using Place = ByOffset::iterator;

  Place begin_block(size_t offset, size_t size, State state);
  void split(Place block, size_t size);
  void set_state(Place block, State state) noexcept;
  Place join(Place block) noexcept;

  void take(Place block) noexcept;
  Place take_best(size_t size);
  Place take_hollow(size_t size);
  size_t emptiest(size_t size) const;
  void fill(size_t offset, size_t size);
  void drop_free() noexcept;

  mutable std::mutex mutex_;
  Pages pages_;
  size_t highest_ = 0;
  size_t in_use_ = 0;
  size_t most_in_use_ = 0;
  size_t backed_ = 0;
  size_t moved_ = 0;
  size_t mappings_;
  size_t most_mappings_;  // before memory is given back the next time
  ByOffset blocks_;  // all of the range
  BySize by_size_;   // the free ones
};

}  // namespace fastgan::cpu
