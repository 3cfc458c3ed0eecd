"""One training step: the recipe of the PyTorch DCGAN example, computed the fast way.

    D: loss of real images with the real label, and of G(z), detached, with the fake label; batch
       norm never mixes the two and the gradients sum; D's optimizer steps.
    G: loss of D(G(z)) with label 1, D run again after its update; G's optimizer steps.

`StepPlan` says how this is computed and never changes what: in one pass of D over real | fake, or
in two as the example writes it. Beside the recipe there are, as options, micro-batches, a bound on
the norm of the gradients, and the R1 penalty of real images every few steps.

Sources: https://github.com/pytorch/examples/blob/main/dcgan/main.py; Radford et al. 2015; R1 from
Mescheder et al. 2018, every few steps as in Karras et al. 2020 (StyleGAN2).
Nothing here waits for the device, and nothing here is random: the caller brings images and z.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgan.nn import BatchNorm2d
from fastgan.training.config import TrainConfig
from fastgan.training.objective import AdversarialLoss
from fastgan.training.state import TrainingState, is_plain

# In bytes: a weight whose gradient is worth an update of its own.
LARGE_WEIGHT = 4 << 20
METRICS = ("loss_d", "loss_g", "d_real", "d_fake_before", "d_fake_after")


@dataclass(frozen=True)
class StepPlan:
    """How a step is computed; `why_two_passes` is empty where D takes real | fake in one pass.

    One pass has half the launches and tiles twice as large; each half keeps batch statistics of
    its own (`stat_groups=2`), so nothing else changes.
    """

    why_two_passes: str = ""

    @property
    def one_pass(self) -> bool:
        """Whether D sees real and fake images as one batch."""
        return not self.why_two_passes

    @classmethod
    def of(cls, config: TrainConfig, discriminator: nn.Module) -> StepPlan:
        """The plan that the configuration asks for, as far as D's layers allow it."""
        if config.one_pass == "off":
            return cls("one_pass is off")
        if config.one_pass == "auto" and is_plain(config):
            return cls("a plain run has two passes, as the script has")
        for name, module in discriminator.named_modules():
            kind = type(module).__name__
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(
                module, BatchNorm2d
            ):
                return cls(f"{name} ({kind}) has no statistics by slice of the batch")
            if isinstance(module, nn.modules.dropout._DropoutNd):
                return cls(f"{name} ({kind}) would draw other numbers for one batch than for two")
        return cls()


def adversarial_step(
    state: TrainingState,
    config: TrainConfig,
    loss: AdversarialLoss,
    real: Tensor,
    z: Tensor,
    average_weight: float | Tensor,
    plan: StepPlan,
    penalised: bool,
) -> dict[str, Tensor]:
    """Update D `discriminator_steps` times and G once, in place, and move the averaged G.

    Args:
        real: images in [-1, 1], float32 [D steps * batch, C, H, W].
        z: latents, float32 [D steps, batch, latent].
        average_weight: by how much the averaged G moves (`weight_of_average`); a float32 scalar on
            the device, or a number.
        plan: how D is run.
        penalised: whether this step's D loss has the R1 penalty.

    Returns:
        0-dimensional float32 tensors on the device: `loss_d` (real + fake), `loss_g`, and the means
        `d_real` = D(x), `d_fake_before` and `d_fake_after` = D(G(z)) before and after D's update.
    """
    generator, discriminator, parts = state.generator, state.discriminator, config.accumulate
    last = len(z) - 1
    rows: list[dict[str, Tensor]] = []

    for index, (images, latents) in enumerate(zip(real.chunk(len(z)), z, strict=True)):
        state.discriminator_optimizer.zero_grad()
        rows = []
        for part, (some_images, some_latents) in enumerate(
            zip(images.chunk(parts), latents.chunk(parts), strict=True), start=1
        ):
            # The update of G uses the last G(z) again. Of several micro-batches it makes each
            # anew, so that one at a time is held; batch norm must not count them twice.
            preview = index == last and parts > 1
            with (
                autocast(config, state.device),
                torch.set_grad_enabled(index == last and not preview),
                uncounted(generator) if preview else nullcontext(),
            ):
                fake = generator(some_latents)
            rows.append(
                discriminator_gradients(
                    state, config, loss, some_images, fake.detach(), plan, penalised, part == parts
                )
            )
        update(state, discriminator, config)

    state.generator_optimizer.zero_grad()
    for row, some_latents in zip(rows, z[last].chunk(parts), strict=True):
        with autocast(config, state.device):
            if parts > 1:
                fake = generator(some_latents)
            with frozen(discriminator):
                logits = discriminator(fake).float()
        loss_g = loss.generator(logits)
        (loss_g / parts).backward()
        row |= {"loss_g": loss_g.detach(), "d_fake_after": loss.score(logits)}
    update(state, generator, config)
    update_average(state, average_weight)
    if parts == 1:
        return rows[0]
    return {name: torch.stack([row[name] for row in rows]).mean() for name in METRICS}


def discriminator_gradients(
    state: TrainingState,
    config: TrainConfig,
    loss: AdversarialLoss,
    real: Tensor,
    fake: Tensor,
    plan: StepPlan,
    penalised: bool,
    last: bool,
) -> dict[str, Tensor]:
    """Add the gradients of D's loss on one micro-batch to those of its weights.

    They are complete with the `last` one, and large ones are then used up at once.
    """
    discriminator, share = state.discriminator, 1.0 / config.accumulate
    real = real.detach().requires_grad_(penalised)
    if plan.one_pass:
        with autocast(config, state.device), by_slices(discriminator, 2):
            # Under autocast D's first layer would cast the images as G's are; cat would widen all.
            logits = discriminator(torch.cat([real.to(fake.dtype), fake])).float()
        real_logits, fake_logits = logits.chunk(2)
        loss_d = loss.discriminator(real_logits, fake_logits)
        total = loss_d + r1_penalty(real_logits, real, config) if penalised else loss_d
        with early_updates(state, discriminator, config, last):
            (total * share).backward()
    else:
        with autocast(config, state.device):
            real_logits = discriminator(real).float()
        loss_real = loss.real(real_logits)
        total = loss_real + r1_penalty(real_logits, real, config) if penalised else loss_real
        (total * share).backward()
        with autocast(config, state.device):
            fake_logits = discriminator(fake).float()
        loss_fake = loss.fake(fake_logits)
        with early_updates(state, discriminator, config, last):
            (loss_fake * share).backward()
        loss_d = loss_real + loss_fake
    return {
        "loss_d": loss_d.detach(),
        "d_real": loss.score(real_logits),
        "d_fake_before": loss.score(fake_logits),
    }


def r1_penalty(real_logits: Tensor, real: Tensor, config: TrainConfig) -> Tensor:
    """gamma / 2 · E‖∇ₓD(x)‖², times the steps from one penalty to the next."""
    (slope,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    squares = slope.float().square().sum(dim=(1, 2, 3)).mean()
    return squares * (0.5 * config.r1_gamma * config.r1_every)


def weight_of_average(config: TrainConfig, step: int) -> float:
    """By how much the averaged G moves in one step: a half-life in images, short at the start.

    The half-life is bounded by a share of the images seen so far, as StyleGAN does it, so that the
    initial weights are forgotten early. 1 where nothing is averaged.
    """
    seen = (step + 1) * config.batch_size
    half_life = min(config.ema_half_life, seen * config.ema_ramp_up)
    return 1.0 - 0.5 ** (config.batch_size / half_life) if half_life > 0 else 1.0


def is_penalised(config: TrainConfig, step: int) -> bool:
    """Whether D's loss of this step has the R1 penalty."""
    return config.r1_gamma > 0 and step % config.r1_every == 0


def update(state: TrainingState, network: nn.Module, config: TrainConfig) -> None:
    """One step of a network's optimizer, on gradients no longer than the configuration allows.

    They are dropped at once: no network's gradients are held while the other one learns. (A step
    drops them before it begins, too: one that was broken off leaves some.)
    """
    if config.clip_gradients > 0:
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_gradients)
    optimizer = state.optimizer_of(network)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.refresh_packed(network)


@contextmanager
def early_updates(
    state: TrainingState, network: nn.Module, config: TrainConfig, complete: bool
) -> Iterator[None]:
    """Within: backward updates a large weight as soon as it has the gradient, which it then drops.

    Optimizers treat each weight by itself, and no node of the graph that reads a weight comes after
    its gradient, so the update is the same; a DCGAN's step on a CPU holds 8 MB less for it. Nothing
    of the kind is done where gradients are to be bounded together, or are not yet `complete`.
    """
    handles = []
    if complete and config.clip_gradients == 0 and state.device.type == "cpu":
        optimizer, weights = state.optimizer_of(network), list(network.parameters())

        def update_alone(weight: Tensor) -> None:
            others = [(other, other.grad) for other in weights if other is not weight]
            for other, _ in others:
                other.grad = None
            optimizer.step()
            weight.grad = None
            for other, gradient in others:  # of some it is not complete
                other.grad = gradient

        handles = [
            weight.register_post_accumulate_grad_hook(update_alone)
            for weight in weights
            if weight.nbytes >= LARGE_WEIGHT
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def update_average(state: TrainingState, weight: float | Tensor) -> None:
    """Move the averaged G towards G, its running statistics too; counters are copied."""
    if not state.averages:
        return
    average = _floating_and_others(state.averaged_generator.state_dict())
    current = _floating_and_others(state.generator.state_dict())
    for mean, newest in zip(average[0], current[0], strict=True):
        mean.lerp_(newest, weight)
    torch._foreach_copy_(average[1], current[1])


def _floating_and_others(tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    floating = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    others = [tensor for tensor in tensors.values() if not tensor.is_floating_point()]
    return floating, others


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


@contextmanager
def by_slices(network: nn.Module, slices: int) -> Iterator[None]:
    """Within: batch norm takes a batch as `slices` equal parts with statistics of their own."""
    norms = [module for module in network.modules() if isinstance(module, BatchNorm2d)]
    for norm in norms:
        norm.stat_groups *= slices
    try:
        yield
    finally:
        for norm in norms:
            norm.stat_groups //= slices


@contextmanager
def uncounted(network: nn.Module) -> Iterator[None]:
    """Within: batch norm uses the statistics of its batch and leaves the running ones alone."""
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
