"""Batch norm + activation on channels_last tensors: the launchers.

`forward_training`, `forward_inference` and `backward` are written beside their kernels; this file
is where callers find them, and lists the specializations that are shipped.
"""

from __future__ import annotations

from .batch_norm_act_backward import backward
from .batch_norm_act_forward import forward_inference, forward_training

__all__ = ["backward", "forward_inference", "forward_training"]
