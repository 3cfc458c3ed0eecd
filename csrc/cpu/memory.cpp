// Memory that a thread keeps between calls, so that a training step faults no pages; or, where large
// blocks can be had without faults, has for a call.
#include <atomic>
#include <cstdlib>
#include <new>

#include "kernels.h"

namespace fastgan::cpu {
namespace {

std::atomic<size_t> held{0};  // by all threads

// Where the memory of large buffers comes from while a call lasts; null: as that of the others.
std::atomic<void* (*)(size_t)> lend{nullptr};
std::atomic<void (*)(void*)> take_back{nullptr};

// Smaller ones are kept: with them a lender's memory would be cut up for little.
constexpr size_t kSmallestLoan = size_t{256} << 10;

struct Buffer {
  void* memory = nullptr;
  size_t bytes = 0;
  bool lent = false;

  void free() {
    if (lent) {
      take_back.load()(memory);
    } else {
      std::free(memory);
      held -= bytes;
    }
    *this = {};
  }
};

struct Buffers {
  Buffer slots[static_cast<int>(Scratch::count)];
  int calls = 0;  // that last

  ~Buffers() {
    for (Buffer& buffer : slots) buffer.free();
  }
};

thread_local Buffers buffers;

}  // namespace

void* scratch(Scratch slot, size_t bytes) {
  Buffer& buffer = buffers.slots[static_cast<int>(slot)];
  if (buffer.bytes < bytes || !buffer.memory) {
    constexpr size_t kPage = 4096;
    const size_t rounded = (bytes / kPage + 1) * kPage;
    buffer.free();
    auto* const allocate = lend.load();
    if (allocate && buffers.calls && rounded >= kSmallestLoan) {
      buffer.memory = allocate(rounded);
      buffer.lent = buffer.memory != nullptr;
    }
    if (!buffer.lent) {
      buffer.memory = std::aligned_alloc(64, rounded);
      if (!buffer.memory) throw std::bad_alloc();
      held += rounded;
    }
    buffer.bytes = rounded;
  }
  return buffer.memory;
}

ScratchCall::ScratchCall() { ++buffers.calls; }

ScratchCall::~ScratchCall() {
  if (--buffers.calls || !lend.load()) return;
  for (Buffer& buffer : buffers.slots) {
    if (buffer.bytes >= kSmallestLoan) buffer.free();  // also what was kept before there was a lender
  }
}

void borrow_scratch(void* (*allocate)(size_t), void (*release)(void*)) {
  take_back = release;
  lend = allocate;
}

size_t scratch_bytes() { return held; }

}  // namespace fastgan::cpu
