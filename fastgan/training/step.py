"""One training step: the recipe of the PyTorch DCGAN example, to the letter.

    D: loss of real images with the real label, backward; loss of G(z), detached, with the fake
       label, backward (separate batches, so batch norm never mixes them; the gradients sum);
       D's optimizer steps.
    G: loss of D(G(z)) with label 1, D run again after its update, backward; G's optimizer steps.

Source: https://github.com/pytorch/examples/blob/main/dcgan/main.py; Radford et al. 2015.
Nothing here waits for the device, and nothing here is random: `Trainer` brings the images and z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastgan.training.config import TrainConfig
from fastgan.training.objective import AdversarialLoss
from fastgan.training.state import TrainingState

METRICS = ("loss_d", "loss_g", "d_real", "d_fake_before", "d_fake_after")

# What makes a step: (state, config, loss, real, z) -> metrics. A faster step has this signature.
Step = Callable[[TrainingState, TrainConfig, AdversarialLoss, Tensor, Tensor], dict[str, Tensor]]


def adversarial_step(
    state: TrainingState, config: TrainConfig, loss: AdversarialLoss, real: Tensor, z: Tensor
) -> dict[str, Tensor]:
    """Update D `discriminator_steps` times and G once, in place.

    Args:
        real: images in [-1, 1], float32 [D steps * batch, C, H, W].
        z: latents, float32 [D steps, batch, latent].

    Returns:
        0-dimensional float32 tensors on the device: `loss_d` (real + fake), `loss_g`, and the means
        `d_real` = D(x), `d_fake_before` and `d_fake_after` = D(G(z)) before and after D's update.
    """
    generator, discriminator = state.generator, state.discriminator
    last = len(z) - 1

    for index, (images, latent) in enumerate(zip(real.chunk(len(z)), z, strict=True)):
        state.discriminator_optimizer.zero_grad()
        with autocast(config, state.device):
            real_logits = discriminator(images)
        loss_real = loss.real(real_logits.float())
        loss_real.backward()

        # Only the last G(z) is used again, by the update of G.
        with autocast(config, state.device), torch.set_grad_enabled(index == last):
            fake = generator(latent)
        with autocast(config, state.device):
            fake_logits = discriminator(fake.detach())
        loss_fake = loss.fake(fake_logits.float())
        loss_fake.backward()
        state.discriminator_optimizer.step()

    state.generator_optimizer.zero_grad()
    with frozen(discriminator), autocast(config, state.device):
        fooled_logits = discriminator(fake)
    loss_g = loss.generator(fooled_logits.float())
    loss_g.backward()
    state.generator_optimizer.step()

    update_average(state, average_decay(config, state.step))
    with torch.no_grad():
        return {
            "loss_d": loss_real.detach() + loss_fake.detach(),
            "loss_g": loss_g.detach(),
            "d_real": loss.score(real_logits.float()),
            "d_fake_before": loss.score(fake_logits.float()),
            "d_fake_after": loss.score(fooled_logits.float()),
        }


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """bfloat16 autocast where the configuration asks for it; the losses stay outside of it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within: autograd passes through `network` without making gradients of its weights.

    The recipe makes D's weight gradients in the update of G and throws them away: 8% of the work.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def average_decay(config: TrainConfig, step: int) -> float:
    """Share of the averaged G that one step keeps: a half-life in images, short at the start.

    The half-life is bounded by a share of the images seen so far, as StyleGAN does it, so that the
    initial weights are forgotten early. 0 where nothing is averaged.
    """
    seen = (step + 1) * config.batch_size
    half_life = min(config.ema_half_life, seen * config.ema_ramp_up)
    return 0.5 ** (config.batch_size / half_life) if half_life > 0 else 0.0


@torch.no_grad()
def update_average(state: TrainingState, decay: float) -> None:
    """Move the averaged G towards G, its running statistics too; counters are copied."""
    average = _floating_and_others(state.averaged_generator.state_dict())
    current = _floating_and_others(state.generator.state_dict())
    torch._foreach_lerp_(average[0], current[0], 1.0 - decay)
    torch._foreach_copy_(average[1], current[1])


def _floating_and_others(tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    floating = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    others = [tensor for tensor in tensors.values() if not tensor.is_floating_point()]
    return floating, others
