// Every kernel at one instruction-set level: compiled once a level, with the level's flags and
// -DFASTGAN_LEVEL=<name> as the namespace.
#include "adversarial_loss.h"
#include "batch_norm_act.h"
#include "bias_act.h"
#include "convolution.h"
#include "weight_gradient.h"

#define FASTGAN_TEXT(name) #name
#define FASTGAN_NAME(name) FASTGAN_TEXT(name)

namespace fastgan::cpu::FASTGAN_LEVEL {

extern const Kernels kernels;

const Kernels kernels = {
    FASTGAN_NAME(FASTGAN_LEVEL),
    batch_norm_forward,
    batch_norm_backward,
    bias_act_forward,
    bias_act_backward,
    adversarial_loss,
    fprop,
    dgrad,
    wgrad,
};

}  // namespace fastgan::cpu::FASTGAN_LEVEL
