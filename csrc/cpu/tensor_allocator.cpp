// torch's allocator of CPU tensors, with the arena beneath. Includes c10's own headers, which the
// other sources must not: it is compiled without TORCH_TARGET_VERSION (fastgan/native_build.py).
#include "tensor_allocator.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Flags.h>
#include <sys/resource.h>
#include <unistd.h>

#include "kernels.h"

C10_DECLARE_bool(caffe2_cpu_allocator_do_zero_fill);
C10_DECLARE_bool(caffe2_cpu_allocator_do_junk_fill);

namespace fastgan::cpu {
namespace {

// Smaller blocks are many and leave small holes, and the C library is quick with them. Larger ones
// are rare, and hold too much for what nobody uses to be kept.
constexpr size_t kSmallest = size_t{64} << 10;
constexpr size_t kTooLarge = size_t{1} << 30;

// torch keeps a pointer to the allocator in every storage, and tensors outlive what is static here:
// neither is ever destroyed.
Arena* arena = nullptr;

class TensorAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = in_arena(bytes);
    // torch's own says why there is no memory, and fills with what was asked for.
    if (!data) data = c10::GetDefaultCPUAllocator()->raw_allocate(bytes);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* target, const void* source, std::size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }

 private:
  static void* in_arena(size_t bytes) {
    if (bytes < kSmallest || bytes >= kTooLarge || FLAGS_caffe2_cpu_allocator_do_zero_fill ||
        FLAGS_caffe2_cpu_allocator_do_junk_fill) {
      return nullptr;
    }
    void* data = arena->allocate(bytes);
    if (data) c10::profiledCPUMemoryReporter().New(data, bytes);
    return data;
  }

  static void release(void* data) {
    if (!arena->owns(data)) {
      c10::GetDefaultCPUAllocator()->raw_deallocate(data);
      return;
    }
    c10::profiledCPUMemoryReporter().Delete(data);
    arena->release(data);
  }
};

bool addresses_are_limited() {
  rlimit limit;
  return getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY;
}

}  // namespace

bool allocate_tensors() {
  static const bool done = [] {
    if (c10::GetCPUAllocator() != c10::GetDefaultCPUAllocator() || addresses_are_limited()) {
      return false;
    }
    const auto memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
    auto* reserved = new Arena(memory);
    if (reserved->usage().reserved == 0) {
      delete reserved;
      return false;
    }
    arena = reserved;
    auto* allocator = new TensorAllocator;
    c10::SetCPUAllocator(allocator);
    if (c10::GetCPUAllocator() != allocator) {  // torch's own was set to stay
      arena = nullptr;
      delete allocator;
      delete reserved;
      return false;
    }
    arena->survive_forks();
    borrow_scratch([](size_t bytes) { return arena->allocate(bytes); },
                   [](void* block) { arena->release(block); });
    return true;
  }();
  return done;
}

Arena::Usage tensor_arena_usage() { return arena ? arena->usage() : Arena::Usage{}; }

}  // namespace fastgan::cpu
