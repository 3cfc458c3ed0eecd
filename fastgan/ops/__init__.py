"""The operators: one file an operator, each with a reference, fast implementations and autograd."""

from fastgan.ops.adversarial_loss import (
    discriminator_loss,
    discriminator_loss_and_gradients,
    generator_loss,
    generator_loss_and_gradient,
)
from fastgan.ops.batch_norm_act import batch_norm_act
from fastgan.ops.bias_act import bias_act
from fastgan.ops.binary_cross_entropy import binary_cross_entropy
from fastgan.ops.conv2d import conv2d
from fastgan.ops.conv_transpose2d import conv_transpose2d
from fastgan.ops.explanation import explain_call
from fastgan.ops.implementations import Choice, Implementation, backend
from fastgan.ops.packing import PackedWeights

__all__ = [
    "Choice",
    "Implementation",
    "PackedWeights",
    "backend",
    "batch_norm_act",
    "bias_act",
    "binary_cross_entropy",
    "conv2d",
    "conv_transpose2d",
    "discriminator_loss",
    "discriminator_loss_and_gradients",
    "explain_call",
    "generator_loss",
    "generator_loss_and_gradient",
]
