"""The operators: one file an operator, each with a reference, fast implementations and autograd."""

from fastgan.ops.adversarial_loss import discriminator_loss, generator_loss
from fastgan.ops.batch_norm_act import batch_norm_act
from fastgan.ops.bias_act import bias_act
from fastgan.ops.binary_cross_entropy import binary_cross_entropy
from fastgan.ops.conv2d import conv2d
from fastgan.ops.conv_transpose2d import conv_transpose2d
from fastgan.ops.implementations import Choice, Implementation, backend

__all__ = [
    "Choice",
    "Implementation",
    "backend",
    "batch_norm_act",
    "bias_act",
    "binary_cross_entropy",
    "conv2d",
    "conv_transpose2d",
    "discriminator_loss",
    "generator_loss",
]
