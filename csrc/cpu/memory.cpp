// Memory that a thread keeps between calls, so that a training step faults no pages.
#include <cstdlib>
#include <new>

#include "kernels.h"

namespace fastgan::cpu {
namespace {

struct Buffers {
  void* memory[static_cast<int>(Scratch::count)] = {};
  size_t bytes[static_cast<int>(Scratch::count)] = {};

  ~Buffers() {
    for (void* buffer : memory) std::free(buffer);
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
    buffers.bytes[index] = 0;
    buffers.memory[index] = std::aligned_alloc(64, rounded);
    if (!buffers.memory[index]) throw std::bad_alloc();
    buffers.bytes[index] = rounded;
  }
  return buffers.memory[index];
}

}  // namespace fastgan::cpu
