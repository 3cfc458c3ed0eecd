// Every kernel at one instruction-set level: compiled once a level, with the level's flags and
// -DFASTGAN_LEVEL=<name> as the namespace. The level of AMX has convolutions of its own; the rest it
// takes from the level below, whose machine code would be the same.
#include "description.h"
#include "kernels.h"
#include "weight_gradient.h"

#if defined(__AMX_BF16__)

#include "tile_convolution.h"
#include "tile_weight_gradient.h"

namespace fastgan::cpu::avx512_bf16 {
void batch_norm_forward(const BatchNormForward&);
void batch_norm_backward(const BatchNormBackward&);
void bias_act_forward(const BiasAct&);
void bias_act_backward(const BiasAct&);
void adversarial_loss(const AdversarialLoss&);
void image_batch(const ImageBatch&);
void winograd_fprop(const Convolution&);
void winograd_dgrad(const Convolution&);
void winograd_wgrad(const Convolution&);
}  // namespace fastgan::cpu::avx512_bf16

#else

#include "adversarial_loss.h"
#include "batch_norm_act.h"
#include "bias_act.h"
#include "image_batch.h"
#include "winograd_convolution.h"
#include "winograd_weight_gradient.h"

#endif

#define FASTGAN_TEXT(name) #name
#define FASTGAN_NAME(name) FASTGAN_TEXT(name)

namespace fastgan::cpu::FASTGAN_LEVEL {

extern const Kernels kernels;

#if defined(__AMX_BF16__)
using avx512_bf16::adversarial_loss;
using avx512_bf16::batch_norm_backward;
using avx512_bf16::batch_norm_forward;
using avx512_bf16::bias_act_backward;
using avx512_bf16::bias_act_forward;
using avx512_bf16::image_batch;
using avx512_bf16::winograd_dgrad;
using avx512_bf16::winograd_fprop;
using avx512_bf16::winograd_wgrad;

const Kernels kernels = {
    FASTGAN_NAME(FASTGAN_LEVEL),
    batch_norm_forward,
    batch_norm_backward,
    bias_act_forward,
    bias_act_backward,
    adversarial_loss,
    image_batch,
    {tile_fprop, tile_dgrad, tile_wgrad},
    {winograd_fprop, winograd_dgrad, winograd_wgrad},
};
#else
const Kernels kernels = {
    FASTGAN_NAME(FASTGAN_LEVEL),
    batch_norm_forward,
    batch_norm_backward,
    bias_act_forward,
    bias_act_backward,
    adversarial_loss,
    image_batch,
    {fprop, dgrad, wgrad},
    {winograd_fprop, winograd_dgrad, winograd_wgrad},
};
#endif

extern const Description description;

const Description description = {
    32 * kLanes,
    {kRows, kBlock},
#if defined(__AMX_BF16__)
    {2 * kTileRows, kTileDepth},
#elif defined(__AVX512BF16__)
    {kRows, kBlock},
#else
    {0, 0},
#endif
};

}  // namespace fastgan::cpu::FASTGAN_LEVEL
