// A reserved range of addresses and the memory behind it, page by page.
//
// The system's pages can change their addresses: mremap moves the memory behind one part of the
// range to another, a few microseconds for megabytes, without copying and without a page fault.
#pragma once

#include <cstddef>
#include <set>

namespace fastgan::cpu {

class Pages {
 public:
  static constexpr size_t kPage = 4096;

  // Reserves `bytes` of addresses, not memory; `bytes()` is 0 if the system refuses them.
  explicit Pages(size_t bytes);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  char* base() const { return base_; }
  size_t bytes() const { return bytes_; }

  // From now on the range can be used from its begin to `end`, or farther. False without memory.
  bool make_writable(size_t end);

  // Moves the memory of the `bytes` at `from` to those at `to`, whose own is given back; all of them
  // writable, and the two ranges apart. The addresses at `from` stay, without memory until they are
  // touched. What either holds is undefined afterwards, all the more if this returns false: then
  // some of it or nothing has been moved, and the system does not serve the next time, either.
  bool move(size_t from, size_t to, size_t bytes);

  // Gives the memory of a range back to the system; the addresses stay. Moves leave the
  // system many mappings to keep: those of the range become one again.
  void drop(size_t begin, size_t bytes);

  // The system's mappings of the range are at most so many.
  size_t mappings() const { return borders_.size() + 1; }

  // Moves are not tried again: the system has refused one.
  bool fixed() const { return fixed_; }

 private:
  char* base_ = nullptr;
  size_t bytes_ = 0;
  size_t writable_ = 0;  // from the begin
  bool fixed_ = false;
  std::set<size_t> borders_;  // where two of the system's mappings may meet: a move crosses none
};

}  // namespace fastgan::cpu
