"""Training: one configuration, the step, and the loop that saves, samples and resumes.

`TrainConfig` names every setting; `Trainer(config, data)` trains. The step itself is in `step.py`
and reads like the algorithm; everything around it (run folder, checkpoints, progress) is here so
that it stays that way.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastgan.training.config import TrainConfig

if TYPE_CHECKING:
    from fastgan.training.run_folder import RunFolder
    from fastgan.training.trainer import Trainer

__all__ = ["RunFolder", "TrainConfig", "Trainer"]

# The rest needs torch; the command line's help needs only the configuration.
_exports = {"RunFolder": "fastgan.training.run_folder", "Trainer": "fastgan.training.trainer"}


def __getattr__(name: str) -> Any:
    if name in _exports:
        return getattr(importlib.import_module(_exports[name]), name)
    raise AttributeError(f"module 'fastgan.training' has no attribute {name!r}")
