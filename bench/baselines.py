"""The DCGAN training step as plain PyTorch programs: what fastgan's step is measured against.

Each is the recipe of the PyTorch DCGAN example, made as fast as its description allows and no
slower: the plain script is the example to the letter (with its three `.item()` a step and its
discarded discriminator gradients), and the others are what an expert in PyTorch would write
without kernels of their own. One float64 variant of the same program is the reference of the
correctness gate.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.method import captured
from fastgan import accelerate
from fastgan.models import DCGANDiscriminator, DCGANGenerator
from fastgan.training.randomness import latents

LEARNING_RATE, BETAS = 2e-4, (0.5, 0.999)
LATENT_DIM, WIDTH, CHANNELS = 100, 64, 3


@dataclass(frozen=True)
class Workload:
    """What every provider of a step trains on.

    Attributes:
        image_size: side of the images in pixels.
        batch_size: images a step.
        device: where the step runs.
        seed: of the weights, the images and the latents.
        width: channels of the networks' outer hidden maps (64 in the recipe).
    """

    image_size: int
    batch_size: int
    device: torch.device
    seed: int = 0
    width: int = WIDTH

    def networks(self) -> tuple[DCGANGenerator, DCGANDiscriminator]:
        """(generator, discriminator), float32, the same initial weights on every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            generator = DCGANGenerator(self.image_size, CHANNELS, LATENT_DIM, self.width)
            discriminator = DCGANDiscriminator(self.image_size, CHANNELS, self.width)
        generator.to(self.device)
        discriminator.to(self.device)
        return generator, discriminator

    def images(self, index: int = 0) -> Tensor:
        """Batch `index` of dense random images in [−1, 1], float32, contiguous."""
        random = torch.Generator().manual_seed(self.seed + 1 + index)
        shape = (self.batch_size, CHANNELS, self.image_size, self.image_size)
        return (torch.rand(shape, generator=random) * 2 - 1).to(self.device)

    def latents(self) -> Tensor:
        """The latents of the correctness gate's one step: [batch, 100, 1, 1], float32.

        They are those that fastgan's trainer draws in its first step.
        """
        z = latents(self.seed, "latents", 0, (1, self.batch_size, LATENT_DIM), self.device)
        return z[0, :, :, None, None]


@dataclass(frozen=True)
class Recipe:
    """How a baseline is written; the defaults are the example's.

    Attributes:
        precision: "fp32", "bf16" (autocast) or "fp64" (the gate's reference).
        expert: channels_last, fused Adam, logits instead of probabilities (which autocast wants).
        thrifty: no discriminator weight gradients in the generator's step, nothing synchronises.
        layers: fastgan's layers in place of torch's (`fastgan.accelerate`).
        compile_mode: a mode of torch.compile for both networks, or "" for eager.
        graph: the whole step captured in one CUDA graph.
    """

    name: str
    precision: str = "fp32"
    expert: bool = False
    thrifty: bool = False
    layers: bool = False
    compile_mode: str = ""
    graph: bool = False


def recipes(device: torch.device, precision: str) -> tuple[Recipe, ...]:
    """The baselines of a device, cheapest to prepare first."""
    plain = Recipe("plain script")
    best = Recipe("best eager", precision, expert=True, thrifty=True)
    if device.type == "cuda":
        return (
            plain,
            best,
            replace(best, name="best eager, graph", graph=True),
            replace(best, name="compile", compile_mode="max-autotune"),
            replace(
                best, name="compile, graph", compile_mode="max-autotune-no-cudagraphs", graph=True
            ),
        )
    rest = replace(best, name="compile", compile_mode="default")
    if precision == "fp32":
        return plain, best, rest
    return plain, replace(best, name="best eager fp32", precision="fp32"), best, rest


def with_layers(precision: str) -> tuple[Recipe, ...]:
    """fastgan's layers in loops of plain PyTorch: what its operators do without its step."""
    loop = Recipe("fastgan layers, plain loop", precision, expert=True, layers=True)
    return loop, replace(loop, name="fastgan layers, best loop", thrifty=True)


@dataclass
class StepRecord:
    """What one step leaves behind, for the correctness gate.

    Attributes:
        losses: "discriminator loss" and "generator loss", scalars.
        gradients: by parameter name with "G." or "D." before it.
        buffers: running statistics after the step, by name.
        before, after: parameters before and after the update, by name.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)


class PlainStep:
    """One baseline: `step()` trains on the next batch; the program of the PyTorch example."""

    def __init__(self, recipe: Recipe, workload: Workload) -> None:
        self.recipe, self.workload = recipe, workload
        self.generator, self.discriminator = workload.networks()
        self.images = workload.images()
        if recipe.precision == "fp64":
            self.generator.double()
            self.discriminator.double()
            self.images = self.images.double()
        if recipe.expert:
            layers = list(self.discriminator.main)[:-1]  # without the sigmoid: logits
            self.discriminator.main = nn.Sequential(*layers)
            for network in (self.generator, self.discriminator):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        if recipe.layers:
            accelerate(self.generator)
            accelerate(self.discriminator)
        options: dict[str, bool] = {}
        if recipe.expert:
            options = {"fused": True}
            if workload.device.type == "cuda":
                options["capturable"] = recipe.graph
        self.optimizer_d, self.optimizer_g = (
            torch.optim.Adam(network.parameters(), LEARNING_RATE, BETAS, **options)  # type: ignore[arg-type]
            for network in (self.discriminator, self.generator)
        )
        self.run_g: Callable[..., Tensor] = self.generator
        self.run_d: Callable[..., Tensor] = self.discriminator
        if recipe.compile_mode:
            self.run_g = torch.compile(
                self.generator, mode=recipe.compile_mode, dynamic=False, fullgraph=True
            )
            self.run_d = torch.compile(
                self.discriminator, mode=recipe.compile_mode, dynamic=False, fullgraph=True
            )
        self.losses: dict[str, Tensor] = {}

    def draw(self) -> Tensor:
        """Fresh latents from torch's default generator of the device."""
        return torch.randn(
            self.workload.batch_size,
            LATENT_DIM,
            1,
            1,
            device=self.workload.device,
            dtype=self.images.dtype,
        )

    def step(self, latents: Tensor | None = None) -> None:
        """Train both networks on one batch, with `latents` or fresh ones."""
        if self.recipe.compile_mode == "max-autotune":
            torch.compiler.cudagraph_mark_step_begin()
        thrifty = self.recipe.thrifty
        self.optimizer_d.zero_grad()
        loss_real, mean_real = self._loss(self.images, 1.0)
        loss_real.backward()
        with self._autocast():
            fake = self.run_g(self.draw() if latents is None else latents)
        if self.recipe.compile_mode == "max-autotune":
            fake = fake.clone()  # a later replay of the graph would overwrite its output
        loss_fake, mean_fake = self._loss(fake.detach(), 0.0)
        loss_fake.backward()
        self.optimizer_d.step()
        self.optimizer_g.zero_grad()
        if thrifty:
            self.discriminator.requires_grad_(False)
        loss_g, mean_fake_after = self._loss(fake, 1.0)
        loss_g.backward()
        if thrifty:
            self.discriminator.requires_grad_(True)
        self.optimizer_g.step()
        self.losses = {
            "discriminator loss": (loss_real + loss_fake).detach(),
            "generator loss": loss_g.detach(),
        }
        if not thrifty:
            for mean in (mean_real, mean_fake, mean_fake_after):
                mean.item()

    def _loss(self, images: Tensor, label: float) -> tuple[Tensor, Tensor]:
        with self._autocast():
            scores = self.run_d(images).flatten()
        if self.recipe.expert:
            scores = scores.float()
            loss = F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, label))
            return loss, scores.detach().sigmoid().mean()
        return F.binary_cross_entropy(scores, torch.full_like(scores, label)), scores.mean()

    def _autocast(self) -> AbstractContextManager[object]:
        if self.recipe.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.workload.device.type, torch.bfloat16)

    def program(self) -> Callable[[], object]:
        """What is timed: the step, or the replay of its graph."""
        if not self.recipe.graph:
            return self.step
        return captured([self.step])

    def record(self, latents: Tensor) -> StepRecord:
        """Train one step from the initial weights on `latents` and return what it leaves."""
        before = named_parameters(self.generator, self.discriminator)
        self.step(latents)
        return take_record(
            before,
            self.generator,
            self.discriminator,
            (self.optimizer_g, self.optimizer_d),
            self.losses,
        )


def named_parameters(generator: nn.Module, discriminator: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, by name with "G." or "D." before it."""
    return {
        f"{letter}.{name}": parameter.detach().clone()
        for letter, network in (("G", generator), ("D", discriminator))
        for name, parameter in network.named_parameters()
    }


def take_record(
    before: dict[str, Tensor],
    generator: nn.Module,
    discriminator: nn.Module,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    losses: dict[str, Tensor],
) -> StepRecord:
    """Collect what the first step of a program left behind.

    Gradients come from Adam's first moment, (1 − β₁)·g after one step: whatever a program does
    with `.grad` afterwards, that is the gradient which its update has used.
    """
    record = StepRecord(losses=losses, before=before)
    record.after = named_parameters(generator, discriminator)
    for letter, network, optimizer in zip(
        "GD", (generator, discriminator), optimizers, strict=True
    ):
        for name, parameter in network.named_parameters():
            moment = optimizer.state[parameter]["exp_avg"]
            record.gradients[f"{letter}.{name}"] = moment / (1 - BETAS[0])
        for name, buffer in network.named_buffers():
            record.buffers[f"{letter}.{name}"] = buffer.detach().clone()
    return record
