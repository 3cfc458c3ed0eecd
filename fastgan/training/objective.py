"""The adversarial losses as the step uses them: means over a batch of D's logits.

The formulas are those of `fastgan.objectives`. "bce", the default, is the PyTorch example's:
cross-entropy of probabilities, with logarithms clamped at -100 (`binary_cross_entropy_with_logits`,
which is "non_saturating", has no clamp).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastgan import ops
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
        return self.objective.real(self._output(logits), self.real_label).mean()

    def fake(self, logits: Tensor) -> Tensor:
        """D's loss on generated images."""
        return self.objective.fake(self._output(logits), self.fake_label).mean()

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """D's loss on both, in one launch where a kernel serves it."""
        outputs = self._output(real_logits), self._output(fake_logits)
        name, labels = self.objective.name, (self.real_label, self.fake_label)
        return ops.discriminator_loss(*outputs, name, *labels)[0]

    def generator(self, logits: Tensor) -> Tensor:
        """G's loss on generated images, which it wants to be taken for real (label 1)."""
        return ops.generator_loss(self._output(logits), self.objective.name)[0]

    def score(self, logits: Tensor) -> Tensor:
        """Mean of D(x) or D(G(z)) as people log it: a probability where there is one."""
        logits = logits.detach()
        probable = self.objective.operates_on == "probability" or self.objective.score == "sigmoid"
        return (logits.sigmoid() if probable else logits).mean()

    def _output(self, logits: Tensor) -> Tensor:
        if self.objective.operates_on == "logit":
            return logits
        # torch refuses NaN here, and on a GPU ends the process. The scores keep it, and stop a run.
        return logits.sigmoid().nan_to_num(nan=0.5)
