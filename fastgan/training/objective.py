"""The adversarial losses as the step uses them: means over a batch of D's logits.

The formulas are those of `fastgan.objectives`. "bce", the default, is the PyTorch example's and is
computed by the function that the example uses: cross-entropy of probabilities, with logarithms
clamped at -100 (`binary_cross_entropy_with_logits`, which is "non_saturating", has no clamp).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import ConfigError
from fastgan.objectives import Objective, objective_named
from fastgan.training.config import TrainConfig


@dataclass(frozen=True)
class AdversarialLoss:
    """Losses of float32 logits [N], each the mean over the batch."""

    objective: Objective
    real_label: float = 1.0
    fake_label: float = 0.0

    @classmethod
    def of(cls, config: TrainConfig) -> AdversarialLoss:
        """The objective and labels of a configuration; `ConfigError` where they do not fit."""
        labels = {"real_label": config.real_label, "fake_label": config.fake_label}
        try:
            return cls(objective_named(config.objective, **labels), **labels)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def real(self, logits: Tensor) -> Tensor:
        """D's loss on real images."""
        if self.objective.name == "bce":
            return _binary_cross_entropy(logits, self.real_label)
        return self.objective.real(self._output(logits), self.real_label).mean()

    def fake(self, logits: Tensor) -> Tensor:
        """D's loss on generated images."""
        if self.objective.name == "bce":
            return _binary_cross_entropy(logits, self.fake_label)
        return self.objective.fake(self._output(logits), self.fake_label).mean()

    def generator(self, logits: Tensor) -> Tensor:
        """G's loss on generated images, which it wants to be taken for real (label 1)."""
        if self.objective.name == "bce":
            return _binary_cross_entropy(logits, 1.0)
        return self.objective.generator(self._output(logits)).mean()

    def score(self, logits: Tensor) -> Tensor:
        """Mean of D(x) or D(G(z)) as people log it: a probability where there is one."""
        output = self._output(logits)
        return (output.sigmoid() if self.objective.score == "sigmoid" else output).mean()

    def _output(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.objective.operates_on == "probability" else logits


def _binary_cross_entropy(logits: Tensor, label: float) -> Tensor:
    # torch refuses NaN here, and on a GPU ends the process. The scores keep it: they stop the run.
    probabilities = logits.sigmoid().nan_to_num(nan=0.5)
    return F.binary_cross_entropy(probabilities, torch.full_like(probabilities, label))
