// The launchers of csrc/cuda/kernels.h under names that ctypes finds. The stream is always null.
#include "../../../csrc/cuda/kernels.h"

using namespace fastgan::cuda;

extern "C" {

size_t batch_norm_forward_floats(const BatchNormForward* call, const Device* device) {
  return batch_norm_forward_workspace(*call, *device);
}
int run_batch_norm_forward(const BatchNormForward* call, const Device* device) {
  return batch_norm_forward(*call, *device, nullptr);
}
}
