"""What would serve a call, and why nothing faster does; nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastgan.ops.adversarial_loss import choice as adversarial_loss_choice
from fastgan.ops.batch_norm_act import choice as batch_norm_act_choice
from fastgan.ops.bias_act import choice as bias_act_choice
from fastgan.ops.binary_cross_entropy import choice as binary_cross_entropy_choice
from fastgan.ops.convolution_plan import conv2d_choice, conv_transpose2d_choice
from fastgan.ops.implementations import Choice

_CHOICES: dict[str, Callable[..., Choice]] = {
    "conv2d": conv2d_choice,
    "conv_transpose2d": conv_transpose2d_choice,
    "batch_norm_act": batch_norm_act_choice,
    "bias_act": bias_act_choice,
    "discriminator_loss": adversarial_loss_choice,
    "generator_loss": adversarial_loss_choice,
    "binary_cross_entropy": binary_cross_entropy_choice,
}


def explain_call(operator: str | Callable[..., Any], *arguments: Any, **keywords: Any) -> Choice:
    """Return which implementation would serve `operator(*arguments, **keywords)` just now.

    Args:
        operator: a function of `fastgan.ops`, or its name.
        arguments, keywords: what it would be called with; only devices, dtypes, shapes, layouts
            and whether autograd records them are read, so fake tensors will do.

    Returns:
        The implementation chosen, and (name, reason) of those passed over.

    Raises:
        ValueError: no such operator.
        BackendError: the backend insisted on cannot serve the call.
    """
    name = operator if isinstance(operator, str) else operator.__name__
    if name not in _CHOICES:
        raise ValueError(f"operator={name!r} is not known; allowed: {', '.join(_CHOICES)}")
    return _CHOICES[name](*arguments, **keywords)
