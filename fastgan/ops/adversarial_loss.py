"""The adversarial losses: mean loss, logged means and both logit gradients at once."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.objectives import Objective, objective_named


def _score(objective: Objective, logits: Tensor) -> Tensor:
    logits = logits.detach()
    return (torch.sigmoid(logits) if objective.score == "sigmoid" else logits).mean()


def _widened(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def discriminator_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    objective: str = "non_saturating",
    real_label: float = 1.0,
    fake_label: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, mean D(x), mean D(G(z)))."""
    functions = objective_named(objective, real_label=real_label, fake_label=fake_label)
    real, fake = _widened(real_logits), _widened(fake_logits)
    loss = functions.real(real, real_label).mean() + functions.fake(fake, fake_label).mean()
    return loss, _score(functions, real), _score(functions, fake)


def generator_loss(fake_logits: Tensor, objective: str = "non_saturating") -> tuple[Tensor, Tensor]:
    """Return (loss, mean D(G(z)))."""
    functions = objective_named(objective)
    fake = _widened(fake_logits)
    return functions.generator(fake).mean(), _score(functions, fake)
