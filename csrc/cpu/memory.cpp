// Memory that a thread keeps between calls, so that a training step faults no pages.
#include <atomic>
#include <cstdlib>
#include <new>

#include "kernels.h"

namespace fastgan::cpu {
namespace {

std::atomic<size_t> held{0};  // by all threads

struct Buffers {
  void* memory[static_cast<int>(Scratch::count)] = {};
  size_t bytes[static_cast<int>(Scratch::count)] = {};

  ~Buffers() {
    for (void* buffer : memory) std::free(buffer);
    for (size_t size : bytes) held -= size;
  }
};

thread_local Buffers buffers;

}  // namespace

void* scratch(Scratch slot, size_t bytes) {
  const int index = static_cast<int>(slot);
  if (buffers.bytes[index] < bytes || !buffers.memory[index]) {
    constexpr size_t kPage = 4096;
    const size_t rounded = (bytes / kPage + 1) * kPage;
    std::free(buffers.memory[index]);
    held -= buffers.bytes[index];
    buffers.bytes[index] = 0;
    buffers.memory[index] = std::aligned_alloc(64, rounded);
    if (!buffers.memory[index]) throw std::bad_alloc();
    buffers.bytes[index] = rounded;
    held += rounded;
  }
  return buffers.memory[index];
}

size_t scratch_bytes() { return held; }

}  // namespace fastgan::cpu
