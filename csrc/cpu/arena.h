// An arena for large blocks: one reserved range of addresses, best fit, free neighbours joined.
//
// The C library's heap cannot place a training step's tensors closely: it asks every aligned block
// for more than it needs, gives the remainder to others, and joins what is free only now and then.
// Here a block has no header, begins and ends on a page, and goes into the smallest free block that
// holds it (the lowest of these); what is never asked for at once is never resident.
//
// What is freed stays with the process and is used again without a page fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace fastgan::cpu {

class Arena {
 public:
  static constexpr size_t kPage = 4096;  // blocks begin on a multiple of it and are multiples of it

  struct Usage {
    size_t reserved;     // bytes of addresses; 0 if the system refused them
    size_t in_use;       // bytes of the blocks handed out
    size_t highest;      // bytes from the arena's begin to the highest end that a block ever had
    size_t blocks;       // handed out
    size_t free_blocks;  // no two of them adjacent
  };

  // Reserves `bytes` of addresses, not memory; see `usage().reserved` for whether it succeeded.
  explicit Arena(size_t bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // At least `bytes` (more than 0), aligned to kPage; null if they do not fit in, or if the system
  // has no memory. Nothing is promised of the contents. Takes O(log blocks), as `release` does.
  void* allocate(size_t bytes);

  // Takes back what `allocate` gave; anything else ends the process, as free() would.
  void release(void* block) noexcept;

  // Whether an address lies in the arena. Needs no lock.
  bool owns(const void* address) const {
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(base_) < reserved_;
  }

  Usage usage() const;

  // From now on fork() waits until no thread is inside the arena, so that the child's works, too.
  // For one arena of the process, which lives as long as it does.
  void survive_forks();

 private:
  using BySize = std::set<std::pair<size_t, size_t>>;  // size and offset of the free blocks

  struct Block {
    size_t size;
    bool free;
    BySize::node_type entry;  // in by_size_ while the block is free: to free it allocates nothing
  };
  using ByOffset = std::map<size_t, Block>;

  bool make_writable(size_t end);
  void join_with_next(ByOffset::iterator block) noexcept;

  mutable std::mutex mutex_;
  char* base_ = nullptr;
  size_t reserved_ = 0;
  size_t writable_ = 0;  // bytes from the begin that the system has been asked for
  size_t highest_ = 0;
  size_t in_use_ = 0;
  ByOffset blocks_;  // all of the range, free or not
  BySize by_size_;
};

}  // namespace fastgan::cpu
