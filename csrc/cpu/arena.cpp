#include "arena.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <new>
#include <vector>

namespace fastgan::cpu {
namespace {

// With no memory to spare, a step's pages would move in every step for ever. So a share of what is
// moved may be taken anew the next time, until the step's blocks find places where they fit as they
// are, which most do within a few steps; and up to a share of what was ever in use.
constexpr size_t kSpareOfMoved = 32, kSpareOfUse = 16;

constexpr size_t rounded_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

Arena* forking = nullptr;  // the one that survives forks
std::mutex* forking_mutex = nullptr;

}  // namespace

Arena::Arena(size_t bytes, size_t mappings)
    : pages_(bytes), mappings_(mappings), most_mappings_(mappings) {
  if (pages_.bytes()) begin_block(0, pages_.bytes(), State::hollow);
}

// All that follows, up to `allocate`, is called with the lock held.

Arena::Place Arena::begin_block(size_t offset, size_t size, State state) {
  BySize made;
  made.emplace(size, offset);
  const Place block = blocks_.emplace(offset, Block{size, State::used, {}}).first;
  block->second.entry = made.extract(made.begin());
  set_state(block, state);
  return block;
}

// Begins a block of the same state after the first `size` bytes of this one.
void Arena::split(Place block, size_t size) {
  if (size == block->second.size) return;
  const State state = block->second.state;
  begin_block(block->first + size, block->second.size - size, state);
  set_state(block, State::used);
  block->second.size = size;
  set_state(block, state);
}

void Arena::set_state(Place block, State state) noexcept {
  auto& [size, current, entry] = block->second;
  if (current == State::free) entry = by_size_.extract({size, block->first});
  current = state;
  if (state != State::free) return;
  entry.value() = {size, block->first};
  by_size_.insert(std::move(entry));
}

// Makes one of a block that is not in use and its neighbours of the same state.
Arena::Place Arena::join(Place block) noexcept {
  const State state = block->second.state;
  while (block != blocks_.begin() && std::prev(block)->second.state == state) --block;
  while (std::next(block) != blocks_.end() && std::next(block)->second.state == state) {
    const Place next = std::next(block);
    const size_t size = block->second.size + next->second.size;
    set_state(next, State::used);
    set_state(block, State::used);
    blocks_.erase(next);
    block->second.size = size;
    set_state(block, state);
  }
  return block;
}

void Arena::take(Place block) noexcept {
  set_state(block, State::used);
  in_use_ += block->second.size;
  most_in_use_ = std::max(most_in_use_, in_use_);
  highest_ = std::max(highest_, block->first + block->second.size);
}

// Takes the smallest free block that holds `size`, if there is one.
Arena::Place Arena::take_best(size_t size) {
  const auto best = by_size_.lower_bound({size, 0});
  if (best == by_size_.end()) return blocks_.end();
  const Place block = blocks_.find(best->second);
  split(block, size);
  take(block);
  return block;
}

// Takes what is not in use and gives memory to what of it has none.
Arena::Place Arena::take_hollow(size_t size) {
  if (pages_.mappings() > most_mappings_) {
    drop_free();
    most_mappings_ = pages_.mappings() + mappings_;
  }
  const size_t offset = emptiest(size);
  if (offset == SIZE_MAX || !pages_.make_writable(offset + size)) return blocks_.end();
  Place block = std::prev(blocks_.upper_bound(offset));
  if (block->first < offset) {
    split(block, offset - block->first);
    ++block;
  }
  const Place last = std::prev(blocks_.lower_bound(offset + size));
  split(last, offset + size - last->first);
  std::vector<std::pair<size_t, size_t>> hollow;
  const Place end = std::next(last);
  for (Place part = block; part != end; ++part) {
    if (part->second.state == State::hollow) hollow.emplace_back(part->first, part->second.size);
  }
  for (Place part = block; part != end; ++part) set_state(part, State::used);
  blocks_.erase(std::next(block), end);
  block->second.size = size;
  take(block);
  for (const auto& [begin, bytes] : hollow) fill(begin, bytes);
  return block;
}

// Where `size` bytes lie that are not in use and lack the least memory, SIZE_MAX if nowhere: among
// equals where the blocks in use leave the least room, then the lowest.
size_t Arena::emptiest(size_t size) const {
  struct Choice {
    size_t lacking, room, offset;
    auto operator<=>(const Choice&) const = default;
  };
  Choice best{SIZE_MAX, SIZE_MAX, SIZE_MAX};
  for (auto first = blocks_.begin(); first != blocks_.end();) {
    size_t room = 0;
    auto end = first;
    for (; end != blocks_.end() && end->second.state != State::used; ++end) room += end->second.size;
    auto consider = [&](size_t offset) {
      if (offset < first->first || offset + size > first->first + room) return;
      size_t lacking = 0;
      for (auto block = first; block != end; ++block) {
        if (block->second.state != State::hollow) continue;
        const size_t begin = std::max(offset, block->first);
        const size_t stop = std::min(offset + size, block->first + block->second.size);
        if (begin < stop) lacking += stop - begin;
      }
      best = std::min(best, Choice{lacking, room, offset});
    };
    // What lacks the least begins with the room or with memory, or ends with memory.
    if (room >= size) consider(first->first);
    for (auto block = first; room >= size && block != end; ++block) {
      if (block->second.state != State::free) continue;
      const size_t stop = block->first + block->second.size;
      consider(block->first);
      if (stop >= size) consider(stop - size);
    }
    first = end == blocks_.end() ? end : std::next(end);
  }
  return best.offset;
}

// Gives memory to a part of a block in use that has none: that of free blocks, from the highest on,
// so that the low ones keep theirs and hold what is asked for next.
void Arena::fill(size_t offset, size_t size) {
  while (size > 0) {
    const size_t spare = std::min(moved_ / kSpareOfMoved, most_in_use_ / kSpareOfUse);
    if (backed_ + size <= most_in_use_ + spare) break;
    const auto donor = std::find_if(blocks_.rbegin(), blocks_.rend(), [](const auto& entry) {
      return entry.second.state == State::free;
    });
    if (donor == blocks_.rend()) break;
    Place block = std::prev(donor.base());
    const size_t part = std::min(size, block->second.size);
    if (part < block->second.size) {
      try {
        split(block, block->second.size - part);
      } catch (const std::bad_alloc&) {
        break;
      }
      ++block;
    }
    if (!pages_.move(block->first, offset, part)) {
      join(block);
      break;
    }
    set_state(block, State::hollow);
    join(block);
    moved_ += part;
    offset += part;
    size -= part;
  }
  backed_ += size;
}

// Gives the memory of all free blocks back to the system.
void Arena::drop_free() noexcept {
  for (Place block = blocks_.begin(); block != blocks_.end(); ++block) {
    if (block->second.state == State::used) continue;
    if (block->second.state == State::free) backed_ -= block->second.size;
    set_state(block, State::hollow);
    block = join(block);
  }
  for (const auto& [offset, block] : blocks_) {
    if (block.state == State::hollow) pages_.drop(offset, block.size);
  }
}

void* Arena::allocate(size_t bytes) {
  if (bytes == 0 || bytes > pages_.bytes()) return nullptr;
  const size_t size = rounded_up(bytes, kPage);
  const std::lock_guard<std::mutex> guard(mutex_);
  try {
    Place block = take_best(size);
    if (block == blocks_.end()) block = take_hollow(size);
    if (block != blocks_.end()) return pages_.base() + block->first;
  } catch (const std::bad_alloc&) {  // between two splits
    for (Place block = blocks_.begin(); block != blocks_.end(); ++block) {
      if (block->second.state != State::used) block = join(block);
    }
  }
  return nullptr;
}

void Arena::release(void* address) noexcept {
  const std::lock_guard<std::mutex> guard(mutex_);
  const Place block = blocks_.find(static_cast<size_t>(static_cast<char*>(address) - pages_.base()));
  if (block == blocks_.end() || block->second.state != State::used) std::abort();
  in_use_ -= block->second.size;
  set_state(block, State::free);
  join(block);
}

Arena::Usage Arena::usage() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  size_t used = 0;
  for (const auto& [offset, block] : blocks_) used += block.state == State::used;
  return {pages_.bytes(), in_use_, most_in_use_, backed_, highest_, used, blocks_.size() - used};
}

void Arena::survive_forks() {
  forking_mutex = &mutex_;
  if (std::exchange(forking, this)) return;
  auto lock = [] { forking_mutex->lock(); };
  auto unlock = [] { forking_mutex->unlock(); };
  pthread_atfork(lock, unlock, unlock);
}

}  // namespace fastgan::cpu
