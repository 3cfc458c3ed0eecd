"""The correctness gate of a whole training step: one step, compared with float64.

A provider makes one step from given weights, images and latents. Checked are its losses, the
gradient that each parameter's update used, the update itself and the running statistics.

Adam's first update is the gradient's sign times the learning rate, so D after its update differs
by whole units wherever a gradient is near zero. The float64 reference of G's half therefore takes
D's parameters as the provider left them: every provider is compared with what it should have
computed from there, and no chaos is mistaken for an error.

Tolerances. An activation with a kink (ReLU, LeakyReLU) flips its derivative where rounding moves a
value across zero. Of normal values with relative error δ, a share of 0.8·δ at most flips, which
changes the gradient by √(0.8·δ) of its norm. Rounding errors of successive layers add like √l, so
after n kinks the bound is √(0.8·δ·(√1 + … + √n)); rounding is spread evenly below its own bound,
which makes 0.6 of the 0.8. δ is the arithmetic's epsilon + √K · float32's, K the longest sum of a
forward pass. Values that pass no kink backwards (losses, running statistics) are allowed 4·δ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.baselines import LEARNING_RATE, StepRecord, Workload, named_parameters
from bench.gate import SAFETY, TF32_EPS, Verdict, tf32_allowed

ADAM_EPS = 1e-8


class ExactStep:
    """The recipe's step in float64 on a workload's images; G's forward pass is made once."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        generator, discriminator = workload.networks()
        self.before = named_parameters(generator, discriminator)
        self.generator, self.discriminator = generator.double(), discriminator.double()
        self.fake = self.generator(workload.latents().double())
        self.record = StepRecord(before=self.before)
        loss = self._loss(workload.images().double(), 1.0) + self._loss(self.fake.detach(), 0.0)
        weights = dict(self.discriminator.named_parameters())
        gradients = torch.autograd.grad(loss, list(weights.values()))
        self.record.losses["discriminator loss"] = loss.detach()
        self.record.gradients.update(
            {f"D.{name}": gradient for name, gradient in zip(weights, gradients, strict=True)}
        )
        self._statistics = {
            name: buffer.clone() for name, buffer in self.discriminator.named_buffers()
        }

    def following(self, after: dict[str, Tensor]) -> StepRecord:
        """The whole exact record, where D's update has left the parameters `after`."""
        with torch.no_grad():
            for name, buffer in self.discriminator.named_buffers():
                buffer.copy_(self._statistics[name])
            for name, parameter in self.discriminator.named_parameters():
                parameter.copy_(after[f"D.{name}"])
        loss = self._loss(self.fake, 1.0)
        weights = dict(self.generator.named_parameters())
        gradients = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
        record = StepRecord(before=self.before, losses=dict(self.record.losses))
        record.losses["generator loss"] = loss.detach()
        record.gradients = dict(self.record.gradients) | {
            f"G.{name}": gradient for name, gradient in zip(weights, gradients, strict=True)
        }
        record.buffers = {
            f"{letter}.{name}": buffer.detach().clone()
            for letter, network in (("G", self.generator), ("D", self.discriminator))
            for name, buffer in network.named_buffers()
        }
        return record

    def _loss(self, images: Tensor, label: float) -> Tensor:
        scores = self.discriminator(images)
        return F.binary_cross_entropy(scores, torch.full_like(scores, label))


def judge_step(exact: ExactStep, record: StepRecord, precision: str) -> Verdict:
    """Whether a provider's first step is right; the verdict speaks of the worst value.

    Args:
        exact: the float64 step of the same workload.
        record: what the provider's step left behind.
        precision: "fp32" or "bf16", the arithmetic of the provider.
    """
    workload = exact.workload
    reference = exact.following(record.after)
    delta = _delta(workload, precision)
    kinks = _kinks(exact)
    worst = Verdict(True, 0.0, SAFETY * delta, "")
    for name, error, allowed in (
        *(
            (f"the {name}", _relative(record.losses[name], value), SAFETY * delta)
            for name, value in reference.losses.items()
        ),
        *(
            (
                f"the gradient of {name}",
                _relative(record.gradients[name], value),
                math.sqrt(0.6 * delta * kinks[name[0]]),
            )
            for name, value in reference.gradients.items()
        ),
        *(
            (f"the update of {name}", _update_error(record, name), 1.0)
            for name in reference.gradients
        ),
        *(
            (f"the buffer {name}", _relative(record.buffers[name], value), SAFETY * delta)
            for name, value in reference.buffers.items()
        ),
    ):
        if not error / allowed <= worst.error / worst.tolerance:
            worst = Verdict(error <= allowed, error, allowed, name)
    return worst


def _delta(workload: Workload, precision: str) -> float:
    single = torch.finfo(torch.float32).eps
    longest = 16 * 8 * workload.width
    rounding = torch.finfo(torch.bfloat16).eps if precision == "bf16" else single
    if precision == "fp32" and tf32_allowed(workload.device, torch.float32):
        rounding = TF32_EPS
    return rounding + math.sqrt(longest) * single


def _kinks(exact: ExactStep) -> dict[str, float]:
    """√1 + … + √n by network, n the kinks between its first layer and the loss."""
    count = {
        letter: sum(type(module).__name__ in ("ReLU", "LeakyReLU") for module in network.modules())
        for letter, network in (("G", exact.generator), ("D", exact.discriminator))
    }
    return {
        letter: sum(math.sqrt(layer) for layer in range(1, kinks + 1))
        for letter, kinks in (("D", count["D"]), ("G", count["G"] + count["D"]))
    }


def _relative(value: Tensor, exact: Tensor) -> float:
    """‖value − exact‖ / ‖exact‖; infinite for a NaN or a wrong shape; counters must be equal."""
    value, exact = value.detach().double(), exact.detach().double().to(value.device)
    if value.shape != exact.shape:
        return math.inf
    error = ((value - exact).norm() / exact.norm().clamp_min(1e-30)).item()
    return error if math.isfinite(error) else math.inf


def _update_error(record: StepRecord, name: str) -> float:
    """The update's largest deviation from Adam's formula, in units of what rounding allows.

    Adam's first step from the gradient that its own moment tells: lr · g / (|g| + ε).
    """
    gradient = record.gradients[name].double()
    before, after = record.before[name].double(), record.after[name].double()
    expected = before - LEARNING_RATE * gradient / (gradient.abs() + ADAM_EPS)
    single = torch.finfo(torch.float32).eps
    # The parameter's own rounding, and that of an update of one learning rate at most, whose
    # ε makes it sensitive where a gradient is as small as ε.
    allowed = SAFETY * single * (before.abs() + LEARNING_RATE) + 1e-3 * LEARNING_RATE
    error = ((after - expected).abs() / allowed).max().item()
    return error if math.isfinite(error) else math.inf
