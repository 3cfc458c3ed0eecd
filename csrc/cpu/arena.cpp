#include "arena.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <new>

namespace fastgan::cpu {
namespace {

// The system is asked for so much at a time; a multiple of every page size.
constexpr size_t kGrowth = size_t{32} << 20;

constexpr size_t rounded_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

Arena* forking = nullptr;  // the one that survives forks
std::mutex* forking_mutex = nullptr;

}  // namespace

Arena::Arena(size_t bytes) {
  bytes = bytes / kGrowth * kGrowth;
  if (bytes == 0) return;
  // Without access, such a range counts neither as memory nor against what may be committed.
  void* range = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return;
  base_ = static_cast<char*>(range);
  reserved_ = bytes;
  by_size_.emplace(bytes, 0);
  blocks_.emplace(0, Block{bytes, true, {}});
}

Arena::~Arena() {
  if (base_) munmap(base_, reserved_);
}

// Called with the lock held, before a block that ends at `end` is handed out.
bool Arena::make_writable(size_t end) {
  if (end <= writable_) return true;
  const size_t wanted = rounded_up(end, kGrowth);
  if (mprotect(base_ + writable_, wanted - writable_, PROT_READ | PROT_WRITE) != 0) return false;
  writable_ = wanted;
  return true;
}

void* Arena::allocate(size_t bytes) {
  if (bytes == 0 || bytes > reserved_) return nullptr;
  const size_t size = rounded_up(bytes, kPage);
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto best = by_size_.lower_bound({size, 0});
  if (best == by_size_.end()) return nullptr;
  const auto [whole, offset] = *best;
  if (!make_writable(offset + size)) return nullptr;
  const auto block = blocks_.find(offset);
  if (whole > size) {
    try {
      const auto rest = blocks_.emplace(offset + size, Block{whole - size, true, {}}).first;
      try {
        by_size_.emplace(whole - size, offset + size);
      } catch (...) {
        blocks_.erase(rest);
        throw;
      }
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
  }
  block->second.entry = by_size_.extract(best);
  block->second.size = size;
  block->second.free = false;
  in_use_ += size;
  highest_ = std::max(highest_, offset + size);
  return base_ + offset;
}

void Arena::release(void* address) noexcept {
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto block = blocks_.find(static_cast<size_t>(static_cast<char*>(address) - base_));
  if (block == blocks_.end() || block->second.free) std::abort();
  in_use_ -= block->second.size;
  block->second.free = true;
  block->second.entry.value() = {block->second.size, block->first};
  by_size_.insert(std::move(block->second.entry));
  join_with_next(block);
  if (block != blocks_.begin()) join_with_next(std::prev(block));
}

// Called with the lock held: makes one of a free block and the next one, if that is free, too.
void Arena::join_with_next(ByOffset::iterator block) noexcept {
  const auto next = std::next(block);
  if (next == blocks_.end() || !block->second.free || !next->second.free) return;
  BySize::node_type entry = by_size_.extract({block->second.size, block->first});
  by_size_.erase({next->second.size, next->first});
  block->second.size += next->second.size;
  blocks_.erase(next);
  entry.value().first = block->second.size;
  by_size_.insert(std::move(entry));
}

Arena::Usage Arena::usage() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return {reserved_, in_use_, highest_, blocks_.size() - by_size_.size(),
          by_size_.size()};
}

void Arena::survive_forks() {
  forking_mutex = &mutex_;
  if (std::exchange(forking, this)) return;
  auto lock = [] { forking_mutex->lock(); };
  auto unlock = [] { forking_mutex->unlock(); };
  pthread_atfork(lock, unlock, unlock);
}

}  // namespace fastgan::cpu
