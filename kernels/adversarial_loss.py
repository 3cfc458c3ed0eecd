"""The adversarial losses: one launch makes the losses, their gradients and the logged means.

The logits of a GAN are few, and everything about them is known at once: the mean loss, its
derivative at every logit, and the mean scores D(x) and D(G(z)). A single program computes all of
it in float32 and in a fixed order, so that a step spends one launch here instead of a dozen, and
backward none.

The objectives are those of `fastgan.objectives`, whose module documentation gives their sources;
`SCORES` lists them. Each is a branch of `_cost` that the compiler resolves.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from fastgan.kernels.activation import sigmoid
from fastgan.kernels.compilation import KernelVariant

# How the logged score of an output is made: the probability of being real, or the output itself.
SCORES: dict[str, str] = {
    "bce": "identity",
    "minimax": "sigmoid",
    "non_saturating": "sigmoid",
    "least_squares": "identity",
    "wasserstein": "identity",
    "hinge": "identity",
    "kl": "identity",
    "reverse_kl": "identity",
    "pearson_chi2": "identity",
    "squared_hellinger": "identity",
    "jensen_shannon": "sigmoid",
    "gan": "sigmoid",
}

BLOCK, NUM_WARPS = 1024, 8


@triton.jit
def _log1p(x):
    """log(1 + x) for x ≥ −1: the logarithm of the rounded sum, and what the rounding took."""
    total = 1.0 + x
    lost = x - (total - 1.0)
    return tl.log(total) + tl.where(total > 0, lost / tl.where(total > 0, total, 1.0), 0.0)


@triton.jit
def _expm1(x):
    """exp(x) − 1: its power series near 0, where the difference would cancel."""
    series = 1.0 + x / 8 * (1.0 + x / 9)
    series = 1.0 + x / 5 * (1.0 + x / 6 * (1.0 + x / 7 * series))
    series = x * (1.0 + x / 2 * (1.0 + x / 3 * (1.0 + x / 4 * series)))
    return tl.where(tl.abs(x) < 0.5, series, tl.exp(x) - 1.0)


@triton.jit
def _softplus(t):
    """log(1 + exp(t)), for any t."""
    return tl.where(t > 0, t, 0.0) + _log1p(tl.exp(-tl.abs(t)))


@triton.jit
def _cost(t, label, OBJECTIVE: tl.constexpr, ROLE: tl.constexpr):
    """What outputs of the discriminator cost, and the derivative of it.

    Args:
        t: outputs, float32.
        label: target of the objectives that have targets.
        OBJECTIVE: a name in `SCORES`.
        ROLE: "real" or "fake" (the discriminator's cost), or "generator".

    Returns:
        (cost, derivative), of t's shape.
    """
    one = tl.full(t.shape, 1.0, tl.float32)
    if OBJECTIVE == "bce":
        # torch clamps the logarithms at -100, and the derivative's denominator at 1e-12.
        positive = tl.log(t)
        negative = _log1p(-t)
        positive = tl.where(positive < -100.0, -100.0, positive)
        negative = tl.where(negative < -100.0, -100.0, negative)
        spread = t * (1.0 - t)
        spread = tl.where(spread < 1e-12, 1e-12, spread)
        return -label * positive - (1.0 - label) * negative, (t - label) / spread
    elif OBJECTIVE == "minimax" and ROLE == "generator":
        return -_softplus(t), -sigmoid(t)
    elif OBJECTIVE == "minimax" or OBJECTIVE == "non_saturating":
        return _softplus(-t) + (1.0 - label) * t, sigmoid(t) - label
    elif OBJECTIVE == "least_squares":
        return 0.5 * (t - label) * (t - label), t - label
    elif OBJECTIVE == "hinge" and ROLE != "generator":
        side: tl.constexpr = -1.0 if ROLE == "real" else 1.0
        margin = 1.0 + side * t
        return tl.where(margin <= 0, 0.0, margin), tl.where(margin > 0, side, 0.0)
    elif OBJECTIVE == "wasserstein" or OBJECTIVE == "hinge":
        if ROLE == "fake":
            return t, one
        else:
            return -t, -one
    elif ROLE == "real":
        # f-divergences: minus the output activation g_f(t).
        if OBJECTIVE == "reverse_kl":
            return tl.exp(-t), -tl.exp(-t)
        elif OBJECTIVE == "squared_hellinger":
            return _expm1(-t), -tl.exp(-t)
        elif OBJECTIVE == "jensen_shannon":
            return _softplus(-t) - 0.6931471805599453, -sigmoid(-t)
        elif OBJECTIVE == "gan":
            return _softplus(-t), -sigmoid(-t)
        else:
            return -t, -one
    else:
        # f-divergences: the conjugate f*(g_f(t)), which the generator wants large.
        sign: tl.constexpr = -1.0 if ROLE == "generator" else 1.0
        if OBJECTIVE == "kl":
            return sign * tl.exp(t - 1.0), sign * tl.exp(t - 1.0)
        elif OBJECTIVE == "reverse_kl":
            return sign * (t - 1.0), sign * one
        elif OBJECTIVE == "pearson_chi2":
            return sign * (0.25 * t * t + t), sign * (0.5 * t + 1.0)
        elif OBJECTIVE == "squared_hellinger":
            return sign * _expm1(t), sign * tl.exp(t)
        elif OBJECTIVE == "jensen_shannon":
            return sign * (_softplus(t) - 0.6931471805599453), sign * sigmoid(t)
        else:
            return sign * _softplus(t), sign * sigmoid(t)


@triton.jit
def _means(
    outputs,
    gradients,
    count,
    label,
    OBJECTIVE: tl.constexpr,
    ROLE: tl.constexpr,
    SCORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mean cost and mean score of all outputs; writes the gradient of the mean cost.

    outputs, gradients: [count]. Without outputs both means are 0/0 = NaN, as torch has it.
    """
    cost_sum = tl.zeros((BLOCK,), tl.float32)
    score_sum = tl.zeros((BLOCK,), tl.float32)
    share = 1.0 / tl.cast(count, tl.float32)
    for first in range(0, count, BLOCK):
        index = tl.cast(first, tl.int64) + tl.arange(0, BLOCK)
        inside = index < count
        t = tl.load(outputs + index, mask=inside, other=0.5).to(tl.float32)
        cost, derivative = _cost(t, label, OBJECTIVE, ROLE)
        cost_sum += tl.where(inside, cost, 0.0)
        if SCORE == "sigmoid":
            t = sigmoid(t)
        score_sum += tl.where(inside, t, 0.0)
        gradient = (derivative * share).to(gradients.dtype.element_ty)
        tl.store(gradients + index, gradient, mask=inside)
    return tl.sum(cost_sum, 0) * share, tl.sum(score_sum, 0) * share


@triton.jit
def discriminator_kernel(
    real_logits,
    fake_logits,
    grad_real,
    grad_fake,
    loss,
    real_mean,
    fake_mean,
    real_count,
    fake_count,
    real_label,
    fake_label,
    OBJECTIVE: tl.constexpr,
    SCORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The one program: walks the real outputs, then the fake ones, BLOCK at a time.

        real [real_count] ─► cost, derivative ─► grad_real, Σ ─┐
        fake [fake_count] ─► cost, derivative ─► grad_fake, Σ ─┴─► loss, real_mean, fake_mean

    Args:
        real_logits, fake_logits, grad_real, grad_fake: [real_count], [fake_count].
        loss, real_mean, fake_mean: one float32 each, written.
        real_label, fake_label: targets, float32.
        OBJECTIVE, SCORE: a name in `SCORES` and its value.
    """
    real_cost, real_score = _means(
        real_logits, grad_real, real_count, real_label, OBJECTIVE, "real", SCORE, BLOCK
    )
    fake_cost, fake_score = _means(
        fake_logits, grad_fake, fake_count, fake_label, OBJECTIVE, "fake", SCORE, BLOCK
    )
    tl.store(loss, real_cost + fake_cost)
    tl.store(real_mean, real_score)
    tl.store(fake_mean, fake_score)


def discriminator(
    real_logits: torch.Tensor,
    fake_logits: torch.Tensor,
    *,
    objective: str,
    real_label: float,
    fake_label: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The discriminator's loss: mean cost of the real outputs + mean cost of the fake ones.

    Args:
        real_logits, fake_logits: dense, any shape and floating dtype up to float32; probabilities
            where the objective works on them.
        objective: a name in `SCORES`.
        real_label, fake_label: targets of the objectives that have targets.

    Returns:
        (loss, mean D(x), mean D(G(z)), all float32 scalars; gradients of both logits, of their
        shapes, dtypes and strides).
    """
    grad_real, grad_fake = torch.empty_like(real_logits), torch.empty_like(fake_logits)
    loss, real_mean, fake_mean = (
        torch.empty((), dtype=torch.float32, device=real_logits.device) for _ in range(3)
    )
    with torch.cuda.device_of(real_logits):
        discriminator_kernel[(1,)](
            real_logits, fake_logits, grad_real, grad_fake, loss, real_mean, fake_mean,
            real_logits.numel(), fake_logits.numel(), float(real_label), float(fake_label),
            OBJECTIVE=objective, SCORE=SCORES[objective], BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
    return loss, real_mean, fake_mean, grad_real, grad_fake


@triton.jit
def generator_kernel(
    fake_logits,
    grad_fake,
    loss,
    fake_mean,
    fake_count,
    OBJECTIVE: tl.constexpr,
    SCORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The one program: walks the fake outputs, BLOCK at a time.

        fake [fake_count] ─► cost, derivative ─► grad_fake, Σ ─► loss, fake_mean

    Args:
        fake_logits, grad_fake: [fake_count].
        loss, fake_mean: one float32 each, written.
        OBJECTIVE, SCORE: a name in `SCORES` and its value.
    """
    # The generator wants its images taken for real: its target is 1.
    cost, score = _means(
        fake_logits, grad_fake, fake_count, 1.0, OBJECTIVE, "generator", SCORE, BLOCK
    )
    tl.store(loss, cost)
    tl.store(fake_mean, score)


def generator(
    fake_logits: torch.Tensor, *, objective: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The generator's loss: mean cost of the discriminator's outputs for generated images.

    Args:
        fake_logits: dense, any shape and floating dtype up to float32; probabilities where the
            objective works on them.
        objective: a name in `SCORES`.

    Returns:
        (loss, mean D(G(z)), float32 scalars; gradient of the logits, of their shape, dtype and
        strides).
    """
    grad_fake = torch.empty_like(fake_logits)
    loss, fake_mean = (
        torch.empty((), dtype=torch.float32, device=fake_logits.device) for _ in range(2)
    )
    with torch.cuda.device_of(fake_logits):
        generator_kernel[(1,)](
            fake_logits, grad_fake, loss, fake_mean, fake_logits.numel(),
            OBJECTIVE=objective, SCORE=SCORES[objective], BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
    return loss, fake_mean, grad_fake


def variants(architecture: str) -> Iterator[KernelVariant]:
    """Every objective, both roles, on bfloat16 logits; float32 differs in the loads alone."""
    scalars = {"loss": "*fp32", "fake_mean": "*fp32", "fake_count": "i32"}
    fake = {"fake_logits": "*bf16", "grad_fake": "*bf16"}
    real = {"real_logits": "*bf16", "grad_real": "*bf16", "real_mean": "*fp32"}
    real |= {"real_count": "i32", "real_label": "fp32", "fake_label": "fp32"}
    for objective, score in SCORES.items():
        for kernel, signature in (
            (generator_kernel, fake | scalars),
            (discriminator_kernel, fake | scalars | real),
        ):
            yield KernelVariant(
                kernel=kernel,
                name=f"adversarial_loss_{kernel.__name__}[bf16, {objective}]",
                signature=signature,
                constants={"OBJECTIVE": objective, "SCORE": score, "BLOCK": BLOCK},
                num_warps=NUM_WARPS,
                num_stages=2,
                architectures=(architecture,),
            )
