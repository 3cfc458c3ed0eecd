"""The compiled kernels' launchers as the operators' tables call them, for CPU and CUDA alike.

`fastgan.native_kernels` and `fastgan.native_cuda_kernels` are twins: batch norm, bias and losses
have the same functions there. Here they take the operators' positional arguments, and raise an
error that says why where the library cannot be had.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

Launchers = dict[str, Callable[..., Any]]


def batch_norm_launchers(kernels: ModuleType, require: Callable[[], None]) -> Launchers:
    """Return training, inference and backward.

    Args:
        kernels: the module of the launchers.
        require: raises if they cannot be called.
    """

    def training(
        x, running_mean, running_var, weight, bias, momentum, eps, activation, negative_slope,
        stat_groups,
    ):  # fmt: skip
        require()
        result = kernels.forward_training(
            x, running_mean, running_var, weight, bias, momentum=momentum, eps=eps,
            activation=activation, negative_slope=negative_slope, stat_groups=stat_groups,
        )  # fmt: skip
        for buffer in (running_mean, running_var):
            if buffer is not None and not buffer.is_inference():
                # A kernel's writes are invisible to autograd's check for modified tensors.
                torch.autograd.graph.increment_version(buffer)
        return result

    def inference(x, running_mean, running_var, weight, bias, eps, activation, negative_slope):
        require()
        return kernels.forward_inference(
            x, running_mean, running_var, weight, bias, eps=eps,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip

    def backward(
        grad_y, x, mean, invstd, weight, bias, eps, activation, negative_slope, stat_groups,
        training,
    ):  # fmt: skip
        require()
        return kernels.backward(
            grad_y, x, mean, invstd, weight, bias, activation=activation,
            negative_slope=negative_slope, stat_groups=stat_groups, training=training,
        )  # fmt: skip

    return {"training": training, "inference": inference, "backward": backward}


def bias_act_launchers(kernels: ModuleType, require: Callable[[], None]) -> Launchers:
    """Return forward and backward; arguments as of `batch_norm_launchers`."""

    def forward(x, bias, activation, negative_slope):
        require()
        return kernels.bias_act_forward(
            x, bias, activation=activation, negative_slope=negative_slope
        )

    def backward(grad_y, x, bias, activation, negative_slope):
        require()
        return kernels.bias_act_backward(
            grad_y, x, bias, activation=activation, negative_slope=negative_slope
        )

    return {"forward": forward, "backward": backward}


def loss_launchers(kernels: ModuleType, require: Callable[[], None]) -> Launchers:
    """Return discriminator and generator; arguments as of `batch_norm_launchers`."""

    def discriminator(real_logits, fake_logits, objective, real_label, fake_label):
        require()
        return kernels.discriminator(
            real_logits, fake_logits, objective=objective, real_label=real_label,
            fake_label=fake_label,
        )  # fmt: skip

    def generator(fake_logits, objective):
        require()
        return kernels.generator(fake_logits, objective=objective)

    return {"discriminator": discriminator, "generator": generator}
