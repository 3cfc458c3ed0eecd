#include "pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <new>
#include <vector>

namespace fastgan::cpu {
namespace {

// The system is asked for so much at a time; a multiple of every page size.
constexpr size_t kGrowth = size_t{32} << 20;

// Of Linux 5.7 and 4.17; not every C library's headers have them.
constexpr int kKeepAddresses = 4;     // MREMAP_DONTUNMAP
constexpr int kIfFree = 0x100000;     // MAP_FIXED_NOREPLACE

constexpr int kPrivate = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
constexpr int kWritable = PROT_READ | PROT_WRITE;

}  // namespace

Pages::Pages(size_t bytes) {
  bytes = bytes / kGrowth * kGrowth;
  if (bytes == 0) return;
  // Without access, such a range counts neither as memory nor against what may be committed.
  void* range = mmap(nullptr, bytes, PROT_NONE, kPrivate, -1, 0);
  if (range == MAP_FAILED) return;
  base_ = static_cast<char*>(range);
  bytes_ = bytes;
}

Pages::~Pages() {
  if (base_) munmap(base_, bytes_);
}

bool Pages::make_writable(size_t end) {
  if (end <= writable_) return true;
  const size_t wanted = (end + kGrowth - 1) / kGrowth * kGrowth;
  try {
    borders_.insert(writable_);  // the system need not join what it is given one after another
  } catch (const std::bad_alloc&) {
    return false;
  }
  if (mprotect(base_ + writable_, wanted - writable_, kWritable) != 0) return false;
  writable_ = wanted;
  return true;
}

bool Pages::move(size_t from, size_t to, size_t bytes) {
  if (fixed_) return false;
  std::vector<size_t> cuts;  // the pieces that one mapping holds
  try {
    cuts.push_back(from);
    const auto last = borders_.lower_bound(from + bytes);
    for (auto border = borders_.upper_bound(from); border != last; ++border) cuts.push_back(*border);
    cuts.push_back(from + bytes);
    borders_.insert({from, from + bytes});
    borders_.erase(borders_.upper_bound(to), borders_.lower_bound(to + bytes));
    for (const size_t cut : cuts) borders_.insert(cut - from + to);
  } catch (const std::bad_alloc&) {
    fixed_ = true;  // the borders may lack one
    return false;
  }
  for (size_t piece = 0; piece + 1 < cuts.size(); ++piece) {
    const size_t size = cuts[piece + 1] - cuts[piece];
    void* target = base_ + (cuts[piece] - from + to);
    if (mremap(base_ + cuts[piece], size, size, MREMAP_MAYMOVE | MREMAP_FIXED | kKeepAddresses,
               target) == target) {
      continue;
    }
    // A system without such moves has done nothing; another may have unmapped the target already.
    fixed_ = true;
    void* there = mmap(target, size, kWritable, kPrivate | kIfFree, -1, 0);
    if (there == MAP_FAILED && errno != EEXIST) std::abort();  // a block without addresses
    if (there != MAP_FAILED && there != target) munmap(there, size);  // before Linux 4.17
    return false;
  }
  return true;
}

void Pages::drop(size_t begin, size_t bytes) {
  if (begin >= writable_) return;
  bytes = std::min(bytes, writable_ - begin);
  // The addresses must not be lost: nobody would know who else maps them.
  if (mmap(base_ + begin, bytes, kWritable, kPrivate | MAP_FIXED, -1, 0) == MAP_FAILED) std::abort();
  borders_.erase(borders_.upper_bound(begin), borders_.lower_bound(begin + bytes));
}

}  // namespace fastgan::cpu
