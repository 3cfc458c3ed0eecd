"""Gradient penalties differentiate twice: accelerated discriminators must too, or refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from agreement import assert_same
from gan_networks import build, dcgan_discriminator
from torch import Tensor, nn

import fastgan
from fastgan.errors import BackendError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def wgan_gp(network: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """The gradient penalty of WGAN-GP (Gulrajani et al. 2017, equation 3)."""
    mix = torch.linspace(0, 1, len(real), device=real.device).view(-1, 1, 1, 1)
    between = (mix * real + (1 - mix) * fake).requires_grad_()
    scores = network(between)
    (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    return 10 * (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def r1(network: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """The R1 penalty on real images (Mescheder et al. 2018, equation 9)."""
    real = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network(real).sum(), real, create_graph=True)
    return 5 * gradient.flatten(1).square().sum(1).mean()


PENALTIES: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {"wgan_gp": wgan_gp, "r1": r1}


def penalty_gradients(
    network: nn.Module, penalty: Callable[[nn.Module, Tensor, Tensor], Tensor], images: Tensor
) -> dict[str, Tensor]:
    """The critic's loss with the penalty, and its gradient for every parameter."""
    network.zero_grad()
    real, fake = images, images.flip(0).roll(3, 2) * 0.7
    value = penalty(network, real, fake)
    (network(fake).mean() - network(real).mean() + value).backward()
    found = {"penalty": value.detach()}
    parameters = [(n, p) for n, p in network.named_parameters() if p.grad is not None]
    return found | {f"grad {n}": p.grad.clone() for n, p in parameters}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(
    "name",
    [
        "dcgan_discriminator",
        "evaluated_discriminator",
        "hand_written_discriminator",
        "spectral_discriminator",
        "resnet_discriminator",
    ],
)
def test_penalty_through_accelerated_discriminator(name: str, penalty: str, device: str) -> None:
    plain, (images,) = build(name, device)
    network, _ = build(name, device)
    fastgan.accelerate(network)
    found = penalty_gradients(network, PENALTIES[penalty], images)
    expected = penalty_gradients(plain, PENALTIES[penalty], images)
    assert_same(found, expected)


@pytest.mark.parametrize(("penalty", "training"), [("wgan_gp", True), ("r1", True), ("r1", False)])
def test_penalty_through_triton_kernels(penalty: str, training: bool) -> None:
    """The kernels themselves, in Triton's interpreter where there is no GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    network = dcgan_discriminator(width=2, channels=1).train(training).to(device)
    network = network.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(network)
    images = torch.rand(2, 1, 16, 16, device=device).to(memory_format=torch.channels_last)
    with fastgan.backend("triton"):
        found = penalty_gradients(fastgan.accelerate(network), PENALTIES[penalty], images)
    expected = penalty_gradients(plain, PENALTIES[penalty], images)
    assert_same(found, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_layer_that_cannot_be_served_raises(device: str) -> None:
    network = fastgan.accelerate(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU())).to(device)
    images = torch.randn(2, 4, 6, 6, device=device, requires_grad=True)
    with fastgan.backend("triton"), pytest.raises(BackendError, match="groups"):
        network(images)
    wide = fastgan.accelerate(nn.BatchNorm2d(4).to(device, torch.float64))
    with fastgan.backend("triton"), pytest.raises(BackendError, match="float64"):
        wide(images.double())
