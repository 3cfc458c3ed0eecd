"""The adversarial losses as modules, and the twin of `torch.nn.BCELoss`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastgan import ops
from fastgan.objectives import objective_named


class DiscriminatorLoss(nn.Module):
    """The discriminator's loss on real and fake logits: one launch, gradients included.

    Args:
        objective: "non_saturating", "hinge", "wasserstein" ...: a key of
            `fastgan.objectives.OBJECTIVES`.
        real_label: the target of real samples, where the objective uses labels (below 1.0: label
            smoothing).
        fake_label: the target of fake samples, likewise.

    Raises:
        ValueError: if the objective is not known or has no use for these labels.
    """

    def __init__(
        self,
        objective: str = "non_saturating",
        real_label: float = 1.0,
        fake_label: float = 0.0,
    ) -> None:
        super().__init__()
        objective_named(objective, real_label=real_label, fake_label=fake_label)
        self.objective = objective
        self.real_label = real_label
        self.fake_label = fake_label

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss.

        Args:
            real_logits: what the discriminator says of real samples, of any shape.
            fake_logits: what it says of fakes, of any shape.

        Returns:
            (loss, real_mean, fake_mean), three scalars: the loss to differentiate, and the mean
            D(x) and D(G(z)) to log.
        """
        return ops.discriminator_loss(
            real_logits,
            fake_logits,
            objective=self.objective,
            real_label=self.real_label,
            fake_label=self.fake_label,
        )

    def extra_repr(self) -> str:
        """The settings, for repr."""
        return (
            f"objective={self.objective!r}, real_label={self.real_label}, "
            f"fake_label={self.fake_label}"
        )


class GeneratorLoss(nn.Module):
    """The generator's loss on the logits of its fakes: one launch, gradients included.

    Args:
        objective: a key of `fastgan.objectives.OBJECTIVES`.

    Raises:
        ValueError: if the objective is not known.
    """

    def __init__(self, objective: str = "non_saturating") -> None:
        super().__init__()
        objective_named(objective)
        self.objective = objective

    def forward(self, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss.

        Args:
            fake_logits: what the discriminator says of the fakes, of any shape.

        Returns:
            (loss, fake_mean), two scalars: the loss to differentiate, and the mean D(G(z)) to log.
        """
        return ops.generator_loss(fake_logits, objective=self.objective)

    def extra_repr(self) -> str:
        """The setting, for repr."""
        return f"objective={self.objective!r}"


class BCELoss(nn.BCELoss):
    """`torch.nn.BCELoss` on fastgan's operator: log clamped at -100, as torch does.

    A `weight` and reductions other than "mean" are torch's own affair and are handed to it.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            input: probabilities in [0, 1], of any shape.
            target: targets in [0, 1], of the same shape.

        Returns:
            A scalar, or a tensor of the input's shape for reduction="none".
        """
        if self.weight is not None or self.reduction != "mean":
            return F.binary_cross_entropy(
                input, target, weight=self.weight, reduction=self.reduction
            )
        return ops.binary_cross_entropy(input, target)
