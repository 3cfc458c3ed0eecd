"""The adversarial losses: mean loss, logged means and both gradients in one go.

    loss = mean real(D(x)) + mean fake(D(G(z)))        for the discriminator
    loss = mean generator(D(G(z)))                     for the generator

with the functions of `fastgan.objectives`. Gradients need no backward pass: d loss / d t is
derivative(t) / count, computed with the loss. `discriminator_loss` keeps it for autograd, whose
backward is one multiplication; `discriminator_loss_and_gradients` hands it out, for
`torch.autograd.backward((real, fake), gradients)`. While autograd records, backward is written in
differentiable torch functions: right to any order.

The sums are in float32 at least whatever the dtype of the logits, labels are scalars instead of
tensors of targets, and nothing waits for the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.objectives import OBJECTIVES, Objective, objective_named
from fastgan.ops import native_cpu, native_cuda
from fastgan.ops.implementations import (
    Choice,
    Implementation,
    always,
    cached_choice,
    choice_when_transformed,
    implementation_named,
    transformed,
    triton_prefers,
    triton_supports,
)
from fastgan.ops.library import register


class Call(NamedTuple):
    """The static properties of a call."""

    device: torch.device
    dtypes: tuple[torch.dtype, ...]


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _score(objective: Objective, logits: Tensor) -> Tensor:
    logits = logits.detach()
    return (torch.sigmoid(logits) if objective.score == "sigmoid" else logits).mean()


# ------------------------------------------------------------------ implementations


def _reference_discriminator(real_logits, fake_logits, objective, real_label, fake_label):
    functions = OBJECTIVES[objective]
    real, fake = _wide(real_logits), _wide(fake_logits)
    return (
        functions.real(real, real_label).mean() + functions.fake(fake, fake_label).mean(),
        _score(functions, real),
        _score(functions, fake),
        (functions.real_derivative(real, real_label) / real.numel()).to(real_logits.dtype),
        (functions.fake_derivative(fake, fake_label) / fake.numel()).to(fake_logits.dtype),
    )


def _reference_generator(fake_logits, objective):
    functions = OBJECTIVES[objective]
    fake = _wide(fake_logits)
    return (
        functions.generator(fake).mean(),
        _score(functions, fake),
        (functions.generator_derivative(fake) / fake.numel()).to(fake_logits.dtype),
    )


def _triton_discriminator(real_logits, fake_logits, objective, real_label, fake_label):
    from fastgan.kernels import adversarial_loss as kernels

    return kernels.discriminator(
        real_logits,
        fake_logits,
        objective=objective,
        real_label=real_label,
        fake_label=fake_label,
    )


def _triton_generator(fake_logits, objective):
    from fastgan.kernels import adversarial_loss as kernels

    return kernels.generator(fake_logits, objective=objective)


def _triton_supports(call: Call) -> str | None:
    for dtype in call.dtypes:
        reason = triton_supports(call.device, dtype)
        if reason is not None:
            return reason
    return None


IMPLEMENTATIONS = (
    native_cuda.ADVERSARIAL_LOSS,
    native_cpu.ADVERSARIAL_LOSS,
    Implementation(
        "triton",
        _triton_supports,
        lambda call: triton_prefers(call.device),
        {"discriminator": _triton_discriminator, "generator": _triton_generator},
    ),
    Implementation(
        "reference",
        always,
        always,
        {"discriminator": _reference_discriminator, "generator": _reference_generator},
    ),
)


# -------------------------------------------------------- operators of torch.ops.fastgan


def _run_discriminator(real_logits, fake_logits, objective, real_label, fake_label, implementation):
    run = implementation_named(IMPLEMENTATIONS, implementation).run["discriminator"]
    return run(
        real_logits.contiguous(), fake_logits.contiguous(), objective, real_label, fake_label
    )


def _fake_discriminator(
    real_logits, fake_logits, objective, real_label, fake_label, implementation
):
    gradients = [
        torch.empty_like(logits, memory_format=torch.contiguous_format)
        for logits in (real_logits, fake_logits)
    ]
    return (*(_wide(real_logits.new_empty(())) for _ in range(3)), *gradients)


def _run_generator(fake_logits, objective, implementation):
    run = implementation_named(IMPLEMENTATIONS, implementation).run["generator"]
    return run(fake_logits.contiguous(), objective)


def _fake_generator(fake_logits, objective, implementation):
    gradient = torch.empty_like(fake_logits, memory_format=torch.contiguous_format)
    return *(_wide(fake_logits.new_empty(())) for _ in range(2)), gradient


discriminator_operator = register(
    "discriminator_loss(Tensor real_logits, Tensor fake_logits, str objective, float real_label, "
    "float fake_label, str implementation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_discriminator,
    _fake_discriminator,
)
generator_operator = register(
    "generator_loss(Tensor fake_logits, str objective, str implementation) "
    "-> (Tensor, Tensor, Tensor)",
    _run_generator,
    _fake_generator,
)


# ------------------------------------------------------------------------- autograd


class DiscriminatorLoss(torch.autograd.Function):
    """The discriminator's operator with its derivative."""

    @staticmethod
    def forward(
        ctx: Any, real_logits, fake_logits, objective, real_label, fake_label, implementation
    ):
        loss, real_mean, fake_mean, *gradients = discriminator_operator(
            real_logits, fake_logits, objective, real_label, fake_label, implementation
        )
        ctx.save_for_backward(real_logits, fake_logits, *gradients)
        ctx.settings = (objective, real_label, fake_label)
        ctx.mark_non_differentiable(real_mean, fake_mean)
        return loss, real_mean, fake_mean

    @staticmethod
    def backward(ctx: Any, grad_loss, grad_real_mean, grad_fake_mean):
        real_logits, fake_logits, grad_real, grad_fake = ctx.saved_tensors
        if torch.is_grad_enabled():
            *_, grad_real, grad_fake = _reference_discriminator(
                real_logits, fake_logits, *ctx.settings
            )
        return (
            _scaled(grad_real, grad_loss) if ctx.needs_input_grad[0] else None,
            _scaled(grad_fake, grad_loss) if ctx.needs_input_grad[1] else None,
            *(None,) * 4,
        )


class GeneratorLoss(torch.autograd.Function):
    """The generator's operator with its derivative."""

    @staticmethod
    def forward(ctx: Any, fake_logits, objective, implementation):
        loss, fake_mean, gradient = generator_operator(fake_logits, objective, implementation)
        ctx.save_for_backward(fake_logits, gradient)
        ctx.objective = objective
        ctx.mark_non_differentiable(fake_mean)
        return loss, fake_mean

    @staticmethod
    def backward(ctx: Any, grad_loss, grad_fake_mean):
        fake_logits, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():
            gradient = _reference_generator(fake_logits, ctx.objective)[2]
        return _scaled(gradient, grad_loss), None, None


def _scaled(gradient: Tensor, grad_loss: Tensor) -> Tensor:
    return (gradient * grad_loss).to(gradient.dtype)


# ----------------------------------------------------------------- public functions


def discriminator_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    objective: str = "non_saturating",
    real_label: float = 1.0,
    fake_label: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the discriminator's loss.

    Args:
        real_logits, fake_logits: what D says of real and of generated images, any shapes and
            floating dtypes; probabilities for the objective "bce".
        objective: a key of `fastgan.objectives.OBJECTIVES`.
        real_label, fake_label: the targets, for objectives that have targets (label smoothing).

    Returns:
        (loss, mean D(x), mean D(G(z))): scalars of float32 (float64 for float64 logits). Only the
        loss is differentiable. The means are of sigmoid(logits) where that is a probability.

    Raises:
        ValueError: the objective is not known, or has no targets to smooth.
        BackendError: the backend insisted on cannot serve the call.
    """
    functions = objective_named(objective, real_label=real_label, fake_label=fake_label)
    implementation = choice(real_logits, fake_logits).chosen
    if implementation == "reference":
        real, fake = _wide(real_logits), _wide(fake_logits)
        loss = functions.real(real, real_label).mean() + functions.fake(fake, fake_label).mean()
        return loss, _score(functions, real), _score(functions, fake)
    return DiscriminatorLoss.apply(
        real_logits, fake_logits, objective, real_label, fake_label, implementation
    )


def generator_loss(fake_logits: Tensor, objective: str = "non_saturating") -> tuple[Tensor, Tensor]:
    """Compute the generator's loss.

    Args:
        fake_logits: what D says of generated images, any shape; probabilities for "bce".
        objective: a key of `fastgan.objectives.OBJECTIVES`.

    Returns:
        (loss, mean D(G(z))), as in `discriminator_loss`.
    """
    functions = objective_named(objective)
    implementation = choice(fake_logits).chosen
    if implementation == "reference":
        fake = _wide(fake_logits)
        return functions.generator(fake).mean(), _score(functions, fake)
    return GeneratorLoss.apply(fake_logits, objective, implementation)


@torch.no_grad()
def discriminator_loss_and_gradients(
    real_logits: Tensor,
    fake_logits: Tensor,
    objective: str = "non_saturating",
    real_label: float = 1.0,
    fake_label: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the discriminator's loss and its gradients, without a graph.

    Returns:
        (loss, mean D(x), mean D(G(z)), gradient at real_logits, gradient at fake_logits): go on
        with `torch.autograd.backward((real_logits, fake_logits), gradients)`.
    """
    objective_named(objective, real_label=real_label, fake_label=fake_label)
    implementation = choice(real_logits, fake_logits).chosen
    if implementation == "reference":
        return _reference_discriminator(real_logits, fake_logits, objective, real_label, fake_label)
    return discriminator_operator(
        real_logits, fake_logits, objective, real_label, fake_label, implementation
    )


@torch.no_grad()
def generator_loss_and_gradient(
    fake_logits: Tensor, objective: str = "non_saturating"
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the generator's loss and its gradient, without a graph.

    Returns:
        (loss, mean D(G(z)), gradient at fake_logits).
    """
    objective_named(objective)
    implementation = choice(fake_logits).chosen
    if implementation == "reference":
        return _reference_generator(fake_logits, objective)
    return generator_operator(fake_logits, objective, implementation)


def choice(*logits: Tensor, **arguments: Any) -> Choice:
    """Return what would serve the loss of these logits."""
    if transformed():
        return choice_when_transformed("adversarial_loss", IMPLEMENTATIONS)
    properties = (logits[0].device, tuple([tensor.dtype for tensor in logits]))
    return cached_choice("adversarial_loss", IMPLEMENTATIONS, properties, Call._make)
