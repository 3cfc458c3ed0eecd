// Tasks on torch's own threads, so that torch.set_num_threads holds here too.
#include <torch/csrc/stable/ops.h>

#include <atomic>

#include "kernels.h"

namespace fastgan::cpu {

int64_t threads() { return torch::stable::get_num_threads(); }

void parallel(int64_t count, void (*task)(void*, int64_t), void* context) {
  const int64_t most = threads();
  if (count <= 1 || most <= 1) {
    for (int64_t index = 0; index < count; ++index) task(context, index);
    return;
  }
  // Each thread takes the next task when it is free: which thread runs a task changes nothing.
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, most < count ? most : count, 1, [&](int64_t, int64_t) {
    for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      task(context, index);
    }
  });
}

}  // namespace fastgan::cpu
