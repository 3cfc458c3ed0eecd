"""Adversarial objectives as data: pairs of scalar functions and their derivatives.

An objective says what one output t of the discriminator costs: `real(t, label)` when t belongs to a
real image, `fake(t, label)` when it belongs to a generated one, and `generator(t)` when the
generator is the one to be taught. The mean of these over a batch is the loss; the losses of the
real and of the fake batch are added, not averaged. Every implementation (reference, Triton, CUDA,
CPU) takes its formulas from this table and is tested against it.

The derivatives stand beside the functions because the gradient of a mean is then known in the
forward pass: no graph, no backward launch.

Sources: minimax and non-saturating, Goodfellow et al. 2014; least squares with its labels a (fake),
b (real) and c (what the generator wants), Mao et al. 2017; Wasserstein, Arjovsky et al. 2017;
hinge, Lim and Ye 2017; the f-divergences with their output activations g_f and conjugates f*,
Nowozin et al. 2016 (f-GAN, tables 2 and 6): real(t) = -g_f(t), fake(t) = f*(g_f(t)) and
generator(t) = -f*(g_f(t)), written out so that no exponential is taken and undone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LabelledFunction = Callable[[Tensor, float], Tensor]
ScalarFunction = Callable[[Tensor], Tensor]

LOG_2 = math.log(2.0)
#: torch's binary_cross_entropy clamps the logarithms at -100 ...
LOG_FLOOR = -100.0
#: ... and the denominator p (1 - p) of the derivative at 1e-12.
PROBABILITY_EPSILON = 1e-12


@dataclass(frozen=True)
class Objective:
    """One adversarial objective.

    All functions are elementwise on a floating-point tensor of any shape. `label` is a float:
    the target that `real_label` or `fake_label` gives; objectives with `uses_labels` false have
    no targets and ignore it.
    """

    name: str
    #: "logit" (any real number) or "probability" (the discriminator ends in a sigmoid).
    operates_on: str
    #: True where labels other than 1 (real) and 0 (fake) mean something.
    uses_labels: bool
    #: How an output becomes the logged score D(x): "sigmoid" where sigmoid(t) is the probability
    #: that the image is real, "identity" where the output itself is what people log.
    score: str
    real: LabelledFunction
    real_derivative: LabelledFunction
    fake: LabelledFunction
    fake_derivative: LabelledFunction
    generator: ScalarFunction
    generator_derivative: ScalarFunction


def softplus(logit: Tensor) -> Tensor:
    """Return log(1 + exp(t)), exact to the dtype at any t (torch's own goes linear at 20)."""
    return -F.logsigmoid(-logit)


def cross_entropy(logit: Tensor, label: float) -> Tensor:
    """Return -label log(sigmoid(t)) - (1 - label) log(1 - sigmoid(t)), stable for any t."""
    target = torch.full_like(logit, label)
    return F.binary_cross_entropy_with_logits(logit, target, reduction="none")


def cross_entropy_derivative(logit: Tensor, label: float) -> Tensor:
    return torch.sigmoid(logit) - label


def probability_cross_entropy(probability: Tensor, label: float) -> Tensor:
    """Return torch's binary cross-entropy of a probability: logarithms clamped at -100.

    Labels outside [0, 1], which torch's own refuses and label smoothing up to 1.2 needs, take the
    same formula.
    """
    if not 0.0 <= label <= 1.0:
        positive = torch.log(probability).clamp(min=LOG_FLOOR)
        negative = torch.log1p(-probability).clamp(min=LOG_FLOOR)
        return -label * positive - (1.0 - label) * negative
    target = torch.full_like(probability, label)
    return F.binary_cross_entropy(probability, target, reduction="none")


def probability_cross_entropy_derivative(probability: Tensor, label: float) -> Tensor:
    """Return (p - label) / max(p (1 - p), 1e-12): torch's gradient, finite where p is 0 or 1."""
    spread = (probability * (1.0 - probability)).clamp(min=PROBABILITY_EPSILON)
    return (probability - label) / spread


def squared_error(output: Tensor, label: float) -> Tensor:
    return 0.5 * (output - label) ** 2


def squared_error_derivative(output: Tensor, label: float) -> Tensor:
    return output - label


def _step(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


_MINIMAX_DISCRIMINATOR = {
    "operates_on": "logit",
    "uses_labels": True,
    "score": "sigmoid",
    "real": cross_entropy,
    "real_derivative": cross_entropy_derivative,
    "fake": cross_entropy,
    "fake_derivative": cross_entropy_derivative,
}


def _divergence(
    name: str,
    *,
    activation: ScalarFunction,
    activation_derivative: ScalarFunction,
    conjugate: ScalarFunction,
    conjugate_derivative: ScalarFunction,
    score: str = "identity",
) -> Objective:
    """Make an f-GAN objective from g_f(t) and f*(g_f(t)), both as functions of t."""
    return Objective(
        name=name,
        operates_on="logit",
        uses_labels=False,
        score=score,
        real=lambda t, label: -activation(t),
        real_derivative=lambda t, label: -activation_derivative(t),
        fake=lambda t, label: conjugate(t),
        fake_derivative=lambda t, label: conjugate_derivative(t),
        generator=lambda t: -conjugate(t),
        generator_derivative=lambda t: -conjugate_derivative(t),
    )


_ALL = (
    Objective(
        name="bce",
        operates_on="probability",
        uses_labels=True,
        score="identity",
        real=probability_cross_entropy,
        real_derivative=probability_cross_entropy_derivative,
        fake=probability_cross_entropy,
        fake_derivative=probability_cross_entropy_derivative,
        generator=lambda p: probability_cross_entropy(p, 1.0),
        generator_derivative=lambda p: probability_cross_entropy_derivative(p, 1.0),
    ),
    Objective(
        name="minimax",
        generator=lambda t: -softplus(t),
        generator_derivative=lambda t: -torch.sigmoid(t),
        **_MINIMAX_DISCRIMINATOR,  # type: ignore[arg-type]
    ),
    Objective(
        name="non_saturating",
        generator=lambda t: cross_entropy(t, 1.0),
        generator_derivative=lambda t: cross_entropy_derivative(t, 1.0),
        **_MINIMAX_DISCRIMINATOR,  # type: ignore[arg-type]
    ),
    Objective(
        name="least_squares",
        operates_on="logit",
        uses_labels=True,
        score="identity",
        real=squared_error,
        real_derivative=squared_error_derivative,
        fake=squared_error,
        fake_derivative=squared_error_derivative,
        generator=lambda t: squared_error(t, 1.0),
        generator_derivative=lambda t: squared_error_derivative(t, 1.0),
    ),
    Objective(
        name="wasserstein",
        operates_on="logit",
        uses_labels=False,
        score="identity",
        real=lambda t, label: -t,
        real_derivative=lambda t, label: -torch.ones_like(t),
        fake=lambda t, label: t,
        fake_derivative=lambda t, label: torch.ones_like(t),
        generator=lambda t: -t,
        generator_derivative=lambda t: -torch.ones_like(t),
    ),
    Objective(
        name="hinge",
        operates_on="logit",
        uses_labels=False,
        score="identity",
        real=lambda t, label: torch.relu(1.0 - t),
        real_derivative=lambda t, label: -_step(1.0 - t),
        fake=lambda t, label: torch.relu(1.0 + t),
        fake_derivative=lambda t, label: _step(1.0 + t),
        generator=lambda t: -t,
        generator_derivative=lambda t: -torch.ones_like(t),
    ),
    _divergence(
        "kl",
        activation=lambda t: t,
        activation_derivative=torch.ones_like,
        conjugate=lambda t: torch.exp(t - 1.0),
        conjugate_derivative=lambda t: torch.exp(t - 1.0),
    ),
    _divergence(
        "reverse_kl",
        activation=lambda t: -torch.exp(-t),
        activation_derivative=lambda t: torch.exp(-t),
        conjugate=lambda t: t - 1.0,
        conjugate_derivative=torch.ones_like,
    ),
    _divergence(
        "pearson_chi2",
        activation=lambda t: t,
        activation_derivative=torch.ones_like,
        conjugate=lambda t: 0.25 * t * t + t,
        conjugate_derivative=lambda t: 0.5 * t + 1.0,
    ),
    _divergence(
        "squared_hellinger",
        activation=lambda t: -torch.expm1(-t),
        activation_derivative=lambda t: torch.exp(-t),
        conjugate=torch.expm1,
        conjugate_derivative=torch.exp,
    ),
    _divergence(
        "jensen_shannon",
        activation=lambda t: LOG_2 - softplus(-t),
        activation_derivative=lambda t: torch.sigmoid(-t),
        conjugate=lambda t: softplus(t) - LOG_2,
        conjugate_derivative=torch.sigmoid,
        score="sigmoid",
    ),
    _divergence(
        "gan",
        activation=lambda t: -softplus(-t),
        activation_derivative=lambda t: torch.sigmoid(-t),
        conjugate=softplus,
        conjugate_derivative=torch.sigmoid,
        score="sigmoid",
    ),
)

OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in _ALL}


def objective_named(name: str, *, real_label: float = 1.0, fake_label: float = 0.0) -> Objective:
    """Return the objective called `name`, checking that it can use the labels.

    Raises:
        ValueError: `name` is not in `OBJECTIVES`, or the labels are not 1 and 0 although the
            objective has no targets to smooth.
    """
    objective = OBJECTIVES.get(name)
    if objective is None:
        raise ValueError(f"objective={name!r} is not known; allowed: {', '.join(OBJECTIVES)}")
    if not objective.uses_labels and (real_label != 1.0 or fake_label != 0.0):
        raise ValueError(
            f"objective={name!r} has no targets: real_label={real_label} and "
            f"fake_label={fake_label} must stay 1.0 and 0.0"
        )
    return objective
