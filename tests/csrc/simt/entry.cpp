// The launchers of csrc/cuda/kernels.h under names that ctypes finds. The stream is always null.
#include "../../../csrc/cuda/kernels.h"

using namespace fastgan::cuda;

// run_<launcher> and <launcher>_floats, the size of its workspace.
#define WITH_WORKSPACE(launcher, Call)                                                    \
  size_t launcher##_floats(const Call* call, const Device* device) {                      \
    return launcher##_workspace(*call, *device);                                          \
  }                                                                                       \
  int run_##launcher(const Call* call, const Device* device) {                            \
    return launcher(*call, *device, nullptr);                                             \
  }

extern "C" {

WITH_WORKSPACE(batch_norm_forward, BatchNormForward)
WITH_WORKSPACE(batch_norm_backward, BatchNormBackward)
WITH_WORKSPACE(bias_act_backward, BiasAct)
WITH_WORKSPACE(image_wgrad, ImageConvolution)

int run_bias_act_forward(const BiasAct* call, const Device* device) {
  return bias_act_forward(*call, *device, nullptr);
}
int run_adversarial_loss(const AdversarialLoss* call) { return adversarial_loss(*call, nullptr); }
int run_image_fprop(const ImageConvolution* call) { return image_fprop(*call, nullptr); }
int run_image_dgrad(const ImageConvolution* call) { return image_dgrad(*call, nullptr); }
int run_pack_weights(int type, const WeightToPack* weights, int count) {
  return pack_weights(static_cast<fastgan::DataType>(type), weights, count, nullptr);
}
}
